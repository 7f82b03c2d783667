"""Decoding with memory tokens: of each row, the cache holds its memory and the keys of its current segment, whatever the text's length.

A row fills the slots of its segment by position: first its memory tokens to read, then its text. When the segment is full and another
token comes, the memory tokens to write run behind it, and the row begins a new segment. Rows with different padding are in different
places of their segments.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from ..errors import MemoryMismatchError, OptionError
from ..mechanisms.base import Recursion
from ..mechanisms.segment_state import leading
from ..memory import StateLayer
from .segments import Forward, Text


@dataclass
class _Rows:
    """Keys and values of every layer ``(B, H_kv, C, D)``, slots in use ``(B, C)`` and taken ``(B,)``, memory ``(B, M, d)``."""

    keys: list[Tensor]
    values: list[Tensor]
    real: Tensor
    filled: Tensor
    memory: Tensor

    def select(self, rows: Tensor) -> _Rows:
        keys, values = ([x[rows] for x in layers] for layers in (self.keys, self.values))
        return _Rows(keys, values, self.real[rows], self.filled[rows], self.memory[rows])

    def put(self, rows: Tensor, other: _Rows) -> None:
        """Replace ``rows`` by those of ``other``."""
        for name in ("keys", "values"):
            pairs = zip(getattr(self, name), getattr(other, name), strict=True)
            setattr(self, name, [_shaped(x, y).index_copy(0, rows, y) for x, y in pairs])
        for name in ("real", "filled", "memory"):
            setattr(self, name, getattr(self, name).index_copy(0, rows, getattr(other, name)))


class SegmentDecoder:
    """One call of a causal model with a cache."""

    def __init__(self, model: Any, forward: Forward, recursion: Recursion, text: Text) -> None:
        self.model, self.forward, self.text = model, forward, text
        self.slots, self.count = recursion.length - recursion.memory, recursion.memory
        if text.others.get("output_hidden_states"):
            raise OptionError("Hidden states of every layer were asked for while decoding with memory tokens; pass use_cache=False.")
        past = text.others.pop("past_key_values", None)
        self.cache = DynamicCache(config=model.config) if past is None else past
        for name in ("return_dict", "use_cache"):
            text.others.pop(name, None)

    def run(self, memory: Tensor) -> Any:
        """The base's outputs for all tokens of the text; ``memory (B, M, d)`` is what a text without a past begins with."""
        rows = self._load(memory)
        embeddings, real = self.text.embeddings, self.text.real
        length = real.shape[1]
        at = torch.where(rows.filled == 0, leading(real), 0)
        out, hidden = None, embeddings.new_zeros(embeddings.shape)
        while bool((at < length).any()):
            waiting = at < length
            self._roll_over((waiting & (rows.filled == self.slots)).nonzero()[:, 0], rows)
            self._begin((waiting & (rows.filled == 0)).nonzero()[:, 0], rows)
            step = min(int((self.slots - rows.filled)[waiting].min()), int((length - at).max()))
            places = at[:, None] + torch.arange(step, device=at.device)
            there = places < length
            places = places.clamp(max=length - 1)
            along = {name: x.gather(1, places) for name, x in self.text.along.items()}
            picked = embeddings.gather(1, places[..., None].expand(-1, -1, embeddings.shape[2]))
            out = self._forward(rows, picked, real.gather(1, places) & there, there, along)
            index = torch.where(there, places, length)[..., None].expand_as(out.last_hidden_state)
            room = torch.cat([hidden, hidden[:, :1]], 1).to(out.last_hidden_state)
            hidden = room.scatter(1, index, out.last_hidden_state)[:, :length]
            at = at + there.sum(1)
        if out is None:  # nothing but padding before the first token
            out = self._forward(rows, embeddings, real, torch.zeros_like(real), self.text.along)
        self._store(rows)
        out.last_hidden_state = hidden
        out.past_key_values = self.cache
        return out

    def _forward(self, rows: _Rows, embeddings: Tensor, real: Tensor, there: Tensor, along: dict[str, Tensor]) -> Any:
        """Run tokens ``(B, n)`` behind those in the slots, of which ``there`` take a slot. Rows without a real one take no part."""
        used, count = int((rows.filled * real.any(1)).max()), embeddings.shape[1]
        inner = DynamicCache()
        # What a row has taken stands right before its new tokens, so that distances between columns are those between tokens.
        columns = torch.arange(used, device=real.device) - (used - rows.filled)[:, None]
        for layer, (keys, values) in enumerate(zip(rows.keys, rows.values, strict=True)) if used else ():
            inner.update(_take(keys, columns), _take(values, columns), layer)
        positions = rows.filled[:, None] + torch.arange(count, device=real.device)
        before = rows.real.gather(1, columns.clamp(0, self.slots - 1)) & (columns >= 0)
        mask = torch.cat([before, real], 1).long()
        out = self.forward(
            inputs_embeds=embeddings, attention_mask=mask, position_ids=positions.clamp(max=self.slots + self.count - 1),
            past_key_values=inner, use_cache=True, return_dict=True, **along, **self.text.others,
        )  # fmt: skip
        slots = torch.where(there, positions, self.slots)
        rows.keys = [_put(old, layer.keys[:, :, used:], slots) for old, layer in zip(rows.keys, inner.layers, strict=True)]
        rows.values = [_put(old, layer.values[:, :, used:], slots) for old, layer in zip(rows.values, inner.layers, strict=True)]
        rows.real = _put(rows.real[:, None, :, None], real[:, None, :, None], slots)[:, 0, :, 0]
        rows.filled = rows.filled + there.sum(1)
        return out

    def _roll_over(self, which: Tensor, rows: _Rows) -> None:
        """Write the memory of rows whose segment is full, and empty their slots."""
        if not len(which):
            return
        full = rows.select(which)
        if self.count:
            real = torch.ones(len(which), self.count, dtype=torch.bool, device=which.device)
            full.memory = self._forward(full, full.memory, real, ~real, self._without_along(len(which))).last_hidden_state
        full.real, full.filled = torch.zeros_like(full.real), torch.zeros_like(full.filled)
        rows.put(which, full)

    def _begin(self, which: Tensor, rows: _Rows) -> None:
        """Read the memory of rows whose slots are empty."""
        if not len(which) or not self.count:
            return
        empty = rows.select(which)
        real = torch.ones(len(which), self.count, dtype=torch.bool, device=which.device)
        self._forward(empty, empty.memory, real, real, self._without_along(len(which)))
        rows.put(which, empty)

    def _without_along(self, batch: int) -> dict[str, Tensor]:
        """Memory tokens have zeros for what runs along the text."""
        return {name: x.new_zeros(batch, self.count) for name, x in self.text.along.items()}

    def _layers(self) -> list[StateLayer]:
        layers = getattr(self.cache, "layers", [])
        if len(layers) != self.model.config.num_hidden_layers or not all(isinstance(layer, StateLayer) for layer in layers):
            raise MemoryMismatchError(
                "The cache is not one for memory tokens; leave past_key_values out, or make it with DynamicCache(config=model.config)."
            )
        return layers

    def _load(self, memory: Tensor) -> _Rows:
        layers, batch = self._layers(), len(memory)
        states = [layer.state for layer in layers]
        if states[0] is not None:
            if len(states[0]["memory"]) != batch:
                raise MemoryMismatchError(f"The cache is of a batch of {len(states[0]['memory'])}, but the input has {batch} rows.")
            own = {name: states[0][name] for name in ("real", "filled", "memory")}
            keys, values = ([state[name] for state in states if state is not None] for name in ("keys", "values"))
            return _Rows(keys, values, **own)
        real = torch.zeros(batch, self.slots, dtype=torch.bool, device=memory.device)
        # No key has come yet: shapes and dtypes are known when the first token has run.
        empty = memory.new_zeros(batch, 0, self.slots, 0)
        filled = torch.zeros(batch, dtype=torch.long, device=memory.device)
        return _Rows([empty] * len(layers), [empty] * len(layers), real, filled, memory)

    def _store(self, rows: _Rows) -> None:
        count = self.text.real.shape[1]
        for layer, keys, values in zip(self._layers(), rows.keys, rows.values, strict=True):
            layer.update(keys[:, :, :1].expand(-1, -1, count, -1), values[:, :, :1].expand(-1, -1, count, -1))
            layer.state = {"keys": keys.detach(), "values": values.detach()}
        own = {"real": rows.real, "filled": rows.filled, "memory": rows.memory.detach()}
        first = self._layers()[0]
        assert first.state is not None
        first.state |= own


def _put(old: Tensor, new: Tensor, slots: Tensor) -> Tensor:
    """Write ``new (B, H, n, D)`` into the slots ``(B, n)`` of ``old (B, H, C, D)``; slot C takes what is not kept."""
    old = _shaped(old, new)
    room = torch.cat([old, old.new_zeros(*old.shape[:2], 1, old.shape[3])], 2)
    return room.scatter(2, slots[:, None, :, None].expand_as(new), new)[:, :, :-1]


def _take(x: Tensor, slots: Tensor) -> Tensor:
    """Slots ``(B, n)`` of ``x (B, H, C, D)``; any where they are negative."""
    return x.gather(2, slots.clamp(0, x.shape[2] - 1)[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))


def _shaped(old: Tensor, new: Tensor) -> Tensor:
    """``old`` slots, or empty ones of the heads and widths of ``new`` where no key has come yet."""
    return old if old.shape[1] else new.new_zeros(old.shape[0], new.shape[1], old.shape[2], new.shape[3])
