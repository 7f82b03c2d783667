"""Counts, on the CPU, the operations that would launch a kernel on a GPU and those for which the host would wait."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .device_layers import NO_KERNEL, SYNCHRONISES

NOT_ON_A_GPU = {"promote_types", "scalar_tensor"}
"""Operations of the dispatcher that launch nothing: of types, and of numbers that a kernel takes as arguments."""


@dataclasses.dataclass
class Launches:
    """Launches of kernels, waits of the host by operation, and results in float64."""

    operations: int = 0
    waits: Counter[str] = dataclasses.field(default_factory=Counter)
    float64: int = 0


class Counting(TorchDispatchMode):
    """Counts what would run on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.launches = Launches()

    def __enter__(self) -> Counting:
        self.tolist = torch.Tensor.tolist  # which the CPU does without an operation

        def tolist(x: torch.Tensor) -> Any:
            self.launches.waits["tolist"] += 1
            return self.tolist(x)

        torch.Tensor.tolist = tolist  # type: ignore[method-assign]
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        torch.Tensor.tolist = self.tolist  # type: ignore[method-assign]
        super().__exit__(*error)

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out, name = operator(*args, **(kwargs or {})), operator.overloadpacket.__name__
        if not operator.is_view and name not in NO_KERNEL | NOT_ON_A_GPU:
            self.launches.operations += name != "_local_scalar_dense"
            self.launches.float64 += any(isinstance(x, torch.Tensor) and x.dtype == torch.float64 for x in tree_leaves(out))
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        by_mask = any(isinstance(x, torch.Tensor) and x.dtype == torch.bool for x in indices)
        if name in SYNCHRONISES or by_mask:
            self.launches.waits[name] += 1
        return out
