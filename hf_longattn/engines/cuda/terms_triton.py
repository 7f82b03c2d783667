"""The Triton kernel of the softmax terms of a window; ``terms_kernel.py`` calls it, and imports this module then."""

from __future__ import annotations

from .linear_triton import jit, tile, tl


@jit
def softmax_terms(  # type: ignore[no-untyped-def]
    q, k, v, q_labels, k_labels, factor, out, weights, tops, length, kv_len, features, width, left, right, score_scale, heads, k_group,
    v_group, q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row,
    BLOCK: tl.constexpr, FEATURES: tl.constexpr, WIDTH: tl.constexpr, LABELLED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """γ Σ_j exp(s_ij - c_i) v_j, γ Σ_j exp(s_ij - c_i) and c_i, the largest score, of a block of queries; γ is the ``factor`` of the head.

    The queries are the last positions of the keys. LABELLED: a query sees the keys with its own label alone.
    """
    block, value_block, row = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    batch, head = (row // heads).to(tl.int64), (row % heads).to(tl.int64)
    q += batch * q_batch + head * q_head
    k += batch * k_batch + head // k_group * k_head
    v += batch * v_batch + head // v_group * v_head
    rows = block * BLOCK + tl.arange(0, BLOCK)
    columns = value_block * WIDTH + tl.arange(0, WIDTH)
    offset = kv_len - length
    places = rows + offset
    if LABELLED:
        wanted = tl.load(q_labels + batch * length + rows, mask=rows < length, other=-1)
    total = tl.zeros([BLOCK, WIDTH], tl.float32)
    weight = tl.zeros([BLOCK], tl.float32)
    top = tl.zeros([BLOCK], tl.float32) + float("-inf")
    first = tl.maximum(block * BLOCK + offset - left, 0)
    last = tl.minimum((block + 1) * BLOCK + offset + right, kv_len)
    for start in range(first, last, BLOCK):
        tokens = start + tl.arange(0, BLOCK)
        scores = tl.zeros([BLOCK, BLOCK], tl.float32)
        for f in range(0, features, FEATURES):
            part = f + tl.arange(0, FEATURES)
            queries, keys = tile(q, q_row, rows, part, length, features), tile(k, k_row, tokens, part, kv_len, features)
            scores += tl.dot(queries, tl.trans(keys), input_precision=PRECISION)
        seen = (places[:, None] <= tokens[None, :] + left) & (places[:, None] + right >= tokens[None, :]) & (tokens[None, :] < kv_len)
        if LABELLED:
            seen = seen & (wanted[:, None] == tl.load(k_labels + batch * kv_len + tokens, mask=tokens < kv_len, other=-1)[None, :])
        scores = tl.where(seen, scores * score_scale, float("-inf"))
        largest = tl.maximum(top, tl.max(scores, 1))
        finite = tl.where(largest == float("-inf"), 0.0, largest)
        terms, kept = tl.exp(scores - finite[:, None]), tl.exp(top - finite)
        weight = weight * kept + tl.sum(terms, 1)
        total = total * kept[:, None] + tl.dot(terms, tile(v, v_row, tokens, columns, kv_len, width), input_precision=PRECISION)
        top = largest
    share = tl.load(factor + head)
    inside = (rows[:, None] < length) & (columns[None, :] < width)
    at = row.to(tl.int64) * length + rows
    tl.store(out + at[:, None] * width + columns[None, :], total * share, mask=inside)
    once = (rows < length) & (value_block == 0)
    tl.store(weights + at, weight * share, mask=once)
    tl.store(tops + at, tl.where(top == float("-inf"), 0.0, top), mask=once)
