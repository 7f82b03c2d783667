"""The Triton kernels of causal linear attention, whatever the features; ``linear_kernel.py`` calls them, and imports this module then.

Triton is imported by name: in a file that is pushed with a model, transformers would require whatever an import statement names.
"""

from __future__ import annotations

import importlib
from typing import Any

try:
    jit: Any = importlib.import_module("triton").jit
    tl: Any = importlib.import_module("triton.language")
except ImportError:  # then nothing calls the kernels, but the module can be imported, as every module can
    jit, tl = (lambda function: function), None


@jit
def tile(matrix, stride, rows, columns, length, width):  # type: ignore[no-untyped-def]
    """Some rows and columns of a matrix in fp32, zeros outside of it."""
    inside = (rows[:, None] < length) & (columns[None, :] < width)
    return tl.load(matrix + rows[:, None].to(tl.int64) * stride + columns[None, :], mask=inside, other=0.0).to(tl.float32)


@jit
def _features(matrix, stride, rows, columns, length, width, scale, sign, top, EXP: tl.constexpr):  # type: ignore[no-untyped-def]
    """Some features of some rows: with EXP their exponentials, times or over those of ``scale``, and over those of ``top``."""
    if not EXP:
        return tile(matrix, stride, rows, columns, length, width)
    return tl.exp(_logarithms(matrix, stride, rows, columns, length, width, scale, sign) - top[:, None])


@jit
def _logarithms(matrix, stride, rows, columns, length, width, scale, sign):  # type: ignore[no-untyped-def]
    inside = (rows[:, None] < length) & (columns[None, :] < width)
    found = tl.load(matrix + rows[:, None].to(tl.int64) * stride + columns[None, :], mask=inside, other=float("-inf"))
    return found + sign * tl.load(scale + columns, mask=columns < width, other=0.0)[None, :]


@jit
def chunk_sums(  # type: ignore[no-untyped-def]
    k, v, scale, sums, weights, length, features, width, heads, k_group, v_group,
    k_batch, k_head, k_row, v_batch, v_head, v_row,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr, FEATURES: tl.constexpr, WIDTH: tl.constexpr,
    WEIGH: tl.constexpr, REVERSE: tl.constexpr, EXP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Σ k_jᵀ v_j over each chunk, a block of features and numbers of v at a time, and Σ k_j.

    Chunk c is written to place c + 1 of n + 1, or counted from the end with REVERSE, so that a running sum follows the places.
    """
    chunk, block, row = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    batch, head = (row // heads).to(tl.int64), (row % heads).to(tl.int64)
    blocks = tl.cdiv(width, WIDTH)
    rows = (block // blocks) * FEATURES + tl.arange(0, FEATURES)
    columns = (block % blocks) * WIDTH + tl.arange(0, WIDTH)
    k += batch * k_batch + head // k_group * k_head
    v += batch * v_batch + head // v_group * v_head
    scale += (row // heads * (heads // k_group) + head // k_group) * features
    none = tl.zeros([BLOCK], tl.float32)
    total = tl.zeros([FEATURES, WIDTH], tl.float32)
    weight = tl.zeros([FEATURES], tl.float32)
    for start in range(0, CHUNK, BLOCK):
        tokens = chunk * CHUNK + start + tl.arange(0, BLOCK)
        keys = _features(k, k_row, tokens, rows, length, features, scale, -1, none, EXP)
        total += tl.dot(tl.trans(keys), tile(v, v_row, tokens, columns, length, width), input_precision=PRECISION)
        weight += tl.sum(keys, 0)
    count = tl.num_programs(0)
    place = row.to(tl.int64) * (count + 1) + (count - chunk if REVERSE else chunk + 1)
    inside = (rows[:, None] < features) & (columns[None, :] < width)
    tl.store(sums + (place * features + rows[:, None]) * width + columns[None, :], total, mask=inside)
    if WEIGH:
        tl.store(weights + place * features + rows, weight, mask=(rows < features) & (block % blocks == 0))


@jit
def outputs(  # type: ignore[no-untyped-def]
    q, k, v, scale, sums, weights, out, out_weights, length, pitch, features, width, count, heads, q_group, k_group, v_group, sum_group,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr, FEATURES: tl.constexpr, WIDTH: tl.constexpr,
    WEIGH: tl.constexpr, NORMALISE: tl.constexpr, ADD: tl.constexpr, REVERSE: tl.constexpr, EXP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Σ_j (q_i·k_j) v_j over the tokens j up to i, or from i on with REVERSE; and with WEIGH Σ_j q_i·k_j, by which NORMALISE divides.

    With ADD both are added to what ``out`` and ``out_weights`` hold. With EXP the numbers of q and k are the features' logarithms, relative
    to ``scale`` and those of q to their row's largest.
    pitch: rows from one head of ``out`` to the next.
    sums, weights: of the chunks before each, as :func:`chunk_sums` places them and after their running sum.
    """
    block, value_block, row = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    batch, head = (row // heads).to(tl.int64), (row % heads).to(tl.int64)
    q += batch * q_batch + head // q_group * q_head
    k += batch * k_batch + head // k_group * k_head
    v += batch * v_batch + head // v_group * v_head
    rows = block * BLOCK + tl.arange(0, BLOCK)
    columns = value_block * WIDTH + tl.arange(0, WIDTH)
    chunk = block * BLOCK // CHUNK
    scale += (row // heads * (heads // k_group) + head // k_group) * features
    none = tl.zeros([BLOCK], tl.float32)
    top = none
    if EXP:
        top += float("-inf")
        for f in range(0, features, FEATURES):
            found = _logarithms(q, q_row, rows, f + tl.arange(0, FEATURES), length, features, scale, 1)
            top = tl.maximum(top, tl.max(found, 1))
        top = tl.where(top == float("-inf"), 0.0, top)
    total = tl.zeros([BLOCK, WIDTH], tl.float32)
    weight = tl.zeros([BLOCK], tl.float32)
    out += row.to(tl.int64) * pitch * width
    out_weights += row.to(tl.int64) * pitch
    first = block * BLOCK if REVERSE else chunk * CHUNK
    last = tl.minimum((chunk + 1) * CHUNK, length) if REVERSE else (block + 1) * BLOCK
    for start in range(first, last, BLOCK):
        tokens = start + tl.arange(0, BLOCK)
        scores = tl.zeros([BLOCK, BLOCK], tl.float32)
        for f in range(0, features, FEATURES):
            part = f + tl.arange(0, FEATURES)
            queries = _features(q, q_row, rows, part, length, features, scale, 1, top, EXP)
            keys = _features(k, k_row, tokens, part, length, features, scale, -1, none, EXP)
            scores += tl.dot(queries, tl.trans(keys), input_precision=PRECISION)
        seen = (rows[:, None] <= tokens[None, :]) if REVERSE else (rows[:, None] >= tokens[None, :])
        scores = tl.where(seen, scores, 0.0)
        weight += tl.sum(scores, 1)
        total += tl.dot(scores, tile(v, v_row, tokens, columns, length, width), input_precision=PRECISION)
    place = (row // heads * (heads // sum_group) + head // sum_group) * (count + 1) + (count - 1 - chunk if REVERSE else chunk)
    sums += place.to(tl.int64) * features * width
    weights += place.to(tl.int64) * features
    for f in range(0, features, FEATURES):
        part = f + tl.arange(0, FEATURES)
        queries = _features(q, q_row, rows, part, length, features, scale, 1, top, EXP)
        total += tl.dot(queries, tile(sums, width, part, columns, features, width), input_precision=PRECISION)
        if WEIGH:
            before = tl.load(weights + part, mask=part < features, other=0.0)
            weight += tl.sum(queries * before[None, :], 1)
    if NORMALISE:
        empty = tl.abs(weight) < 1.1754943508222875e-38
        total = tl.where(empty[:, None], 0.0, total / tl.where(empty, 1.0, weight)[:, None])
    inside = (rows[:, None] < length) & (columns[None, :] < width)
    weighed = (rows < length) & (value_block == 0)
    if ADD:
        total += tile(out, width, rows, columns, length, width)
        weight += tl.load(out_weights + rows, mask=weighed, other=0.0)
    tl.store(out + rows[:, None].to(tl.int64) * width + columns[None, :], total, mask=inside)
    if WEIGH:
        tl.store(out_weights + rows, weight, mask=weighed)
