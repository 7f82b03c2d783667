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
    """Mixin before the base model. Passes the grid of its input to its attention modules."""

    def after_attach(self) -> None:
        """Also replace the base's interpolation of positions, if the config says that positions are tiled."""
        super().after_attach()
        if self.config.position_extension == TILE:
            for module in self.modules():
                if hasattr(type(module), INTERPOLATE_ARGUMENT):
                    setattr(module, INTERPOLATE_ARGUMENT, partial(tiled_positions, module))

    def check_inputs(self, arguments: dict[str, Any], runs: bool) -> None:
        """Check the size of the images, and add their grid to ``arguments``. Images of another size than the trained
        one also get ``interpolate_pos_encoding=True``, if the base takes it."""
        spec = self.family.spec
        grid: Grid | None = spec.of_input(self.config, arguments)
        can_interpolate = spec.interpolates and grid is not None and not arguments.get(INTERPOLATE_ARGUMENT)
        if can_interpolate and tuple(arguments[PIXELS].shape[-2:]) != image_size(self.config.image_size):
            arguments[INTERPOLATE_ARGUMENT] = True
        pixels = arguments.get(PIXELS)
        if pixels is not None and pixels.is_floating_point():
            arguments[PIXELS] = pixels.to(self.dtype)  # some bases fail if images have another dtype than the weights
        if runs:
            arguments[GRID] = grid


def grid_spec(model: Any) -> GridSpec:
    """The :class:`GridSpec` of a model of images, with or without a Long class.

    Raises:
        BackendError: the model does not read images on a grid of patches.
    """
    family: Any = known_family(model.config)
    if family is None or not hasattr(family.spec, "of_input"):
        other = "recording" if getattr(model, "main_input_name", "") in ("input_values", "input_features") else "text"
        raise BackendError(f"{type(model).__name__} reads no images on a grid of patches; give a {other} instead.")
    return family.spec


@contextmanager
def interpolating(model: Any) -> Iterator[None]:
    """Context in which a model with tiled positions interpolates its position table instead, as its base does."""
    extension = model.config.position_extension
    # an attribute of an instance hides the base's method; after_attach sets one for tiles
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
    """Tiled positions ``(1, prefix + rows · columns, D)`` for an image of ``height`` × ``width`` pixels. Replaces the
    method by which the base's module ``embeddings`` interpolates its table ``(1, prefix + n·n, D)``.

    The patch in row r and column c has the position of row r mod n and column c mod n in the table. Tokens of the
    prefix (before the patches) keep their positions."""
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
    """``cells (B, n, …, D)``, repeated along every axis of the grid and cut to ``(B, *sizes, D)``."""
    repeats = [-(-size // side) for size, side in zip(sizes, cells.shape[1:-1], strict=True)]
    cells = cells.repeat(1, *repeats, 1)
    for axis, size in enumerate(sizes, 1):
        cells = cells.narrow(axis, 0, size)
    return cells
