"""What the package keeps between calls: masks, plans of block patterns and their layouts, in one store bounded in bytes.

Whatever is laid out once and used by later calls of the same shape goes into :data:`KEPT`. It holds at most :data:`BUDGET` bytes for the
whole process; what was used longest ago goes first, and what is larger than the budget is made for its call alone.
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

Made = TypeVar("Made")
BUDGET = 256 << 20
"""Bytes that :data:`KEPT` holds at most: enough for the plans of 24 layers with patterns of their own, and their masks."""
OVERHEAD = 512
"""What an entry counts besides its tensors, so that any number of small ones is bounded too."""
SPARED = 7 / 8
"""Share of the budget that is left after something had to go, so that not every new entry looks for the oldest."""


class _Entry:
    __slots__ = ("nbytes", "used", "value")

    def __init__(self, value: Any, nbytes: int, used: int) -> None:
        self.value, self.nbytes, self.used = value, nbytes, used


class ByteCache:
    """The most recently used values whose tensors take ``budget`` bytes together; safe across threads.

    A hit is one look into a dictionary, without a lock. Values are shared by all callers and are never written to.
    """

    def __init__(self, budget: int = BUDGET) -> None:
        self.budget = budget
        self.nbytes = 0
        """Bytes held."""
        self._entries: dict[Hashable, _Entry] = {}
        self._clock = itertools.count()
        self._lock = threading.RLock()  # a value that is freed may drop another entry, in the thread that holds the lock

    def get(self, key: Hashable, make: Callable[[], Made], size: Callable[[Made], int | None] | None = None) -> Made:
        """What ``make`` returned for ``key``. While PyTorch compiles or exports, it is made anew and not kept.

        Args:
            size: bytes of what was made, or None if it is not to be kept; :func:`tensor_bytes` by default.
        """
        if torch.compiler.is_compiling():
            return make()
        entry = self._entries.get(key)
        if entry is not None:
            entry.used = next(self._clock)
            return entry.value
        made = _made(make)
        nbytes = (size or tensor_bytes)(made)
        return made if nbytes is None else self.put(key, made, nbytes)

    def of(self, tensors: Sequence[Tensor], key: tuple[Hashable, ...], make: Callable[[], Made], size: Callable[[Made], int]) -> Made:
        """What ``make`` returned for ``key`` and these very tensors as they are now; it is forgotten when one of them goes."""
        versions = (0 if x.is_inference() else x._version for x in tensors)
        whole = (*key, *map(id, tensors), *versions)
        held = self.find(whole)
        if held is not None and all(ref() is x for ref, x in zip(held[0], tensors, strict=True)):
            return held[1]
        made, drop = _made(make), self.drop  # when the interpreter ends, modules lose their names before the last tensors go
        refs = tuple(weakref.ref(x, lambda _: drop(whole)) for x in tensors)
        self.put(whole, (refs, made), size(made))
        return made

    def find(self, key: Hashable) -> Any:
        """What was put under ``key``, or None."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        entry.used = next(self._clock)
        return entry.value

    def put(self, key: Hashable, value: Made, nbytes: int) -> Made:
        """Keep ``value``, which takes ``nbytes``, unless it is larger than all there is; returns it."""
        nbytes += OVERHEAD
        if nbytes > self.budget:
            return value
        with self._lock:
            self.drop(key)
            if self.nbytes + nbytes > self.budget:
                used = {one: entry.used for one in list(self._entries) if (entry := self._entries.get(one)) is not None}
                for oldest in sorted(used, key=used.__getitem__):  # from a copy: what is freed meanwhile drops entries here
                    self.drop(oldest)
                    if self.nbytes + nbytes <= self.budget * SPARED:
                        break
            self._entries[key] = _Entry(value, nbytes, next(self._clock))
            self.nbytes += nbytes
        return value

    def drop(self, key: Hashable) -> None:
        """Forget ``key``, if it is held."""
        with self._lock:
            entry = self._entries.pop(key, None)
            if entry is not None:
                self.nbytes -= entry.nbytes

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._entries.clear()
            self.nbytes = 0

    def __len__(self) -> int:
        return len(self._entries)


def _made(make: Callable[[], Made]) -> Made:
    """What is kept serves calls that take gradients, too, whichever call makes it."""
    with torch.inference_mode(False), torch.no_grad():
        return make()


KEPT = ByteCache()
"""The store of this process."""


def tensor_bytes(value: Any) -> int | None:
    """Memory of all tensors in ``value``, each storage once; None where one is no plain tensor, and so belongs to its call (a trace)."""
    storages: dict[int, int] = {}
    for tensor in _tensors(value):
        if type(tensor) not in (Tensor, nn.Parameter):
            return None
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage.nbytes()
    return sum(storages.values())


def _tensors(value: Any) -> Any:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _tensors(one)
    elif isinstance(value, tuple | list):
        for one in value:
            yield from _tensors(one)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _tensors(getattr(value, field.name))
