"""Counts of what a GPU would run, with the results in float64 among them."""

from __future__ import annotations

from typing import Any

import torch

from scripts.dev.tools import launches


class Counting(launches.Counting):
    """``float64``: operations with a result in double precision."""

    float64 = 0

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = self.operations
        out = super().__torch_dispatch__(operator, types, args, kwargs)
        results = out if isinstance(out, tuple | list) else [out]
        self.float64 += self.operations > before and any(
            isinstance(x, torch.Tensor) and x.dtype == torch.float64 for x in results
        )
        return out
