"""How the sequences of a batch become calls of a mechanism.

Mechanisms expect sequences that start at index 0. One of three layouts arranges a batch for them.
:func:`hf_longattn.functional.run_mechanism` chooses the layout:

- **split**: each sequence runs in a separate call, as a view without a mask. A padded batch then costs only its real
  tokens, and the output of a packed document is bitwise the same as without packing. This is mostly for the CPU;
- **unchanged**: one call runs on the rows as they are. Padded rows get a key mask. This is for short inputs, GPUs and
  graphs, if there is no left padding or only distances matter. The mechanism separates packed documents. On the CPU,
  documents are not copied, and outputs are bitwise the same as without packing. On a GPU, operations run on whole
  rows;
- **aligned**: one call runs on rows that all begin with a real token, and the output is moved back. Padded rows are
  rolled to the left (:func:`rolled`) by tensor operations alone, mostly for GPUs and graphs. Packed documents are
  gathered into the rows of a right-padded batch (:func:`stacked`), for mechanisms that draw or learn something once
  per call.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .batch import (
    Batch,
    SequenceSpan,
    cached_on,
    first_real,
    for_one_pass,
    in_graph,
    nothing_seen,
    roll_left,
    wrapped,
)
from .call import AttentionCall, AttentionFunction, State, clear_padding


def split(run: AttentionFunction, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
    """Call ``run`` for each sequence by itself, without its padding, and join the outputs to ``(B, H, Nq, D)``."""
    batch = call.batch
    assert batch is not None
    outs = []
    for _, queries, keys, values, sequence_call in _split_sequences(q, k, v, call, batch):
        out = queries
        if queries.shape[2]:  # a sequence may lie before the first query
            out = run(queries, keys, values, sequence_call)
        outs.append(out)
    if not outs:
        return nothing_seen(q, k, v)
    return batch.join(outs, len(q), q.shape[2], k.shape[2])


def aligned_documents(run: AttentionFunction, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
    """Call ``run`` once, with each packed document in its own row, and join the outputs to ``(B, H, Nq, D)``."""
    batch = call.batch
    assert batch is not None
    return batch.join(stacked(run, q, k, v, call, batch.sequences), len(q), q.shape[2], k.shape[2])


def cleared(run: AttentionFunction, cross: bool = False) -> AttentionFunction:
    """``run`` after :func:`clear_padding`."""
    return lambda q, k, v, call: run(*clear_padding(q, k, v, call, cross=cross))


def weights_per_sequence(
    run: Callable[[Tensor, Tensor, AttentionCall], Tensor], q: Tensor, k: Tensor, call: AttentionCall
) -> Tensor:
    """:func:`split` for a function that returns weights ``(B, H, Nq, Nk)``. Weights of padding keys and between
    documents are zeros. Weights of padding queries are meaningless. In a graph, padded rows are rolled instead."""
    batch = call.batch
    if batch is None:
        return run(q, k, call)
    if in_graph():
        assert batch.mask is not None
        start = first_real(batch.mask)
        # ``rolled`` moves the queries' axis back; the function rolls the keys' axis back itself.
        return rolled(lambda q, k, v, call: roll_left(run(q, k, call), -start, 3), *clear_padding(q, k, k, call))
    weights = q.new_zeros(*q.shape[:3], k.shape[2])
    missing = k.shape[2] - q.shape[2]  # keys before the first query
    for span, queries, keys, _, sequence_call in _split_sequences(q, k, k, call, batch):
        if queries.shape[2]:
            rows = slice(max(0, span.start - missing), span.stop - missing)
            weights[span.row : span.row + 1, :, rows, span.start : span.stop] = run(queries, keys, sequence_call)
    return weights


Advance = Callable[[Tensor, Tensor, Tensor, State | None, AttentionCall], tuple[Tensor, State]]
"""``run(q, k, v, state, call) -> (output, state)``: the output for the next tokens, and the state after them."""


def advanced(
    run: Advance,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: State | None,
    call: AttentionCall,
    skipped: Sequence[int],
) -> tuple[Tensor, State | None]:
    """Run a recurrent mechanism on the next tokens of a batch whose rows may begin at different tokens.

    Args:
        run: the mechanism, for rows that begin together.
        q, k, v: ``(B, H, n, D)`` and ``(B, H_kv, n, D)``.
        state: state of all rows, zeros for a row before its first token; ``None`` while no row has a token.
        skipped: for each row, how many of the n tokens are padding before its first token; empty if none are.
    Returns:
        The output ``(B, H, n, D)``, zeros for skipped padding, and the state; ``None`` while no row has a token.
    """
    if not any(skipped):
        return run(q, k, v, state, call)
    length = q.shape[2]
    first = torch.tensor(skipped, device=q.device)[:, None]
    batch = Batch(torch.arange(length, device=q.device) >= first)
    outs, states = [], {}
    for span, queries, keys, values, sequence_call in _split_sequences(q, k, v, call, batch):
        row = slice(span.row, span.row + 1)
        if call.key_mask is not None:
            sequence_call = sequence_call.replace(batch=Batch(call.key_mask[row, span.start :]))
        before = None
        if state is not None and span.start == 0:  # otherwise the row begins within these tokens
            before = {name: x[row] for name, x in state.items()}
        out, states[span.row] = run(queries, keys, values, before, sequence_call)
        outs.append(out)
    if not states:
        return torch.zeros_like(q), state
    # The state of a row without a token so far is zeros.
    like = next(iter(states.values()))
    empty = {name: torch.zeros_like(x) for name, x in like.items()}
    rows = [states.get(row, empty) for row in range(len(q))]
    return batch.join(outs, len(q), length, length), {name: torch.cat([row[name] for row in rows]) for name in like}


def _split_sequences(
    q: Tensor, k: Tensor, v: Tensor, call: AttentionCall, batch: Batch
) -> Iterator[tuple[SequenceSpan, Tensor, Tensor, Tensor, AttentionCall]]:
    """Yield every sequence with its queries, keys and values ``(1, H, n, D)``, and its call as if it were alone."""
    length = k.shape[2]
    split = functools.partial(batch.split, length=length)
    hidden: list[Any] = [None] * len(batch.sequences)
    if call.hidden_states is not None:
        hidden = split(call.hidden_states, 1)
    sequences = zip(batch.sequences, split(q, 2), split(k, 2), split(v, 2), hidden, strict=True)
    for span, queries, keys, values, states in sequences:
        tokens = (slice(span.row, span.row + 1), slice(span.start, span.stop))
        sequence_call = call.replace(batch=None, hidden_states=states)
        if span.holes and batch.mask is not None:
            sequence_call = sequence_call.with_mask(batch.mask[tokens])
        if call.global_mask is not None:
            sequence_call = sequence_call.replace(global_mask=call.global_mask[tokens])
        if call.score_mod is not None:
            sequence_call = sequence_call.replace(score_mod=call.term.of_sequence(*span[:3]))
        yield span, *clear_padding(queries, keys, values, sequence_call)


def stacked(
    run: AttentionFunction, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall, sequences: Sequence[SequenceSpan]
) -> list[Tensor]:
    """The outputs ``(1, H, n, D)`` of some sequences of a batch, from one call. Each row of the call has one sequence,
    padded on the right."""
    ends = [(span.row, span.start, span.stop - 1) for span in sequences]
    row, first, last = torch.tensor(ends, device=q.device).unbind(1)
    # For each new row, the old positions of its tokens. Its padding repeats the last token.
    offset = torch.arange(max(span.length for span in sequences), device=q.device)
    tokens = torch.minimum(first[:, None] + offset, last[:, None])
    real = offset <= (last - first)[:, None]
    if call.key_mask is not None:
        real = real & call.key_mask[row[:, None], tokens]

    def rows(x: Tensor, dim: int) -> Tensor:
        """The new rows of ``x (B, …)``, whose tokens are on axis ``dim``."""
        return x.movedim(dim, 1)[row[:, None], tokens].movedim(1, dim)

    changes: dict[str, Any] = {"batch": Batch(real)}
    if call.global_mask is not None:
        changes["global_mask"] = rows(call.global_mask, 1) & real
    if call.hidden_states is not None:
        changes["hidden_states"] = rows(call.hidden_states, 1)
    rows_call = call.replace(**changes).with_term(
        lambda term: term.moved(rows, lambda b, position: (row[b], torch.minimum(position + first[b], last[b])))
    )
    out = run(rows(q, 2), rows(k, 2), rows(v, 2), rows_call)
    return [out[number : number + 1, :, : span.length] for number, span in enumerate(sequences)]


def rolled(run: AttentionFunction, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
    """Call ``run`` on rows that are rolled to begin with a real token, and roll the output ``(B, H, Nq, D)`` back. If
    there are fewer queries than keys, zero queries are first put in front."""
    batch, tokens, hidden = call.batch, call.global_mask, call.hidden_states
    length = k.shape[2]
    assert batch is not None
    start, rolled_batch = batch.rolled()
    changes: dict[str, Any] = {"batch": rolled_batch}
    if tokens is not None:
        # The entry also holds the batch, so that no later object can have its id.
        changes["global_mask"], _ = cached_on(
            tokens, ("rolled", id(batch)), lambda: (for_one_pass(roll_left(tokens, start, 1)), batch)
        )
    if hidden is not None:
        changes["hidden_states"] = roll_left(F.pad(hidden, (0, 0, length - hidden.shape[1], 0)), start, 1)
    rolled_call = call.replace(**changes).with_term(
        lambda term: term.moved(
            lambda x, dim: roll_left(x, start, dim), lambda b, at: (b, wrapped(at + start[b], length))
        )
    )
    missing = length - q.shape[2]
    if missing:
        q = F.pad(q, (0, 0, missing, 0))
    out = run(roll_left(q, start), roll_left(k, start), roll_left(v, start), rolled_call)
    return roll_left(out, -start)[:, :, missing:]
