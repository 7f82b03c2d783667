"""The selected engine: each query over its own list of keys. Scores, softmax and sums over N·k pairs, in memory N·k.

Three operations, each other's gradients, never hold more than a slice of the gathered keys:

    pair_scores(q, k, index)[i, j] = q_i · k[index_ij]
    pair_sum(w, v, index)[i]       = Σ_j w_ij v[index_ij]
    pair_spread(w, x, index)[m]    = Σ_{i, j: index_ij = m} w_ij x_i

For the few queries of a decoding step, :func:`gather_kv` reads the listed rows of a long cache and :func:`gathered_kv_attention` attends to
them.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ..naming import OPERATORS
from ..private_apis import aten, has_aten, warn_missing
from .call import AttentionCall, ScoreMod
from .dense import index_grid, masked_softmax

SLICE = 1 << 20
"""Most gathered numbers in memory at once where no fused operation gathers them."""


def selected_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    index: Tensor,
    call: AttentionCall,
) -> Tensor:
    """Softmax attention of every query over its own list of keys.

    Args:
        q: ``(B, H, Nq, D)``, the last Nq positions.
        k, v: ``(B, H, Nk, D)``.
        index: ``(B, H, Nq, K)`` int64, positions of keys, no duplicates per query; -1 is an empty slot.
    Returns:
        ``(B, H, Nq, D)`` in the dtype of q; zeros where every slot is empty.
    """
    batch, heads, q_len, head_dim = q.shape
    seen, places = index >= 0, index.clamp(min=0)
    scores = pair_scores(q, k, places) * call.scale_for(head_dim)
    if call.score_mod is not None:
        b = torch.arange(batch, device=q.device).view(-1, 1, 1, 1)
        h = torch.arange(heads, device=q.device).view(1, -1, 1, 1)
        i = torch.arange(k.shape[2] - q_len, k.shape[2], device=q.device).view(1, 1, -1, 1)
        scores = call.score_mod(scores, b, h, i, places)
    weights = F.dropout(masked_softmax(scores, seen), call.dropout)
    return pair_sum(weights, v, places).to(q.dtype)


@torch.library.custom_op(f"{OPERATORS}::pair_scores", mutates_args=())
def pair_scores(q: Tensor, k: Tensor, index: Tensor) -> Tensor:
    """q_i · k[index_ij]: ``(B, H, Nq, K)``, float32 at least."""
    out = q.new_empty(index.shape, dtype=_dtype(q))
    for queries, keys, places, into in _heads(q, k, index, out):
        if q.device.type == "cpu" and has_aten("pair_scores"):
            offsets, bags = _bags(places)
            weights = aten("pair_scores")(queries, keys, places.flatten(), offsets, bags, 0)
            into.copy_(weights.view(into.shape))
        else:
            if q.device.type == "cpu":
                warn_missing("pair_scores")
            for rows in _slices(places, keys):
                torch.matmul(keys[places[rows]], queries[rows, :, None], out=into[rows, :, None])
    return out


@torch.library.custom_op(f"{OPERATORS}::pair_sum", mutates_args=())
def pair_sum(weights: Tensor, v: Tensor, index: Tensor) -> Tensor:
    """Σ_j w_ij v[index_ij]: ``(B, H, Nq, D)``, float32 at least."""
    out = v.new_empty((*index.shape[:3], v.shape[3]), dtype=_dtype(v))
    for shares, values, places, into in _heads(weights, v, index, out):
        if v.device.type == "cpu":
            into.copy_(F.embedding_bag(places, values, mode="sum", per_sample_weights=shares))
        else:
            for rows in _slices(places, values):
                torch.matmul(shares[rows, None, :], values[places[rows]], out=into[rows, None, :])
    return out


@torch.library.custom_op(f"{OPERATORS}::pair_spread", mutates_args=())
def pair_spread(weights: Tensor, x: Tensor, index: Tensor, kv_len: int) -> Tensor:
    """Σ of w_ij x_i over the pairs with index_ij = m: ``(B, H, kv_len, D)``, float32 at least."""
    out = x.new_zeros((*index.shape[:2], kv_len, x.shape[3]), dtype=_dtype(x))
    for shares, rows_of_x, places, into in _heads(weights, x, index, out):
        for rows in _slices(places, rows_of_x):
            into.index_add_(0, places[rows].flatten(), (shares[rows, :, None] * rows_of_x[rows, None, :]).flatten(0, 1))
    return out


def _dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _heads(a: Tensor, b: Tensor, index: Tensor, out: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """The heads of all batch items one by one, the inputs in the dtype of ``out``."""
    for item in range(index.shape[0]):
        for head in range(index.shape[1]):
            first, second = (x[item, head].to(out.dtype).contiguous() for x in (a, b))
            yield first, second, index[item, head], out[item, head]


def _slices(places: Tensor, x: Tensor) -> Iterator[slice]:
    """Slices of rows whose gathered ``places (N, K)`` of ``x (·, D)`` stay within :data:`SLICE` numbers."""
    step = max(1, SLICE // (places.shape[1] * x.shape[1]))
    for row in range(0, places.shape[0], step):
        yield slice(row, row + step)


def _bags(places: Tensor) -> tuple[Tensor, Tensor]:
    """embedding_bag's layout of equal bags: their offsets, and the bag of every entry."""
    count, size = places.shape
    return torch.arange(0, count * size, size), torch.arange(count).repeat_interleave(size)


@pair_scores.register_fake
def _(q, k, index):  # type: ignore[no-untyped-def]
    return q.new_empty(index.shape, dtype=_dtype(q))


@pair_sum.register_fake
def _(weights, v, index):  # type: ignore[no-untyped-def]
    return v.new_empty((*index.shape[:3], v.shape[3]), dtype=_dtype(v))


@pair_spread.register_fake
def _(weights, x, index, kv_len):  # type: ignore[no-untyped-def]
    return x.new_empty((*index.shape[:2], kv_len, x.shape[3]), dtype=_dtype(x))


def _save(ctx, inputs, output):  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs[:3])


def _scores_backward(ctx, grad):  # type: ignore[no-untyped-def]
    q, k, index = ctx.saved_tensors
    return pair_sum(grad, k, index).to(q.dtype), pair_spread(grad, q, index, k.shape[2]).to(k.dtype), None


def _sum_backward(ctx, grad):  # type: ignore[no-untyped-def]
    weights, v, index = ctx.saved_tensors
    return pair_scores(grad, v, index).to(weights.dtype), pair_spread(weights, grad, index, v.shape[2]).to(v.dtype), None


def _spread_backward(ctx, grad):  # type: ignore[no-untyped-def]
    weights, x, index = ctx.saved_tensors
    return pair_scores(x, grad, index).to(weights.dtype), pair_sum(weights, grad, index).to(x.dtype), None, None


pair_scores.register_autograd(_scores_backward, setup_context=_save)


pair_sum.register_autograd(_sum_backward, setup_context=_save)


pair_spread.register_autograd(_spread_backward, setup_context=_save)


def gather_kv(x: Tensor, index: Tensor) -> Tensor:
    """Rows of a cache.

    Args:
        x: ``(B, H_kv, N, D)``; a view of a larger buffer is read in place.
        index: ``(B, H, …)`` int64, positions below N, with ``H_kv`` dividing ``H``: the heads of a group read the same head of x.
    Returns:
        ``(B, H, …, D)``.
    """
    batch, kv_heads, length, width = x.shape
    if x.stride(3) != 1 or any(size > 1 and step % width for size, step in zip(x.shape[:3], x.stride()[:3], strict=True)):
        x = x.contiguous()
    steps = [step // width if size > 1 else 0 for size, step in zip(x.shape[:3], x.stride()[:3], strict=True)]
    rows = 1 + sum((size - 1) * step for size, step in zip((batch, kv_heads, length), steps, strict=True))
    items = torch.arange(batch, device=x.device)[:, None] * steps[0]
    heads = torch.arange(index.shape[1], device=x.device) // (index.shape[1] // kv_heads) * steps[1]
    first = (items + heads).view(batch, index.shape[1], *[1] * (index.dim() - 2))
    return F.embedding(index * steps[2] + first, x.as_strided((rows, width), (width, 1)))


def term_at(score_mod: ScoreMod, columns: Tensor, kv_len: int) -> Tensor:
    """What ``score_mod`` adds to the scores of keys at ``columns (B, H, Nq, K)``, for the last Nq of ``kv_len`` positions."""
    batch, heads, q_len, _ = columns.shape
    b, h, q_idx, _ = index_grid(batch, heads, q_len, kv_len, columns.device)
    return score_mod(torch.zeros(columns.shape, device=columns.device), b, h, q_idx, columns)


def gathered_kv_attention(q: Tensor, keys: Tensor, values: Tensor, seen: Tensor, *, scaling: float | None = None) -> Tensor:
    """Softmax attention of every query over its own keys, ``(B, H, Nq, D)``; zeros where it sees none.

    Args:
        q: ``(B, H, Nq, D)``.
        keys, values: ``(B, H, Nq, K, D)``.
        seen: ``(B, H, Nq, K)`` bool, or a bias that is -inf where a key is not seen: the scores then have its dtype, if that is wider.
    """
    (batch, heads, q_len, width), dtype = q.shape, q.dtype
    if seen.is_floating_point():
        wider = torch.promote_types(dtype, seen.dtype)
        q, keys, values, seen = (x.to(wider) for x in (q, keys, values, seen))
    queries, mask = q.reshape(batch, heads * q_len, 1, width), seen.flatten(1, 2)[:, :, None]
    out = F.scaled_dot_product_attention(queries, keys.flatten(1, 2), values.flatten(1, 2), attn_mask=mask, scale=scaling)
    return out.view(batch, heads, q_len, values.shape[-1]).to(dtype)
