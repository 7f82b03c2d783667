"""What is to be written, in either direction: every tensor, and the config and lengths of the result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..architectures.base import Architecture
from ..files.tensors import TensorHeader
from ..sources.base import Source

__all__ = ["ACTIONS", "ResultPlan", "TensorPlan"]

ACTIONS = ("kept", "renamed", "changed", "extended", "shortened", "zeroed", "copied", "added", "dropped")
"""What can become of a tensor: "changed" is a renamed one whose values are laid out anew, "zeroed" a position table that the result does
without, "copied" a mechanism's own parameter that begins as one of its layer's, "added" one that begins with values of its own."""


@dataclass(frozen=True)
class TensorPlan:
    """What becomes of one tensor."""

    name: str
    action: str  # one of ACTIONS
    dtype: torch.dtype  # as written
    old_shape: tuple[int, ...] | None
    new_shape: tuple[int, ...] | None
    header: TensorHeader | None = None  # of the source's tensor that its values come from
    offset: int = 0
    change: Callable[[Tensor], Tensor] | None = None  # from the source's values to those of the result
    reason: str = ""  # why it was dropped

    @property
    def streamed(self) -> TensorHeader | None:
        """The source's tensor where its file holds the values in the order in which they are to be written."""
        return self.header if self.action in ("kept", "renamed") and self.header is not None and self.header.start is not None else None

    @property
    def nbytes(self) -> int:
        return 0 if self.new_shape is None else torch.Size(self.new_shape).numel() * self.dtype.itemsize

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "action": self.action,
            "dtype": str(self.dtype).removeprefix("torch."),
            "old_shape": self.old_shape,
            "new_shape": self.new_shape,
            **({"from": self.header.name} if self.header is not None and self.header.name != self.name else {}),
            **({"reason": self.reason} if self.reason else {}),
        }


@dataclass(frozen=True)
class ResultPlan:
    """What is to be written, in either direction."""

    source: Source
    architecture: Architecture
    config: Any  # the config of the result
    old_length: int  # tokens the source takes
    new_length: int  # tokens the result takes
    positions: str  # what becomes of the positions
    tensors: tuple[TensorPlan, ...]
    max_shard_size: str | int | None

    def counts(self) -> dict[str, int]:
        """Tensors per action."""
        found = Counter(tensor.action for tensor in self.tensors)
        return {action: found.get(action, 0) for action in ACTIONS}

    @property
    def total_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def parameters(self) -> int:
        return sum(torch.Size(tensor.new_shape).numel() for tensor in self.tensors if tensor.new_shape is not None)

    @property
    def largest_tensor(self) -> int:
        """How many numbers the largest tensor of source and result has."""
        shapes = [shape for tensor in self.tensors for shape in (tensor.old_shape, tensor.new_shape) if shape is not None]
        return max(torch.Size(shape).numel() for shape in shapes)

    def sizes(self) -> dict[str, Any]:
        """What is kept and changed, JSON-serialisable."""
        return {
            "source_bytes": self.source.total_bytes,
            "result_bytes": self.total_bytes,
            "parameters": self.parameters,
            "tensor_counts": self.counts(),
            "kept_tensors": [tensor.name for tensor in self.tensors if tensor.action == "kept"],
            "changed_tensors": [tensor.to_dict() for tensor in self.tensors if tensor.action != "kept"],
        }
