"""Tasks on pictures: a small ViT learns small ones, and large ones are read down-scaled, in tiles, or by the converted model."""

from __future__ import annotations

import abc
import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification

from .far_drawing import CELL
from .far_task import Labelled, Read, Shown, System, Task, converted, plain, task_folder

POSITION_SCALE = 0.3
"""Of sines and cosines in a position table, so that they do not outweigh the patches."""


class PictureTask(Task):
    """Pictures and their labels."""

    item = "picture"
    unit = "px"
    making = "drawing"
    patch: ClassVar[int] = CELL
    positions: ClassVar[Literal["tile", "interpolate"]] = "tile"
    """How the position table is extended to larger pictures; one that is interpolated begins with sines and cosines of rows and columns,
    by which a small model finds out within minutes where patches lie."""

    @abc.abstractmethod
    def picture(self, shown: Shown, random: np.random.Generator) -> tuple[np.ndarray, int | np.ndarray]:
        """A picture ``(size, size, 3)`` of uint8 and its label, or the labels ``(patches,)`` of its patches, or
        ``(1 + patches,)`` of the class token and them; -100 = without a label."""

    def batch(self, shown: Shown, count: int, random: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Pictures ``(count, 3, size, size)`` with values from -1 to 1, and labels ``(count,)`` or ``(count, tokens)``."""
        pictures, labels = zip(*(self.picture(shown, random) for _ in range(count)), strict=True)
        pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()
        return pixels.float().div_(127.5).sub_(1), torch.from_numpy(np.array(labels, dtype=np.int64))

    def small_model(self, args: argparse.Namespace, seed: int) -> ViTForImageClassification:
        """A ViT for small pictures with random weights, or with those of an earlier small model.

        That of another task gets a new head, and that of smaller pictures a position table resized by the model's own method.
        """
        if args.start_from:
            size = args.start_size or args.short_size
            settings: dict[str, Any] = {"num_labels": self.classes, "ignore_mismatched_sizes": True}
            model = ViTForImageClassification.from_pretrained(task_folder(args.start_from, args, seed, size), **settings)
            if size != args.short_size:
                embeddings, side = model.vit.embeddings, args.short_size // self.patch
                blank = torch.zeros(1, 1 + side * side, args.width)
                resized = embeddings.interpolate_pos_encoding(blank, args.short_size, args.short_size).detach()
                embeddings.position_embeddings = nn.Parameter(resized)
                model.config.image_size = args.short_size
            return model
        config = ViTConfig(
            hidden_size=args.width, num_hidden_layers=args.layers, num_attention_heads=max(1, args.width // 32), image_size=args.short_size,
            intermediate_size=4 * args.width, patch_size=self.patch, num_labels=self.classes, hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )  # fmt: skip
        model = ViTForImageClassification(config)
        if self.positions == "interpolate":
            side = args.short_size // self.patch
            model.vit.embeddings.position_embeddings.data[0, 1:] = POSITION_SCALE * waves(side, side, args.width)
        return model

    def small_logits(self, model: nn.Module, inputs: Tensor, labelled: Labelled) -> Tensor:
        return model_logits(model, inputs, labelled, interpolate_pos_encoding=True)

    def systems(self, args: argparse.Namespace) -> dict[str, System]:
        return systems(args.short_size, self.patch, args.layers, args.scaled, self.positions)

    def about_model(self, settings: Mapping[str, Any]) -> str:
        return f"A ViT of {settings['layers']} layers, width {settings['width']} and patches of {self.patch} pixels"

    def tokens(self, size: int) -> str:
        return f"{(size // self.patch) ** 2:,} patches"


def waves(rows: int, columns: int, width: int) -> Tensor:
    """Sines and cosines of the rows and columns of a grid, ``(rows * columns, width)``, as in MAE (He et al. 2021)."""
    angles = torch.arange(max(rows, columns))[:, None] * 10_000 ** -(torch.arange(width // 4) * 4 / width)
    table = torch.cat([angles.sin(), angles.cos()], 1)
    return torch.cat([table[:rows].repeat_interleave(columns, 0), table[:columns].repeat(rows, 1)], 1)


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
    plain_model = plain(ViTForImageClassification)

    def with_attention(attention: Mapping[str, Any], positions: str = positions) -> Callable[[Path, int], nn.Module]:
        fields = {"position_extension": positions}
        return converted("vit", ViTForImageClassification, attention, lambda size: {**fields, "long_image_size": [size, size]})

    return {
        "scaled": System(f"down-scaled to {scaled} px", plain_model, down_scaled(scaled, patch)),
        "small": System(f"down-scaled to {short} px", plain_model, down_scaled(short, patch)),
        "tiles-mean": System(f"tiles of {short} px, mean of their logits", plain_model, in_tiles(short, patch, "mean")),
        "tiles-max": System(f"tiles of {short} px, maximum of their logits", plain_model, in_tiles(short, patch, "max")),
        "windows": System("window2d without a global token", with_attention({**tiled, "prefix_tokens": "reads"}), model_logits),
        "global": System("window2d with a global class token", with_attention(tiled), model_logits),
        "last-full": System("window2d, the last layer full", with_attention({**tiled, **last_full}), model_logits),
        "half-full": System("window2d, every second layer full", with_attention({**tiled, **every_second}), model_logits),
        "pooled": System("segmented in tiles, pooled", with_attention(pooled), model_logits),
        "full": System("full attention", with_attention({"mechanism": "full"}), model_logits),
        "full-interpolated": System(
            "full attention, positions interpolated", with_attention({"mechanism": "full"}, "interpolate"), model_logits
        ),
    }  # fmt: skip


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
