"""Packed documents as rows of a few right-padded batches. For GPUs, where calls cost more than padding, and for
mechanisms with one random draw or update per call.

Padding after a document does not change the output of the document, so documents of similar lengths share a call. Tokens are gathered into
the rows of calls, and outputs back, by indices that all layers share. :attr:`Batch.sequences` gives them without waiting for a GPU.
"""

from __future__ import annotations

import dataclasses
import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from .batch import Batch, SequenceSpan

TOKENS_PER_CALL = 4096
"""Minimum padding, in tokens, that a further call must save. Untuned: estimated for an H100 as the tokens that cost as much as the launches
of one call, from counts of operations."""
MOST_CALLS = 3
"""Maximum calls for documents of one kind (:attr:`Stacking.kind`)."""
MOST_WIDTHS = 32
"""Maximum number of lengths tried as row widths, besides the longest."""
Groups = tuple[tuple[int, ...], ...]
"""The documents of every call, as indices into :attr:`Batch.sequences`."""


@dataclasses.dataclass(frozen=True)
class Stacking:
    """Which documents may share a call.

    kind: maps a document's length to a kind. Only documents of the same kind share a call; with ``None`` all may.
    most_calls: maximum calls for documents of one kind, however much their lengths differ.
    """

    kind: Callable[[int], Hashable] | None = None
    most_calls: int = MOST_CALLS


@dataclasses.dataclass(frozen=True, eq=False)
class RowsOfCall:
    """The documents of one call, each a row that starts at index 0."""

    sequences: tuple[int, ...]
    """The documents, as indices into :attr:`Batch.sequences`."""
    width: int
    batch: Batch | None
    """The padding after and inside the documents; ``None`` without any."""
    row: Tensor
    """``(S,)`` int64, the packed row of each document."""
    first: Tensor
    """``(S,)`` int64, index of the document's first token in its packed row."""
    last: Tensor
    """``(S,)`` int64, index of the document's last token in its packed row."""


@dataclasses.dataclass(frozen=True, eq=False)
class DocumentRows:
    """Maps packed tokens ``(B, N)`` to slots in the rows of :attr:`calls`, and back. Slot numbers continue from call to call."""

    calls: tuple[RowsOfCall, ...]
    shape: tuple[int, int]
    """``(B, N)``."""
    token: Tensor
    """``(slots,)`` int64, the token in every slot, from 0 to B·N - 1. Padding repeats the document's last token."""
    padding: Tensor | None
    """``(slots,)`` bool; ``None`` if no slot is padding."""
    slot: Tensor
    """``(B·N,)`` int64, the slot of every token."""
    outside: Tensor | None
    """``(B·N,)`` bool, tokens outside of all documents; ``None`` if there are none."""

    @classmethod
    def of(cls, batch: Batch, shape: tuple[int, int], groups: Groups, device: torch.device) -> DocumentRows:
        """The rows of all documents of ``batch``, which has ``shape (B, N)``."""
        spans, length = batch.sequences, shape[1]
        lengths = torch.tensor([span.length for span in spans])
        order = [number for group in groups for number in group]
        width = torch.tensor([max(spans[i].length for i in group) for group in groups for _ in group])
        row, first = torch.tensor([spans[number][:2] for number in order]).unbind(1)
        of_document = lengths[order]
        document = torch.arange(len(order)).repeat_interleave(width)
        place = torch.arange(len(document)) - (width.cumsum(0) - width)[document]
        padding = place >= of_document[document]
        token = (row * length + first)[document] + torch.minimum(place, of_document[document] - 1)
        slot, outside = torch.zeros(shape[0] * length, dtype=torch.int64), torch.ones(shape[0] * length, dtype=torch.int64)
        slot[token[~padding]], outside[token[~padding]] = torch.arange(len(token))[~padding], 0
        padded, some_outside = bool(padding.any()), bool(outside.any())
        parts = [token, padding.long(), slot, outside, row, first, first + of_document - 1]
        # one copy to the device for all of them
        token, in_padding, slot, is_outside, row, first, last = torch.cat(parts).to(device).split([len(part) for part in parts])
        in_padding = in_padding.bool()
        calls, done, slots = [], 0, 0
        for group in groups:
            documents, widest = slice(done, done + len(group)), int(width[done])
            at = slice(slots, slots + len(group) * widest)
            inside = tuple(SequenceSpan(i, 0, spans[n].length, spans[n].holes) for i, n in enumerate(group))
            real = None if all(span.stop == widest for span in inside) else ~in_padding[at]
            if batch.mask is not None and any(span.holes for span in inside):
                held = batch.mask.flatten()[token[at]]
                real = held if real is None else held & real
            rows = None if real is None else Batch.of_spans(real.view(len(group), widest), inside)
            calls.append(RowsOfCall(group, widest, rows, row[documents], first[documents], last[documents]))
            done, slots = documents.stop, at.stop
        return cls(
            tuple(calls), shape, token, in_padding if padded else None, slot, is_outside.bool() if some_outside else None
        )  # fmt: skip

    def rows(self, x: Tensor, dim: int) -> list[Tensor]:
        """Gather ``x`` into the rows of each call. Axis 0 of ``x`` is the packed rows, and axis ``dim`` their tokens.

        Padding repeats the document's last token, and passes no gradients back.
        """
        packed = x.movedim(dim, 1).flatten(0, 1)
        slots = _Moved.apply(packed, (self.token, None), (self.slot, self.outside))
        parts = slots.split([len(call.sequences) * call.width for call in self.calls])
        return [part.unflatten(0, (-1, call.width)).movedim(1, dim) for part, call in zip(parts, self.calls, strict=True)]

    def chosen(self, mask: Tensor) -> list[Tensor]:
        """:meth:`rows` of ``mask (B, N)`` bool, False in padding."""
        parts = self.rows(mask, 1)
        return [
            part if call.batch is None or call.batch.mask is None else part & call.batch.mask
            for part, call in zip(parts, self.calls, strict=True)
        ]

    def packed(self, outs: Sequence[Tensor]) -> Tensor:
        """``(B, H, N, D)`` from the outputs ``(S, H, width, D)`` of the calls; zeros for tokens in no document."""
        slots = [out.transpose(1, 2).flatten(0, 1) for out in outs]
        joined = slots[0] if len(slots) == 1 else torch.cat(slots)
        tokens = _Moved.apply(joined, (self.slot, self.outside), (self.token, self.padding))
        return tokens.unflatten(0, self.shape).transpose(1, 2)


Source = tuple[Tensor, Tensor | None]
"""Source index of every output token, ``(n,)`` int64, and which output tokens are set to zero, ``(n,)`` bool or None."""


class _Moved(torch.autograd.Function):
    """Gathers ``x (m, …)`` into ``(n, …)``. The backward pass also gathers, by the inverse indices, instead of adding up."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, to: Source, back: Source) -> Tensor:
        ctx.to, ctx.back = to, back
        places, empty = to
        moved = x.index_select(0, places)
        return moved if empty is None else moved.masked_fill_(empty.view(-1, *[1] * (x.dim() - 1)), 0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return _Moved.apply(grads[0], ctx.back, ctx.to), None, None


def document_groups(batch: Batch, kinds: tuple[Hashable, ...] | None, most_calls: int) -> Groups:
    """The documents of every call: of one kind and of similar lengths. Cached for all layers. ``kinds``: the kind of each document."""

    def make() -> Groups:
        of_kind: dict[Hashable, list[int]] = {}
        for number, kind in enumerate([None] * len(batch.sequences) if kinds is None else kinds):
            of_kind.setdefault(kind, []).append(number)
        groups: list[list[int]] = []
        for numbers in of_kind.values():
            lengths = [batch.sequences[number].length for number in numbers]
            widths = row_widths(lengths, most_calls)
            alike: list[list[int]] = [[] for _ in widths]
            for number, length in zip(numbers, lengths, strict=True):
                alike[bisect_left(widths, length)].append(number)
            groups += alike
        return tuple(map(tuple, groups))

    return batch.cached(("groups of documents", kinds, most_calls), make)


def row_widths(lengths: Sequence[int], most_calls: int = MOST_CALLS) -> tuple[int, ...]:
    """Row widths of the calls, ascending. A document goes into the first call with rows of at least its length.

    Among at most ``MOST_WIDTHS + 1`` lengths, these minimise the cost: the slots of all rows plus :data:`TOKENS_PER_CALL` for each call.
    """
    ordered = sorted(lengths)
    different = sorted({*ordered})
    narrower, widest = different[: -1 : -(-len(different) // MOST_WIDTHS)], different[-1]

    def cost(widths: tuple[int, ...]) -> int:
        counts = [bisect_right(ordered, width) for width in widths]
        slots = sum(width * (count - before) for width, count, before in zip(widths, counts, [0, *counts], strict=False))
        return slots + TOKENS_PER_CALL * len(widths)

    cuts = itertools.chain.from_iterable(itertools.combinations(narrower, further) for further in range(most_calls))
    return min(((*cut, widest) for cut in cuts), key=cost)
