"""How far the features of a picture's patches depend on other patches: the effective receptive field, measured by distance.

Luo et al. 2016, Understanding the Effective Receptive Field in Deep Convolutional Neural Networks (arXiv 1701.04128), weigh each input of
a unit by the gradient with respect to it. Here an input is a patch, and its weight the change when another patch of the same picture takes
its place, so that the picture stays natural and the change is as large as between real contents. With f_q(x) the last hidden state of
token q for the picture x, and x[p ← s] the picture whose patch p shows what its patch s shows, the change is

    c(p, q) = ‖f_q(x[p ← s]) - f_q(x)‖₂ / ‖f_q(x)‖₂,

averaged over all pairs (p, q) of one distance, which is the greatest difference of their rows or columns (Chebyshev's), over random p
and s. Both pictures are read in batches of one shape, so that features that do not depend on p come out with the same bits and
their change is exactly 0. Where layers are on grids that halve (DiNAT), a patch is a cell of the last one. Models that leave patches out by
noise (ViT-MAE) read all of them.
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
from transformers import PreTrainedModel

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
from ..modeling.family.definition import FAMILIES, model_name, without_head
from ..modeling.family.grid_rule import GridRule
from ..modeling.grids import family_of
from ..modeling.inference.optimize import evaluating
from .loading import load_for_diagnosis
from .watching import has_mechanisms

PICTURES = 8
"""Pictures of a folder that are read at most."""
SAMPLES = 20
SHARE = 0.1
"""Of the change at 1–2 patches; what changes less counts as out of reach."""
TOKENS_AT_ONCE = 1 << 14
"""Tokens of a batch, unless one picture has more."""
FULL = "full"
FULL_ATTENTION, OWN_ATTENTION = "full attention", "the base's attention"

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
    grid: of its features. patch: pixels of a cell of that grid along each axis.
    mechanisms: of its layers, without repetitions; empty for a model with its base's attention.
    samples: patches replaced in each picture. share: see :meth:`FeatureChanges.reach`.
    measured: what the model does. full: the same weights with the base's attention, if that is something else; full attention in most
        families, and called ``base_attention``.
    """

    model: str
    model_class: str
    pictures: tuple[str, ...]
    image_size: tuple[int, ...]
    grid: Grid
    patch: tuple[int, ...]
    mechanisms: tuple[str, ...]
    samples: int
    seed: int
    share: float
    measured: FeatureChanges
    full: FeatureChanges | None
    base_attention: str = FULL_ATTENTION

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
            said += f", {self.full.reach(self.share)} with {self.base_attention}"
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
            "patch": list(self.patch),
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
            "base_attention": self.base_attention,
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
            makes them, ``(B, channels, height, width)``, which a model in memory needs, also where it reads them as lists of patches.
        image_size: of files, in pixels: 1024, or "768x1024"; by default the size for which the model was made.
        samples: patches that are replaced in each picture, one at a time.
        baseline: measure a Long model with the attention of its base as well, which is full attention in most families and costs what
            that costs.
        seed: of the patches.
        dtype: of weights and features; float32 if not given.
        device, revision, token: as for :func:`diagnose`.
        progress: called with a line after every batch.
    Raises:
        MissingExtraError: Pillow is not installed.
        DataError: there is no picture, or a file cannot be read as one.
        CheckpointError: the checkpoint cannot be loaded, or has no image processor.
        BackendError: a model of texts, or a backbone.
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
    stack = stack_of_layers(network)
    values = pictures.to(stack.device, stack.dtype)
    rule, grid = features_grid(stack, values)
    replaced = [random_replacements(grid, samples, f"{seed} {number}") for number in range(len(values))]
    measured = feature_changes(network, values, replaced, progress)
    mechanisms = [site.mechanism for site in attention_sites(stack)] if has_mechanisms(stack) else []
    names = tuple(dict.fromkeys(str(mechanism.name) for mechanism in mechanisms if isinstance(mechanism, Mechanism)))
    own, full = family_of(stack).own_attention, None
    of_base = LongAttentionConfig(FULL) if own is None else own(stack.config)
    if baseline and mechanisms and not stack.config.long_attention.same_layers(of_base, rule.layers(stack.config)):
        with attention_of(stack, of_base):
            full = feature_changes(network, values, replaced, progress)
    return ReceptiveField(
        model=name, model_class=type(network).__name__, pictures=tuple(map(str, files)), image_size=tuple(values.shape[2:]), grid=grid,
        patch=rule.output_cell(stack.config), mechanisms=names, samples=len(replaced[0]), seed=seed, share=SHARE, measured=measured,
        full=full, base_attention=FULL_ATTENTION if own is None else OWN_ATTENTION,
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
    stack = stack_of_layers(model)
    rule, grid = features_grid(stack, values)
    sides, tokens = rule.output_cell(stack.config), rule.of_size(stack.config, tuple(values.shape[2:])).length
    cells = torch.stack(torch.meshgrid(*map(torch.arange, grid.sizes), indexing="ij"), -1).flatten(0, -2)
    sums, furthest = torch.zeros(max(grid.sizes), dtype=torch.float64), 0
    counts, prefix_sum = torch.zeros(max(grid.sizes), dtype=torch.int64), 0.0
    done, total, at_once = 0, sum(map(len, replaced)), max(1, TOKENS_AT_ONCE // tokens)

    def features(batch: Tensor) -> Tensor:
        return rule.rows(stack(**rule.arguments_for_all(stack.config, batch)).last_hidden_state, grid)

    def show_at(patch: int, source: int, row: Tensor) -> None:
        """Give ``patch`` of the picture ``row`` the pixels of ``source``, as far as both reach where a border cuts them off."""
        starts = [[cell * side for cell, side in zip(cells[number].tolist(), sides, strict=True)] for number in (patch, source)]
        extents = [min(side, size - max(ends)) for side, size, *ends in zip(sides, row.shape[1:], *starts, strict=True)]
        target, shown = ([slice(at, at + extent) for at, extent in zip(start, extents, strict=True)] for start in starts)
        row[(slice(None), *target)] = row[(slice(None), *shown)].clone()

    with evaluating(stack), rule.leaving_nothing_out(stack):
        for picture, replacements in zip(values, replaced, strict=True):
            before: dict[int, Tensor] = {}
            for start in range(0, len(replacements), at_once):
                part = replacements[start : start + at_once]
                batch = picture.expand(len(part), *picture.shape)
                if len(part) not in before:  # rounding may depend on the shape of a batch
                    before[len(part)] = features(batch)
                batch = batch.clone()
                for row, (patch, source) in zip(batch, part, strict=True):
                    show_at(patch, source, row)
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


def stack_of_layers(model: Any) -> Any:
    """The model of pictures below its head."""
    if not isinstance(model, PreTrainedModel):
        raise BackendError(f"A {type(model).__name__} is not a model of transformers; load one with AutoModel.from_pretrained.")
    return without_head(model)


def features_grid(stack: Any, values: Tensor) -> tuple[GridRule, Grid]:
    """How a model of pictures cuts ``values (B, channels, height, width)`` into patches, and the grid of its features.

    Raises:
        BackendError: it reads no pictures, or is a backbone.
        GridError: a picture whose size does not fit.
    """
    rule: Any = family_of(stack).grid
    if hasattr(stack, "out_features"):
        kind = type(stack).__name__
        raise BackendError(f"A {kind} returns feature maps of several layers; probe {kind.replace('Backbone', 'Model')} instead.")
    return rule, rule.output_grid(stack.config, rule.of_size(stack.config, tuple(values.shape[2:])))


@contextlib.contextmanager
def attention_of(stack: nn.Module, attention: LongAttentionConfig) -> Iterator[None]:
    """Within the context the layers of a Long model run these mechanisms, with the same weights and positions."""
    with mechanisms_restored(attention_sites(stack)):
        attach_mechanisms(stack, attention)
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
    stack = stack_of_layers(network)
    rule, config = family_of(stack).grid, stack.config
    assert rule is not None
    size = rule.sizes(config)[1] if image_size is None else read_size(image_size, len(rule.axes))
    rule.of_size(config, size)
    processor = required_processor(load_image_processor(folder), name)
    if rule.shapes is not None:
        settings = {"do_resize": False, "max_num_patches": rule.of_size(config, size).cells, "return_tensors": "pt"}
        patches = [processor(images=image.resize(size[::-1], processor.resample), **settings)[rule.input] for image in images]
        return rule.pixels_of(config, torch.cat(patches), size)
    return sized_pixels(processor, folder, images, size, rule.input)


__all__ = ["DistanceBin", "FeatureChanges", "ReceptiveField", "measure_receptive_field"]
