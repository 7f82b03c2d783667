"""The cache layer of mechanisms that decode from a state of constant size: linear states, ring buffers, memories of segments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer, StaticLayer

from ..errors import LengthError
from ..mechanisms.base import Mechanism, State
from ..naming import BACKEND
from .attending import AttendingLayer, Call, tokens_back
from .held import compact
from .rewind import LastSteps, Step

STATE_LAYER = f"{BACKEND}_state"
"""The cache layer type, as it stands in ``config.layer_types``."""


class StateLayer(AttendingLayer, DynamicLayer):
    """What :meth:`hf_longattn.mechanisms.base.Mechanism.advance` returned last, and how many tokens have passed."""

    is_croppable = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.state: State | None = None
        self.seen = 0
        self.record_past = False
        self.last = LastSteps()

    def activate_past_recording(self) -> None:
        """Remember the last steps, so that :meth:`crop` can take tokens back; generation with an assistant asks for it."""
        self.record_past = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = (x.new_empty(*x.shape[:2], 0, x.shape[3]) for x in (key_states, value_states))
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Count the new tokens and return their keys and values; the state takes them in :meth:`attend`."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.seen += key_states.shape[2]
        return key_states, value_states

    def note_padding(self, mask: Tensor | None) -> None:
        """Nothing to learn: the state has taken every padding in when it came."""

    def takes_over(self, mechanism: Mechanism, q: Tensor, call: Call) -> bool:
        """Always: there is nothing but the state."""
        return True

    def attend(self, mechanism: Mechanism, q: Tensor, k: Tensor, v: Tensor, call: Call) -> tuple[Tensor, Tensor | None]:
        call.refuse_restricted_pairs()
        before = self.seen - q.shape[2]
        arguments: dict[str, Any] = {
            "padding_mask": None if call.mask is None else call.mask[:, before : self.seen].bool(),
            "scaling": call.scaling,
        }
        if mechanism.takes_hidden_states:
            arguments["hidden_states"] = call.hidden_states
        if call.weights_wanted and before:
            raise LengthError(
                f"Attention weights were asked for while decoding, but {mechanism.name!r} keeps a state in place of the earlier keys; "
                "pass use_cache=False or output_attentions=False."
            )
        weights = mechanism.weights(q, k, causal=True, **arguments) if call.weights_wanted else None
        out, state = mechanism.advance(q, k, v, self.state, dropout_p=call.dropout_p, **arguments)
        if self.record_past:
            self.last.add(Step(mechanism, self.state, q, k, v, arguments))
        self.state = {name: compact(tensor.detach()) for name, tensor in state.items()}
        return out, weights

    def state_bytes(self) -> int:
        """Size of the state."""
        return sum(tensor.numel() * tensor.element_size() for tensor in (self.state or {}).values())

    def get_seq_length(self) -> int:
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.seen + query_length, 0

    def restart(self, rows: Tensor) -> None:
        """The sequences of ``rows (B,)`` bool begin anew: zeros are the state before the first token."""
        if self.state is not None:
            over = {name: rows.to(x.device).view(-1, *[1] * (x.dim() - 1)) for name, x in self.state.items()}
            self.state = {name: torch.where(over[name], torch.zeros_like(x), x) for name, x in self.state.items()}

    def unused(self) -> int:
        """How many of the first columns nothing asks for: the state has taken all in."""
        return self.seen

    def renumber(self, count: int) -> None:
        """Count columns from ``count`` on."""
        self.seen -= count

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the last tokens; the number is negative. Without recording only everything can be taken back, or nothing."""
        removed = tokens_back(tokens_to_remove)
        if removed >= self.seen:
            if removed:
                self.reset()
            return
        if removed > len(self.last):
            advice = (
                "generate without assistant_model and prompt lookup, or copy the cache (copy.deepcopy)"
                if self.record_past
                else "call cache.activate_past_recording(), or copy the cache (copy.deepcopy),"
            )
            raise LengthError(
                f"{removed} tokens cannot be taken back: this layer keeps one state of all tokens, not the tokens; {advice} "
                "before the tokens that may be taken back."
            )
        if removed:
            self.state = self.last.take_back(removed)
            self.seen -= removed
        self.last.clear()

    def reset(self) -> None:
        self.state, self.seen, self.is_initialized = None, 0, False
        self.last.clear()
        self.keys = self.values = None  # type: ignore[assignment]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "last": LastSteps()}  # a copy does not go back behind itself

    def _change(self, how: Callable[[Tensor], Tensor]) -> None:
        self.last.clear()
        if self.is_initialized:
            self.keys, self.values = how(self.keys), how(self.values)
        if self.state is not None:
            self.state = {name: how(tensor) for name, tensor in self.state.items()}

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._change(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        self._change(lambda tensor: tensor[indices.to(tensor.device)])

    def offload(self) -> None:
        self._change(lambda tensor: tensor.to("cpu", non_blocking=True))

    def prefetch(self) -> None:
        if self.is_initialized and self.keys.device != self.device:
            self._change(lambda tensor: tensor.to(self.device, non_blocking=True))


class DynamicStateLayer(StateLayer):
    """For :class:`transformers.DynamicCache`."""

    _layer_type = STATE_LAYER


class StaticStateLayer(StateLayer, StaticLayer):
    """For :class:`transformers.StaticCache`, whose length bounds nothing here."""

    _layer_type = STATE_LAYER
    is_compileable = False

    def get_max_length(self) -> int:
        return self.max_cache_len
