"""The selected engine: deterministic search for each query's k best keys, and attention over them.

**Search.** Ties go to the lower index. A long row of scores is prefiltered in float32. Its k highest scores lie in the
k blocks with the highest maxima. So blocks of 32 are compared by their maxima first, then blocks of 8 inside the best.
Only the remaining scores are ranked. A float32 product q·k is off by at most γ·|q|·|k| with γ = (D + 2)·2⁻²⁴ (Higham
2002, Accuracy and Stability of Numerical Algorithms, §3.1). If the k-th and the next score are further apart than
twice this bound, the choice is as in exact arithmetic. Other rows are ranked again in float64. Without the prefilter,
``top_k`` takes 1.6-1.8 times as long for the forward pass and 1.2-1.5 times for forward and backward. On a GPU all
heads are searched together. The rows to rank again are counted once, at the end. This is the only wait for the device.

**Attention.** Scores, softmax and sums run over N·k pairs, in memory N·k. Three operations compute scores and sums.
They are each other's gradients and never hold more than a slice of the gathered keys:

    pair_scores(q, k, index)[i, j] = q_i · k[index_ij]
    pair_sum(w, v, index)[i]       = Σ_j w_ij v[index_ij]
    pair_spread(w, x, index)[m]    = Σ_{i, j: index_ij = m} w_ij x_i

The gathered engine with one query per tile row takes 3.6-4.2 times as long for the forward pass, 2.5-2.8 times for
forward and backward. (Both comparisons: 1,024 and 4,096 tokens, 64 keys per query, 4 heads of 64, one CPU thread.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import BackendError
from ..names import look_up, warn_missing
from . import accelerator
from .batch import in_graph, no_fused_kernels, without_autocast
from .call import AttentionCall
from .dense import at_least_fp32, grid_of, masked_softmax, repeat_heads
from .score_terms import ScoreMod

SCORE_CELLS = 1 << 19
"""Maximum scores per search step on a CPU. The results of a step then stay in the CPU cache."""
PREFILTER_WIDTHS = (32, 8)
"""Scores per block, in the first and the second round of the prefilter."""
MIN_PREFILTERED_KEYS = 1024
"""Minimum scores per row for a round of the prefilter."""
MAX_GATHERED_NUMBERS = 1 << 20
"""Maximum gathered numbers in memory at once, on a CPU without a fused gather operation."""
CAUSAL_STEPS = 4
"""Target steps of a causal search on an accelerator. A step scores no keys after its last query."""
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
        return index[..., :k].masked_fill(values[..., :k] == float("-inf"), -1)
    if in_graph() or accelerator.accelerated(scores):  # without reading values
        values, index = _stable(scores, k)
        return index.masked_fill(values == float("-inf"), -1)
    values, index = scores.topk(k + 1, dim=-1)
    if bool(((values[..., 1:] == values[..., :-1]) & values[..., 1:].isfinite()).any()):
        values, index = _stable(scores, k)
    return index[..., :k].masked_fill(values[..., :k] == float("-inf"), -1)


def ranking(scores: Tensor) -> Tensor:
    """Indices that sort ``scores (…, N)`` from highest to lowest. Ties go to the lower index."""
    return scores.argsort(dim=-1, descending=True, stable=True)


def _stable(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Values and indices of the k best if there are ties. All scores above the k-th value are taken, then the first
    equal to it."""
    length = scores.shape[-1]
    lowest = scores.topk(k, dim=-1).values[..., -1:]
    position = torch.arange(length, device=scores.device)
    order = torch.where(scores > lowest, position, position + length).masked_fill(scores < lowest, 2 * length)
    chosen = (order.topk(k, dim=-1, largest=False).values % length).sort(-1).values
    values, by_score = scores.gather(-1, chosen).sort(dim=-1, descending=True, stable=True)
    return values, chosen.gather(-1, by_score)


@torch.library.custom_op("hf_longattn::topk_keys", mutates_args=())
def topk_keys(q: Tensor, k: Tensor, key_mask: Tensor | None, count: int, causal: bool, scale: float) -> Tensor:
    """Positions of the ``count`` keys with the highest q·k, ``(B, H, Nq, count)`` int64, ascending, -1 where a query
    sees fewer.

    Args:
        q, k: ``(B, H, Nq, D)``, ``(B, H_kv, Nk, D)``; the queries are the last Nq positions.
        key_mask: ``(B, Nk)`` bool, True = real token.
    """
    # decoding would wait for the device at every step
    if float32_products(q) and not (q.shape[2] == 1 and accelerator.accelerated(q)):
        return prefiltered_topk_keys(q, k, key_mask, count, causal, scale)
    return search_keys(q, repeat_heads(k, q.shape[1]), key_mask, count, causal, scale, None).sort(-1).values


@torch.library.custom_op("hf_longattn::topk_blocks", mutates_args=())
def topk_blocks(q: Tensor, summaries: Tensor, selectable: Tensor, count: int, span: int, causal: bool) -> Tensor:
    """The ``count`` best blocks of every query, without its own block: ``(B, H, N, count)`` int64, -1 where there are
    fewer.

    Args:
        q: ``(B, H, N, D)``; query i is in block ``i // span``.
        summaries: ``(B, H, n, D)``, the score of a block is q·summary.
        selectable: ``(B, n)`` bool, blocks that may be selected.
        causal: select among the blocks before the query's.
    """

    def visible(scores: Tensor, item: int, heads: slice, i: Tensor, j: Tensor) -> Tensor:
        query_block = i // span
        hidden = (j >= query_block if causal else j == query_block) | ~selectable[item]
        return scores.masked_fill(hidden, float("-inf"))

    return _search(q, summaries, count, visible)


for _operator in (topk_keys, topk_blocks):
    _operator.register_fake(lambda q, k, mask, count, *_: q.new_empty((*q.shape[:3], count), dtype=torch.int64))


def search_keys(
    q: Tensor, k: Tensor, key_mask: Tensor | None, count: int, causal: bool, scale: float, score_mod: ScoreMod | None
) -> Tensor:
    """The keys of :func:`topk_keys`, best first, with a score term. N² scores are computed, for a few queries at a
    time."""
    offset = k.shape[2] - q.shape[2]

    def visible(scores: Tensor, item: int, heads: slice, i: Tensor, j: Tensor) -> Tensor:
        i, scores = i + offset, scores * scale
        if score_mod is not None:
            b = torch.full((1, 1, 1, 1), item, device=q.device)
            h = torch.arange(heads.start, heads.stop, device=q.device).view(1, -1, 1, 1)
            scores = score_mod(scores[None], b, h, i[None, None], j[None, None])[0].to(scores.dtype)
        if causal:
            scores = scores.masked_fill(j > i, float("-inf"))
        return scores if key_mask is None else scores.masked_fill(~key_mask[item, : j.shape[1]], float("-inf"))

    return _search(q, k, count, visible, offset if causal else None)


def prefiltered_topk_keys(
    q: Tensor, k: Tensor, key_mask: Tensor | None, count: int, causal: bool, scale: float
) -> Tensor:
    """The keys of :func:`topk_keys`, searched in float32. Queries whose result is in doubt are searched again in
    float64."""
    (batch, heads, length, _), kv_heads, group = q.shape, k.shape[1], q.shape[1] // k.shape[1]
    longest = torch.linalg.vector_norm(k, dim=-1, dtype=torch.float32).amax(-1)
    margins = product_margin(q, longest.repeat_interleave(group, 1), scale)
    with without_autocast(q):
        if accelerator.accelerated(q):
            return _prefiltered(q, k, key_mask, margins, count, causal, scale)
        index = q.new_full((batch, heads, length, count), -1, dtype=torch.int64)
        for item in range(batch):  # one key head at a time: its scores stay in the CPU cache
            row = slice(item, item + 1)
            for head in range(kv_heads):
                of_head, real = slice(head * group, (head + 1) * group), None if key_mask is None else key_mask[row]
                index[row, of_head] = _prefiltered(
                    q[row, of_head], k[row, head : head + 1], real, margins[row, of_head], count, causal, scale
                )
    return index


def _prefiltered(
    q: Tensor, k: Tensor, key_mask: Tensor | None, margins: Tensor, count: int, causal: bool, scale: float
) -> Tensor:
    """:func:`prefiltered_topk_keys` for batch items and heads that are scored at once."""
    (batch, heads, length, _), (kv_heads, kv_len) = q.shape, k.shape[1:3]
    offset, columns = kv_len - length, torch.arange(kv_len, device=q.device)

    def scored(queries: Tensor, keys: Tensor, positions: Tensor, seen: int) -> Tensor:
        """Scores ``(B, H, n, m)``, -inf where hidden.

        Args:
            queries: ``(B, H, n, D)``.
            positions: ``(B or 1, H or 1, n)``, their positions.
            seen: number of leading keys that every query may see under causality.
        """
        scores = (queries.unflatten(1, (kv_heads, -1)).flatten(2, 3) @ keys.mT).view(
            batch, heads, queries.shape[2], -1
        )
        if queries.dtype == torch.float64:
            scores.mul_(scale)
        if causal:
            scores[..., seen:].masked_fill_(columns[seen : keys.shape[2]] > positions[..., None], float("-inf"))
        return (
            scores
            if key_mask is None
            else scores.masked_fill_(~key_mask[:, None, None, : keys.shape[2]], float("-inf"))
        )

    def exactly(rows: Tensor) -> Tensor:
        queries = q.gather(2, rows[..., None].expand(-1, -1, -1, q.shape[3])).double()
        index = topk(scored(queries, k.double(), rows + offset, 0), count)
        return F.pad(index, (0, count - index.shape[3]), value=-1).sort(-1).values

    keys = k.float()
    chosen, doubtful = [], []
    step = max(1, accelerator.numbers_at_a_time(q, SCORE_CELLS) // (batch * heads * kv_len))
    step = min(step, max(1024, -(-length // CAUSAL_STEPS))) if causal else step
    for row in range(0, length, step):
        rows = slice(row, min(row + step, length))
        stop = offset + rows.stop if causal else kv_len
        scores = scored(
            q[:, :, rows].float() * scale, keys[:, :, :stop], columns[None, None, offset:][..., rows], offset + row
        )
        index, doubt = prefiltered_topk(scores.view(-1, stop), min(count, stop), margins[:, :, rows].reshape(-1, 1))
        chosen.append(F.pad(index, (0, count - index.shape[1]), value=-1).view(batch, heads, -1, count))
        doubtful.append(doubt.view(batch, heads, -1))
    return searched_again(torch.cat(chosen, 2), torch.cat(doubtful, 2), exactly, q, kv_len)


def searched_again(
    best: Tensor, in_doubt: Tensor, exactly: Callable[[Tensor], Tensor], q: Tensor, columns: int
) -> Tensor:
    """Search again for queries ``in_doubt (B, H', N)``, and update ``best (B, H', N, K)``. Only their number is read
    from the device.

    Args:
        exactly: function of ``rows (B, H', n)`` that searches for these queries in float64 and returns
            ``(B, H', n, K)``.
        q: the queries ``(B, H, N, D)``.
        columns: scores per query.
    """
    most = int(in_doubt.sum(2).max())
    if not most:
        return best
    order = in_doubt.to(torch.uint8).sort(dim=2, descending=True, stable=True).indices[:, :, :most]
    step = max(1, accelerator.numbers_at_a_time(q, SCORE_CELLS, 8) // (len(q) * q.shape[1] * columns))
    for rows in order.split(step, 2):
        index = exactly(rows)
        best = best.scatter(2, rows[..., None].expand(index.shape), index)
    return best


Finish = Callable[[Tensor, int, slice, Tensor, Tensor], Tensor]
"""``finish(products, item, heads, i, j)``: products ``(H', n, m)`` of an item's ``heads`` with scale and score term,
-inf where hidden.

Indices: ``i (n, 1)``, ``j (1, m)``."""


def _search(q: Tensor, k: Tensor, count: int, visible: Finish, diagonal: int | None = None) -> Tensor:
    """The ``count`` best columns of every row of ``q (B, H, N, D) @ kᵀ (B, H, M, D)``. Columns after
    ``row + diagonal`` are skipped."""
    (batch, heads, length, _), dtype = q.shape, exact_dtype(q.device)
    cells = accelerator.numbers_at_a_time(q, SCORE_CELLS, 8)
    # an accelerator searches all heads in one step: there is no CPU cache to fit
    shared = heads if accelerator.accelerated(q) else 1
    rows = min(length, max(1, cells // (k.shape[2] * shared)))
    together = max(1, min(heads, cells // (k.shape[2] * rows)))
    parts = []
    for item in range(batch):
        for first in range(0, heads, together):
            head_slice = slice(first, min(heads, first + together))
            keys = k[item, head_slice].to(dtype).transpose(-1, -2)
            steps = []
            for row in range(0, length, rows):
                queries = q[item, head_slice, row : row + rows].to(dtype)
                i = torch.arange(row, row + queries.shape[1], device=q.device)[:, None]
                stop = k.shape[2] if diagonal is None else row + queries.shape[1] + diagonal
                j = torch.arange(stop, device=q.device)[None]
                index = topk(visible(queries @ keys[..., :stop], item, head_slice, i, j), count)
                steps.append(F.pad(index, (0, count - index.shape[-1]), value=-1))
            parts.append(torch.cat(steps, 1))
    return torch.cat(parts).view(batch, heads, length, count)


def prefiltered_topk(scores: Tensor, k: int, margin: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of the k highest scores of every row, ascending.

    Args:
        scores: ``(R, N)`` float32, -inf where hidden; k ≤ N.
        margin: ``(R, 1)``, error bound of a score.
    Returns:
        Indices ``(R, k)`` int64, -1 where fewer than k are visible, and whether each row is in doubt, ``(R,)`` bool.
    """
    (rows, length), left, column = scores.shape, scores, None
    if k == length:
        index = torch.arange(k, device=scores.device).masked_fill(scores == float("-inf"), -1)
        return index.sort(-1).values, torch.zeros(rows, dtype=torch.bool, device=scores.device)
    for width in PREFILTER_WIDTHS:
        blocks = -(-left.shape[1] // width)
        if left.shape[1] < MIN_PREFILTERED_KEYS or blocks < 2 * (k + 1):
            continue
        missing = blocks * width - left.shape[1]
        left = (F.pad(left, (0, missing), value=float("-inf")) if missing else left).view(rows * blocks, width)
        best = left.amax(1).view(rows, blocks).topk(k + 1, sorted=False).indices
        first = torch.arange(rows, device=scores.device)[:, None] * blocks
        left = F.embedding(best + first, left).flatten(1)
        inside = (best[..., None] * width + torch.arange(width, device=scores.device)).flatten(1)
        column = inside if column is None else column.gather(1, inside)
    values, index = left.topk(k + 1)
    index = index[:, :k] if column is None else column.gather(1, index[:, :k])
    gap = values[:, k - 1] - values[:, k]
    doubtful = ~(gap > 2 * margin[:, 0]) & (values[:, k] != float("-inf"))
    return index.masked_fill(values[:, :k] == float("-inf"), -1).sort(-1).values, doubtful


def product_margin(q: Tensor, longest: Tensor, scale: float) -> Tensor:
    """Error bound of float32 scores ``scale · q·k``, for ``q (…, n, D)`` and key norms up to ``longest (…)``.

    Returns ``(…, n, 1)`` float32. The norms, the product and the factor are rounded as well, so D + 8 replaces D + 2.
    """
    rounding = (q.shape[-1] + 8) * torch.finfo(torch.float32).eps / 2
    length = torch.linalg.vector_norm(q, dim=-1, keepdim=True, dtype=torch.float32)
    return length * longest[..., None, None] * (abs(scale) * rounding) + torch.finfo(torch.float32).tiny


def float32_products(x: Tensor) -> bool:
    """Whether :func:`product_margin` bounds the error of float32 products of ``x``. True on CPU and CUDA, unless TF32
    or similar is on."""
    if x.dtype == torch.float64 or x.device.type not in ("cpu", "cuda"):
        return False
    try:
        exact = torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # raised if the user set the precision of a single backend
        return False
    return exact and (x.device.type == "cpu" or torch.backends.cuda.matmul.fp32_precision in ("none", "ieee"))


def selected_attention(q: Tensor, k: Tensor, v: Tensor, index: Tensor, call: AttentionCall) -> Tensor:
    """Softmax attention of every query over its own list of keys.

    Args:
        q: ``(B, H, Nq, D)``, the last Nq positions.
        k, v: ``(B, H, Nk, D)``.
        index: ``(B, H, Nq, K)`` int64, positions of keys, no duplicates per query; -1 is an empty slot.
    Returns:
        ``(B, H, Nq, D)`` in the dtype of q; zeros where every slot is empty.
    """
    seen, listed = index >= 0, index.clamp(min=0)
    fused = no_fused_kernels() is None
    products = (
        pair_scores(q, k, listed)
        if fused
        else (at_least_fp32(q)[..., None, :] * at_least_fp32(_rows_at(k, listed))).sum(-1)
    )
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
    out, products = q.new_empty(index.shape, dtype=_dtype(q)), _pair_products()
    for queries, keys, listed, into in _heads(q, k, index, out, k.shape[2]):
        if products is not None:
            # as in embedding_bag, a bag per query; the operator takes each bag's offset and each entry's bag
            count, size = listed.shape
            bags = torch.arange(count, device=q.device)
            # flatten: a view for one bag
            offsets, bags = bags * size, bags[:, None].expand(count, size).flatten().contiguous()
            weights = products(queries, keys, listed.flatten(), offsets, bags, 0)
            into.copy_(weights.view(into.shape))
        else:
            for rows in _slices(listed, keys):
                torch.matmul(keys[listed[rows]], queries[rows, :, None], out=into[rows, :, None])
    return out


def _pair_products() -> Callable[..., Tensor] | None:
    """PyTorch's operator for products of listed pairs; ``None``, with a warning, if this PyTorch has no such
    operator."""
    try:
        operator: Callable[..., Tensor] = look_up("pair_scores")
    except BackendError:
        warn_missing("pair_scores")
        return None
    return operator


@torch.library.custom_op("hf_longattn::pair_sum", mutates_args=())
def pair_sum(weights: Tensor, v: Tensor, index: Tensor) -> Tensor:
    """Σ_j w_ij v[index_ij]: ``(B, H, Nq, D)``, float32 at least."""
    out = v.new_empty((*index.shape[:3], v.shape[3]), dtype=_dtype(v))
    for shares, values, listed, into in _heads(weights, v, index, out, v.shape[2]):
        into.copy_(F.embedding_bag(listed, values, mode="sum", per_sample_weights=shares))
    return out


@torch.library.custom_op("hf_longattn::pair_spread", mutates_args=())
def pair_spread(weights: Tensor, x: Tensor, index: Tensor, kv_len: int) -> Tensor:
    """Σ of w_ij x_i over the pairs with index_ij = m: ``(B, H, kv_len, D)``, float32 at least."""
    out = x.new_zeros((*index.shape[:2], kv_len, x.shape[3]), dtype=_dtype(x))
    for shares, rows_of_x, listed, into in _heads(weights, x, index, out, kv_len):
        for rows in _slices(listed, rows_of_x):
            into.index_add_(
                0, listed[rows].flatten(), (shares[rows, :, None] * rows_of_x[rows, None, :]).flatten(0, 1)
            )
    return out


def _dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _heads(
    a: Tensor, b: Tensor, index: Tensor, out: Tensor, length: int
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Yield one head of one batch item at a time; on an accelerator, all at once. Casts a and b to the dtype of
    ``out``.

    length: tokens per head to which ``index`` refers.
    """
    if accelerator.accelerated(a):
        batch, heads = index.shape[:2]
        first = torch.arange(batch * heads, device=index.device).view(batch, heads, 1, 1) * length
        yield (
            a.to(out.dtype).flatten(0, 2),
            b.to(out.dtype).flatten(0, 2),
            (index + first).flatten(0, 2),
            out.flatten(0, 2),
        )
        return
    for item in range(index.shape[0]):
        for head in range(index.shape[1]):
            first, second = (x[item, head].to(out.dtype).contiguous() for x in (a, b))
            yield first, second, index[item, head], out[item, head]


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


pair_scores.register_fake(lambda q, k, index: q.new_empty(index.shape, dtype=_dtype(q)))
pair_sum.register_fake(lambda weights, v, index: v.new_empty((*index.shape[:3], v.shape[3]), dtype=_dtype(v)))
pair_spread.register_fake(
    lambda weights, x, index, kv_len: x.new_empty((*index.shape[:2], kv_len, x.shape[3]), dtype=_dtype(x))
)
pair_scores.register_autograd(_scores_backward, setup_context=_save)
pair_sum.register_autograd(_sum_backward, setup_context=_save)
pair_spread.register_autograd(_spread_backward, setup_context=_save)
