"""The process-wide cache of masks, plans of block patterns and their layouts, bounded in bytes.

:data:`BYTE_CACHE` holds everything that later calls of the same shape reuse, up to :data:`MAX_BYTES` bytes. The least recently used
entries are evicted first; a value larger than the budget is not cached.
"""

from __future__ import annotations

import dataclasses
import itertools
import threading
import weakref
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ...private_apis import warn_missing
from .derivatives import func_transforms

Value = TypeVar("Value")
MAX_BYTES = 256 << 20
"""Maximum bytes in :data:`BYTE_CACHE`. This is enough for the masks and plans of 24 layers with different patterns."""
ENTRY_BYTES = 512
"""Bytes counted per entry besides its tensors. They bound the number of small entries too."""
SHARE_AFTER_EVICTION = 7 / 8
"""Fraction of the budget to which an eviction shrinks the cache. Below 1, so that not every new entry evicts."""


@dataclasses.dataclass(slots=True)
class _Entry:
    value: Any
    nbytes: int
    used: int


class ByteCache:
    """A least-recently-used cache of at most ``budget`` bytes of tensors; thread-safe.

    A hit is one dictionary lookup without a lock. Values are shared by all callers, who must not write to them.
    """

    def __init__(self, budget: int = MAX_BYTES) -> None:
        self.budget = budget
        self.nbytes = 0
        """Bytes in the cache."""
        self._entries: dict[Hashable, _Entry] = {}
        self._clock = itertools.count()
        self._lock = threading.RLock()  # freeing a value may drop another entry in the same thread

    def get(self, key: Hashable, make: Callable[[], Value], size: Callable[[Value], int | None] | None = None) -> Value:
        """The cached value of ``key``, or ``make()``. Nothing is cached while PyTorch compiles or exports, nor within torch.func,
        whose tensors are invalid outside of it.

        Args:
            size: bytes of the value, or None to not cache it; :func:`tensor_bytes` by default.
        """
        if torch.compiler.is_compiling():
            return make()
        entry = self._entries.get(key)
        if entry is not None:
            entry.used = next(self._clock)
            return entry.value
        value = _made_alone(make)
        if func_transforms():
            return value
        nbytes = (size or tensor_bytes)(value)
        return value if nbytes is None else self.put(key, value, nbytes)

    def of(self, tensors: Sequence[Tensor], key: tuple[Hashable, ...], make: Callable[[], Value], size: Callable[[Value], int]) -> Value:
        """The cached value of ``key`` and the current versions of ``tensors``, or ``make()``. It is dropped when a tensor is freed."""
        versions = map(tensor_version, tensors)
        entry_key = (*key, *map(id, tensors), *versions)
        held = self.find(entry_key)
        if held is not None and all(ref() is x for ref, x in zip(held[0], tensors, strict=True)):
            return held[1]
        if func_transforms():
            return _made_alone(make)
        value, drop = (
            _made_alone(make),
            self.drop,
        )  # at interpreter exit modules lose their names before the last tensors are freed
        refs = tuple(weakref.ref(x, lambda _: drop(entry_key)) for x in tensors)
        self.put(entry_key, (refs, value), size(value))
        return value

    def find(self, key: Hashable) -> Any:
        """The value under ``key``, or ``None``."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        entry.used = next(self._clock)
        return entry.value

    def put(self, key: Hashable, value: Value, nbytes: int) -> Value:
        """Cache ``value`` of ``nbytes``, unless it exceeds the budget; returns it."""
        nbytes += ENTRY_BYTES
        if nbytes > self.budget:
            return value
        with self._lock:
            self.drop(key)
            if self.nbytes + nbytes > self.budget:
                used = {held: entry.used for held in list(self._entries) if (entry := self._entries.get(held)) is not None}
                for oldest in sorted(used, key=used.__getitem__):  # a copy, since freeing values drops entries
                    self.drop(oldest)
                    if self.nbytes + nbytes <= self.budget * SHARE_AFTER_EVICTION:
                        break
            self._entries[key] = _Entry(value, nbytes, next(self._clock))
            self.nbytes += nbytes
        return value

    def drop(self, key: Hashable) -> None:
        """Drop ``key``, if present."""
        with self._lock:
            entry = self._entries.pop(key, None)
            if entry is not None:
                self.nbytes -= entry.nbytes

    def clear(self) -> None:
        """Drop everything."""
        with self._lock:
            self._entries.clear()
            self.nbytes = 0

    def __len__(self) -> int:
        return len(self._entries)


def _made_alone(make: Callable[[], Value]) -> Value:
    """``make()`` outside of inference mode and of ``with torch.device(…)``. Later calls may need gradients, or have no default device. For
    any device but the CPU, ``make`` must name the device."""
    with torch.inference_mode(False), torch.no_grad(), torch.device("cpu"):
        return make()


BYTE_CACHE = ByteCache()
"""The cache of this process."""


def tensor_bytes(value: Any) -> int | None:
    """Bytes of all tensors in ``value``, each storage once. None if a tensor is not a plain one (a traced tensor, for example)."""
    storages: dict[tuple[torch.device, int], int] = {}
    for tensor in _tensors(value):
        if type(tensor) not in (Tensor, nn.Parameter):
            return None
        storage = tensor.untyped_storage()
        storages[storage.device, storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def _tensors(value: Any) -> Any:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _tensors(getattr(value, field.name))


_fresh = itertools.count(1)


def tensor_version(tensor: Tensor) -> int:
    """A number that grows whenever ``tensor`` is changed in place. 0 for tensors made in inference mode, which have no version."""
    if tensor.is_inference():
        return 0
    try:
        return tensor._version
    except AttributeError:
        warn_missing("tensor_version")
        return next(_fresh)
