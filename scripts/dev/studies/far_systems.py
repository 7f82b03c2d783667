"""Ways to read large pictures with a small ViT: down-scaled, in tiles, or converted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import ViTForImageClassification

from hf_longattn.families import FAMILIES

from .far_drawing import Labelled

Read = Callable[[nn.Module, Tensor, Labelled], Tensor]


class System(NamedTuple):
    """A way to read large pictures.

    name: its row in the table.
    load: loads the model of a folder for pictures of a size.
    read: the logits of pictures, ``(B, classes)``, or of tokens, ``(B, patches or 1 + patches, classes)``.
    """

    name: str
    load: Callable[[Path, int], nn.Module]
    read: Read


def model_logits(model: Any, pixels: Tensor, labelled: Labelled, **arguments: Any) -> Tensor:
    """The logits of a classifier for pictures, or, by the same classifier, for each of their patches, or for the class token and them."""
    if labelled == "class":
        return model(pixels, **arguments).logits
    states = model.vit(pixels, **arguments).last_hidden_state
    return model.classifier(states if labelled == "both" else states[:, 1:])


def systems(short: int, patch: int, layers: int, scaled: int, positions: str) -> dict[str, System]:
    """The systems by a short name.

    Args:
        short: the side in pixels of the pictures that the small model has learned.
        patch: the side in pixels of a patch.
        layers: layers of the model.
        scaled: the side in pixels to which large pictures are down-scaled.
        positions: how a conversion extends the position table, "tile" or "interpolate".
    """
    window = short // patch
    tiled = {"mechanism": "window2d", "window": window}
    last_full = {"layers": {layers - 1: {"mechanism": "full"}}}
    every_second = {"layers": {layer: {"mechanism": "full"} for layer in range(1, layers, 2)}}
    pooled = {"mechanism": "segmented", "block_size": window * window, "integration": "pooled", "order": f"tiles:{window}x{window}"}
    return {
        "scaled": System(f"down-scaled to {scaled} px", plain_model, down_scaled(scaled, patch)),
        "small": System(f"down-scaled to {short} px", plain_model, down_scaled(short, patch)),
        "tiles-mean": System(f"tiles of {short} px, mean of their logits", plain_model, in_tiles(short, patch, "mean")),
        "tiles-max": System(f"tiles of {short} px, maximum of their logits", plain_model, in_tiles(short, patch, "max")),
        "windows": System("window2d without a global token", converted({**tiled, "prefix_tokens": "reads"}, positions), model_logits),
        "global": System("window2d with a global class token", converted(tiled, positions), model_logits),
        "last-full": System("window2d, the last layer full", converted({**tiled, **last_full}, positions), model_logits),
        "half-full": System("window2d, every second layer full", converted({**tiled, **every_second}, positions), model_logits),
        "pooled": System("segmented in tiles, pooled", converted(pooled, positions), model_logits),
        "full": System("full attention", converted({"mechanism": "full"}, positions), model_logits),
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


def down_scaled(side: int, patch: int) -> Read:
    """Reads pictures down-scaled to this many pixels; the logits of a patch are those of the place where it was."""

    def read(model: Any, pixels: Tensor, labelled: Labelled) -> Tensor:
        shrunk = nn.functional.interpolate(pixels, (side, side), mode="bilinear", antialias=True)
        logits = model_logits(model, shrunk, labelled, interpolate_pos_encoding=True)
        if labelled == "class":
            return logits
        first, patches = logits.split([logits.shape[1] - (side // patch) ** 2, (side // patch) ** 2], 1)
        grid = patches.transpose(1, 2).unflatten(2, (side // patch, side // patch))
        enlarged = nn.functional.interpolate(grid, pixels.shape[-1] // patch, mode="nearest").flatten(2).transpose(1, 2)
        return torch.cat([first, enlarged], 1)

    return read


def in_tiles(side: int, patch: int, pooling: str) -> Read:
    """Reads pictures as tiles of this many pixels, whose logits are pooled by their mean or maximum."""

    def read(model: nn.Module, pixels: Tensor, labelled: Labelled) -> Tensor:
        number = pixels.shape[-1] // side
        tiles = pixels.unflatten(3, (number, side)).unflatten(2, (number, side)).permute(0, 2, 4, 1, 3, 5)
        logits = model_logits(model, tiles.flatten(0, 2), labelled).unflatten(0, (len(pixels), number * number))
        if labelled == "class":
            return logits.mean(1) if pooling == "mean" else logits.amax(1)
        patches = side // patch
        first, rows = logits.split([logits.shape[2] - patches * patches, patches * patches], 2)
        rows = rows.unflatten(2, (patches, patches)).unflatten(1, (number, number)).permute(0, 1, 3, 2, 4, 5).flatten(1, 4)
        return torch.cat([first.mean(1) if pooling == "mean" else first.amax(1), rows], 1)

    return read
