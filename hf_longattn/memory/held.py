"""How much memory a cache holds, and that it holds no more than it needs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

COUNTED = ("transformers", "hf_longattn")
"""Packages into whose objects the count looks."""


def compact(tensor: Tensor) -> Tensor:
    """The tensor, or a copy where it is a view of less than half of what it would keep in memory: the last tokens of a long prompt."""
    if torch.compiler.is_compiling() or 2 * tensor.nbytes >= tensor.untyped_storage().nbytes():
        return tensor
    return tensor.clone()


def held_bytes(cache: Any) -> int:
    """Bytes of all tensors in a cache, each memory once however many tensors look at it."""
    return _bytes(getattr(cache, "__dict__", cache), set())


def _bytes(value: Any, seen: set[int]) -> int:
    if isinstance(value, Tensor):
        storage = value.untyped_storage()
        fresh = storage.data_ptr() not in seen
        seen.add(storage.data_ptr())
        return storage.nbytes() if fresh else 0
    if isinstance(value, dict):
        return sum(_bytes(one, seen) for one in value.values())
    if isinstance(value, list | tuple):
        return sum(_bytes(one, seen) for one in value)
    inside = getattr(value, "__dict__", None)
    return _bytes(inside, seen) if inside and type(value).__module__.startswith(COUNTED) else 0
