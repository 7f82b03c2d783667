"""The process-wide cache of masks and block layouts, bounded in bytes.

:data:`BYTE_CACHE` holds values that later calls of the same shape reuse, up to :data:`MAX_BYTES` bytes. It evicts the
least recently used entries first. A value larger than the budget is not cached.
"""

from __future__ import annotations

import dataclasses
import itertools
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..names import warn_missing
from .batch import fake_mode, transformed

Value = TypeVar("Value")
MAX_BYTES = 256 << 20
"""Maximum bytes in :data:`BYTE_CACHE`. This is enough for the masks and plans of 24 layers with different patterns."""
ENTRY_BYTES = 512
"""Bytes counted per entry in addition to its tensors, so that the number of small entries is bounded too."""


class ByteCache:
    """A least-recently-used cache of at most ``budget`` bytes of tensors; thread-safe.

    Values are shared by all callers, who must not write to them.
    """

    def __init__(self, budget: int = MAX_BYTES) -> None:
        self.budget = budget
        self.nbytes = 0
        """Bytes in the cache."""
        self._entries: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        """Key -> value and bytes, the least recently used first."""
        self._lock = threading.RLock()  # reentrant, since freeing a value may drop another entry

    def get(
        self, key: Hashable, make: Callable[[], Value], size: Callable[[Value], int | None] | None = None
    ) -> Value:
        """The cached value of ``key``. On a miss, ``make()`` is called and its value cached, unless it exceeds the
        budget.

        Nothing is cached while PyTorch compiles or exports, or while new tensors are fake or wrapped by
        ``torch.func``.

        Args:
            size: function from a value to its bytes, or to None if it must not be cached; :func:`tensor_bytes` by
                default.
        """
        if torch.compiler.is_compiling() or transformed() or fake_mode() is not None:
            return make()
        entry = self._find(key)
        if entry is not None:
            return entry[0]
        # Outside of inference mode, and with the CPU as the default device, ``make`` gives tensors that every later
        # call can use.
        with torch.inference_mode(False), torch.no_grad(), torch.device("cpu"):
            value = make()
        nbytes = (size or tensor_bytes)(value)
        if nbytes is None or nbytes + ENTRY_BYTES > self.budget:
            return value
        with self._lock:
            self.drop(key)
            self._entries[key] = value, nbytes + ENTRY_BYTES
            self.nbytes += nbytes + ENTRY_BYTES
            while self.nbytes > self.budget:
                self.drop(next(iter(self._entries)))
        return value

    def _find(self, key: Hashable) -> tuple[Any, int] | None:
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None and self.nbytes > self.budget // 2:  # a cache far from full needs no order
                self._entries.move_to_end(key)
            return entry

    def of(
        self,
        tensors: Sequence[Tensor],
        key: tuple[Hashable, ...],
        make: Callable[[], Value],
        size: Callable[[Value], int],
    ) -> Value:
        """:meth:`get` for values that depend on ``tensors``: the key includes the tensors and their current versions.
        Freeing any of the tensors drops the entry."""
        entry_key = (*key, *map(id, tensors), *map(tensor_version, tensors))
        entry = self._find(entry_key)
        if entry is not None:
            references, value = entry[0]
            if all(reference() is x for reference, x in zip(references, tensors, strict=True)):
                return value
            self.drop(entry_key)  # an entry of freed tensors that had the same addresses
        # At interpreter exit, modules lose their names before the last tensors are freed. So the callback uses a
        # local.
        drop = self.drop
        references = tuple(weakref.ref(x, lambda _: drop(entry_key)) for x in tensors)
        return self.get(entry_key, lambda: (references, make()), lambda entry: size(entry[1]))[1]

    def drop(self, key: Hashable) -> None:
        with self._lock:
            _, nbytes = self._entries.pop(key, (None, 0))
            self.nbytes -= nbytes

    def clear(self) -> None:
        with self._lock:
            self._entries.clear()
            self.nbytes = 0

    def __len__(self) -> int:
        return len(self._entries)


BYTE_CACHE = ByteCache()


def tensor_bytes(value: Any) -> int | None:
    """Bytes of all tensors in ``value``, each storage once. ``None`` if it contains a tensor subclass, such as a
    traced tensor."""
    storages: dict[tuple[torch.device, int], int] = {}
    for tensor in _tensors(value):
        if type(tensor) not in (Tensor, nn.Parameter):
            return None
        storage = tensor.untyped_storage()
        storages[storage.device, storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def _tensors(value: Any) -> Any:
    """Yield the tensors of a value, inside mappings, sequences and dataclasses too."""
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
        return next(_fresh)  # a new version for each call, so that nothing cached is found again
