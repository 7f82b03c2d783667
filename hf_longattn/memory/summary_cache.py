"""Cache layers for mechanisms that select among all keys. They hold all keys, and summaries for the selection.

The summaries of a unit of tokens (:meth:`SummarisedMechanism.summarise_units`) are computed once, and again only while the unit grows. A
step therefore reads and copies only some of the keys. The mechanism's ``forward`` runs over all keys for long pieces of a prompt, for
four-dimensional masks, gradients and compiled graphs, and for every step of a static cache.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..constants import BACKEND
from ..engines.common.call import AttentionCall
from ..engines.common.derivatives import differentiated
from ..engines.topk import gather_kv
from ..mechanisms.common.base import Mechanism
from ..mechanisms.common.relative_terms import with_relative
from ..mechanisms.common.summaries import FEW_QUERIES, CacheSummaries, SummarisedMechanism
from .cache_layer import AttentionCacheLayer
from .static_cache import StaticKeysLayer

SUMMARY_LAYER = f"{BACKEND}_summaries"
"""The cache layer type in ``config.layer_types``."""

SPARE_SHARE = 1 / 8
"""Spare room in a new buffer, as a share of its length. The cost of a copy is spread over the tokens that fill the room."""
MIN_SPARE_TOKENS = 64
"""Minimum spare room in a new buffer: in tokens for keys and values, in units for summary tables."""


class GrowableBuffer:
    """Memory for tensors ``(B, H, N, …)`` that grow along N, so that they are not copied at every step."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def grown(self, name: str, held: Tensor, length: int) -> Tensor:
        """``held`` with ``length`` tokens, in the same memory if it is large enough. The added tokens hold arbitrary finite numbers.

        ``held`` is a tensor that this buffer returned under ``name``. Any other tensor is copied.
        """
        buffer = self._buffers.get(name)
        if buffer is None or not self._in_place(held, buffer) or buffer.shape[2] < length:
            size = length + max(MIN_SPARE_TOKENS, int(length * SPARE_SHARE))
            buffer = held.new_zeros(*held.shape[:2], size, *held.shape[3:])
            count = min(held.shape[2], length)
            buffer[:, :, :count] = held[:, :, :count]
            self._buffers[name] = buffer
        return buffer[:, :, :length]

    @staticmethod
    def _in_place(held: Tensor, buffer: Tensor) -> bool:
        """Whether ``held`` is a view of the start of ``buffer`` that may be modified in place."""
        same = held.data_ptr() == buffer.data_ptr() and held.stride() == buffer.stride() and held.shape[:2] == buffer.shape[:2]
        return same and (torch.is_inference_mode_enabled() or not buffer.is_inference())

    def clear(self) -> None:
        """Forget the buffers; tensors that were returned stay valid."""
        self._buffers.clear()


class SummaryLayer(AttentionCacheLayer):
    """All keys and values ``(B, H, N, D)``, and summary ``tables (B, H', units, …)``. The tables cover the first ``summarised`` columns."""

    keeps = "keys and summaries"
    _layer_type = SUMMARY_LAYER

    def __init__(self, **kwargs: Any) -> None:
        super().__init__()
        self.tables: dict[str, Tensor] = {}
        self.summarised = 0
        self._buffer = GrowableBuffer()

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append the new tokens and return all keys and values. Without gradients the memory is reused; with gradients it is copied."""
        if torch.is_grad_enabled() or differentiated() or torch.compiler.is_compiling() or not self.is_initialized:
            return super().update(key_states, value_states)
        before, after = self.keys.shape[2], self.keys.shape[2] + key_states.shape[2]
        self.keys, self.values = self._buffer.grown("keys", self.keys, after), self._buffer.grown("values", self.values, after)
        self.keys[:, :, before:], self.values[:, :, before:] = key_states, value_states
        return self.keys, self.values

    def computes_attention(self, mechanism: Mechanism, q: Tensor, call: AttentionCall) -> bool:
        """Whether the mechanism attends by summaries: for a few new tokens in a plain causal call, unless the mechanism sees all keys."""
        length = self.keys.shape[2]
        return (
            isinstance(mechanism, SummarisedMechanism)
            and mechanism.summary_unit is not None
            and q.shape[2] <= FEW_QUERIES
            and q.shape[2] < length
            and call.causal
            and call.dropout == 0
            and not (mechanism.relative is not None and mechanism.relative.turns_vectors)
            and not (call.score_mod is not None or torch.compiler.is_compiling() or differentiated(q, self.keys, self.values))
            and not mechanism.covers(length, causal=True)
        )

    @torch.no_grad()
    def attend(
        self, mechanism: Mechanism, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall, weights_wanted: bool
    ) -> tuple[Tensor, Tensor | None]:
        assert isinstance(mechanism, SummarisedMechanism)
        assert self.starts is not None
        real = call.key_mask
        self._summarise(mechanism, k, v, call)
        _, _, step_call = with_relative(mechanism, q, k, call)
        out = mechanism.attend_summarised(q, k, v, CacheSummaries(self.tables, self.starts, real), step_call)
        return out, mechanism.weights(q, k, call) if weights_wanted else None

    def _summarise(self, mechanism: SummarisedMechanism, k: Tensor, v: Tensor, call: AttentionCall) -> None:
        """Update the tables to the newest token. Units that depend on new tokens are summarised again from all their tokens."""
        assert self.starts is not None
        assert mechanism.summary_unit is not None
        unit, ahead = mechanism.summary_unit, mechanism.summary_ahead
        length, starts = k.shape[2], self.starts[:, None]
        if self.summarised == length:
            return
        first = (self.summarised - ahead - starts).clamp(min=0) // unit
        last = torch.div(length - 1 - starts, unit, rounding_mode="floor").clamp(min=0)
        most, total = (torch.stack([last - first, last]).flatten(1).amax(1) + 1).tolist()  # waits for the device once
        units = (first + torch.arange(most, device=starts.device)).minimum(last)  # (B, m); a row with fewer units repeats its last
        columns = starts[..., None] + units[..., None] * unit + torch.arange(unit + ahead, device=starts.device)
        there, columns = columns < length, columns.clamp(max=length - 1)
        if (real := call.key_mask) is not None:
            there = there & real.gather(1, columns.flatten(1)).view(columns.shape)
        places = columns[:, None].expand(-1, k.shape[1], -1, -1)
        summaries = mechanism.summarise_units(gather_kv(k, places), gather_kv(v, places), there, call)
        for name, entries in summaries.items():
            held = self.tables.get(name)
            table = self._buffer.grown(f"table {name}", entries[:, :, :0] if held is None else held, total)
            index = units.view(len(units), 1, -1, *[1] * (entries.dim() - 3)).expand(entries.shape)
            self.tables[name] = table.scatter_(2, index, entries)
        self.summarised = length

    def drop_last(self, count: int) -> None:
        """Drop the last tokens. The unit at the new end is summarised again when tokens follow."""
        if count:
            self.keys, self.values = self.keys[:, :, :-count], self.values[:, :, :-count]
            self.summarised = min(self.summarised, self.get_seq_length())

    def restart(self, rows: Tensor) -> None:
        super().restart(rows)
        self.summarised = 0

    def reset(self) -> None:
        self.__init__()  # type: ignore[misc]

    def change_rows(self, change: Callable[[Tensor], Tensor]) -> None:
        super().change_rows(change)
        self.tables = {name: change(table) for name, table in self.tables.items()}

    def offload(self) -> None:
        """Move keys and values to the CPU. The tables stay: transformers offloads a layer after ``update``, before :meth:`attend`."""
        super().offload()
        self._buffer.clear()

    def __getstate__(self) -> dict[str, Any]:
        """The state for copies and pickles, without spare memory. Neither this layer nor its copy writes to shared tensors."""
        self._buffer.clear()
        return {**self.__dict__, "_buffer": GrowableBuffer(), "tables": dict(self.tables)}


class StaticSummaryLayer(StaticKeysLayer):
    """All keys and values in memory reserved once, for ``cache_implementation="static"``. The mechanism's ``forward`` reads them."""

    _layer_type = SUMMARY_LAYER
