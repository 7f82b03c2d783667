"""What our decode cache layers share: they may compute the attention themselves, know where sequences start, and have a type name.

transformers builds a cache layer for each entry of ``config.layer_types`` from two tables, for growing and for static caches, and passes it
nothing but that name, so the name holds its settings (``longattn_window_512``).
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import cache_utils
from transformers.cache_utils import DynamicLayer

from ..engines.common.batch import first_real
from ..engines.common.call import AttentionCall
from ..errors import BackendError, LengthError, MaskError
from ..mechanisms.common.base import Mechanism

NOT_STARTED = 1 << 40
"""Start of a sequence whose first real token has not come yet: after every column."""
COUNTED_PACKAGES = ("transformers", "hf_longattn")
"""Packages into whose objects :func:`cache_bytes` looks."""
MAX_TYPE_NAMES = 1024
"""Type names that are in transformers' tables at a time."""


class AttentionCacheLayer(ABC):
    """A cache layer that the backend asks before it calls the mechanism itself."""

    keeps: ClassVar[str]
    """The keys that it attends to, in words, for :func:`hf_longattn.explain`."""

    @abstractmethod
    def computes_attention(self, mechanism: Mechanism, q: Tensor, call: AttentionCall) -> bool:
        """Whether :meth:`attend` is to be called in this step; otherwise ``update`` returned all past keys and values."""

    @abstractmethod
    def note_padding(self, mask: Tensor | None) -> None:
        """Learn from the padding mask ``(B, tokens seen so far)``, before every step."""

    @abstractmethod
    def attend(
        self, mechanism: Mechanism, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall, weights_wanted: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Attention of the queries ``(B, H, Nq, D)`` of this step.

        Args:
            k, v: what ``update`` of this layer returned.
            call: with the padding of all tokens seen so far; a score term means a four-dimensional mask, a bias or a cap.
        Returns:
            ``(B, H, Nq, D)``, and the weights ``(B, H, Nq, tokens seen so far)`` where they are wanted.
        """


class CroppableLayer(DynamicLayer):
    """A cache layer of which the last tokens can be taken back, as far as it still has what the tokens before them see."""

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the last tokens; the number is negative. As many as there are, or more, leave the layer empty.

        Raises:
            LengthError: a positive number; or the layer has dropped what is needed then. It is as it was before.
        """
        removed = tokens_back(tokens_to_remove)
        if not self.is_initialized:
            return
        if removed and removed >= self.get_seq_length():
            self.reset()
            return
        if why := self.cannot_take_back(removed):
            raise LengthError(f"{removed} tokens cannot be taken back: {why}")
        self.take_back(removed)

    def cannot_take_back(self, count: int) -> str:
        """Why the last ``count`` tokens, fewer than there are, cannot be taken back, and what to do; empty if they can."""
        return ""

    @abstractmethod
    def take_back(self, count: int) -> None:
        """Forget the last ``count`` tokens, and what is kept only so that later ones can be taken back."""


class LeftPaddedLayer(AttentionCacheLayer, CroppableLayer):
    """A cache layer that learns from the padding masks in which column each sequence starts."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.starts: Tensor | None = None
        """``(B,)``: column of the first real token; :data:`NOT_STARTED` where none has come yet."""
        self._all_started = False
        """Whether ``starts`` is final."""

    def note_padding(self, mask: Tensor | None) -> None:
        if self._all_started:
            return
        if self.starts is None:
            self.starts = torch.full((len(self.keys),), NOT_STARTED, device=self.keys.device)
        first = torch.zeros_like(self.starts) if mask is None else torch.where(mask.bool().any(1), first_real(mask), NOT_STARTED)
        self.starts = torch.where(self.starts == NOT_STARTED, first, self.starts)
        self._all_started = bool((self.starts != NOT_STARTED).all())

    def crop(self, tokens_to_remove: int) -> None:
        super().crop(tokens_to_remove)
        if tokens_to_remove and self.starts is not None:  # a first token may have been taken back
            self.starts = torch.where(self.starts < self.get_seq_length(), self.starts, NOT_STARTED)
            self._all_started = bool((self.starts != NOT_STARTED).all())

    def restart(self, rows: Tensor) -> None:
        """New sequences start in ``rows (B,)`` bool; the mask must hide the old ones."""
        if self.starts is not None:
            self.starts = self.starts.masked_fill(rows.to(self.starts.device), NOT_STARTED)
            self._all_started = False

    def shift_starts(self, count: int) -> None:
        """Count columns from ``count`` on."""
        if self.starts is not None:
            self.starts = torch.where(self.starts == NOT_STARTED, NOT_STARTED, self.starts - count)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.is_initialized:
            super().batch_repeat_interleave(repeats)
            self.starts = None if self.starts is None else self.starts.repeat_interleave(repeats, dim=0)

    def batch_select_indices(self, indices: Tensor) -> None:
        if self.is_initialized:
            super().batch_select_indices(indices)
            self.starts = None if self.starts is None else self.starts[indices]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        if self.is_initialized:
            self.batch_select_indices(beam_idx.to(self.device))


def refuse_restricted_pairs(call: AttentionCall) -> None:
    """Raise :class:`MaskError` where single pairs are masked or biased: keys that a cache has dropped cannot be."""
    if call.score_mod is not None:
        raise MaskError(
            "A four-dimensional mask or a position bias was given together with a cache that keeps only what the mechanism needs; "
            "pass a padding mask (batch, tokens), or use_cache=False."
        )


def tokens_back(tokens_to_remove: int) -> int:
    """The number of tokens that ``crop`` removes: transformers passes a negative number.

    Raises:
        LengthError: for a positive number, which used to be the length to keep.
    """
    if tokens_to_remove > 0:
        raise LengthError(f"crop({tokens_to_remove}) is not understood: say how many tokens to take back, as in crop(-{tokens_to_remove}).")
    return -tokens_to_remove


def compact(tensor: Tensor) -> Tensor:
    """The tensor, or a copy where it is a view of less than half of its storage, such as the last tokens of a long prompt."""
    if torch.compiler.is_compiling():
        return tensor
    try:
        storage_bytes = tensor.untyped_storage().nbytes()
    except NotImplementedError:  # inside of torch.func's transformations
        return tensor
    return tensor if 2 * tensor.nbytes >= storage_bytes else tensor.clone()


def cache_bytes(cache: Any) -> int:
    """Bytes of all tensors in a cache; storage that several tensors share counts once."""
    return _bytes(getattr(cache, "__dict__", cache), set())


def _bytes(value: Any, seen: set[int]) -> int:
    if isinstance(value, Tensor):
        storage = value.untyped_storage()
        is_new = storage.data_ptr() not in seen
        seen.add(storage.data_ptr())
        return storage.nbytes() if is_new else 0
    if isinstance(value, dict):
        return sum(_bytes(item, seen) for item in value.values())
    if isinstance(value, list | tuple):
        return sum(_bytes(item, seen) for item in value)
    inside = getattr(value, "__dict__", None)
    return _bytes(inside, seen) if inside and type(value).__module__.startswith(COUNTED_PACKAGES) else 0


_entered: OrderedDict[str, None] = OrderedDict()
_lock = threading.Lock()


def enter_layer_type(name: str, growing: Callable[..., Any], static: Callable[..., Any]) -> str:
    """Let ``DynamicCache`` build layers called ``name`` with ``growing``, and ``StaticCache`` with ``static``; returns the name.

    Only the last :data:`MAX_TYPE_NAMES` names stay in the tables; a config enters its names whenever a cache is made from it. Both
    callables make instances of module-level classes, so that any process can unpickle a cache.
    """
    tables = _tables()
    with _lock:
        if name in _entered:
            _entered.move_to_end(name)
            return name
        _entered[name] = None
        for table, make in zip(tables, (growing, static), strict=True):
            table[name] = make
        while len(_entered) > MAX_TYPE_NAMES:
            oldest, _ = _entered.popitem(last=False)
            for table in tables:
                table.pop(oldest, None)
    return name


def _tables() -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        return cache_utils.DYNAMIC_LAYER_TYPE_MAPPING, cache_utils.STATIC_LAYER_TYPE_MAPPING
    except AttributeError:
        raise BackendError(
            "This version of transformers has no tables of cache layers (cache_utils.DYNAMIC_LAYER_TYPE_MAPPING); "
            "install one that hf_longattn names in its requirements, or pass use_cache=False."
        ) from None
