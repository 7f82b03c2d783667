"""Base classes and type names of our decode cache layers, which can compute the attention of a step.

transformers builds a cache layer for each entry of ``config.layer_types``. It has one table of type names for growing caches and another
for static caches, and passes none of our settings. The name therefore contains them (``longattn_window_512``).
"""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import cache_utils
from transformers.cache_utils import DynamicLayer

from ..engines.batch import first_real
from ..engines.call import AttentionCall
from ..errors import BackendError, InputError
from ..mechanisms.common.base import Mechanism
from ..names import TESTED

NOT_STARTED = 1 << 40
"""Start of a sequence without a real token so far. It is larger than every column."""
COUNTED_PACKAGES = ("transformers", "hf_longattn")
"""Packages whose objects :func:`cache_bytes` searches for tensors."""
MAX_TYPE_NAMES = 1024
"""Maximum number of layer types that this package keeps registered in transformers."""


class AttentionCacheLayer(DynamicLayer):
    """A cache layer that can compute a step's attention instead of the mechanism, if :meth:`computes_attention` is true.

    It reads each sequence's first column from the padding masks.
    """

    keeps: ClassVar[str]
    """Description of the cached data, for :func:`hf_longattn.explain`."""
    is_croppable = False
    keys: Tensor
    values: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.starts: Tensor | None = None
        """``(B,)``: column of the first real token; :data:`NOT_STARTED` if there is none yet."""
        self._all_started = False
        """Whether every sequence has started."""

    @abstractmethod
    def computes_attention(self, mechanism: Mechanism, q: Tensor, call: AttentionCall) -> bool:
        """Whether to call :meth:`attend` in this step. If not, ``update`` has returned all past keys and values."""

    @abstractmethod
    def attend(
        self, mechanism: Mechanism, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall, weights_wanted: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Attention of the queries ``(B, H, Nq, D)`` of this step.

        Args:
            k, v: the keys and values that this layer's ``update`` returned.
            call: has the padding of all tokens seen so far. Its score term, if any, is a four-dimensional mask, a bias or a cap.
        Returns:
            ``(B, H, Nq, D)``, and the weights ``(B, H, Nq, tokens seen so far)`` if ``weights_wanted``.
        """

    def note_padding(self, mask: Tensor | None) -> None:
        """Read the padding mask ``(B, tokens seen so far)``. Called before every step."""
        if self._all_started:
            return
        if self.starts is None:
            self.starts = torch.full((len(self.keys),), NOT_STARTED, device=self.device)  # where the keys were before offloading
        first = torch.zeros_like(self.starts) if mask is None else torch.where(mask.bool().any(1), first_real(mask), NOT_STARTED)
        self.starts = torch.where(self.starts == NOT_STARTED, first, self.starts)
        self._all_started = bool((self.starts != NOT_STARTED).all())

    def crop(self, tokens_to_remove: int) -> None:
        """Raise :class:`InputError`: the layer does not hold what earlier tokens see."""
        raise InputError("Tokens of this cache cannot be removed; copy it (copy.deepcopy) before tokens that may have to be.")

    def restart(self, rows: Tensor) -> None:
        """Start new sequences in the batch rows ``rows (B,)`` bool. The mask must hide the old sequences."""
        if self.starts is not None:
            self.starts = self.starts.masked_fill(rows.to(self.starts.device), NOT_STARTED)
            self._all_started = False

    def renumber(self, count: int) -> None:
        """Renumber the columns, so that column ``count`` becomes column 0."""
        if self.starts is not None:
            self.starts = torch.where(self.starts == NOT_STARTED, NOT_STARTED, self.starts - count)

    def change_rows(self, change: Callable[[Tensor], Tensor]) -> None:
        """Apply ``change`` to every tensor whose first dimension is the batch."""
        if self.is_initialized:
            self.keys, self.values = change(self.keys), change(self.values)
        self.starts = None if self.starts is None else change(self.starts)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.change_rows(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        self.change_rows(lambda tensor: tensor[indices.to(tensor.device)])

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def reset(self) -> None:
        super().reset()
        self.starts, self._all_started = None, False


def unread_cache(name: str) -> BackendError:
    """The error if a model stored tokens in a cache that its attention function did not receive, so that they would be lost.

    Args:
        name: the class of the cache layer or of the attention module.
    """
    lowest, highest = TESTED["transformers"]
    return BackendError(
        f"{name} stored tokens in a decode cache that its attention never read; pass use_cache=False, or install transformers {lowest} to "
        f"{highest}, with which this is tested."
    )


def refuse_restricted_pairs(call: AttentionCall) -> None:
    """Raise :class:`InputError` if the call has a score term, because the cache has dropped keys."""
    if call.score_mod is not None:
        raise InputError(
            "A four-dimensional mask, a position bias or a cap on the scores (softcap) was given together with a cache that keeps only "
            "what the mechanism needs; pass a padding mask (batch, tokens) alone, or use_cache=False."
        )


def compact(tensor: Tensor) -> Tensor:
    """The tensor, copied if it uses less than half of its storage, for example as a view of a prompt's last tokens."""
    if torch.compiler.is_compiling():
        return tensor
    return tensor if 2 * tensor.nbytes >= tensor.untyped_storage().nbytes() else tensor.clone()


def cache_bytes(cache: Any) -> int:
    """Bytes of the storages of all tensors in a cache. A view counts its whole storage; shared storage counts once."""
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
    """Register ``name`` as a cache layer type in transformers' tables. Returns ``name``.

    ``growing`` builds layers for ``DynamicCache``, ``static`` for ``StaticCache``. Both must return instances of module-level classes, so
    that any process can unpickle a cache. Only the last :data:`MAX_TYPE_NAMES` names stay; a config registers its names for every cache.
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
