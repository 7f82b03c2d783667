"""How far the features of a picture's patches depend on other patches: the effective receptive field, measured by distance.

Luo et al. 2016, Understanding the Effective Receptive Field in Deep Convolutional Neural Networks (arXiv 1701.04128), weigh each input of
a unit by the gradient with respect to it. Here an input is a patch, and its weight the change when another patch of the same picture takes
its place, so that the picture stays natural and the change is as large as between real contents. With f_q(x) the last hidden state of
token q for the picture x, and x[p ← s] the picture whose patch p shows what its patch s shows, the change is

    c(p, q) = ‖f_q(x[p ← s]) - f_q(x)‖₂ / ‖f_q(x)‖₂,

averaged over all pairs (p, q) of one distance, which is the greatest difference of their rows or columns (Chebyshev's), over random p
and s. Both pictures are read in batches of one shape, so that features that do not depend on p come out with the same bits and
their change is exactly 0.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..configuration import LongAttentionConfig
from ..conversion.grid_sizes import read_size
from ..conversion.model_loading import quiet_libraries
from ..conversion.processors import load_image_processor, required_processor, sized_pixels
from ..conversion.sources.base import open_source
from ..data.pictures import evenly_spread, picture_files, read_picture_file
from ..engines.common.grid import Grid
from ..errors import BackendError, GridError, OptionError
from ..mechanisms import Mechanism
from ..modeling.attach.attachment import attach_mechanisms
from ..modeling.attach.attention_sites import attention_sites, mechanisms_restored
from ..modeling.family.definition import FAMILIES, model_name
from ..modeling.grids import grid_rule
from ..modeling.inference.optimize import evaluating
from .loading import load_for_diagnosis
from .watching import has_mechanisms, watched_layers, watched_on_grid

PICTURES = 8
"""Pictures of a folder that are read at most."""
SAMPLES = 20
SHARE = 0.1
"""Of the change at 1–2 patches; what changes less counts as out of reach."""
TOKENS_AT_ONCE = 1 << 14
"""Tokens of a batch, unless one picture has more."""
FULL = "full"

Replacement = tuple[int, int]
"""The number of a patch in raster order, and that of the patch whose pixels take its place."""


@dataclass(frozen=True)
class DistanceBin:
    """The mean relative change of features from ``first`` to ``last`` patches away, both included, over ``pairs`` pairs of patches."""

    first: int
    last: int
    pairs: int
    change: float

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}–{self.last}"


@dataclass(frozen=True)
class FeatureChanges:
    """Relative changes of features where single patches were replaced.

    changes, pairs: for every distance in patches from 0 on, the mean and the number of pairs.
    prefix_change, prefix_pairs: the same for tokens before the patches, such as a class token; ``None`` and 0 without any.
    furthest: the greatest distance at which anything changed; nothing depends on patches further away.
    """

    changes: tuple[float, ...]
    pairs: tuple[int, ...]
    prefix_change: float | None
    prefix_pairs: int
    furthest: int

    def bins(self) -> list[DistanceBin]:
        """The distances 0, 1–2, 3–4, 5–8, 9–16 and so on as far as there are pairs."""
        bins, first, last = [], 0, 0
        while first < len(self.pairs):
            end = min(last, len(self.pairs) - 1)
            count = sum(self.pairs[first : end + 1])
            total = sum(change * pairs for change, pairs in zip(self.changes[first : end + 1], self.pairs[first : end + 1], strict=True))
            if count:
                bins.append(DistanceBin(first, end, count, total / count))
            first, last = last + 1, max(2, 2 * last)
        return bins

    def reach(self, share: float = SHARE) -> int:
        """The end of the furthest bin whose change is at least ``share`` of that at 1–2 patches; 0 if nothing changes there."""
        bins = self.bins()[1:]
        return max((row.last for row in bins if bins[0].change and row.change >= share * bins[0].change), default=0)


@dataclass(frozen=True)
class ReceptiveField:
    """The effective receptive field of a model of pictures.

    pictures: names of the files; empty for pixels. image_size: height and width that the model read.
    grid: of its tokens. mechanisms: of its layers, without repetitions; empty for a model with its base's attention.
    samples: patches replaced in each picture. share: see :meth:`FeatureChanges.reach`.
    measured: what the model does. full: the same weights with full attention in all layers, if that is something else.
    """

    model: str
    model_class: str
    pictures: tuple[str, ...]
    image_size: tuple[int, ...]
    grid: Grid
    mechanisms: tuple[str, ...]
    samples: int
    seed: int
    share: float
    measured: FeatureChanges
    full: FeatureChanges | None

    @property
    def prefix_name(self) -> str:
        """What the tokens before the patches are called."""
        return "class token" if self.grid.prefix == 1 else "prefix tokens"

    def conclusion(self) -> str:
        """How far the model looks, in one or two sentences."""
        said = (
            f"Features change by at least {self.share:.0%} of what they change at 1–2 patches when a patch up to "
            f"{self.measured.reach(self.share)} patches away is replaced"
        )
        if self.full is not None:
            said += f", {self.full.reach(self.share)} with full attention"
        if self.measured.furthest < max(self.grid.sizes) - 1:
            said += f". Nothing changes further than {self.measured.furthest} patches away"
        return f"{said}."

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form."""
        return {
            "model": self.model,
            "class": self.model_class,
            "pictures": list(self.pictures),
            "image_size": list(self.image_size),
            "grid": list(self.grid.sizes),
            "prefix_tokens": self.grid.prefix,
            "mechanisms": list(self.mechanisms),
            "samples": self.samples,
            "seed": self.seed,
            "share": self.share,
            **{
                name: None
                if changes is None
                else {
                    "bins": [asdict(row) for row in changes.bins()],
                    "prefix": changes.prefix_change,
                    "reach": changes.reach(self.share),
                    "furthest": changes.furthest,
                    "changes": list(changes.changes),
                    "pairs": list(changes.pairs),
                }
                for name, changes in (("measured", self.measured), ("full", self.full))
            },
        }


@quiet_libraries()
def measure_receptive_field(
    model: str | Path | nn.Module,
    pictures: Path | Tensor,
    *,
    image_size: Any | None = None,
    samples: int = SAMPLES,
    baseline: bool = True,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    device: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    progress: Callable[[str], None] | None = None,
) -> ReceptiveField:
    """Measure how much the features of a patch change when a patch some distance away is replaced: the effective receptive field.

    Args:
        model: a checkpoint of a family of pictures, long or not (a folder or a Hub repository id), or a model in memory.
        pictures: a photo, or a folder of them, of which up to :data:`PICTURES` are read, evenly spread; or pixels as the image processor
            makes them, ``(B, channels, height, width)``, which a model in memory needs.
        image_size: of files, in pixels: 1024, or "768x1024"; by default the size for which the model was made.
        samples: patches that are replaced in each picture, one at a time.
        baseline: measure a Long model with full attention in all layers as well, which costs what full attention costs.
        seed: of the patches.
        dtype: of weights and features; float32 if not given.
        device, revision, token: as for :func:`diagnose`.
        progress: called with a line after every batch.
    Raises:
        MissingExtraError: Pillow is not installed.
        DataError: there is no picture, or a file cannot be read as one.
        CheckpointError: the checkpoint cannot be loaded, or has no image processor.
        BackendError: a model of texts, or one whose layers are not all on one grid of patches.
        OptionError, GridError: a setting is out of range, or the size does not fit the model.
    """
    if samples < 1:
        raise OptionError(f"A probe replaces 1 patch or more, not {samples}; give a greater --samples.")
    files = () if isinstance(pictures, Tensor) else tuple(evenly_spread(picture_files(pictures), PICTURES))
    if isinstance(model, nn.Module):
        if files or image_size is not None:
            raise OptionError("A model in memory is probed with pixels; give processor(images=…, return_tensors='pt')['pixel_values'].")
        network, name = model, model_name(model)
    else:
        _check_family(model, revision, token)
        images = [read_picture_file(file) for file in files]
        loaded = load_for_diagnosis(model, None, device=device, revision=revision, token=token)
        network, name = loaded.model if dtype is None else loaded.model.to(dtype), str(model)
        if files:
            pictures = _pixels(network, loaded.source.folder, name, images, image_size)
    assert isinstance(pictures, Tensor)
    stack: Any = watched_layers(network)
    values = pictures.to(stack.device, stack.dtype)
    grid = watched_on_grid(network, {grid_rule(stack).input: values})[2]
    replaced = [random_replacements(grid, samples, f"{seed} {number}") for number in range(len(values))]
    measured = feature_changes(network, values, replaced, progress)
    mechanisms = [site.mechanism for site in attention_sites(stack)] if has_mechanisms(stack) else []
    names = tuple(dict.fromkeys(str(mechanism.name) for mechanism in mechanisms if isinstance(mechanism, Mechanism)))
    full = None
    if baseline and set(names) - {FULL}:
        with full_attention(stack):
            full = feature_changes(network, values, replaced, progress)
    return ReceptiveField(
        model=name, model_class=type(network).__name__, pictures=tuple(map(str, files)), image_size=tuple(values.shape[2:]), grid=grid,
        mechanisms=names, samples=len(replaced[0]), seed=seed, share=SHARE, measured=measured, full=full,
    )  # fmt: skip


def random_replacements(grid: Grid, samples: int, seed: int | str) -> list[Replacement]:
    """Up to ``samples`` different patches, each with another one that takes its place.

    Raises:
        GridError: there is one patch only.
    """
    if grid.cells < 2:
        raise GridError("The picture is one patch, so no other one can take its place; give a greater --image-size.")
    rng = random.Random(seed)
    patches = rng.sample(range(grid.cells), min(samples, grid.cells))
    return [(patch, (patch + rng.randrange(1, grid.cells)) % grid.cells) for patch in patches]


@torch.no_grad()
def feature_changes(
    model: nn.Module, values: Tensor, replaced: Sequence[Sequence[Replacement]], progress: Callable[[str], None] | None = None
) -> FeatureChanges:
    """The relative change of every token's last hidden state, by its distance from a patch that was replaced.

    Args:
        model: of a family of pictures.
        values: ``(B, channels, height, width)``, on the model's device and in its dtype.
        replaced: for each picture the patches to replace, one at a time.
        progress: called with a line after every batch.
    Raises:
        BackendError: it reads no pictures on one grid of patches.
        GridError: a picture whose size does not fit.
    """
    rule = grid_rule(watched_layers(model))
    stack, arguments, grid = watched_on_grid(model, {rule.input: values})
    sides = rule.patch(stack.config)
    cells = torch.stack(torch.meshgrid(*map(torch.arange, grid.sizes), indexing="ij"), -1).flatten(0, -2)
    sums, furthest = torch.zeros(max(grid.sizes), dtype=torch.float64), 0
    counts, prefix_sum = torch.zeros(max(grid.sizes), dtype=torch.int64), 0.0
    done, total, at_once = 0, sum(map(len, replaced)), max(1, TOKENS_AT_ONCE // grid.length)

    def features(batch: Tensor) -> Tensor:
        states = stack(**{**arguments, rule.input: batch}).last_hidden_state
        grid.check(states.shape[1])
        return states

    def place(patch: int) -> tuple[slice, ...]:
        starts = zip(cells[patch].tolist(), sides, strict=True)
        return slice(None), *(slice(cell * side, (cell + 1) * side) for cell, side in starts)

    with evaluating(stack):
        for picture, replacements in zip(values, replaced, strict=True):
            before: dict[int, Tensor] = {}
            for start in range(0, len(replacements), at_once):
                part = replacements[start : start + at_once]
                batch = picture.expand(len(part), *picture.shape)
                if len(part) not in before:  # rounding may depend on the shape of a batch
                    before[len(part)] = features(batch)
                batch = batch.clone()
                for row, (patch, source) in zip(batch, part, strict=True):
                    row[place(patch)] = picture[place(source)]
                change = _relative_change(features(batch), before[len(part)]).cpu()
                prefix_sum += float(change[:, : grid.prefix].sum())
                for row, (patch, _) in zip(change[:, grid.prefix :], part, strict=True):
                    distance = (cells - cells[patch]).abs().amax(-1)
                    sums += torch.bincount(distance, row, minlength=len(sums))
                    counts += torch.bincount(distance, minlength=len(sums))
                    furthest = max(furthest, int((distance * (row > 0)).max()))
                done += len(part)
                if progress is not None:
                    progress(f"{done} of {total} patches replaced")
    return FeatureChanges(
        changes=tuple((sums / counts.clamp(min=1)).tolist()), pairs=tuple(counts.tolist()),
        prefix_change=prefix_sum / (total * grid.prefix) if grid.prefix else None, prefix_pairs=total * grid.prefix, furthest=furthest,
    )  # fmt: skip


def _relative_change(after: Tensor, before: Tensor) -> Tensor:
    """‖after - before‖ / ‖before‖ of features ``(B, N, D)``, ``(B, N)`` in float64."""
    change, size = (torch.linalg.vector_norm(states, dim=-1, dtype=torch.float64) for states in (after - before, before))
    return change / size.clamp(min=torch.finfo(torch.float64).tiny)


@contextlib.contextmanager
def full_attention(stack: nn.Module) -> Iterator[None]:
    """Within the context all layers of a Long model run full attention, with the same weights and positions."""
    with mechanisms_restored(attention_sites(stack)):
        attach_mechanisms(stack, LongAttentionConfig(FULL))
        yield


def _check_family(model: str | Path, revision: str | None, token: str | bool | None) -> None:
    """Refuse a checkpoint that reads no pictures before its weights are loaded."""
    model_type = str(open_source(model, revision=revision, token=token).config.get("model_type"))
    family = FAMILIES.get(model_type.removeprefix("long_"))
    if family is None or family.grid is None:
        raise BackendError(
            f"{str(model)!r} is of type {model_type!r}, which is not a family of pictures; leave the photo and --images out to probe it "
            "with texts, or give a model such as a ViT."
        )


def _pixels(network: Any, folder: Path, name: str, images: Sequence[Any], image_size: Any | None) -> Tensor:
    """Pictures as the model reads them at this size, ``(B, channels, height, width)``."""
    rule, config = grid_rule(watched_layers(network)), network.config
    size = rule.sizes(config)[1] if image_size is None else read_size(image_size, len(rule.axes))
    rule.of_size(config, size)
    processor = required_processor(load_image_processor(folder), name)
    return sized_pixels(processor, folder, images, size, rule.input)


__all__ = ["DistanceBin", "FeatureChanges", "ReceptiveField", "measure_receptive_field"]
