"""Cache layers for mechanisms that see scattered keys, such as sinks and a window.

A layer holds the keys that a later token can still see, each with its column in the padded batch. Keys that
:meth:`MaskedMechanism.kept` excludes are dropped. Positions count from each sequence's first real token, so rows with different padding
hold different columns. A row with fewer keys has empty slots (column -1).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..engines.call import AttentionCall
from ..mechanisms.common.base import Mechanism
from ..mechanisms.common.masked import MaskedMechanism
from ..mechanisms.common.registry import prototype
from ..names import BACKEND
from .cache_layer import AttentionCacheLayer, enter_layer_type, refuse_restricted_pairs
from .static_cache import StaticKeysLayer

SLACK = 64
"""Number of tokens between two removals of unneeded keys."""


class SparseCacheLayer(AttentionCacheLayer):
    """The keys and values ``(B, H, S, D)``, at ``columns (B, S)``, that later tokens can still see. ``mechanism`` and ``options`` (JSON)
    determine them; unneeded keys are removed once per :data:`SLACK` tokens. ``seen`` is the number of tokens so far."""

    keeps = "kept keys"

    def __init__(self, mechanism: str, options: str, **kwargs: Any) -> None:
        super().__init__()
        self.mechanism, self.options = mechanism, options
        self.seen = 0
        self.pruned = False
        self._clean_size = 0

    def computes_attention(self, mechanism: Mechanism, q: Tensor, call: AttentionCall) -> bool:
        """True once keys have been removed. Until then the layer holds all keys."""
        return self.pruned

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self.columns = torch.empty(key_states.shape[0], 0, dtype=torch.long, device=key_states.device)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append the new tokens and return all keys and values held. Unneeded keys are dropped first, once per :data:`SLACK` tokens."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if self.columns.shape[1] >= self._clean_size + SLACK:
            self._prune()
        new = torch.arange(self.seen, self.seen + key_states.shape[2], device=key_states.device)
        self.columns = torch.cat([self.columns, new.expand(key_states.shape[0], -1)], 1)
        self.seen += key_states.shape[2]
        return super().update(key_states, value_states)

    def positions(self) -> Tensor:
        """Position of each key in its own sequence, ``(B, S)``; negative for padding and empty slots."""
        assert self.starts is not None
        return torch.where(self.columns < 0, -1, self.columns - self.starts[:, None])

    def attend(
        self, mechanism: Mechanism, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall, weights_wanted: bool
    ) -> tuple[Tensor, Tensor | None]:
        assert isinstance(mechanism, MaskedMechanism)
        assert self.starts is not None
        refuse_restricted_pairs(call)
        columns, k_positions = self.columns, self.positions()
        real = k_positions >= 0
        if call.key_mask is not None:
            real = real & call.key_mask.gather(1, columns.clamp(min=0))
        q_positions = torch.arange(self.seen - q.shape[2], self.seen, device=q.device) - self.starts[:, None]
        positions = (q_positions, k_positions, real)
        call = call.replace(causal=True)
        out = mechanism.attend_kept(q, k, v, *positions, call)
        if not weights_wanted:
            return out, None
        one_hot = torch.eye(self.seen, dtype=v.dtype, device=v.device)[columns.clamp(min=0)] * real[..., None]
        one_hot = one_hot[:, None].expand(-1, k.shape[1], -1, -1)
        return out, mechanism.attend_kept(q, k, one_hot, *positions, call.replace(dropout=0.0))

    def _prune(self) -> None:
        """Keep the slots of keys that are visible later, packed to the left in order."""
        if self.starts is None or not self._all_started:  # positions are unknown until all sequences have started
            return
        positions = self.positions()
        upcoming = (self.seen - self.starts[:, None]).clamp(min=0)
        visible_later = prototype(self.mechanism, self.options).kept(positions, upcoming)
        assert visible_later is not None
        selected = visible_later & (positions >= 0)  # (B, S)
        size = int(selected.sum(1).max())
        order = (~selected).to(torch.uint8).argsort(dim=1, stable=True)[:, :size]
        self.columns = torch.where(selected.gather(1, order), self.columns.gather(1, order), -1)
        places = order[:, None, :, None].expand(-1, self.keys.shape[1], -1, -1)
        self.keys = self.keys.gather(2, places.expand(-1, -1, -1, self.keys.shape[3]))
        self.values = self.values.gather(2, places.expand(-1, -1, -1, self.values.shape[3]))
        self.pruned, self._clean_size = True, self.columns.shape[1]

    def get_seq_length(self) -> int:
        return self.seen

    def unused(self) -> int:
        """The number of columns at the start that no slot holds."""
        held = self.columns[self.columns >= 0] if self.is_initialized else None
        return int(held.min()) if held is not None and len(held) else self.seen

    def renumber(self, count: int) -> None:
        super().renumber(count)
        self.seen -= count
        if self.is_initialized:
            self.columns = torch.where(self.columns < 0, -1, self.columns - count)

    def reset(self) -> None:
        self.__init__(self.mechanism, self.options)  # type: ignore[misc]

    def change_rows(self, change: Callable[[Tensor], Tensor]) -> None:
        super().change_rows(change)
        if self.is_initialized:
            self.columns = change(self.columns)


def sparse_layer_type(mechanism: str, options: str) -> str:
    """The cache layer type of a mechanism with options (JSON). A static cache holds all keys."""
    return enter_layer_type(
        f"{BACKEND}_{mechanism}_{options}", partial(SparseCacheLayer, mechanism=mechanism, options=options), StaticKeysLayer
    )
