"""Effective receptive field: how much features of patches or frames depend on other patches or frames, by distance.

Luo et al. 2016, Understanding the Effective Receptive Field in Deep Convolutional Neural Networks (arXiv 1701.04128), weigh each input of
a unit by the unit's gradient. Here an input is a patch, and its weight is the change of features when another patch of the same picture
replaces it, which keeps the picture natural and the change as large as between real contents. With f_q(x) the last hidden state of
token q for the picture x, and x[p ← s] the picture in which a copy of patch s replaces patch p, the change is

    c(p, q) = ‖f_q(x[p ← s]) - f_q(x)‖₂ / ‖f_q(x)‖₂,

averaged over all pairs (p, q) of one Chebyshev distance (the larger of the distances in rows and columns), with random p and s.
Both pictures are run in batches of the same shape, so that features that do not depend on p are equal bit by bit and their change is
exactly 0. A patch of a sound is one frame step: its samples, or rows of a spectrogram. Distances of sounds are in time. If layers are on
grids that halve (DiNAT), a patch is a cell of the last grid. Models that drop patches at random (ViT-MAE) read all patches here.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..configuration import LongAttentionConfig
from ..conversion.model_loading import quiet_libraries
from ..conversion.sources.base import open_source
from ..engines.common.grid import Grid
from ..errors import BackendError, GridError, OptionError
from ..inputs.common.base import kind_of, kind_of_model
from ..inputs.common.sized import SizedKind
from ..mechanisms import Mechanism
from ..modeling.attach.attachment import attach_mechanisms
from ..modeling.attach.attention_sites import attention_sites, mechanisms_restored
from ..modeling.family.definition import family_in, without_head
from ..modeling.family.grid_rule import IMAGE_SIZE
from ..modeling.grids import family_of
from ..modeling.inference.optimize import evaluating
from ..reports import Report, Table
from .loading import load_for_diagnosis
from .watching import has_mechanisms

PICTURES = 8
"""Maximum number of pictures or recordings that are read from a folder."""
SAMPLES = 20
SHARE = 0.1
"""Minimum change, as a share of the change at 1–2 patches, that counts as within reach."""
TOKENS_AT_ONCE = 1 << 14
"""Maximum number of tokens in a batch, unless a single picture has more."""
FULL = "full"
FULL_ATTENTION, OWN_ATTENTION = "full attention", "the base's attention"

Replacement = tuple[int, int]
"""Indices in raster order of a patch, and of the patch whose pixels replace it."""


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
    """Relative changes of features when single patches are replaced.

    changes, pairs: for every distance in patches from 0 on, the mean change, and the number of pairs.
    prefix_change, prefix_pairs: mean and number of pairs for prefix tokens, such as a class token; ``None`` and 0 without a prefix.
    furthest: maximum distance in patches at which any feature changed.
    """

    changes: tuple[float, ...]
    pairs: tuple[int, ...]
    prefix_change: float | None
    prefix_pairs: int
    furthest: int

    def bins(self) -> list[DistanceBin]:
        """Mean changes in bins of distances: 0, 1–2, 3–4, 5–8, 9–16 and so on, without bins that have no pairs."""
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
        """Last distance of the furthest bin with at least ``share`` of the change at 1–2 patches; 0 if nothing changes at 1–2."""
        bins = self.bins()[1:]
        return max((row.last for row in bins if bins[0].change and row.change >= share * bins[0].change), default=0)


@dataclass(frozen=True)
class ReceptiveField:
    """The effective receptive field of a picture or sound model.

    pictures: names of the files; empty if tensors were given. image_size: size of the model's input, in pixels (height, width); of a
        sound, in samples or rows of features; of a spectrogram, in mel bins and frames.
    grid: of the features. patch: pixels of a cell of that grid along each axis; of a spectrogram, from one patch to the next.
    mechanisms: names of the layers' mechanisms without duplicates; empty for a model that has none.
    samples: number of patches replaced in each picture. share: see :meth:`FeatureChanges.reach`.
    measured: changes in the model. full: changes with the same weights and the base's attention, if that differs; ``None`` if not
        measured. base_attention: name of the base's attention, full attention in most families.
    cell_seconds: for sounds, seconds per frame; ``None`` for pictures and spectrograms.
    noun, size_name, units: noun for an input on a grid of patches, name of its size in JSON, and unit of that size.
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
    cell_seconds: float | None = None
    noun: str = "picture"
    size_name: str = IMAGE_SIZE
    units: str = "pixels"

    @property
    def cell(self) -> str:
        """The noun for a cell of the grid: "patch" or "frame"."""
        return "patch" if self.cell_seconds is None else "frame"

    @property
    def cells(self) -> str:
        """The plural of :attr:`cell`."""
        return "patches" if self.cell_seconds is None else "frames"

    def distance(self, cells: int) -> str:
        """A distance in cells as text; for a sound, also in seconds."""
        return f"{cells:,} {self.cells}" if self.cell_seconds is None else f"{cells:,} frames ({cells * self.cell_seconds:,.3g} s)"

    @property
    def prefix_name(self) -> str:
        """The noun for the tokens before the patches."""
        return "class token" if self.grid.prefix == 1 else "prefix tokens"

    def conclusion(self) -> str:
        """How far the model looks, in one or two sentences."""
        said = (
            f"Features change by at least {self.share:.0%} of what they change at 1–2 {self.cells} when a {self.cell} up to "
            f"{self.distance(self.measured.reach(self.share))} away is replaced"
        )
        if self.full is not None:
            reach = self.full.reach(self.share)
            said += f", {reach if self.cell_seconds is None else self.distance(reach)} with {self.base_attention}"
        if self.measured.furthest < max(self.grid.sizes) - 1:
            said += f". Nothing changes further than {self.distance(self.measured.furthest)} away"
        return f"{said}."

    def report(self) -> Report:
        """How much features change by distance from a patch that was replaced, and how far that reaches."""
        timed, seconds, report = self.cell_seconds is not None, self.cell_seconds or 0.0, Report()
        many = f"{len(self.pictures)} {'recording' if timed else self.noun}s" if len(self.pictures) > 1 else "".join(self.pictures)
        size, patch = (" × ".join(map(str, sides)) for sides in (self.image_size, self.patch))
        read = f"{self.image_size[0] / self.patch[0] * seconds:,.3g} s" if timed else f"{size} {self.units}"
        what = f"frames of {1000 * seconds:g} ms" if timed else f"patches of {patch} {self.units}"
        report.facts(
            ("model", f"{self.model}  ({self.model_class})"),
            ("layers", ", ".join(self.mechanisms) or "as the base attends"),
            ("read", f"{many}: {read}, {self.grid}"),
            ("replaced", f"{self.samples} {what} in each {self.noun}, one at a time, by {self.cells} of the same {self.noun}"),
        )
        runs = [changes for changes in (self.measured, self.full) if changes is not None]
        columns = [f"{self.cells} away", *["seconds away"] * timed, "pairs", "change", *[self.base_attention] * (len(runs) - 1)]
        rows = []
        for bins in zip(*(changes.bins() for changes in runs), strict=True):
            away = [f"{bins[0].last * seconds:.3g}"] if timed else []
            rows.append([str(bins[0]), *away, f"{bins[0].pairs:,}", *(f"{row.change:.3g}" for row in bins)])
        if self.grid.prefix:
            rows.append([self.prefix_name, f"{self.measured.prefix_pairs:,}", *(f"{changes.prefix_change:.3g}" for changes in runs)])
        report.table(Table(columns, rows, "mean change of features ÷ their norm"))
        report.say(self.conclusion())
        return report

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form."""
        return {
            "model": self.model,
            "class": self.model_class,
            **(
                {f"{self.noun}s": list(self.pictures), self.size_name: list(self.image_size)}
                if self.cell_seconds is None
                else {"recordings": list(self.pictures), "length": self.image_size[0], "frame_seconds": self.cell_seconds}
            ),
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
    audio_seconds: float | None = None,
    samples: int = SAMPLES,
    baseline: bool = True,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    device: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    progress: Callable[[str], None] | None = None,
) -> ReceptiveField:
    """Measure the effective receptive field: the change of a patch's features when a patch at some distance is replaced.

    Args:
        model: a picture or sound checkpoint, long or not (a folder or a Hub repository id), or a model in memory.
        pictures: a photo, a video (a folder of frames, or an array) or a recording. Or a folder of these, from which up to
            :data:`PICTURES` are read, evenly spaced. Or, required for a model in memory, a tensor: pixels from the image processor,
            ``(B, channels, height, width)``, even for a model that takes lists of patches; or a sound from the feature extractor, unpadded.
        image_size: size in pixels at which files are read: 1024, or "768x1024"; by default the size for which the model was made.
        audio_seconds: duration to which recordings are cut; by default 30 seconds, or the longest recording. For a spectrogram model, whose
            feature extractor pads shorter recordings, by default the duration for which the model was made.
        samples: number of patches that are replaced in each picture, one at a time.
        baseline: also measure a Long model with its base's attention, at the cost of that attention (full attention in most families).
        seed: for the choice of patches.
        dtype: of weights and features; by default float32.
        device, revision, token: as for :func:`diagnose`.
        progress: called with a line after every batch.
    Raises:
        MissingExtraError: Pillow is not installed.
        DataError: there is no picture, or a file cannot be read as a picture.
        CheckpointError: the checkpoint cannot be loaded, or has no image processor.
        BackendError: the model reads texts, or is a backbone.
        OptionError, GridError: a setting is out of range, or the size does not fit the model.
    """
    if samples < 1:
        raise OptionError(f"A probe replaces 1 patch or more, not {samples}; give a greater --samples.")
    if isinstance(model, nn.Module):
        if not isinstance(pictures, Tensor) or image_size is not None or audio_seconds is not None:
            raise OptionError(
                "A model in memory is probed with pixels or with samples; give processor(images=…, return_tensors='pt')['pixel_values'], "
                "or the feature extractor's values of a sound."
            )
        files = tuple[Path, ...]()
    else:
        kind = _checked_kind(model, revision, token, image_size, audio_seconds)
        files = () if isinstance(pictures, Tensor) else tuple(kind.user_inputs.files_of(pictures, PICTURES))
    loaded = load_for_diagnosis(model, device=device, revision=revision, token=token)
    name, network = loaded.name, loaded.model if dtype is None or loaded.source is None else loaded.model.to(dtype)
    kind, stack = stack_of_layers(network)
    if isinstance(pictures, Tensor):
        values = kind.values_of_input(pictures)
    else:
        user = kind.user_inputs(kind.rule, network.config, loaded.folder, name, pictures, PICTURES)
        size = user.size(image_size if audio_seconds is None else audio_seconds, any_size=has_mechanisms(network))
        values = torch.cat(user.values(size))
    values = values.to(stack.device, stack.dtype)
    cells = kind.cells(kind.rule, stack, values)
    grid = cells.grid
    replaced = [random_replacements(grid, samples, f"{seed} {number}") for number in range(len(values))]
    measured = feature_changes(network, values, replaced, progress)
    mechanisms = [site.mechanism for site in attention_sites(stack)] if has_mechanisms(stack) else []
    names = tuple(dict.fromkeys(str(mechanism.name) for mechanism in mechanisms if isinstance(mechanism, Mechanism)))
    own, full = kind.family.own_attention, None
    of_base = LongAttentionConfig(FULL) if own is None else own(stack.config)
    if baseline and mechanisms and not stack.config.long_attention.same_layers(of_base, kind.rule.layers(stack.config)):
        with attention_of(stack, of_base):
            full = feature_changes(network, values, replaced, progress)
    return ReceptiveField(
        model=name, model_class=type(network).__name__, pictures=tuple(map(str, files)), grid=grid, patch=cells.sides, mechanisms=names,
        image_size=tuple(values.shape[1 + axis] for axis in cells.axes), samples=len(replaced[0]), seed=seed, share=SHARE,
        measured=measured, full=full, base_attention=FULL_ATTENTION if own is None else OWN_ATTENTION,
        cell_seconds=cells.seconds, noun=kind.noun, size_name=getattr(kind.rule, "size_name", ""), units=kind.units,
    )  # fmt: skip


def stack_of_layers(model: Any) -> tuple[SizedKind, Any]:
    """The input kind of a model in memory, and the model without its head.

    Raises:
        BackendError: the model is not from transformers, or reads neither pictures nor sound.
    """
    if not isinstance(model, PreTrainedModel):
        raise BackendError(f"A {type(model).__name__} is not a model of transformers; load one with AutoModel.from_pretrained.")
    kind: Any = kind_of_model(model.config)
    if kind is None or kind.cells is None:
        kind = kind_of(family_of(without_head(model), of_pixels=False))
    return kind, kind.base(model)


def random_replacements(grid: Grid, samples: int, seed: int | str) -> list[Replacement]:
    """Choose up to ``samples`` different patches at random, each with another patch that replaces it.

    Raises:
        GridError: the grid has a single patch.
    """
    if grid.cells < 2:
        raise GridError(
            "The picture or sound is one patch, so no other one can take its place; give a greater --image-size, or a longer sound."
        )
    rng = random.Random(seed)
    patches = rng.sample(range(grid.cells), min(samples, grid.cells))
    return [(patch, (patch + rng.randrange(1, grid.cells)) % grid.cells) for patch in patches]


@torch.no_grad()
def feature_changes(
    model: nn.Module, values: Tensor, replaced: Sequence[Sequence[Replacement]], progress: Callable[[str], None] | None = None
) -> FeatureChanges:
    """The relative change of every token's last hidden state, by its distance from a patch that was replaced.

    Args:
        model: a picture or sound model.
        values: pictures ``(B, channels, height, width)``, or sounds in the model's input format, in the model's dtype and on its device.
        replaced: for each picture, the patches to replace, one at a time.
        progress: called with a line after every batch.
    Raises:
        BackendError: the model reads neither pictures on one grid of patches nor sound.
        GridError: a picture's size does not fit.
    """
    kind, stack = stack_of_layers(model)
    inputs = kind.cells(kind.rule, stack, values)
    grid = inputs.grid
    cells = torch.stack(torch.meshgrid(*map(torch.arange, grid.sizes), indexing="ij"), -1).flatten(0, -2)
    sums, furthest = torch.zeros(max(grid.sizes), dtype=torch.float64), 0
    counts, prefix_sum = torch.zeros(max(grid.sizes), dtype=torch.int64), 0.0
    done, total, at_once = 0, sum(map(len, replaced)), max(1, TOKENS_AT_ONCE // inputs.tokens)

    def show_at(patch: int, source: int, row: Tensor) -> None:
        """Copy patch ``source`` of the input ``row`` over ``patch``; if a border cuts one off, only the common extent is copied."""
        target, shown = ([slice(None)] * row.dim() for _ in range(2))
        for axis, side, *places in zip(inputs.axes, inputs.sides, cells[patch].tolist(), cells[source].tolist(), strict=True):
            starts = [place * side for place in places]
            extent = min(side, row.shape[axis] - max(starts))
            target[axis], shown[axis] = (slice(start, start + extent) for start in starts)
        row[tuple(target)] = row[tuple(shown)].clone()

    with evaluating(stack), inputs.measuring():
        for picture, replacements in zip(values, replaced, strict=True):
            before: dict[int, Tensor] = {}
            for start in range(0, len(replacements), at_once):
                part = replacements[start : start + at_once]
                batch = picture.expand(len(part), *picture.shape)
                if len(part) not in before:  # rounding may depend on the shape of a batch
                    before[len(part)] = inputs.features(batch)
                batch = batch.clone()
                for row, (patch, source) in zip(batch, part, strict=True):
                    show_at(patch, source, row)
                change = _relative_change(inputs.features(batch), before[len(part)]).cpu()
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
    """‖after - before‖ / ‖before‖ for features ``(B, N, D)``: ``(B, N)`` in float64."""
    change, size = (torch.linalg.vector_norm(states, dim=-1, dtype=torch.float64) for states in (after - before, before))
    return change / size.clamp(min=torch.finfo(torch.float64).tiny)


@contextlib.contextmanager
def attention_of(stack: nn.Module, attention: LongAttentionConfig) -> Iterator[None]:
    """Context in which the layers of a Long model run these mechanisms, with the same weights and positions."""
    with mechanisms_restored(attention_sites(stack)):
        attach_mechanisms(stack, attention)
        yield


def _checked_kind(
    model: str | Path, revision: str | None, token: str | bool | None, image_size: Any | None, audio_seconds: float | None
) -> SizedKind:
    """The input kind of a checkpoint, checked before its weights are loaded.

    Raises:
        BackendError: the model reads neither pictures nor sound.
        OptionError: ``image_size`` was given for a sound model, or ``audio_seconds`` for a picture model.
    """
    values = open_source(model, revision=revision, token=token).config
    family = family_in(values)
    kind: Any = None if family is None else kind_of(family)
    if kind is None or kind.cells is None:
        raise BackendError(
            f"{str(model)!r} is of type {str(values.get('model_type'))!r}, which is not a family of pictures or sound; leave the photo and "
            "--images out to probe it with texts, or give a model such as a ViT or a Wav2Vec2."
        )
    kind.check_settings(repr(str(model)), SimpleNamespace(image_size=image_size, audio_seconds=audio_seconds))
    return kind
