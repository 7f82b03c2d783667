"""Cache layers for mechanisms with a constant-size state: linear states, ring buffers, segment memories."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import StaticLayer

from ..engines.call import AttentionCall, State
from ..engines.sequences import advanced
from ..errors import InputError
from ..mechanisms.common.base import Mechanism
from ..names import BACKEND, warn_missing
from .cache_layer import NOT_STARTED, AttentionCacheLayer, compact, refuse_restricted_pairs, unread_cache
from .static_cache import ReservedLayer

STATE_LAYER = f"{BACKEND}_state"
"""The cache layer type in ``config.layer_types``."""


class StateLayer(AttentionCacheLayer):
    """The state that :meth:`hf_longattn.Mechanism.advance` returned, and the number of tokens in it."""

    keeps = "a state"
    is_unread = False
    """Whether tokens were added that the attention function has not read yet."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.state: State | None = None
        self.seen = 0
        self._latest = NOT_STARTED
        """The largest of ``starts``; :data:`NOT_STARTED` until all sequences have started."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = (x.new_empty(*x.shape[:2], 0, x.shape[3]) for x in (key_states, value_states))
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Count the new tokens and return their keys and values; :meth:`attend` adds them to the state.

        Raises:
            BackendError: earlier tokens were never read by the attention function.
        """
        if self.is_unread and not torch.compiler.is_exporting():
            raise unread_cache(type(self).__name__)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.count(key_states.shape[2])
        self.is_unread = True
        return key_states, value_states

    def count(self, tokens: int) -> None:
        """Add ``tokens`` to the number of tokens seen."""
        self.seen += tokens

    def note_padding(self, mask: Tensor | None) -> None:
        self.is_unread = False
        super().note_padding(mask)
        if self._all_started and self._latest == NOT_STARTED:
            assert self.starts is not None
            self._latest = int(self.starts.max())

    def computes_attention(self, mechanism: Mechanism, q: Tensor, call: AttentionCall) -> bool:
        """Always true: the layer holds no keys."""
        return True

    def attend(
        self, mechanism: Mechanism, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall, weights_wanted: bool
    ) -> tuple[Tensor, Tensor | None]:
        refuse_restricted_pairs(call)
        before = self.seen - q.shape[2]
        if call.key_mask is not None:
            call = call.with_mask(call.key_mask[:, before : self.seen])
        if weights_wanted and before:
            raise InputError(
                f"Attention weights were requested while decoding, but {mechanism.name!r} keeps a state in place of the earlier keys; "
                "pass use_cache=False or output_attentions=False."
            )
        weights = mechanism.weights(q, k, call.replace(causal=True)) if weights_wanted else None
        padding = None  # tokens before each row's first real one
        if self.starts is not None and self._latest > before:
            padding = tuple((self.starts - before).clamp(0, self.seen - before).tolist())
        out, state = advanced(mechanism.advance, q, k, v, self.state, call, padding)
        self.state = None if state is None else {name: compact(tensor.detach()) for name, tensor in state.items()}
        return out, weights

    def state_bytes(self) -> int:
        """Size of the state in bytes."""
        return sum(tensor.numel() * tensor.element_size() for tensor in (self.state or {}).values())

    def get_seq_length(self) -> int:
        return self.seen

    def restart(self, rows: Tensor) -> None:
        """Start new sequences in the batch rows ``rows (B,)`` bool. Their state becomes zeros, the state before the first token."""
        super().restart(rows)
        self._latest = NOT_STARTED
        if self.state is not None:
            over = {name: rows.to(x.device).view(-1, *[1] * (x.dim() - 1)) for name, x in self.state.items()}
            self.state = {name: torch.where(over[name], torch.zeros_like(x), x) for name, x in self.state.items()}

    def unused(self) -> int:
        """The number of columns that the mask may drop: all of them, because the state contains their tokens."""
        return self.seen

    def renumber(self, count: int) -> None:
        super().renumber(count)
        self.seen -= count
        self._latest -= count if self._all_started else 0

    def reset(self) -> None:
        super().reset()
        self.state, self.seen, self._latest, self.is_unread = None, 0, NOT_STARTED, False

    def change_rows(self, change: Callable[[Tensor], Tensor]) -> None:
        super().change_rows(change)
        if self.state is not None:
            self.state = {name: change(tensor) for name, tensor in self.state.items()}


class DynamicStateLayer(StateLayer):
    """The state layer for :class:`transformers.DynamicCache`."""

    _layer_type = STATE_LAYER


class StaticStateLayer(ReservedLayer, StateLayer, StaticLayer):
    """The state layer for :class:`transformers.StaticCache`. The state never moves in memory, so all decoding steps are one graph."""

    _layer_type = STATE_LAYER
    is_compileable = True
    cumulative_length: Tensor

    @property
    def seen(self) -> int:
        """The number of tokens so far. Waits for the device."""
        return int(self.cumulative_length)

    @seen.setter
    def seen(self, count: int) -> None:
        self.__dict__.setdefault("cumulative_length", torch.tensor(0)).fill_(count)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self.cumulative_length = self.cumulative_length.to(self.device)
        stays_in_place(self.cumulative_length)

    def count(self, tokens: int) -> None:
        self.cumulative_length.add_(tokens)

    def note_padding(self, mask: Tensor | None) -> None:
        self.is_unread = False
        if not torch.compiler.is_compiling():
            super().note_padding(mask)

    def attend(
        self, mechanism: Mechanism, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall, weights_wanted: bool
    ) -> tuple[Tensor, Tensor | None]:
        if not self.started or self.state is None or not self._all_started or weights_wanted:
            out, weights = super().attend(mechanism, q, k, v, call, weights_wanted)
            self.started = True
            for tensor in (self.state or {}).values():
                stays_in_place(tensor)
            return out, weights
        refuse_restricted_pairs(call)
        if call.batch is not None and (mask := call.batch.mask) is not None:
            count, total = q.shape[2], self.cumulative_length
            new = call.batch.cached(
                ("new tokens", count), lambda: mask.index_select(1, torch.arange(count, device=total.device) + (total - count))
            )
            call = call.with_mask(new)
        out, state = mechanism.advance(q, k, v, self.state, call)
        for name, tensor in state.items():
            self.state[name].copy_(tensor)
        return out, None

    def get_seq_length(self) -> Any:
        return self.cumulative_length if self.is_initialized else 0


def stays_in_place(tensor: Tensor) -> None:
    """Tell compiled graphs that ``tensor`` keeps its address, as CUDA graphs need. Does nothing while a graph is compiled."""
    import torch._dynamo

    if torch.compiler.is_compiling():
        return
    mark = getattr(torch._dynamo, "mark_static_address", None)
    if mark is None:
        warn_missing("stays_in_place")
        return
    mark(tensor)
