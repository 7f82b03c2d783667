"""Static cache layers. Memory is reserved once and shapes never change, so every decoding step is the same graph.

The number of tokens in a cache, ``cumulative_length``, stays on its device. A graph adds to it and compares with it without waiting for the
device. :func:`slot_columns` gives the token in each slot, for our layers and for transformers' own. The mechanism evaluates its mask for
exactly these tokens (:meth:`hf_longattn.Mechanism.attend_step`).

A window of w tokens is a ring buffer. The token of column c is in slot c modulo w. A new token overwrites the token that left the window.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin, StaticLayer, StaticSlidingWindowLayer

from ..errors import InputError
from ..mechanisms.common.masked import NO_TOKEN, Columns


class ReservedLayer(CacheLayerMixin):
    """Memory reserved once. A mask is as long as the cache, as all layers of a model share one.

    max_cache_len: maximum number of tokens in the cache, padding included.
    """

    is_croppable = False  # transformers' own static layers are, since 5.24
    started = False
    """Whether the layer has tokens; known without waiting for the device."""

    def __init__(self, max_cache_len: int, **kwargs: Any) -> None:
        super().__init__(max_cache_len=max_cache_len, **kwargs)
        self.longest = max_cache_len

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.longest, 0

    def get_max_length(self) -> int:
        return self.longest

    def reset(self) -> None:
        super().reset()
        self.started = False

    def crop(self, tokens_to_remove: int) -> None:
        """Raise :class:`InputError`: transformers' graphs hold the number of tokens in a static cache."""
        raise InputError(
            "Tokens of a static cache cannot be removed; use a DynamicCache(config=model.config), or call the static cache's reset()."
        )


class StaticKeysLayer(ReservedLayer, StaticLayer):
    """All keys and values in memory reserved once."""


class StaticWindowLayer(StaticKeysLayer):
    """The last ``window`` keys and values, as a ring buffer, which may be shorter than the cache."""

    def __init__(self, max_cache_len: int, window: int, **kwargs: Any) -> None:
        super().__init__(max_cache_len=min(max_cache_len, window))
        self.longest = max_cache_len

    @property
    def slots(self) -> int:
        return self.max_cache_len

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Store new tokens and return the keys and values to attend to.
        On the first call, these are the new tokens. Later, they are the ring (for one new token), or the old ring and the new tokens."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        count, started = key_states.shape[2], self.started
        before = self.cumulative_length.clone() if started and count > 1 else self.cumulative_length
        seen = (torch.cat([self.keys, key_states], 2), torch.cat([self.values, value_states], 2)) if started and count > 1 else None
        fitting = min(count, self.slots)
        places = (torch.arange(count - fitting, count, device=self.device) + before) % self.slots
        self.keys.index_copy_(2, places, key_states[:, :, count - fitting :])
        self.values.index_copy_(2, places, value_states[:, :, count - fitting :])
        self.cumulative_length.add_(count)
        self.started = True
        if seen is not None:
            return seen
        return (self.keys, self.values) if started else (key_states, value_states)

    def held(self, total: Tensor) -> Tensor:
        """The column of the token in each slot, ``(slots,)``, after ``total`` tokens; :data:`NO_TOKEN` for empty slots."""
        slot, last = torch.arange(self.slots, device=self.device), total - 1
        column = last - (last - slot) % self.slots
        return torch.where(column < 0, NO_TOKEN, column)


def slot_columns(layer: StaticLayer, q_len: int, kv_len: int) -> Columns:
    """The columns of a call's queries and keys. ``layer.update`` has returned ``kv_len`` keys for ``q_len`` new tokens."""
    if isinstance(layer, StaticWindowLayer):
        return Columns(("ring" if kv_len == layer.slots else "ring and more", kv_len), lambda: _in_ring(layer, q_len, kv_len))
    if isinstance(layer, StaticSlidingWindowLayer):  # older tokens have been shifted out at the front
        first = max(0, layer.cumulative_length_int - kv_len)
        return Columns(("rolled", kv_len), lambda: (_last(layer, q_len), torch.arange(first, first + kv_len, device=layer.device)))
    return Columns(("all", kv_len), lambda: (_last(layer, q_len), torch.arange(kv_len, device=layer.device)))


def _last(layer: StaticLayer, count: int) -> Tensor:
    return torch.arange(count, device=layer.device) + (tokens_in(layer) - count)


def _in_ring(layer: StaticWindowLayer, q_len: int, kv_len: int) -> tuple[Tensor, Tensor]:
    queries, total = _last(layer, q_len), layer.cumulative_length
    if kv_len == layer.slots:
        return queries, layer.held(total)
    return queries, torch.cat([layer.held(total - q_len), queries])


def tokens_in(layer: StaticLayer) -> Tensor | int:
    """The number of tokens so far. transformers' sliding layer counts them on the host, other layers on the device."""
    return layer.cumulative_length_int if isinstance(layer, StaticSlidingWindowLayer) else layer.cumulative_length


def in_text_order(layer: StaticWindowLayer, k: Tensor, v: Tensor, q_len: int) -> tuple[Tensor, Tensor]:
    """A ring's keys and values in text order, without empty slots. Waits for the device."""
    _, columns = slot_columns(layer, q_len, k.shape[2]).find()
    order = columns.argsort()[: int((columns < NO_TOKEN).sum())]
    return k[:, :, order], v[:, :, order]
