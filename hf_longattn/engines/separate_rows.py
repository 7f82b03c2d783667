"""Rows of global tokens as one operation for compiled graphs, which cannot hold a number of tokens that depends on the data."""

from __future__ import annotations

import torch
from torch import Tensor

from ..naming import OPERATORS
from .dense import dense_attention, masked_softmax
from .global_rows import gather_tokens, global_index, put_rows


@torch.library.custom_op(f"{OPERATORS}::separate_rows", mutates_args=())
def separate_rows(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, global_mask: Tensor, causal: bool, scale: float) -> Tensor:
    """Attention of the global tokens alone over all keys.

    Args:
        q, k, v: ``(B, H, N, D)``.
        key_mask: ``(B, N)`` bool, True = real token, or None.
        global_mask: ``(B, N)`` bool; none of them is padding.
    Returns:
        ``(B, H, N, D)`` with zeros in the other rows.
    """
    return _rows(q, k, v, key_mask, global_mask, causal, scale).contiguous()


def _rows(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, global_mask: Tensor, causal: bool, scale: float) -> Tensor:
    index, real = global_index(global_mask)
    if index.shape[1] == 0:
        return q * 0
    positions = index[:, None, :, None]
    rows = dense_attention(gather_tokens(q, index), k, v, causal=causal, key_mask=key_mask, scaling=scale, q_idx=positions)
    return put_rows(torch.zeros_like(q), rows, index, real)


@separate_rows.register_fake
def _(q, k, v, key_mask, global_mask, causal, scale):  # type: ignore[no-untyped-def]
    return torch.empty_like(q, memory_format=torch.contiguous_format)


@torch.library.custom_op(f"{OPERATORS}::separate_rows_backward", mutates_args=())
def separate_rows_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, global_mask: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of :func:`separate_rows`; the weights of the few rows are computed again."""
    index, real = global_index(global_mask)
    if index.shape[1] == 0:
        return torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    seen = None if key_mask is None else key_mask[:, None, None, :]
    if causal:
        earlier = torch.arange(k.shape[2], device=k.device) <= index[:, None, :, None]
        seen = earlier if seen is None else seen & earlier
    wide = torch.promote_types(q.dtype, torch.float32)
    queries, given = (gather_tokens(x, index).to(wide) for x in (q, grad))
    given = given * real[:, None, :, None]
    keys, values = k.to(wide), v.to(wide)
    weights = masked_softmax(queries @ keys.transpose(-1, -2) * scale, seen)
    inner = given @ values.transpose(-1, -2)
    scores = weights * (inner - (inner * weights).sum(-1, keepdim=True)) * scale
    dq = put_rows(torch.zeros_like(q), (scores @ keys).to(q.dtype), index, real).contiguous()
    return dq, (scores.transpose(-1, -2) @ queries).to(k.dtype), (weights.transpose(-1, -2) @ given).to(v.dtype)


@separate_rows_backward.register_fake
def _(grad, q, k, v, key_mask, global_mask, causal, scale):  # type: ignore[no-untyped-def]
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    q, k, v, key_mask, global_mask, *ctx.settings = inputs
    ctx.save_for_backward(q, k, v, key_mask, global_mask)


def _backward(ctx, grad):  # type: ignore[no-untyped-def]
    return (*separate_rows_backward(grad, *ctx.saved_tensors, *ctx.settings), None, None, None, None)


separate_rows.register_autograd(_backward, setup_context=_setup_context)
