"""A decoder with memory tokens and a cache, for ``generate``.

The cache holds each batch row's memory and the keys of its current segment, whatever the text's length. A segment has a fixed number of
slots for tokens. A row fills them in order: first the memory tokens that it reads, then its text. When a segment is full and another token
comes, memory tokens follow it, and the row starts a new segment. Rows with different padding are at different places in their segments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from ...cache_argument import CACHE
from ...errors import MemoryMismatchError
from ...mechanisms.common.segment_state import left_padding
from ...memory import StateLayer
from .modes import Forward, Mode
from .segments import TOKEN_MEMORY_ARGUMENT, Segments, Text, first_memory, is_causal, joined_text


@dataclass
class _Rows:
    """The cache of some batch rows. Keys and values of every layer ``(B, H_kv, C, D)``, slots with real tokens ``(B, C)``, number of filled
    slots ``(B,)``, and memory ``(B, M, d)``."""

    keys: list[Tensor]
    values: list[Tensor]
    real: Tensor
    filled: Tensor
    memory: Tensor

    def select(self, rows: Tensor) -> _Rows:
        keys, values = ([x[rows] for x in layers] for layers in (self.keys, self.values))
        return _Rows(keys, values, self.real[rows], self.filled[rows], self.memory[rows])

    def put(self, rows: Tensor, replacement: _Rows) -> None:
        """Replace the rows with the indices ``rows`` by those of ``replacement``, in this order."""
        for name in ("keys", "values"):
            pairs = zip(getattr(self, name), getattr(replacement, name), strict=True)
            setattr(self, name, [_shaped(x, y).index_copy(0, rows, y) for x, y in pairs])
        for name in ("real", "filled", "memory"):
            setattr(self, name, getattr(self, name).index_copy(0, rows, getattr(replacement, name)))


class SegmentDecoding(Mode["SegmentDecoder"]):
    """Runs a causal base model with memory tokens and a cache.

    ``generate`` needs it: each call continues the previous call's segment, which :mod:`.memory` would end.
    """

    name, key = Segments.name, Segments.key

    def prepare(self, model: Any, arguments: dict[str, Any]) -> SegmentDecoder | None:
        cached = arguments.get(CACHE) is not None or arguments.get("use_cache")
        if not cached or not is_causal(model):
            return None
        if torch.compiler.is_compiling():
            raise MemoryMismatchError(
                "A model with memory tokens decodes as many tokens at a time as its rows have left in their segments, for which there is "
                "no compiled graph; leave torch.compile out (disable_compile=True in generate)."
            )
        if arguments.get(TOKEN_MEMORY_ARGUMENT) is not None:
            raise MemoryMismatchError("A memory was given together with a cache, which has one already; leave use_cache out.")
        return SegmentDecoder(model, Text.of(model, arguments))

    def run(self, model: Any, forward: Forward, inputs: SegmentDecoder) -> list[Any]:
        return inputs.run(forward)

    def restore(self, model: Any, inputs: SegmentDecoder, parts: Sequence[Any]) -> Any:
        outputs = joined_text(model, parts, inputs.in_columns, self.name)
        outputs[CACHE] = inputs.cache
        return outputs


class SegmentDecoder:
    """One call of a causal model with a cache of segments."""

    def __init__(self, model: Any, text: Text) -> None:
        self.model, self.text = model, text
        self.slots, self.count = model.recursion.length - model.recursion.memory, model.recursion.memory
        self.first_id = 0 if model.position_table is None else model.position_table.first_id(model.config)
        past = text.arguments.pop(CACHE, None)
        self.cache = DynamicCache(config=model.config) if past is None else past
        text.arguments.pop("use_cache", None)
        self.columns: list[Tensor] = []
        """For each run, the columns ``(B, n)`` of its tokens in the text. The column after the last one is dropped."""

    def run(self, forward: Forward) -> list[Any]:
        """The base's outputs for all tokens of the text, some tokens per run."""
        self.forward = forward
        rows = self._load(first_memory(self.model, self.text, None))
        embeddings, real = self.text.embeddings, self.text.real
        length = real.shape[1]
        at = torch.where(rows.filled == 0, left_padding(real), 0)
        parts: list[Any] = []
        while bool((at < length).any()):
            waiting = at < length
            self._write_memory((waiting & (rows.filled == self.slots)).nonzero()[:, 0], rows)
            self._read_memory((waiting & (rows.filled == 0)).nonzero()[:, 0], rows)
            step = min(int((self.slots - rows.filled)[waiting].min()), int((length - at).max()))
            places = at[:, None] + torch.arange(step, device=at.device)
            there = places < length
            read = places.clamp(max=length - 1)
            along = {name: x.gather(1, read) for name, x in self.text.along.items()}
            picked = embeddings.gather(1, read[..., None].expand(-1, -1, embeddings.shape[2]))
            parts.append(self._forward(rows, picked, real.gather(1, read) & there, there, along))
            self.columns.append(torch.where(there, places, length))
            at = at + there.sum(1)
        if not parts:  # there is only padding before the first token
            parts = [self._forward(rows, embeddings, real, torch.zeros_like(real), self.text.along)]
            self.columns = [torch.full_like(real, length, dtype=torch.long)]
        self._store(rows)
        return parts

    def in_columns(self, states: Sequence[Tensor]) -> Tensor:
        """Tensors ``(B, n, …)`` of all runs, joined for the whole text: ``(B, N, …)``."""
        batch, length = self.text.real.shape
        text = states[0].new_zeros(batch, length + 1, *states[0].shape[2:])
        for state, columns in zip(states, self.columns, strict=True):
            text = text.scatter(1, columns.view(*columns.shape, *[1] * (state.dim() - 2)).expand_as(state), state)
        return text[:, :length]

    def _forward(self, rows: _Rows, embeddings: Tensor, real: Tensor, there: Tensor, along: dict[str, Tensor]) -> Any:
        """Run tokens ``(B, n)`` after the cached ones. Tokens with ``there (B, n)`` fill a slot. Rows without real tokens are ignored."""
        used, count = int((rows.filled * real.any(1)).max()), embeddings.shape[1]
        inner = DynamicCache()
        # A row's filled slots come right before its new tokens, so that distances between columns are distances between tokens.
        columns = torch.arange(used, device=real.device) - (used - rows.filled)[:, None]
        for layer, (keys, values) in enumerate(zip(rows.keys, rows.values, strict=True)) if used else ():
            inner.update(_take(keys, columns), _take(values, columns), layer)
        positions = rows.filled[:, None] + torch.arange(count, device=real.device)
        before = rows.real.gather(1, columns.clamp(0, self.slots - 1)) & (columns >= 0)
        mask = torch.cat([before, real], 1).long()
        outputs = self.forward(
            self.model,
            inputs_embeds=embeddings,
            attention_mask=mask,
            position_ids=positions.clamp(max=self.slots + self.count - 1) + self.first_id,
            **{CACHE: inner},
            use_cache=True,
            return_dict=True,
            **along,
            **self.text.arguments,
        )
        slots = torch.where(there, positions, self.slots)
        rows.keys = [_put(old, layer.keys[:, :, used:], slots) for old, layer in zip(rows.keys, inner.layers, strict=True)]
        rows.values = [_put(old, layer.values[:, :, used:], slots) for old, layer in zip(rows.values, inner.layers, strict=True)]
        rows.real = _put(rows.real[:, None, :, None], real[:, None, :, None], slots)[:, 0, :, 0]
        rows.filled = rows.filled + there.sum(1)
        return outputs

    def _write_memory(self, which: Tensor, rows: _Rows) -> None:
        """Write the memory of rows whose segment is full, and empty their slots."""
        if not len(which):
            return
        full = rows.select(which)
        if self.count:
            full.memory = self._run_memory(full, keep=False).last_hidden_state
        full.real, full.filled = torch.zeros_like(full.real), torch.zeros_like(full.filled)
        rows.put(which, full)

    def _read_memory(self, which: Tensor, rows: _Rows) -> None:
        """Read the memory of rows whose slots are empty."""
        if not len(which) or not self.count:
            return
        empty = rows.select(which)
        self._run_memory(empty, keep=True)
        rows.put(which, empty)

    def _run_memory(self, rows: _Rows, *, keep: bool) -> Any:
        """Run the memory tokens of ``rows``; other per-token arguments are zeros. ``keep``: store keys and values in the slots."""
        real = torch.ones(rows.memory.shape[:2], dtype=torch.bool, device=rows.memory.device)
        along = {name: x.new_zeros(real.shape) for name, x in self.text.along.items()}
        return self._forward(rows, rows.memory, real, real if keep else ~real, along)

    def _layers(self) -> list[StateLayer]:
        layers = getattr(self.cache, "layers", [])
        if len(layers) != self.model.config.num_hidden_layers or not all(isinstance(layer, StateLayer) for layer in layers):
            raise MemoryMismatchError(
                f"The cache is not one for memory tokens; leave {CACHE} out, or make it with DynamicCache(config=model.config)."
            )
        return layers

    def _load(self, memory: Tensor) -> _Rows:
        layers, batch = self._layers(), len(memory)
        states = [layer.state for layer in layers]
        if states[0] is not None:
            if len(states[0]["memory"]) != batch:
                raise MemoryMismatchError(f"The cache is of a batch of {len(states[0]['memory'])}, but the input has {batch} rows.")
            keys, values = ([state[name] for state in states if state is not None] for name in ("keys", "values"))
            return _Rows(keys, values, **{name: states[0][name] for name in ("real", "filled", "memory")})
        real = torch.zeros(batch, self.slots, dtype=torch.bool, device=memory.device)
        # Shapes and dtypes of keys are known only after the first token has run.
        empty = memory.new_zeros(batch, 0, self.slots, 0)
        filled = torch.zeros(batch, dtype=torch.long, device=memory.device)
        return _Rows([empty] * len(layers), [empty] * len(layers), real, filled, memory)

    def _store(self, rows: _Rows) -> None:
        count = self.text.real.shape[1]
        for layer, keys, values in zip(self._layers(), rows.keys, rows.values, strict=True):
            layer.update(keys[:, :, :1].expand(-1, -1, count, -1), values[:, :, :1].expand(-1, -1, count, -1))
            layer.state, layer.is_unread = {"keys": keys.detach(), "values": values.detach()}, False
        of_rows = {"real": rows.real, "filled": rows.filled, "memory": rows.memory.detach()}
        first = self._layers()[0]
        assert first.state is not None
        first.state |= of_rows


def _put(old: Tensor, new: Tensor, slots: Tensor) -> Tensor:
    """Write ``new (B, H, n, D)`` to slots of ``old (B, H, C, D)``. The slots are ``(B, n)``. Entries for slot C are dropped."""
    with_spare = nn.functional.pad(_shaped(old, new), (0, 0, 0, 1))
    return with_spare.scatter(2, slots[:, None, :, None].expand_as(new), new)[:, :, :-1]


def _take(x: Tensor, slots: Tensor) -> Tensor:
    """The entries of ``x (B, H, C, D)`` at the slots ``(B, n)``. Entries for negative slots are arbitrary."""
    return x.gather(2, slots.clamp(0, x.shape[2] - 1)[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))


def _shaped(old: Tensor, new: Tensor) -> Tensor:
    """``old``, or empty slots if there are no keys yet. They have the heads and width of ``new``."""
    return old if old.shape[1] else new.new_zeros(old.shape[0], new.shape[1], old.shape[2], new.shape[3])
