"""Neighborhood attention of any rank, as NATTEN defines it. Sources: Hassani et al. 2023, Neighborhood Attention Transformer, section 3;
Hassani and Shi 2022, Dilated Neighborhood Attention; for strides, Hassani et al. 2025, Generalized Neighborhood Attention.

Along an axis, a cell sees only cells of its class: those with an equal index modulo the dilation. With a stride of s, every s consecutive
cells share the window of their leader. For the i-th of the n cells of a class and a kernel of k cells,

    leader = min(⌊i / s⌋·s + ⌊s / 2⌋, n - 1)
    first  = leader - ⌊k / 2⌋, moved inwards to between 0 and n - k
    last   = first + k - 1

A window slides inwards at a border, so that it always has k cells. With an even k, one more cell is before the leader. With ``is_causal``

    leader = min(⌊i / s⌋·s + s - 1, n - 1),  first = max(leader - k + 1, 0),  last = i

A cell sees the cells that are in its window on every axis.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from ..engines.common.grid import Grid
from ..errors import GridError, OptionError
from ..options import option
from .common.local_on_grid import LocalGridMechanism, at_least, at_most
from .common.on_grid import GridOptions
from .common.registry import register_mechanism


@dataclasses.dataclass(frozen=True)
class NeighborhoodOptions(GridOptions):
    kernel_size: tuple[int, ...] = option(
        (7,), "cells that a cell sees along each axis, at borders too: one number, or one for each axis", "cells", least=1
    )
    stride: tuple[int, ...] = option(
        (1,), "neighbouring cells with the same window, at most kernel_size, along each axis", "cells", least=1
    )
    dilation: tuple[int, ...] = option((1,), "distance between neighbouring visible cells along each axis", "cells", least=1)
    is_causal: tuple[bool, ...] = option((False,), "whether later cells are hidden along each axis, as for the frames of a video")

    def check(self) -> None:
        super().check()
        for name in ("kernel_size", "stride", "dilation", "is_causal"):
            if not getattr(self, name):
                raise OptionError(f"Option {name!r} of mechanism 'neighborhood' is empty; pass one value, or one for each axis.")
        pairs = zip(self.stride, self.kernel_size, strict=True) if len(self.stride) == len(self.kernel_size) else None
        if any(s > k for s, k in pairs or [(max(self.stride), max(self.kernel_size))]):
            raise OptionError(
                f"Option 'stride' is {'+'.join(map(str, self.stride))}, but kernel_size is {'+'.join(map(str, self.kernel_size))}, and "
                "cells would not see themselves; pass a stride of at most kernel_size."
            )


@register_mechanism("neighborhood")
class Neighborhood(LocalGridMechanism):
    """Softmax over the nearest cells, as many at a border as elsewhere."""

    summary = "on a grid: softmax over the nearest cells, as many at a border as elsewhere (NATTEN)"
    paper = "Hassani et al. 2023, Neighborhood Attention Transformer, §3; Hassani et al. 2025, Generalized Neighborhood Attention"
    when = "images and videos: each cell has a full window around it, also at the border, so that features have no seams"
    cost = "N·k² on an image"
    sample: ClassVar[dict[str, Any]] = {"kernel_size": 3}
    options: NeighborhoodOptions

    @classmethod
    def covering_grid(cls, grid: Grid) -> dict[str, Any]:
        return {"kernel_size": grid.sizes if len(set(grid.sizes)) > 1 else grid.sizes[0]}

    def check_grid(self, grid: Grid) -> None:
        kernels, strides, dilations = (self._per_axis(grid, name) for name in ("kernel_size", "stride", "dilation"))
        for size, kernel, stride, dilation in zip(grid.sizes, kernels, strides, dilations, strict=True):
            if kernel * dilation > size:
                raise GridError(
                    f"Mechanism 'neighborhood' needs kernel_size · dilation cells on every axis, but {kernel} · {dilation} is more than "
                    f"the {size} of {grid}; choose a smaller kernel_size or dilation, or 'local2d', whose windows are cut off there."
                )
            if stride > kernel:
                raise GridError(f"Option 'stride' is {stride} where kernel_size is {kernel}; pass a stride of at most {kernel}.")

    def _per_axis(self, grid: Grid, name: str) -> tuple[int, ...]:
        return grid.per_axis(getattr(self.options, name), name)

    def steps(self, grid: Grid) -> tuple[int, ...]:
        return self._per_axis(grid, "dilation")

    def stretch(self, grid: Grid, axis: int, place: Any) -> tuple[Any, Any]:
        kernel, stride, dilation, causal = (self._per_axis(grid, name)[axis] for name in ("kernel_size", "stride", "dilation", "is_causal"))
        residue, number = place % dilation, place // dilation
        last = (grid.sizes[axis] - 1 - residue) // dilation  # number of the last cell in the coordinate's residue class
        group = number // stride * stride
        if causal:
            low, high = at_least(at_most(group + stride - 1, last) - kernel + 1, 0), number
        else:
            low = at_most(at_least(at_most(group + stride // 2, last) - kernel // 2, 0), last + 1 - kernel)
            high = low + kernel - 1
        return low * dilation + residue, high * dilation + residue
