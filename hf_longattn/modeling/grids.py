"""Mixins for Long models of images: mechanisms on a grid, and positions of larger images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..engines.token_grid import Grid
from ..errors import BackendError
from .family.definition import known_family
from .family.grid_spec import INTERPOLATE, INTERPOLATE_ARGUMENT, PIXELS, TILE, GridSpec, image_size
from .keywords import GRID
from .mixin import TEXT_ARGUMENTS, LongAttentionMixin, LongBaseModelMixin, refuse_text_arguments

REFUSED_ARGUMENTS = (*TEXT_ARGUMENTS, "global_attention_mask")


class LongGridMixin(LongAttentionMixin):
    """Mixin before the base's model class that makes it a Long class for images."""

    added_arguments = ()

    def read_arguments(self, arguments: dict[str, Any]) -> None:
        refuse_text_arguments(self, arguments, REFUSED_ARGUMENTS)
        self.family.spec.check_head(type(self).__bases__[-1].__name__, self.config, arguments)


class LongGridModelMixin(LongGridMixin, LongBaseModelMixin):
    """Mixin before the base model: finds the grid of its input for its attention modules."""

    def after_attach(self) -> None:
        super().after_attach()
        if self.config.position_extension == TILE:
            for module in self.modules():
                if hasattr(type(module), INTERPOLATE_ARGUMENT):
                    setattr(module, INTERPOLATE_ARGUMENT, partial(tiled_positions, module))

    def check_inputs(self, arguments: dict[str, Any], runs: bool) -> None:
        """Check the size of the images, and add their grid to ``arguments``. Positions are interpolated if a base does
        so for images of another size."""
        spec = self.family.spec
        grid: Grid | None = spec.of_input(self.config, arguments)
        resizable = spec.interpolates and grid is not None and not arguments.get(INTERPOLATE_ARGUMENT)
        if resizable and tuple(arguments[PIXELS].shape[-2:]) != image_size(self.config.image_size):
            arguments[INTERPOLATE_ARGUMENT] = True
        pixels = arguments.get(PIXELS)
        if pixels is not None and pixels.is_floating_point():  # some bases convert images to their dtype, others fail
            arguments[PIXELS] = pixels.to(self.dtype)
        if runs:
            arguments[GRID] = grid


def grid_spec(model: Any) -> GridSpec:
    """The grid spec of a model of images, Long or not. Raises :class:`BackendError` if the model does not read images
    on a grid of patches."""
    family: Any = known_family(model.config)
    if family is None or not hasattr(family.spec, "of_input"):
        other = "recording" if getattr(model, "main_input_name", "") in ("input_values", "input_features") else "text"
        raise BackendError(f"{type(model).__name__} reads no images on a grid of patches; give a {other} instead.")
    return family.spec


@contextmanager
def interpolating(model: Any) -> Iterator[None]:
    """Context in which a model with tiled positions interpolates them instead, as its base does."""
    extension = model.config.position_extension
    modules = [module for module in model.modules() if INTERPOLATE_ARGUMENT in vars(module)]
    methods = [vars(module).pop(INTERPOLATE_ARGUMENT) for module in modules]
    model.config.position_extension = INTERPOLATE
    try:
        yield
    finally:
        model.config.position_extension = extension
        for module, method in zip(modules, methods, strict=True):
            setattr(module, INTERPOLATE_ARGUMENT, method)


def tiled_positions(embeddings: Any, patches: Tensor, height: int, width: int) -> Tensor:
    """The positions of an image of ``height`` × ``width`` pixels. Replaces the method of the base's ``embeddings``,
    which interpolates their square table ``(1, prefix + n·n, D)``.

    Cell (r, c) has the position of (r mod n, c mod n). The prefix has its own positions."""
    table = getattr(embeddings, "position_embeddings", None)
    if table is None:  # in some bases, the table is a layer
        table = embeddings.position_embedding.weight[None]
    side = int(table.shape[1] ** 0.5)
    prefix = table.shape[1] - side * side
    patch_height, patch_width = image_size(embeddings.patch_size)
    rows, columns = height // patch_height, width // patch_width
    cells = tiled_cells(table[:, prefix:].unflatten(1, (side, side)), rows, columns)
    return torch.cat([table[:, :prefix], cells.flatten(1, 2)], 1)


def tiled_cells(cells: Tensor, *sizes: int) -> Tensor:
    """``cells (B, *cells of the table, D)`` repeated along every axis, ``(B, *sizes, D)``."""
    repeats = [-(-size // side) for size, side in zip(sizes, cells.shape[1:-1], strict=True)]
    cells = cells.repeat(1, *repeats, 1)
    for axis, size in enumerate(sizes, 1):
        cells = cells.narrow(axis, 0, size)
    return cells
