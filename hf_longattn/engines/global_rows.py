"""Global tokens: a few tokens see every key and are seen by every query.

On a GPU, global tokens and a band are one call of a kernel (:mod:`hf_longattn.engines.cuda.flex`), or three.
Elsewhere, the outputs of global tokens are computed densely, and overwrite those of a sparse engine.

:func:`separate_rows` computes these outputs as one operator for compiled graphs, which cannot hold a data-dependent
number of tokens. A graph could compute all rows densely instead, but that takes 7 to 28 times as long (1,024 and 4,096
tokens, 8 of them global, 4 heads of 64, one CPU thread).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..names import look_up
from .batch import cached_on
from .call import AttentionCall
from .dense import at_least_fp32, both, dense_attention, masked_softmax, products

assume_in_graph = look_up("assume_in_graph", when_called=True)
"""Tells torch.export that a condition holds for every input."""


def global_index(mask: Tensor, most: int | None = None) -> tuple[Tensor, Tensor]:
    """The positions of the True entries of ``mask (B, N)``, ``(B, g)`` int64, padded at the end of each row, and which
    of these are not padding, ``(B, g)`` bool.

    most: g, a bound on the True entries in a row; by default the highest number in a row, read from the device.
    """
    count = mask.sum(-1)
    length = mask.shape[-1]
    if most is None:
        most = size_in_graph(count.max(), 0, length)
    elif most > length:
        most = length
    tokens_first = torch.where(mask, torch.arange(length, device=mask.device), length).sort(-1).values
    index = tokens_first[:, :most].clamp(max=length - 1)
    return index, torch.arange(index.shape[1], device=mask.device)[None] < count[:, None]


def index_of_globals(call: AttentionCall) -> tuple[Tensor, Tensor]:
    """:func:`global_index` of a call's global tokens, padding excluded.

    The result is cached for all layers of a forward pass, since finding the tokens waits for the device. With
    ``call.global_positions``, their number is known, so that nothing waits.
    """
    tokens, real = call.global_mask, call.key_mask
    assert tokens is not None
    most = None
    if call.global_positions is not None and not torch.compiler.is_exporting():
        most = len(call.global_positions)
    # The entry also holds ``real``, so that no later tensor can have its id.
    key = ("index of globals", id(real))
    _, index = cached_on(tokens, key, lambda: (real, global_index(both(real, tokens), most)))
    return index


def size_in_graph(size: Tensor, least: int, most: Any) -> Any:
    """``size`` as a Python number. An exported graph may assume that it lies between ``least`` and ``most``."""
    number: Any = size.item()
    if torch.compiler.is_exporting():
        assume_in_graph(number >= least)
        assume_in_graph(number <= most)
    return number


def gather_tokens(x: Tensor, index: Tensor) -> Tensor:
    """Tokens of ``x (B, H, N, D)`` at ``index (B, g)`` as ``(B, H, g, D)``."""
    return x.gather(2, index[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))


def softmax_part(scores: Tensor, seen: Tensor, values: Tensor, dropout: float) -> tuple[Tensor, Tensor]:
    """Attention to some of the keys: output ``(…, n, D)`` and log-sum-exp ``(…, n)``, for :func:`~.dense.merged`.

    Where a query sees none of the keys, the output is 0 and the log-sum-exp -inf.
    """
    scores = scores.masked_fill(~seen, float("-inf"))
    highest = scores.detach().amax(-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).min)
    weights = (scores - highest).exp()
    total = weights.sum(-1, keepdim=True)
    empty = total == 0
    total = total.masked_fill(empty, 1.0)
    out = F.dropout(weights / total, dropout).to(values.dtype) @ values
    return out, (highest + total.log()).masked_fill(empty, float("-inf"))[..., 0]


def overwrite_global_rows(
    out: Tensor, q: Tensor, k: Tensor, v: Tensor, index: Tensor, real: Tensor, call: AttentionCall
) -> Tensor:
    """``out (B, H, Nq, D)`` with full attention in the rows of the global tokens.

    Args:
        index: ``(B, g)``, the positions of the global tokens among the keys. Tokens before the first query, when
            decoding with a cache, have no row and are ignored.
        real: ``(B, g)`` bool, False for entries of ``index`` that are padding.
    """
    offset = k.shape[2] - q.shape[2]
    rows = (index - offset).clamp(min=0)
    row_out = dense_attention(gather_tokens(q, rows), k, v, call, q_idx=index[:, None, :, None])
    return put_rows(out, row_out, rows, real & (index >= offset))


def put_rows(out: Tensor, rows: Tensor, index: Tensor, real: Tensor) -> Tensor:
    """``out (B, H, N, D)`` with ``rows (B, H, g, D)`` at positions ``index (B, g)``, where ``real (B, g)`` is True."""
    # To need no branch on the data, other entries go to an extra row, which is cut off at the end.
    length = out.shape[2]
    index = torch.where(real, index, length)
    item = torch.arange(out.shape[0], device=out.device)[:, None]
    return (
        F.pad(out, (0, 0, 0, 1))
        .transpose(1, 2)
        .index_put((item, index), rows.transpose(1, 2))
        .transpose(1, 2)[:, :, :length]
    )


@torch.library.custom_op("hf_longattn::separate_rows", mutates_args=())
def separate_rows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_mask: Tensor | None,
    global_mask: Tensor,
    causal: bool,
    scale: float,
    dropout: float,
    seed: Tensor | None,
) -> Tensor:
    """Attention of the global tokens, and of no other queries, over all keys.

    Args:
        q, k, v: ``(B, H, N, D)``.
        key_mask: ``(B, N)`` bool, True = real token, or None.
        global_mask: ``(B, N)`` bool, False for padding.
        dropout, seed: dropout of the weights, drawn by a generator with this seed ``()`` int64; ``None`` without
            dropout.
    Returns:
        ``(B, H, N, D)`` with zeros for all other queries.
    """
    index, real = global_index(global_mask)
    out = q.new_zeros(q.shape)
    if index.shape[1] == 0:
        return out
    weights, share = _weights_of_rows(gather_tokens(q, index), k, key_mask, index, causal, scale, dropout, seed)
    return put_rows(out, ((weights * share) @ at_least_fp32(v)).to(q.dtype), index, real).contiguous()


def _weights_of_rows(
    queries: Tensor,
    k: Tensor,
    key_mask: Tensor | None,
    index: Tensor,
    causal: bool,
    scale: float,
    dropout: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor | float]:
    """Weights ``(B, H, g, N)`` of the queries at positions ``index (B, g)``, and the factors by which dropout
    multiplies the weights."""
    seen = None
    if key_mask is not None:
        seen = key_mask[:, None, None, :]
    if causal:
        seen = both(seen, torch.arange(k.shape[2], device=k.device) <= index[:, None, :, None])
    weights = masked_softmax(products(queries, k) * scale, seen)
    if seed is None:
        return weights, 1.0
    generator = torch.Generator(k.device).manual_seed(int(seed))
    drawn = torch.rand(weights.shape, generator=generator, device=k.device, dtype=weights.dtype)
    if dropout >= 1:
        return weights, 0.0
    return weights, (drawn >= dropout) / (1 - dropout)


@torch.library.custom_op("hf_longattn::separate_rows_backward", mutates_args=())
def separate_rows_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_mask: Tensor | None,
    global_mask: Tensor,
    causal: bool,
    scale: float,
    dropout: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v in :func:`separate_rows`. The weights of the few rows are computed again."""
    index, real = global_index(global_mask)
    if index.shape[1] == 0:
        return torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    queries, row_grad, keys, values = (
        at_least_fp32(x) for x in (gather_tokens(q, index), gather_tokens(grad, index), k, v)
    )
    row_grad = row_grad * real[:, None, :, None]
    weights, share = _weights_of_rows(queries, k, key_mask, index, causal, scale, dropout, seed)
    d_weights = row_grad @ values.transpose(-1, -2) * share
    d_scores = weights * (d_weights - (d_weights * weights).sum(-1, keepdim=True)) * scale
    d_q = put_rows(torch.zeros_like(q), (d_scores @ keys).to(q.dtype), index, real).contiguous()
    d_k = (d_scores.transpose(-1, -2) @ queries).to(k.dtype)
    d_v = ((weights * share).transpose(-1, -2) @ row_grad).to(v.dtype)
    return d_q, d_k, d_v


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    q, k, v, key_mask, global_mask, *ctx.settings, seed = inputs
    ctx.save_for_backward(q, k, v, key_mask, global_mask, seed)


def _backward(ctx, grad):  # type: ignore[no-untyped-def]
    *tensors, seed = ctx.saved_tensors
    return (*separate_rows_backward(grad, *tensors, *ctx.settings, seed), *[None] * 6)


separate_rows.register_fake(lambda q, *_: q.new_empty(q.shape))
separate_rows_backward.register_fake(lambda _grad, *tensors: tuple(x.new_empty(x.shape) for x in tensors[:3]))
separate_rows.register_autograd(_backward, setup_context=_setup_context)
