"""Seams of patch features: photographs that a small ViT reads in tiles, in windows, in neighbourhoods, and with full attention.

The ViT learns to predict masked patches (transformers' ``ViTForMaskedImageModeling``) of small crops of five photographs of scikit-learn
and scikit-image. Then it reads three others, of 24 times as many pixels: in tiles, in overlapping tiles, and as a Long model with several
mechanisms. Three things are measured next to the borders of tiles and elsewhere: how far features jump; how far they are from those of a
crop in whose middle the patch lies; and how well masked patches are restored.

    pip download --no-deps scikit-image; unzip scikit_image*.whl 'skimage/data/*'
    python -m scripts.dev.studies.seams --photographs skimage/data

It is trained anew in each run, from a seed and for a fixed number of steps; only the image and the table are stored.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize
from transformers import ViTConfig, ViTForMaskedImageModeling

from hf_longattn.families import FAMILIES
from scripts.dev import RESULTS, ROOT
from scripts.dev.benchmarks.grid_models import in_tiles
from scripts.dev.benchmarks.report import machine, markdown_table, store_study

OF_SCIKIT_LEARN = ("china.jpg", "flower.jpg")
TRAINED_ON = (*OF_SCIKIT_LEARN, "coffee.png", "motorcycle_left.png", "rocket.jpg")
HELD_OUT = ("chelsea.png", "astronaut.png", "ihc.png")
"""A cat, a person and tissue; the first one is drawn."""
SIDE, PATCH = 64, 8
CELLS = SIDE // PATCH
"""Pixels and patches along the sides of the images that the small model reads."""
SHOWN = (256, 384)
"""Pixels that are read of a photograph, its middle."""
MASKED = 0.5
"""The share of patches that the model has to predict."""
DRAWS = 4
"""Masks of each photograph."""
RESAMPLES = 2_000
IMAGE = ROOT / "docs" / "images" / "seams.png"
TILES, OVERLAPPING = f"tiles of {SIDE} px, the unconverted model", "the same, half overlapping"
REFERENCE = "each patch in the middle of its own crop"
WINDOWS: dict[str, Any] = {"mechanism": "window2d", "window": CELLS}
READINGS: dict[str, tuple[dict[str, Any], str]] = {
    "window2d": (WINDOWS, "tile"),
    "window2d, 2 of 4 layers full": ({**WINDOWS, "layers": {1: {"mechanism": "full"}, 3: {"mechanism": "full"}}}, "tile"),
    "window2d, shift=alternate": ({**WINDOWS, "shift": "alternate"}, "tile"),
    "full, positions interpolated": ({"mechanism": "full"}, "interpolate"),
}
"""Mechanisms and positions by name."""
Reading = Callable[[Tensor, Tensor], Tensor]
"""Pixels ``(B, 3, H, W)`` and what is masked of them ``(B, rows, columns)`` -> states ``(B, rows, columns, C)``."""


def photograph(name: str, folder: Path) -> Tensor:
    """(3, height, width) from -1 to 1."""
    values = load_sample_image(name) if name in OF_SCIKIT_LEARN else np.asarray(Image.open(folder / name).convert("RGB"))
    return torch.from_numpy(values.copy()).permute(2, 0, 1).float() / 127.5 - 1


def middle(image: Tensor) -> Tensor:
    """(1, 3, *SHOWN)"""
    top, left = ((length - shown) // 2 for length, shown in zip(image.shape[1:], SHOWN, strict=True))
    return image[None, :, top : top + SHOWN[0], left : left + SHOWN[1]]


def crops(photographs: Sequence[Tensor], count: int, side: int, largest: int, generator: torch.Generator) -> Tensor:
    """(count, 3, side, side): crops of ``side`` to ``largest`` pixels at random places, scaled, every second one mirrored."""

    def drawn(least: int, most: int) -> int:
        return int(torch.randint(least, most + 1, (), generator=generator))

    images = []
    for _ in range(count):
        source, size = photographs[drawn(0, len(photographs) - 1)], drawn(side, largest)
        top, left = (drawn(0, length - size) for length in source.shape[1:])
        crop = source[:, top : top + size, left : left + size]
        crop = interpolate(crop[None], (side, side), mode="bilinear", antialias=True)[0]
        images.append(crop.flip(-1) if drawn(0, 1) else crop)
    return torch.stack(images)


def train(model: Any, photographs: Sequence[Tensor], *, steps: int, batch: int, rate: float, seed: int) -> list[float]:
    """Train to predict masked patches of crops; the loss of each step."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    losses = []
    for step in range(steps):
        pixels = crops(photographs, batch, SIDE, 4 * SIDE, generator)
        masked = torch.rand(batch, CELLS * CELLS, generator=generator) < MASKED
        loss: Tensor = model(pixels, bool_masked_pos=masked).loss
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


def readings(small: Any, folder: Path) -> dict[str, Reading]:
    """Every reading by name; the small model is in ``folder``."""

    def tiled(stride: int) -> Reading:
        def of_crops(crops: Tensor) -> Tensor:
            masked = crops[:, 3, ::PATCH, ::PATCH].flatten(1) > 0
            states: Tensor = small.vit(crops[:, :3], bool_masked_pos=masked).last_hidden_state
            return states[:, 1:]

        def read(pixels: Tensor, masked: Tensor) -> Tensor:
            shown = masked[:, None].repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3).to(pixels.dtype)
            return in_tiles(of_crops, torch.cat([pixels, shown], 1), PATCH, SIDE, stride)

        return read

    def converted(attention: dict[str, Any], positions: str) -> Reading:
        kind: Any = FAMILIES["vit"].model_class("ViTForMaskedImageModeling")
        values = {"long_attention": attention, "long_image_size": list(SHOWN), "position_extension": positions}
        model = kind.from_pretrained(folder, **values).eval()

        @torch.no_grad()
        def read(pixels: Tensor, masked: Tensor) -> Tensor:
            states: Tensor = model.vit(pixels, bool_masked_pos=masked.flatten(1)).last_hidden_state
            return states[:, 1:].unflatten(1, masked.shape[1:])

        return read

    long = {name: converted(*how) for name, how in READINGS.items()}
    return {TILES: tiled(SIDE), OVERLAPPING: tiled(SIDE // 2), **long, REFERENCE: tiled(PATCH)}


@torch.no_grad()
def errors(small: Any, states: Tensor, pixels: Tensor) -> Tensor:
    """(B, rows, columns): the mean distance of each patch's restored pixels from the photograph's, of 255."""
    restored = small.decoder(states.permute(0, 3, 1, 2))
    return 127.5 * nn.functional.avg_pool2d((restored - pixels).abs().mean(1), PATCH)


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
    """(rows, columns): whether a patch lies next to the border of a tile that is not the image's."""
    row, column = (
        ((torch.arange(side) % CELLS == 0) & (torch.arange(side) > 0))
        | ((torch.arange(side) % CELLS == CELLS - 1) & (torch.arange(side) < side - 1))
        for side in (rows, columns)
    )
    return row[:, None] | column


def by_tile(values: Tensor) -> Tensor:
    """(rows, columns) -> (tiles, cells of a tile)"""
    rows = values.unflatten(0, (-1, CELLS)).unflatten(2, (-1, CELLS))
    return rows.transpose(1, 2).flatten(2, 3).flatten(0, 1)


def mean_of(values: Sequence[Tensor], chosen: Sequence[Tensor], tiles: Tensor | None = None) -> float:
    """The mean of the values (tiles, cells) that are chosen, in some tiles or all."""
    at = slice(None) if tiles is None else tiles
    value, shown = torch.cat(list(values))[at], torch.cat(list(chosen))[at]
    return float((value * shown).sum() / shown.sum())


def measured(small: Any, read: Mapping[str, Reading], photographs: Sequence[Tensor], seed: int) -> dict[str, dict[str, Any]]:
    """The figures of each reading: features of whole photographs, and what is restored of masked ones, the same masks for all readings."""
    generator = torch.Generator().manual_seed(seed)
    cells = [side // PATCH for side in SHOWN]
    border = by_tile(at_borders(*cells))
    nothing = torch.zeros(1, *cells, dtype=torch.bool)
    masks = torch.rand(len(photographs), DRAWS, *cells, generator=generator) < MASKED
    references = [read[REFERENCE](pixels, nothing)[0] for pixels in photographs]
    figures: dict[str, dict[str, Any]] = {}
    restored: dict[str, list[Tensor]] = {}
    for name, reading in read.items():
        features, seconds = [], []
        for pixels in photographs:
            started = time.process_time()
            features.append(reading(pixels, nothing)[0])
            seconds.append(time.process_time() - started)
        distances = [by_tile(difference(one, other)) for one, other in zip(features, references, strict=True)]
        restored[name] = [
            by_tile(errors(small, reading(pixels, mask[None]), pixels)[0])
            for pixels, drawn in zip(photographs, masks, strict=True)
            for mask in drawn
        ]
        at = {"at_borders": border, "elsewhere": ~border}
        figures[name] = {"step_over_borders": sum(map(step_over_borders, features)) / len(features), "seconds": min(seconds)}
        for where, chosen in at.items():
            figures[name][f"difference_{where}"] = mean_of(distances, [chosen] * len(distances))
            shown = [by_tile(mask) & chosen for drawn in masks for mask in drawn]
            figures[name][f"error_{where}"] = mean_of(restored[name], shown)
    shown = [by_tile(mask) & border for drawn in masks for mask in drawn]
    for name in read:
        gains = [other - one for one, other in zip(restored[name], restored[TILES], strict=True)]
        count = sum(map(len, gains))
        drawn = [torch.randint(count, (count,), generator=generator) for _ in range(RESAMPLES)]
        quantiles = torch.tensor([mean_of(gains, shown, tiles) for tiles in drawn]).quantile(torch.tensor([0.025, 0.975]))
        figures[name]["gain_at_borders"] = [mean_of(gains, shown), *quantiles.tolist()]
    return figures


def colours(features: Tensor, reference: Tensor) -> Tensor:
    """(rows, columns, 3): the reference's first three principal components as red, green and blue."""
    cells = reference.flatten(0, 1)
    components = torch.linalg.svd(cells - cells.mean(0), full_matrices=False).Vh[:3].T
    low, high = ((cells - cells.mean(0)) @ components).quantile(torch.tensor([0.02, 0.98]), 0)
    return (((features - cells.mean(0)) @ components - low) / (high - low)).clamp(0, 1)


def draw(features: Mapping[str, Tensor], image: Tensor, file: Path) -> None:
    """The photograph, its features in each reading, and differences from the reference, with 192 colours."""
    reference = features[REFERENCE]
    panels = {"photograph": (image[0].permute(1, 2, 0) + 1) / 2}
    panels |= {name: colours(states, reference) for name, states in features.items()}
    differences = {name: difference(features[name], reference) for name in (TILES, OVERLAPPING, "neighborhood, kernel_size=9")}
    figure = Figure(figsize=(10, 9.8), layout="constrained")
    axes = figure.subplots(5, 3)
    for axis, (name, colour) in zip(axes.flat, panels.items(), strict=False):
        axis.imshow(
            colour.numpy(), interpolation="nearest" if len(colour) != SHOWN[0] else "antialiased", aspect="equal", extent=(0, 48, 32, 0)
        )
        axis.set_title(name, fontsize=9)
    for axis, (name, distance) in zip(axes[4], differences.items(), strict=True):
        heatmap = axis.imshow(distance.numpy(), cmap="magma", vmin=0, vmax=0.8, interpolation="nearest")
        axis.set_title(f"{name.partition(',')[0]}: difference", fontsize=9)
    axes[4, 1].set_title("half overlapping: difference", fontsize=9)
    for axis in axes.flat:
        axis.set_axis_off()
    figure.colorbar(heatmap, ax=list(axes[4]), shrink=0.8)
    drawn = BytesIO()
    figure.savefig(drawn, format="png", dpi=96)
    Image.open(drawn).convert("RGB").quantize(192, dither=Image.Dither.NONE).save(file, optimize=True)


def markdown(result: Mapping[str, Any]) -> str:
    """The table of a stored result."""
    rows = []
    seconds = result["readings"][TILES]["seconds"]
    for name, figures in result["readings"].items():
        gain, low, high = figures["gain_at_borders"]
        rows.append([
            name, f"{figures['seconds'] / seconds:.1f}", f"{figures['step_over_borders']:.1f}",
            *(f"{figures[f'difference_{where}']:.2f}" for where in ("at_borders", "elsewhere")),
            *(f"{figures[f'error_{where}']:.2f}" for where in ("at_borders", "elsewhere")),
            "–" if name == TILES else f"{gain:+.2f} [{low:+.2f}, {high:+.2f}]",
        ])  # fmt: skip
    heads = [
        "reading", "× time of tiles", "step over borders ÷ step within", "difference at borders", "elsewhere", "error at borders",
        "elsewhere", "better than tiles at borders",
    ]  # fmt: skip
    about = result["machine"]
    return (
        f"{markdown_table(heads, rows)}\n\n*{result['steps']:,} steps of 32 crops, {result['seconds']:.0f} seconds of processor time; "
        f"torch {about['torch']}, {about['date']}*\n"
    )


def main() -> None:
    """Train, read, measure, and write the image and the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--photographs", type=Path, required=True, help="the folder skimage/data of scikit-image's wheel")
    parser.add_argument("--steps", type=int, default=2_000, help="steps of 32 small crops")
    parser.add_argument("--seed", type=int, default=0, help="of weights, crops and masks")
    parser.add_argument("--image", type=Path, default=IMAGE, help="where the image is written")
    parser.add_argument("--result", type=Path, default=RESULTS / "seams.json", help="where the figures are written")
    args = parser.parse_args()
    started = time.process_time()
    torch.manual_seed(args.seed)
    model = small_model()
    train(model, [photograph(name, args.photographs) for name in TRAINED_ON], steps=args.steps, batch=32, rate=1e-3, seed=args.seed)
    shown = [middle(photograph(name, args.photographs)) for name in HELD_OUT]
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        read = readings(model, Path(folder))
    nothing = torch.zeros(1, *(side // PATCH for side in SHOWN), dtype=torch.bool)
    draw({name: reading(shown[0], nothing)[0] for name, reading in read.items()}, shown[0], args.image)
    result = {
        "machine": machine(), "steps": args.steps, "seed": args.seed, "readings": measured(model, read, shown, args.seed),
        "seconds": round(time.process_time() - started, 1),
    }  # fmt: skip
    store_study(args.result, result, markdown(result))
    print(markdown(result))


if __name__ == "__main__":
    main()
