"""Features of regions of an image with the context of the whole image: late pooling, as :mod:`.late_chunking` for text.

The whole image is read in one pass, and the features of its patches are averaged box by box afterwards. Usually, regions are cut out and
read alone. That loses their surroundings and costs one pass per region.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from ..errors import BackendError, LongAttentionError
from ..modeling.family.definition import without_head
from ..modeling.family.grid_rule import INTERPOLATE_ARGUMENT
from ..modeling.grids import grid_rule
from ..modeling.inference.optimize import evaluating

BOXES_AT_ONCE = 64
"""Boxes per pooling step, so that memory is linear in their number."""


@torch.no_grad()
def dense_features(model: PreTrainedModel, inputs: Mapping[str, Tensor] | Tensor) -> Tensor:
    """The features of the patches of each image, ``(B, rows, columns, D)`` in the model's dtype.

    Args:
        model: a vision model, long or not, with or without a head; or a backbone, whose last feature map is used.
        inputs: ``pixel_values (B, channels, height, width)``, or the image processor's result.
    Raises:
        BackendError: the model does not read images on a single grid of patches.
        GridError: a size that is not a multiple of the patch.
    """
    base: Any = without_head(model)
    rule = grid_rule(base)
    arguments = {rule.input: inputs} if isinstance(inputs, Tensor) else dict(inputs)
    pixels = arguments[rule.input].to(base.device, base.dtype)
    grid = rule.of_size(base.config, tuple(pixels.shape[-len(rule.axes) :]))
    if len(set(rule.layer_grids(base.config, grid))) > 1:
        raise BackendError(
            f"The layers of a {type(base).__name__} are on different grids, so that its patches have no features in the last one; take a "
            "model whose layers are on one grid, such as a ViT."
        )
    resized = {INTERPOLATE_ARGUMENT: True} if rule.interpolates and not hasattr(base, "out_features") else {}
    with evaluating(base):
        outputs = base(**{rule.input: pixels}, **resized)
    maps = getattr(outputs, "feature_maps", None)
    if maps is None:
        return rule.features(outputs.last_hidden_state, grid)
    if tuple(maps[-1].shape[-2:]) != grid.sizes:
        raise BackendError(
            f"The last feature map of {type(base).__name__} is not one of its {' × '.join(map(str, grid.sizes))} patches; load it with "
            "reshape_hidden_states=True and its last stage in out_features."
        )
    return maps[-1].movedim(1, -1)


def region_features(
    model: PreTrainedModel,
    inputs: Mapping[str, Tensor] | Tensor,
    boxes: Sequence[Any] | Tensor | None = None,
    *,
    tile: int | tuple[int, int] | None = None,
    size: tuple[int, int] | None = None,
    normalize: bool = True,
) -> list[Tensor]:
    """Read every image in one pass, and average the features of its patches in each box.

    A patch is weighted by its share inside the box, so that the result is the mean over the box's area.

    Args:
        model, inputs: as for :func:`dense_features`.
        boxes: for each image its boxes ``(n, 4)``, as ``(left, top, right, bottom)`` in pixels, ``right`` and ``bottom`` not included, as
            torchvision has them; one tensor ``(n, 4)`` for all images alike.
        tile: in place of boxes, the side of square tiles, or their height and width; tiles at the right and bottom may be smaller. They
            come row by row.
        size: height and width of the image to which boxes and tiles refer, if the image processor has resized it; default: those of
            ``pixel_values``.
        normalize: scale features to length 1.
    Returns:
        For each image the features of its boxes, ``(n, D)``, fp32 on the CPU.
    Raises:
        LongAttentionError: both boxes and tile, neither, boxes for another number of images, or boxes outside of the image.
        BackendError, GridError: as for :func:`dense_features`.
    """
    if (boxes is None) == (tile is None):
        raise LongAttentionError("Regions are boxes or tiles; give boxes=[[(left, top, right, bottom), …]], or tile=224.")
    pixels = inputs if isinstance(inputs, Tensor) else inputs[grid_rule(without_head(model)).input]
    height, width = tuple(pixels.shape[-2:]) if size is None else size
    lists = _boxes(boxes, len(pixels)) if boxes is not None else [tile_boxes((height, width), tile)] * len(pixels)
    for number, rows in enumerate(lists):
        _check(rows, (height, width), number)
    features = dense_features(model, inputs).float().cpu()
    pooled = [_pool(image, rows, (height, width)) for image, rows in zip(features, lists, strict=True)]
    return [F.normalize(regions, dim=-1) for regions in pooled] if normalize else pooled


def tile_boxes(size: tuple[int, int], tile: int | tuple[int, int] | None) -> Tensor:
    """The boxes ``(n, 4)`` of tiles that cover an image of this height and width, row by row.

    Raises:
        LongAttentionError: a tile without pixels.
    """
    sides = (tile, tile) if isinstance(tile, int) else tuple(tile or ())
    if len(sides) != 2 or min(sides) < 1:
        raise LongAttentionError(f"A tile is {tile!r}, but must have pixels along both axes, for example 224, or (224, 448).")
    (height, width), (rows, columns) = size, sides
    return torch.tensor(
        [
            (left, top, min(left + columns, width), min(top + rows, height))
            for top in range(0, height, rows)
            for left in range(0, width, columns)
        ],
        dtype=torch.float64,
    )


def _boxes(boxes: Sequence[Any] | Tensor, images: int) -> list[Tensor]:
    """The boxes of each image, ``(n, 4)`` float64."""
    same = isinstance(boxes, Tensor) and boxes.dim() == 2
    lists = [torch.as_tensor(rows, dtype=torch.float64) for rows in ([boxes] * images if same else boxes)]
    if len(lists) != images:
        raise LongAttentionError(f"There are boxes for {len(lists)} images, but {images} images; give a list of boxes for each.")
    lists = [rows.view(0, 4) if rows.numel() == 0 else rows for rows in lists]
    wrong = next((rows for rows in lists if rows.dim() != 2 or rows.shape[1] != 4), None)
    if wrong is not None:
        raise LongAttentionError(
            f"A box is (left, top, right, bottom), and an image has a list of them, [(0, 0, 224, 224)]; the shape {tuple(wrong.shape)} is "
            "something else."
        )
    return lists


def _check(boxes: Tensor, size: tuple[int, int], image: int) -> None:
    (left, top, right, bottom), (height, width) = boxes.unbind(1), size
    inside = (left >= 0) & (left < right) & (right <= width) & (top >= 0) & (top < bottom) & (bottom <= height)
    if not inside.all():
        box = tuple(round(value, 2) for value in boxes[~inside][0].tolist())
        raise LongAttentionError(
            f"Image {image} has {height} × {width} pixels (height × width) and no box {box}; give 0 <= left < right <= {width} and "
            f"0 <= top < bottom <= {height}."
        )


def _pool(features: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Means ``(n, D)`` of features ``(rows, columns, D)`` over boxes in an image of this height and width."""
    rows = _shares(boxes[:, 1], boxes[:, 3], features.shape[0], size[0])
    columns = _shares(boxes[:, 0], boxes[:, 2], features.shape[1], size[1])
    pieces = zip(rows.to(features.dtype).split(BOXES_AT_ONCE), columns.to(features.dtype).split(BOXES_AT_ONCE), strict=True)
    return torch.cat([torch.einsum("nr,rcd,nc->nd", of_rows, features, of_columns) for of_rows, of_columns in pieces])


def _shares(start: Tensor, stop: Tensor, cells: int, pixels: int) -> Tensor:
    """The share of each interval ``start (n,)`` to ``stop (n,)`` in every cell of an axis, ``(n, cells)``. Rows sum to 1."""
    edges = torch.arange(cells + 1, dtype=torch.float64) * (pixels / cells)
    inside = torch.minimum(stop[:, None], edges[1:]) - torch.maximum(start[:, None], edges[:-1])
    return inside.clamp(min=0) / (stop - start)[:, None]
