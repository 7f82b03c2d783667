"""Ways to read large pictures with a small ViT: down-scaled, in tiles, or converted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn
from transformers import ViTForImageClassification

from hf_longattn.families import FAMILIES

Read = Callable[[nn.Module, Tensor, bool], Tensor]


class System(NamedTuple):
    """A way to read large pictures.

    name: its row in the table.
    load: loads the model of a folder for pictures of a size.
    read: the logits of pictures, ``(B, classes)``, or of their patches, ``(B, patches, classes)``.
    """

    name: str
    load: Callable[[Path, int], nn.Module]
    read: Read


def model_logits(model: Any, pixels: Tensor, dense: bool, **arguments: Any) -> Tensor:
    """The logits of a classifier for pictures, or, by the same classifier, for each of their patches."""
    if not dense:
        return model(pixels, **arguments).logits
    return model.classifier(model.vit(pixels, **arguments).last_hidden_state[:, 1:])


def systems(short: int, patch: int, layers: int, scaled: int) -> dict[str, System]:
    """The systems by a short name.

    Args:
        short: the side in pixels of the pictures that the small model has learned.
        patch: the side in pixels of a patch.
        layers: layers of the model.
        scaled: the side in pixels to which large pictures are down-scaled.
    """
    window = short // patch
    tiled = {"mechanism": "window2d", "window": window}
    last_full = {"layers": {layers - 1: {"mechanism": "full"}}}
    pooled = {"mechanism": "segmented", "block_size": window * window, "integration": "pooled", "order": f"tiles:{window}x{window}"}
    return {
        "scaled": System(f"down-scaled to {scaled} px", plain_model, down_scaled(scaled)),
        "small": System(f"down-scaled to {short} px", plain_model, down_scaled(short)),
        "tiles-mean": System(f"tiles of {short} px, mean of their logits", plain_model, in_tiles(short, patch, "mean")),
        "tiles-max": System(f"tiles of {short} px, maximum of their logits", plain_model, in_tiles(short, patch, "max")),
        "windows": System("window2d without a global token", converted({**tiled, "prefix_tokens": "reads"}, "tile"), model_logits),
        "global": System("window2d with a global class token", converted(tiled, "tile"), model_logits),
        "last-full": System("window2d, the last layer full", converted({**tiled, **last_full}, "tile"), model_logits),
        "pooled": System("segmented in tiles, pooled", converted(pooled, "tile"), model_logits),
        "full": System("full attention", converted({"mechanism": "full"}, "tile"), model_logits),
        "full-interpolated": System(
            "full attention, positions interpolated", converted({"mechanism": "full"}, "interpolate"), model_logits
        ),
    }  # fmt: skip


def plain_model(folder: Path, size: int) -> nn.Module:
    """The small model as it is."""
    return ViTForImageClassification.from_pretrained(folder)


def converted(attention: dict[str, Any], positions: str) -> Callable[[Path, int], nn.Module]:
    """Loads the small model with another attention for larger pictures."""

    def load(folder: Path, size: int) -> nn.Module:
        settings: dict[str, Any] = {"long_attention": attention, "long_image_size": [size, size], "position_extension": positions}
        return FAMILIES["vit"].model_class("ViTForImageClassification").from_pretrained(folder, **settings)

    return load


def down_scaled(side: int) -> Read:
    """Reads pictures down-scaled to this many pixels; the logits of a patch are those of the place where it was."""

    def read(model: Any, pixels: Tensor, dense: bool) -> Tensor:
        shrunk = nn.functional.interpolate(pixels, (side, side), mode="bilinear", antialias=True)
        logits = model_logits(model, shrunk, dense, interpolate_pos_encoding=True)
        if not dense:
            return logits
        patch = model.config.patch_size
        grid = logits.transpose(1, 2).unflatten(2, (side // patch, side // patch))
        return nn.functional.interpolate(grid, pixels.shape[-1] // patch, mode="nearest").flatten(2).transpose(1, 2)

    return read


def in_tiles(side: int, patch: int, pooling: str) -> Read:
    """Reads pictures as tiles of this many pixels, whose logits are pooled by their mean or maximum."""

    def read(model: nn.Module, pixels: Tensor, dense: bool) -> Tensor:
        number = pixels.shape[-1] // side
        tiles = pixels.unflatten(3, (number, side)).unflatten(2, (number, side)).permute(0, 2, 4, 1, 3, 5)
        logits = model_logits(model, tiles.flatten(0, 2), dense).unflatten(0, (len(pixels), number * number))
        if not dense:
            return logits.mean(1) if pooling == "mean" else logits.amax(1)
        patches = side // patch
        rows = logits.unflatten(2, (patches, patches)).unflatten(1, (number, number))
        return rows.permute(0, 1, 3, 2, 4, 5).flatten(1, 4)

    return read
