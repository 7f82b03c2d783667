"""The process-wide cache of masks and block layouts, bounded in bytes.

:data:`BYTE_CACHE` holds values that later calls of the same shape reuse, up to :data:`MAX_BYTES` bytes. It evicts the least recently used
entries first. A value larger than the budget is not cached.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import threading
import weakref
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..names import warn_missing

Value = TypeVar("Value")
MAX_BYTES = 256 << 20
"""Maximum bytes in :data:`BYTE_CACHE`. This is enough for the masks and plans of 24 layers with different patterns."""
ENTRY_BYTES = 512
"""Bytes counted per entry in addition to its tensors, so that the number of small entries is bounded too."""
SHARE_AFTER_EVICTION = 7 / 8
"""Fraction of the budget that an eviction leaves filled. It is below 1, so that the next new entries need no eviction."""


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
        self._lock = threading.RLock()  # reentrant, since freeing a value may drop another entry

    def get(self, key: Hashable, make: Callable[[], Value], size: Callable[[Value], int | None] | None = None) -> Value:
        """The cached value of ``key``. On a miss, ``make()`` is called and its value cached.

        Nothing is cached while PyTorch compiles or exports.

        Args:
            size: function from a value to its bytes, or to None if it must not be cached; :func:`tensor_bytes` by default.
        """
        if torch.compiler.is_compiling():
            return make()
        entry = self._entries.get(key)
        if entry is not None:
            entry.used = next(self._clock)
            return entry.value
        with _outside_modes():
            value = make()
        nbytes = (size or tensor_bytes)(value)
        return value if nbytes is None else self.put(key, value, nbytes)

    def of(self, tensors: Sequence[Tensor], key: tuple[Hashable, ...], make: Callable[[], Value], size: Callable[[Value], int]) -> Value:
        """:meth:`get` for ``key`` and the current versions of ``tensors``. Freeing any of the tensors drops the entry."""
        versions = map(tensor_version, tensors)
        entry_key = (*key, *map(id, tensors), *versions)
        cached = self.find(entry_key)
        if cached is not None and all(ref() is x for ref, x in zip(cached[0], tensors, strict=True)):
            return cached[1]
        with _outside_modes():
            value = make()
        drop = self.drop  # a local, since modules lose their names at interpreter exit before the last tensors are freed
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
        """Cache ``value`` of ``nbytes``, unless it exceeds the budget. Returns ``value``."""
        nbytes += ENTRY_BYTES
        if nbytes > self.budget:
            return value
        with self._lock:
            self.drop(key)
            if self.nbytes + nbytes > self.budget:
                # a copy, since freeing values drops entries
                used = {name: entry.used for name in list(self._entries) if (entry := self._entries.get(name)) is not None}
                for oldest in sorted(used, key=used.__getitem__):
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


@contextlib.contextmanager
def _outside_modes() -> Iterator[None]:
    """Without inference mode and with the CPU as default device, so that every later call can use the tensors that are made."""
    with torch.inference_mode(False), torch.no_grad(), torch.device("cpu"):
        yield


BYTE_CACHE = ByteCache()
"""The cache of this process."""


def tensor_bytes(value: Any) -> int | None:
    """Bytes of all tensors in ``value``, each storage once. ``None`` if it contains a tensor subclass, such as a traced tensor."""
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
    """PyTorch's count of in-place changes of ``tensor``. 0 for tensors made in inference mode, which have no count."""
    if tensor.is_inference():
        return 0
    try:
        return tensor._version
    except AttributeError:
        warn_missing("tensor_version")
        return next(_fresh)
