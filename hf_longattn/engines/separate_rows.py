"""Rows of global tokens as one operation for compiled graphs, which cannot hold a number of tokens that depends on the data."""

from __future__ import annotations

import torch
from torch import Tensor

from .dense import dense_attention
from .global_rows import gather_tokens, global_index, put_rows


@torch.library.custom_op("hf_longattn::separate_rows", mutates_args=())
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


@torch.library.custom_op("hf_longattn::separate_rows_backward", mutates_args=())
def separate_rows_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, global_mask: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of :func:`separate_rows`: the few rows are computed again."""
    with torch.enable_grad():
        inputs = [x.detach().requires_grad_() for x in (q, k, v)]
        rows = _rows(inputs[0], inputs[1], inputs[2], key_mask, global_mask, causal, scale)
    gradients = torch.autograd.grad(rows, inputs, grad, allow_unused=True)
    dq, dk, dv = (torch.zeros_like(x) if g is None else g.contiguous() for g, x in zip(gradients, (q, k, v), strict=True))
    return dq.contiguous(), dk.contiguous(), dv.contiguous()


@separate_rows_backward.register_fake
def _(grad, q, k, v, key_mask, global_mask, causal, scale):  # type: ignore[no-untyped-def]
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    q, k, v, key_mask, global_mask, *ctx.settings = inputs
    ctx.save_for_backward(q, k, v, key_mask, global_mask)


def _backward(ctx, grad):  # type: ignore[no-untyped-def]
    return (*separate_rows_backward(grad, *ctx.saved_tensors, *ctx.settings), None, None, None, None)


separate_rows.register_autograd(_backward, setup_context=_setup_context)
