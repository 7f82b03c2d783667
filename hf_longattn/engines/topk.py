"""The selected engine: deterministic search for each query's k best keys, and attention over them.

**Search.** Scores are computed and ranked in float64, a few queries at a time. Ties go to the lower index.

**Attention.** Scores, softmax and sums run over N·k pairs, in memory N·k. Three operations compute scores and sums.
They are each other's gradients and never hold more than a slice of the gathered keys:

    pair_scores(q, k, index)[i, j] = q_i · k[index_ij]
    pair_sum(w, v, index)[i]       = Σ_j w_ij v[index_ij]
    pair_spread(w, x, index)[m]    = Σ_{i, j: index_ij = m} w_ij x_i

The gathered engine with one query per tile row takes 3.6-4.2 times as long for the forward pass, 2.5-2.8 times for
forward and backward. (1,024 and 4,096 tokens, 64 keys per query, 4 heads of 64, one CPU thread.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import BackendError
from ..names import look_up, warn_missing
from . import accelerator
from .batch import in_graph, no_fused_kernels
from .call import AttentionCall, precise_dtype
from .dense import at_least_fp32, grid_of, masked_softmax, repeat_heads
from .score_terms import ScoreMod

SCORE_CELLS = 1 << 19
"""Maximum scores per search step on a CPU. The results of a step then stay in the CPU cache."""
MAX_GATHERED_NUMBERS = 1 << 20
"""Maximum gathered numbers in memory at once, on a CPU without a fused gather operation."""
MAX_SORTED = 1024
"""Maximum scores per row that an accelerator sorts as a whole."""


def exact_dtype(device: torch.device) -> torch.dtype:
    """The dtype for scores that are ranked: float64 where the device has it.

    The shape of a batch, its padding and the number of queries in a call change the rounding of scores. This must not
    change the order of two close scores; in float64 it does not.
    """
    return torch.float32 if device.type == "mps" else torch.float64


def topk(scores: Tensor, k: int) -> Tensor:
    """Indices ``(…, min(k, N))`` of the k highest of ``scores (…, N)``, best first. The last are -1 if fewer than k
    scores exceed -inf.

    Ties go to the lower index, as in a stable sort.
    """
    length = scores.shape[-1]
    sorts_whole_rows = accelerator.accelerated(scores) and length <= MAX_SORTED
    if k >= length or sorts_whole_rows:
        values, index = scores.sort(dim=-1, descending=True, stable=True)
    elif in_graph() or accelerator.accelerated(scores):  # without reading values
        values, index = _stable(scores, k)
    else:
        # topk takes any of equal scores. One score more than k says whether the k-th has an equal, too.
        values, index = scores.topk(k + 1, dim=-1)
        if bool(((values[..., 1:] == values[..., :-1]) & values[..., 1:].isfinite()).any()):
            values, index = _stable(scores, k)
    return index[..., :k].masked_fill(values[..., :k] == float("-inf"), -1)


def ranking(scores: Tensor) -> Tensor:
    """Indices that sort ``scores (…, N)`` from highest to lowest. Ties go to the lower index."""
    return scores.argsort(dim=-1, descending=True, stable=True)


def _stable(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Values and indices of the k best if there are ties. It takes all scores above the k-th value, then the first
    ones equal to it."""
    length = scores.shape[-1]
    lowest = scores.topk(k, dim=-1).values[..., -1:]
    position = torch.arange(length, device=scores.device)
    # Lower is better: first the scores above the k-th value, then its equals, both by position, then all others.
    order = torch.where(scores > lowest, position, position + length).masked_fill(scores < lowest, 2 * length)
    chosen = (order.topk(k, dim=-1, largest=False).values % length).sort(-1).values
    values, by_score = scores.gather(-1, chosen).sort(dim=-1, descending=True, stable=True)
    return values, chosen.gather(-1, by_score)


@torch.library.custom_op("hf_longattn::topk_keys", mutates_args=())
def topk_keys(q: Tensor, k: Tensor, key_mask: Tensor | None, count: int, causal: bool, scale: float) -> Tensor:
    """Positions of the ``count`` keys with the highest q·k, ``(B, H, Nq, count)`` int64, ascending. If a query sees
    fewer keys, the first entries are -1.

    Args:
        q, k: ``(B, H, Nq, D)``, ``(B, H_kv, Nk, D)``; the queries are the last Nq positions.
        key_mask: ``(B, Nk)`` bool, True = real token.
    """
    return search_keys(q, repeat_heads(k, q.shape[1]), key_mask, count, causal, scale, None).sort(-1).values


@torch.library.custom_op("hf_longattn::topk_blocks", mutates_args=())
def topk_blocks(q: Tensor, summaries: Tensor, selectable: Tensor, count: int, span: int, causal: bool) -> Tensor:
    """The ``count`` blocks with the highest scores for every query, without its own block: ``(B, H, N, count)`` int64,
    best first, -1 where there are fewer.

    Args:
        q: ``(B, H, N, D)``; query i is in block ``i // span``.
        summaries: ``(B, H, n, D)``, one vector per block. The score of a block is q·summary.
        selectable: ``(B, n)`` bool, blocks that may be selected.
        causal: select among the blocks before the query's.
    """

    def finish(scores: Tensor, item: int, heads: slice, i: Tensor, j: Tensor) -> Tensor:
        query_block = i // span
        hidden = j >= query_block if causal else j == query_block
        return scores.masked_fill(hidden | ~selectable[item], float("-inf"))

    return _search(q, summaries, count, finish)


for _operator in (topk_keys, topk_blocks):
    _operator.register_fake(lambda q, k, mask, count, *_: q.new_empty((*q.shape[:3], count), dtype=torch.int64))


def search_keys(
    q: Tensor, k: Tensor, key_mask: Tensor | None, count: int, causal: bool, scale: float, score_mod: ScoreMod | None
) -> Tensor:
    """Like :func:`topk_keys`, but best first, and with a score term. Computes N² scores, for a few queries at a
    time."""
    offset = k.shape[2] - q.shape[2]

    def finish(scores: Tensor, item: int, heads: slice, i: Tensor, j: Tensor) -> Tensor:
        """The scores for some products, see :data:`Finish`."""
        i = i + offset
        scores = scores * scale
        if score_mod is not None:
            b = torch.full((1, 1, 1, 1), item, device=q.device)
            h = torch.arange(heads.start, heads.stop, device=q.device).view(1, -1, 1, 1)
            scores = score_mod(scores[None], b, h, i[None, None], j[None, None])[0].to(scores.dtype)
        if causal:
            scores = scores.masked_fill(j > i, float("-inf"))
        return scores if key_mask is None else scores.masked_fill(~key_mask[item, : j.shape[1]], float("-inf"))

    return _search(q, k, count, finish, offset if causal else None)


Finish = Callable[[Tensor, int, slice, Tensor, Tensor], Tensor]
"""``finish(products, item, heads, i, j)`` makes scores from products ``q kᵀ (H', n, m)``: it applies the scale and the
score term, and sets hidden pairs to -inf.

The products are of the ``heads`` of batch item ``item``, for the rows ``i (n, 1)`` and the columns ``j (1, m)``."""


def _search(q: Tensor, k: Tensor, count: int, finish: Finish, diagonal: int | None = None) -> Tensor:
    """The ``count`` best columns ``(B, H, N, count)`` of every row of ``q (B, H, N, D) @ kᵀ (B, H, M, D)``, by scores
    from ``finish``. Columns after ``row + diagonal`` are skipped."""
    batch, heads, length, _ = q.shape
    dtype = exact_dtype(q.device)
    # Rows and heads of a step: as many rows of one head as fit, then as many heads. An accelerator searches all heads
    # in one step, since there is no CPU cache to fit.
    cells = accelerator.numbers_at_a_time(q, SCORE_CELLS, 8)
    least_heads = heads if accelerator.accelerated(q) else 1
    step_rows = min(length, max(1, cells // (k.shape[2] * least_heads)))
    step_heads = max(1, min(heads, cells // (k.shape[2] * step_rows)))
    found = []
    for item in range(batch):
        for first in range(0, heads, step_heads):
            head_slice = slice(first, min(heads, first + step_heads))
            keys = k[item, head_slice].to(dtype).transpose(-1, -2)
            found_in_rows = []
            for row in range(0, length, step_rows):
                queries = q[item, head_slice, row : row + step_rows].to(dtype)
                i = torch.arange(row, row + queries.shape[1], device=q.device)[:, None]
                stop = k.shape[2] if diagonal is None else row + queries.shape[1] + diagonal
                j = torch.arange(stop, device=q.device)[None]
                index = topk(finish(queries @ keys[..., :stop], item, head_slice, i, j), count)
                found_in_rows.append(F.pad(index, (0, count - index.shape[-1]), value=-1))
            found.append(torch.cat(found_in_rows, 1))
    return torch.cat(found).view(batch, heads, length, count)


def selected_attention(q: Tensor, k: Tensor, v: Tensor, index: Tensor, call: AttentionCall) -> Tensor:
    """Softmax attention of every query over its own list of keys.

    Args:
        q: ``(B, H, Nq, D)``, the last Nq positions.
        k, v: ``(B, H, Nk, D)``.
        index: ``(B, H, Nq, K)`` int64, positions of keys, no duplicates per query; -1 is an empty slot.
    Returns:
        ``(B, H, Nq, D)`` in the dtype of q; zeros where every slot is empty.
    """
    seen = index >= 0
    listed = index.clamp(min=0)
    fused = no_fused_kernels() is None
    if fused:
        products = pair_scores(q, k, listed)
    else:
        products = (at_least_fp32(q)[..., None, :] * at_least_fp32(_rows_at(k, listed))).sum(-1)
    scores = products * call.scale_for(q.shape[-1])
    if call.score_mod is not None:
        b, h, i, _ = grid_of(q, k)
        scores = call.score_mod(scores, b, h, i, listed)
    weights = F.dropout(masked_softmax(scores, seen, call.sink_scores), call.dropout)
    out = pair_sum(weights, v, listed) if fused else (weights[..., None] * _rows_at(v, listed)).sum(-2)
    return out.to(q.dtype)


def _rows_at(x: Tensor, index: Tensor) -> Tensor:
    """Tokens of ``x (B, H, N, D)`` at ``index (B, H, Nq, K)``, ``(B, H, Nq, K, D)``."""
    listed = index.flatten(2)[..., None].expand(-1, -1, -1, x.shape[3])
    return x.gather(2, listed).unflatten(2, index.shape[2:])


@torch.library.custom_op("hf_longattn::pair_scores", mutates_args=())
def pair_scores(q: Tensor, k: Tensor, index: Tensor) -> Tensor:
    """q_i · k[index_ij]: ``(B, H, Nq, K)``, float32 at least."""
    out = q.new_empty(index.shape, dtype=precise_dtype(q))
    try:
        products = look_up("pair_scores")
    except BackendError:
        warn_missing("pair_scores")
        products = None
    for queries, keys, listed, into in _heads(q, k, index, out, k.shape[2]):
        if products is not None:
            # One bag per query, as in embedding_bag. The operator takes each bag's offset, and each entry's bag.
            count, size = listed.shape
            bags = torch.arange(count, device=q.device)
            offsets = bags * size
            # contiguous, since for one bag, flatten returns a view with stride 0
            bags = bags[:, None].expand(count, size).flatten().contiguous()
            weights = products(queries, keys, listed.flatten(), offsets, bags, 0)
            into.copy_(weights.view(into.shape))
        else:
            for rows in _slices(listed, keys):
                torch.matmul(keys[listed[rows]], queries[rows, :, None], out=into[rows, :, None])
    return out


@torch.library.custom_op("hf_longattn::pair_sum", mutates_args=())
def pair_sum(weights: Tensor, v: Tensor, index: Tensor) -> Tensor:
    """Σ_j w_ij v[index_ij]: ``(B, H, Nq, D)``, float32 at least."""
    out = v.new_empty((*index.shape[:3], v.shape[3]), dtype=precise_dtype(v))
    for shares, values, listed, into in _heads(weights, v, index, out, v.shape[2]):
        into.copy_(F.embedding_bag(listed, values, mode="sum", per_sample_weights=shares))
    return out


@torch.library.custom_op("hf_longattn::pair_spread", mutates_args=())
def pair_spread(weights: Tensor, x: Tensor, index: Tensor, kv_len: int) -> Tensor:
    """Σ of w_ij x_i over the pairs with index_ij = m: ``(B, H, kv_len, D)``, float32 at least."""
    out = x.new_zeros((*index.shape[:2], kv_len, x.shape[3]), dtype=precise_dtype(x))
    for shares, rows_of_x, listed, into in _heads(weights, x, index, out, kv_len):
        for rows in _slices(listed, rows_of_x):
            into.index_add_(
                0, listed[rows].flatten(), (shares[rows, :, None] * rows_of_x[rows, None, :]).flatten(0, 1)
            )
    return out


def _heads(a: Tensor, b: Tensor, index: Tensor, out: Tensor, length: int) -> Iterator[tuple[Tensor, ...]]:
    """Yield ``a``, ``b``, ``index`` and ``out`` without the axes of batch and heads: one head at a time, or on an
    accelerator, all heads as if they were one long head. Casts a and b to the dtype of ``out``.

    length: tokens of a head, to which ``index`` refers.
    """
    if accelerator.accelerated(a):
        batch, heads = index.shape[:2]
        first_token = torch.arange(batch * heads, device=index.device).view(batch, heads, 1, 1) * length
        yield tuple(x.flatten(0, 2) for x in (a.to(out.dtype), b.to(out.dtype), index + first_token, out))
        return
    for item in range(index.shape[0]):
        for head in range(index.shape[1]):
            a_head, b_head = (x[item, head].to(out.dtype).contiguous() for x in (a, b))
            yield a_head, b_head, index[item, head], out[item, head]


def _slices(listed: Tensor, x: Tensor) -> Iterator[slice]:
    """Slices of the rows of ``listed (N, K)``. Each gathers at most :data:`MAX_GATHERED_NUMBERS` numbers from
    ``x (·, D)`` on a CPU."""
    step = max(1, accelerator.numbers_at_a_time(x, MAX_GATHERED_NUMBERS) // (listed.shape[1] * x.shape[1]))
    for row in range(0, listed.shape[0], step):
        yield slice(row, row + step)


def _save(ctx, inputs, output):  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs[:3])


def _scores_backward(ctx, grad):  # type: ignore[no-untyped-def]
    q, k, index = ctx.saved_tensors
    return pair_sum(grad, k, index).to(q.dtype), pair_spread(grad, q, index, k.shape[2]).to(k.dtype), None


def _sum_backward(ctx, grad):  # type: ignore[no-untyped-def]
    weights, v, index = ctx.saved_tensors
    return (
        pair_scores(grad, v, index).to(weights.dtype),
        pair_spread(weights, grad, index, v.shape[2]).to(v.dtype),
        None,
    )


def _spread_backward(ctx, grad):  # type: ignore[no-untyped-def]
    weights, x, index = ctx.saved_tensors
    return pair_scores(x, grad, index).to(weights.dtype), pair_sum(weights, grad, index).to(x.dtype), None, None


pair_scores.register_fake(lambda q, k, index: q.new_empty(index.shape, dtype=precise_dtype(q)))
pair_sum.register_fake(lambda weights, v, index: v.new_empty((*index.shape[:3], v.shape[3]), dtype=precise_dtype(v)))
pair_spread.register_fake(
    lambda weights, x, index, kv_len: x.new_empty((*index.shape[:2], kv_len, x.shape[3]), dtype=precise_dtype(x))
)
pair_scores.register_autograd(_scores_backward, setup_context=_save)
pair_sum.register_autograd(_sum_backward, setup_context=_save)
pair_spread.register_autograd(_spread_backward, setup_context=_save)
