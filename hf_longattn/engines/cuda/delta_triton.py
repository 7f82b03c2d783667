"""The Triton kernels of the gated delta rule; ``delta_kernel.py`` calls them, and imports this module then."""

from __future__ import annotations

from .linear_triton import jit, tile, tl


@jit
def _running_gate(g, tokens, length):  # type: ignore[no-untyped-def]
    """The sums of g from the first of these tokens to each."""
    return tl.cumsum(tl.load(g + tokens, mask=tokens < length, other=0.0), 0)


@jit
def _decay(total, CHUNK: tl.constexpr):  # type: ignore[no-untyped-def]
    """exp(G_i - G_j) for j ≤ i, 0 elsewhere."""
    places = tl.arange(0, CHUNK)
    seen = places[:, None] >= places[None, :]
    return tl.where(seen, tl.exp(tl.where(seen, total[:, None] - total[None, :], 0.0)), 0.0)


@jit
def delta_updates(  # type: ignore[no-untyped-def]
    k, v, g, beta, updates, seen, length, features, width, heads, k_batch, k_head, k_row, v_batch, v_head, v_row,
    CHUNK: tl.constexpr, FEATURES: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """[U, W] of each chunk: the triangular system is inverted row by row."""
    chunk, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    places = tl.arange(0, CHUNK)
    tokens, rows, columns = chunk * CHUNK + places, tl.arange(0, FEATURES), tl.arange(0, WIDTH)
    keys = tile(k + row // heads * k_batch + row % heads * k_head, k_row, tokens, rows, length, features)
    values = tile(v + row // heads * v_batch + row % heads * v_head, v_row, tokens, columns, length, width)
    total = _running_gate(g + row * length, tokens, length)
    rate = tl.load(beta + row * length + tokens, mask=tokens < length, other=0.0)
    system = tl.dot(keys, tl.trans(keys), input_precision=PRECISION) * _decay(total, CHUNK) * rate[:, None]
    inverse = tl.where(places[:, None] > places[None, :], -system, 0.0)
    for i in range(1, CHUNK):
        line = tl.sum(tl.where(places[:, None] == i, inverse, 0.0), 0)
        line += tl.sum(line[:, None] * inverse, 0)
        inverse = tl.where(places[:, None] == i, line[None, :], inverse)
    inverse += tl.where(places[:, None] == places[None, :], 1.0, 0.0)
    inside = tokens[:, None] < length
    found = tl.dot(inverse, values * rate[:, None], input_precision=PRECISION)
    tl.store(updates + (row * length + tokens[:, None]) * width + columns[None, :], found, mask=inside & (columns[None, :] < width))
    found = tl.dot(inverse, keys * (rate * tl.exp(total))[:, None], input_precision=PRECISION)
    tl.store(seen + (row * length + tokens[:, None]) * features + rows[None, :], found, mask=inside & (rows[None, :] < features))


@jit
def delta_states(  # type: ignore[no-untyped-def]
    k, g, updates, seen, states, length, features, width, heads, count, k_batch, k_head, k_row,
    CHUNK: tl.constexpr, FEATURES: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The state before each chunk and after the last, one after the other from the first; U becomes U - W S, the values that enter."""
    block, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    rows, columns = tl.arange(0, FEATURES), block * WIDTH + tl.arange(0, WIDTH)
    k += row // heads * k_batch + row % heads * k_head
    updates += row * length * width
    seen += row * length * features
    states += row * (count + 1) * features * width
    state = tile(states, width, rows, columns, features, width)
    for chunk in range(0, count):
        tokens = chunk * CHUNK + tl.arange(0, CHUNK)
        total = _running_gate(g + row * length, tokens, length)
        last = tl.sum(tl.load(g + row * length + tokens, mask=tokens < length, other=0.0), 0)
        of_state = tile(seen, features, tokens, rows, length, features)
        entering = tile(updates, width, tokens, columns, length, width) - tl.dot(of_state, state, input_precision=PRECISION)
        held = (tokens[:, None] < length) & (columns[None, :] < width)
        tl.store(updates + tokens[:, None].to(tl.int64) * width + columns[None, :], entering, mask=held)
        keys = tile(k, k_row, tokens, rows, length, features)
        state *= tl.exp(last)
        state += tl.dot(tl.trans(keys), entering * tl.exp(last - total)[:, None], input_precision=PRECISION)
        inside = (rows[:, None] < features) & (columns[None, :] < width)
        states += features * width
        tl.store(states + rows[:, None] * width + columns[None, :], state, mask=inside)


@jit
def delta_outputs(  # type: ignore[no-untyped-def]
    q, k, g, updates, states, out, length, features, width, heads, count, q_batch, q_head, q_row, k_batch, k_head, k_row,
    CHUNK: tl.constexpr, FEATURES: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """exp(G) q S + tril(q kᵀ ⊙ Γ) (U - W S) of each chunk."""
    chunk, block, row = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    tokens = chunk * CHUNK + tl.arange(0, CHUNK)
    rows, columns = tl.arange(0, FEATURES), block * WIDTH + tl.arange(0, WIDTH)
    queries = tile(q + row // heads * q_batch + row % heads * q_head, q_row, tokens, rows, length, features)
    keys = tile(k + row // heads * k_batch + row % heads * k_head, k_row, tokens, rows, length, features)
    total = _running_gate(g + row * length, tokens, length)
    scores = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * _decay(total, CHUNK)
    entering = tile(updates + row * length * width, width, tokens, columns, length, width)
    found = tl.dot(scores, entering, input_precision=PRECISION)
    before = tile(states + (row * (count + 1) + chunk) * features * width, width, rows, columns, features, width)
    found += tl.dot(queries * tl.exp(total)[:, None], before, input_precision=PRECISION)
    inside = (tokens[:, None] < length) & (columns[None, :] < width)
    tl.store(out + (row * length + tokens[:, None]) * width + columns[None, :], found, mask=inside)
