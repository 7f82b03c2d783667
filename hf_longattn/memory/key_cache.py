"""Cache layers that return keys and values to the mechanism: the last w tokens, or all tokens in memory reserved once.

A window of w tokens needs max(w - 1, 1) keys between steps. transformers' sliding layer takes one width for the whole
model. Here the width is part of the layer type's name (``longattn_window_512``), so that layers may have different
widths.

Memory of a static layer is reserved once and shapes never change, so that every decoding step is the same graph. The
number of tokens in the cache, ``cumulative_length``, stays on its device. A graph can therefore update and compare the
number without waiting for the device. A static window is a ring buffer: the token of column c is in slot c modulo w,
and a new token overwrites the token that left the window. :func:`slot_columns` gives the column of the token in each
slot, for the layers of this module and of transformers. The mechanism evaluates its mask for exactly these columns
(``attend_rows`` of :mod:`~hf_longattn.mechanisms.common.masked`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin, DynamicSlidingWindowLayer, StaticLayer, StaticSlidingWindowLayer

from ..engines.batch import transformed
from ..errors import InputError
from ..mechanisms.common.masked import NO_TOKEN, Columns


def compact(tensor: Tensor) -> Tensor:
    """The tensor, copied if it uses less than half of its storage, for example as a view of a prompt's last tokens."""
    if torch.compiler.is_compiling() or transformed() or 2 * tensor.nbytes >= tensor.untyped_storage().nbytes():
        return tensor
    return tensor.clone()


class GrowingWindowLayer(DynamicSlidingWindowLayer):
    """The last ``window - 1`` keys and values (at least one). ``update`` returns them together with the new ones."""

    keys: Tensor
    values: Tensor

    def __init__(self, window: int, **kwargs: Any) -> None:
        # transformers keeps `x[-window + 1:]`, which is everything for a window of 1.
        super().__init__(sliding_window=max(window, 2))

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        self.keys = compact(self.keys)
        self.values = compact(self.values)
        return keys, values

    def unused(self) -> int:
        """The number of columns at the start that the mask may drop. At least ``sliding_window`` columns remain."""
        return max(0, int(self.cumulative_length) - self.sliding_window)

    def renumber(self, count: int) -> None:
        """Renumber the columns, so that column ``count`` becomes column 0."""
        self.cumulative_length -= count


class ReservedLayer(CacheLayerMixin):
    """Memory reserved once. All layers of a model share one mask, which is as long as the cache.

    max_cache_len: maximum number of tokens in the cache, padding included.
    """

    is_croppable = False
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

    def activate_past_recording(self) -> None:
        """Raise :class:`InputError`. Assisted decoding calls this method, and needs tokens that the ring buffer of a
        static window has overwritten."""
        raise InputError(
            "Tokens of a static cache cannot be removed, as assisted decoding (assistant_model, "
            "prompt_lookup_num_tokens) does; leave cache_implementation='static' out, or call the cache's reset()."
        )

    def crop(self, tokens_to_remove: int) -> None:
        self.activate_past_recording()


class StaticKeysLayer(ReservedLayer, StaticLayer):
    """All keys and values in memory reserved once."""


class StaticWindowLayer(StaticKeysLayer):
    """The last ``window`` keys and values as a ring buffer.

    The argument ``max_cache_len`` is the maximum number of tokens in the cache. The attribute ``max_cache_len`` is the
    number of slots of the ring, which may be smaller.
    """

    def __init__(self, max_cache_len: int, window: int, **kwargs: Any) -> None:
        super().__init__(max_cache_len=min(max_cache_len, window))
        self.longest = max_cache_len

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Store new tokens and return the keys and values to attend to.

        On the first call, these are the new tokens. Later, they are the ring (for one new token), or the old ring and
        the new tokens.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        count, started = key_states.shape[2], self.started

        # Several new tokens overwrite keys that the first of them still see, so that the old ring is copied first.
        returned = key_states, value_states
        if started and count > 1:
            returned = torch.cat([self.keys, key_states], 2), torch.cat([self.values, value_states], 2)
        elif started:
            returned = self.keys, self.values

        # Store the new tokens; if they are more than the ring has slots, the last of them.
        skipped = max(0, count - self.max_cache_len)
        columns = torch.arange(skipped, count, device=self.device) + self.cumulative_length
        slots = columns % self.max_cache_len
        self.keys.index_copy_(2, slots, key_states[:, :, skipped:])
        self.values.index_copy_(2, slots, value_states[:, :, skipped:])
        self.cumulative_length.add_(count)
        self.started = True
        return returned


def tokens_in(layer: StaticLayer) -> Tensor | int:
    """The number of tokens so far: a Python number for transformers' sliding layer, which counts on the host, and a
    tensor on the device for other layers."""
    return layer.cumulative_length_int if isinstance(layer, StaticSlidingWindowLayer) else layer.cumulative_length


def slot_columns(layer: StaticLayer, q_len: int, kv_len: int) -> Columns:
    """The columns of a call's queries and keys, after ``layer.update`` has returned ``kv_len`` keys for ``q_len`` new
    tokens."""
    # "ring": the slots of a ring. "ring and more": the old ring, then the new tokens. "rolled": the last tokens in
    # order, since older ones have been shifted out at the front.
    layout = "all"
    if isinstance(layer, StaticWindowLayer):
        layout = "ring" if kv_len == layer.max_cache_len else "ring and more"
    elif isinstance(layer, StaticSlidingWindowLayer):
        layout = "rolled"

    def find() -> tuple[Tensor, Tensor]:
        """Columns of the queries ``(q_len,)`` and of the keys ``(kv_len,)``."""
        total, device = tokens_in(layer), layer.device
        queries = torch.arange(q_len, device=device) + (total - q_len)
        if layout == "all":
            return queries, torch.arange(kv_len, device=device)
        if layout == "rolled":
            first = max(0, layer.cumulative_length_int - kv_len)
            return queries, torch.arange(first, first + kv_len, device=device)

        # Slot s holds the last token whose column modulo the number of slots is s.
        last = total - 1 if layout == "ring" else total - q_len - 1  # column of the last token in the ring
        column = last - (last - torch.arange(layer.max_cache_len, device=device)) % layer.max_cache_len
        keys = torch.where(column < 0, NO_TOKEN, column)
        if layout == "ring and more":
            keys = torch.cat([keys, queries])
        return queries, keys

    return Columns((layout, kv_len), find)
