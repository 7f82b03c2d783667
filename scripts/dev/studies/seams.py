"""Seams of patch features: a photograph that a small ViT reads in tiles, in windows, in neighbourhoods, and with full attention.

The ViT learns to predict masked patches (transformers' ``ViTForMaskedImageModeling``) of small crops of scikit-learn's two photographs.
Then it reads 60 times as many pixels: tile by tile, and as a Long model with several mechanisms. The reference is what the small model says
of each patch in the middle of a crop of its own, whose features have no seams.

It is trained anew in each run, from a seed and for a fixed number of steps; only the picture and the table are stored.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize
from transformers import ViTConfig, ViTForMaskedImageModeling, ViTModel

from hf_longattn.families import FAMILIES
from scripts.dev import RESULTS, ROOT
from scripts.dev.benchmarks.report import machine, markdown_table, store_study

PHOTOGRAPHS = ("china.jpg", "flower.jpg")
SIDE, PATCH = 64, 8
CELLS = SIDE // PATCH
"""Pixels and patches along the sides of the pictures that the small model reads."""
SHOWN = (384, 640)
"""Pixels that are read of the first photograph, its middle."""
LONGER_SIDE = 256
"""Pixels along the sides of the pictures of the further training."""
MASKED = 0.5
"""The share of patches that the model has to predict."""
PICTURE = ROOT / "docs" / "pictures" / "seams.png"
PHOTOGRAPH, REFERENCE = "photograph", "reference: each patch in the middle of its own crop"
WINDOWS: dict[str, Any] = {"mechanism": "window2d", "window": CELLS}
TWO_FULL = {**WINDOWS, "layers": {1: {"mechanism": "full"}, 3: {"mechanism": "full"}}}
FURTHER = "window2d, 2 of 4 layers full, trained further"
READINGS: dict[str, tuple[dict[str, Any], str]] = {
    "window2d": (WINDOWS, "tile"),
    "window2d, 2 of 4 layers full": (TWO_FULL, "tile"),
    FURTHER: (TWO_FULL, "tile"),
    "window2d, shift=alternate": ({**WINDOWS, "shift": "alternate"}, "tile"),
    "neighborhood, kernel_size=9": ({"mechanism": "neighborhood", "kernel_size": CELLS + 1}, "tile"),
    "full, positions interpolated": ({"mechanism": "full"}, "interpolate"),
}
"""Mechanisms and positions by name."""


def photograph(name: str) -> Tensor:
    """(3, height, width) from -1 to 1."""
    return torch.from_numpy(load_sample_image(name).copy()).permute(2, 0, 1).float() / 127.5 - 1


def crops(photographs: Sequence[Tensor], count: int, side: int, largest: int, generator: torch.Generator) -> Tensor:
    """(count, 3, side, side): crops of ``side`` to ``largest`` pixels at random places, scaled, every second one mirrored."""

    def drawn(least: int, most: int) -> int:
        return int(torch.randint(least, most + 1, (), generator=generator))

    pictures = []
    for _ in range(count):
        source, size = photographs[drawn(0, len(photographs) - 1)], drawn(side, largest)
        top, left = (drawn(0, length - size) for length in source.shape[1:])
        crop = source[:, top : top + size, left : left + size]
        crop = interpolate(crop[None], (side, side), mode="bilinear", antialias=True)[0]
        pictures.append(crop.flip(-1) if drawn(0, 1) else crop)
    return torch.stack(pictures)


def train(model: Any, *, steps: int, batch: int, side: int, largest: int, rate: float, seed: int) -> list[float]:
    """Train to predict masked patches of crops; the loss of each step."""
    generator, photographs = torch.Generator().manual_seed(seed), [photograph(name) for name in PHOTOGRAPHS]
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    cells, losses = side // PATCH, []
    for step in range(steps):
        pixels = crops(photographs, batch, side, largest, generator)
        masked = torch.rand(batch, cells * cells, generator=generator) < MASKED
        states = model.vit(pixels, bool_masked_pos=masked).last_hidden_state[:, 1:]  # the head's loss knows one size only
        reconstruction = model.decoder(states.transpose(1, 2).unflatten(2, (cells, cells)))
        shown = masked.view(batch, 1, cells, cells).repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)
        loss = ((reconstruction - pixels).abs() * shown).sum() / (3 * shown.sum())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(loss.item())
        if step % 100 == 0:
            print(f"step {step} of {steps}: loss {losses[-1]:.3f}", flush=True)
    model.eval()
    return losses


def small_model() -> ViTForMaskedImageModeling:
    """A ViT of 4 layers without weights of anyone's."""
    return ViTForMaskedImageModeling(
        ViTConfig(
            hidden_size=128, num_hidden_layers=4, num_attention_heads=4, intermediate_size=512, image_size=SIDE, patch_size=PATCH,
            encoder_stride=PATCH, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )
    )  # fmt: skip


def long_model(folder: Path, name: str, size: Sequence[int]) -> Any:
    """The small model of a folder as a Long one for pictures of this size."""
    attention, positions = READINGS[name]
    kind: Any = FAMILIES["vit"].model_class("ViTForMaskedImageModeling")
    return kind.from_pretrained(folder, long_attention=attention, long_image_size=list(size), position_extension=positions).eval()


def features_by_reading(folder: Path, steps: int, seed: int) -> dict[str, Tensor]:
    """Patch features of the photograph, (rows, columns, width), by name of the reading; the small model is in ``folder``."""
    picture = photograph(PHOTOGRAPHS[0])
    top, left = ((length - shown) // 2 for length, shown in zip(picture.shape[1:], SHOWN, strict=True))
    pixels = picture[None, :, top : top + SHOWN[0], left : left + SHOWN[1]]
    small: Any = ViTModel.from_pretrained(folder, add_pooling_layer=False).eval()
    features = {f"tiles of {SIDE} px, the unconverted model": in_tiles(small, pixels)}
    for name in READINGS:
        if name == FURTHER:
            model = long_model(folder, name, (LONGER_SIDE, LONGER_SIDE))
            train(model, steps=steps, batch=2, side=LONGER_SIDE, largest=LONGER_SIDE, rate=5e-4, seed=seed + 1)
        else:
            model = long_model(folder, name, SHOWN)
        with torch.no_grad():
            features[name] = model.vit(pixels).last_hidden_state[0, 1:].unflatten(0, [side // PATCH for side in SHOWN])
    features[REFERENCE] = centred(small, pixels)
    return features


@torch.no_grad()
def in_tiles(model: Any, pixels: Tensor) -> Tensor:
    """The features of pictures of one size next to each other, none of which knows of the others."""
    tiles = pixels.unflatten(3, (-1, SIDE)).unflatten(2, (-1, SIDE)).permute(0, 2, 4, 1, 3, 5)
    rows, columns = tiles.shape[1:3]
    states = model(tiles.flatten(0, 2)).last_hidden_state[:, 1:].view(rows, columns, CELLS, CELLS, -1)
    return states.permute(0, 2, 1, 3, 4).flatten(2, 3).flatten(0, 1)


@torch.no_grad()
def centred(model: Any, pixels: Tensor) -> Tensor:
    """The feature of each patch as the model gives it in the crop in whose middle it lies; at the border of the picture, nearest to it."""
    rows, columns = (side // PATCH for side in SHOWN)
    corners = [(row, column) for row in range(rows - CELLS + 1) for column in range(columns - CELLS + 1)]
    states = []
    for start in range(0, len(corners), 64):
        batch = [pixels[0, :, PATCH * r : PATCH * r + SIDE, PATCH * c : PATCH * c + SIDE] for r, c in corners[start : start + 64]]
        states.append(model(torch.stack(batch)).last_hidden_state[:, 1:].unflatten(1, (CELLS, CELLS)))
    by_corner = torch.cat(states).unflatten(0, (rows - CELLS + 1, columns - CELLS + 1))
    row, column = torch.arange(rows)[:, None], torch.arange(columns)
    first_row, first_column = ((place - CELLS // 2).clamp(0, side - CELLS) for place, side in ((row, rows), (column, columns)))
    return by_corner[first_row, first_column, row - first_row, column - first_column]


def step_over_borders(features: Tensor) -> float:
    """How many times as far neighbours across a tile's border lie apart as neighbours within a tile, by cosine; 1 without seams."""
    directions = normalize(features - features.flatten(0, 1).mean(0), dim=-1)
    across, within = [], []
    for axis in (0, 1):
        count = features.shape[axis] - 1
        steps = 1 - (directions.narrow(axis, 1, count) * directions.narrow(axis, 0, count)).sum(-1)
        border = torch.arange(1, count + 1) % CELLS == 0
        across.append(steps.transpose(0, axis)[border].flatten())
        within.append(steps.transpose(0, axis)[~border].flatten())
    return float(torch.cat(across).mean() / torch.cat(within).mean())


def difference(features: Tensor, reference: Tensor) -> Tensor:
    """(rows, columns): the norm of the difference, as a share of the mean norm of the reference."""
    return (features - reference).norm(dim=-1) / reference.norm(dim=-1).mean()


def at_borders(rows: int, columns: int) -> Tensor:
    """(rows, columns): whether a patch lies next to the border of a tile that is not the picture's."""
    row, column = (
        ((torch.arange(side) % CELLS == 0) & (torch.arange(side) > 0))
        | ((torch.arange(side) % CELLS == CELLS - 1) & (torch.arange(side) < side - 1))
        for side in (rows, columns)
    )
    return row[:, None] | column


def measured(features: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
    """The figures of each reading."""
    reference = features[REFERENCE]
    border = at_borders(*reference.shape[:2])
    figures = {}
    for name, states in features.items():
        distance = difference(states, reference)
        figures[name] = {
            "step_over_borders": step_over_borders(states),
            "difference_at_borders": float(distance[border].mean()),
            "difference_elsewhere": float(distance[~border].mean()),
        }
    return figures


def colours(features: Tensor, reference: Tensor) -> Tensor:
    """(rows, columns, 3): the reference's first three principal components as red, green and blue."""
    cells = reference.flatten(0, 1)
    components = torch.linalg.svd(cells - cells.mean(0), full_matrices=False).Vh[:3].T
    low, high = ((cells - cells.mean(0)) @ components).quantile(torch.tensor([0.02, 0.98]), 0)
    return (((features - cells.mean(0)) @ components - low) / (high - low)).clamp(0, 1)


def draw(features: Mapping[str, Tensor], file: Path) -> None:
    """The photograph, its features in each reading, and differences from the reference, with 256 colours."""
    reference = features[REFERENCE]
    picture = photograph(PHOTOGRAPHS[0])
    top = (picture.shape[1] - SHOWN[0]) // 2
    panels = {PHOTOGRAPH: (picture[:, top : top + SHOWN[0]].permute(1, 2, 0) + 1) / 2}
    panels |= {name: colours(states, reference) for name, states in features.items()}
    differences = {
        name: difference(features[name], reference) for name in ("window2d", "window2d, shift=alternate", "neighborhood, kernel_size=9")
    }
    figure = Figure(figsize=(10, 8.6), layout="constrained")
    axes = figure.subplots(4, 3)
    for axis, (name, colour) in zip(axes.flat, panels.items(), strict=False):
        axis.imshow(colour.numpy(), interpolation="nearest" if name != PHOTOGRAPH else "antialiased", aspect="equal", extent=(0, 80, 48, 0))
        axis.set_title(name, fontsize=9)
    for axis, (name, distance) in zip(axes[3], differences.items(), strict=True):
        image = axis.imshow(distance.numpy(), cmap="magma", vmin=0, vmax=0.8, interpolation="nearest")
        axis.set_title(f"{name}: difference", fontsize=9)
    for axis in axes.flat:
        axis.set_axis_off()
    figure.colorbar(image, ax=list(axes[3]), shrink=0.8)
    drawn = BytesIO()
    figure.savefig(drawn, format="png", dpi=96)
    Image.open(drawn).convert("RGB").quantize(192, dither=Image.Dither.NONE).save(file, optimize=True)


def markdown(result: Mapping[str, Any]) -> str:
    """The table of a stored result."""
    rows = []
    for name, figures in result["readings"].items():
        trained_further = name == FURTHER  # its features are others, so that a difference says nothing of seams
        shares = ("–" if trained_further else f"{figures[key]:.2f}" for key in ("difference_at_borders", "difference_elsewhere"))
        rows.append([name, f"{figures['step_over_borders']:.1f}", *shares])
    heads = ["reading", "step over borders ÷ step within", "difference at borders", "difference elsewhere"]
    about = result["machine"]
    return (
        f"{markdown_table(heads, rows)}\n\n*{result['steps']:,} steps of 32 pictures, {result['further_steps']:,} further steps, "
        f"{result['seconds']:.0f} seconds of processor time; torch {about['torch']}, {about['date']}*\n"
    )


def main() -> None:
    """Train, read, measure, and write the picture and the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--steps", type=int, default=600, help="steps of 32 small pictures")
    parser.add_argument("--further-steps", type=int, default=200, help=f"steps of 2 pictures of {LONGER_SIDE} pixels, of one reading")
    parser.add_argument("--seed", type=int, default=0, help="of weights, crops and masks")
    parser.add_argument("--picture", type=Path, default=PICTURE, help="where the picture is written")
    parser.add_argument("--result", type=Path, default=RESULTS / "seams.json", help="where the figures are written")
    args = parser.parse_args()
    started = time.process_time()
    torch.manual_seed(args.seed)
    model = small_model()
    train(model, steps=args.steps, batch=32, side=SIDE, largest=4 * SIDE, rate=1e-3, seed=args.seed)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        features = features_by_reading(Path(folder), args.further_steps, args.seed)
    draw(features, args.picture)
    result = {
        "machine": machine(), "steps": args.steps, "further_steps": args.further_steps, "seed": args.seed,
        "seconds": round(time.process_time() - started, 1), "readings": measured(features),
    }  # fmt: skip
    store_study(args.result, result, markdown(result))
    print(markdown(result))


if __name__ == "__main__":
    main()
