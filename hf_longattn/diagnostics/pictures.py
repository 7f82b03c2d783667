"""Diagnose a picture or spectrogram model: its attention on one input, and how much of it mechanisms on a grid would keep."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..conversion.model_loading import quiet_libraries
from ..conversion.sources.base import open_source
from ..engines.common.grid import Grid
from ..inputs.common.base import kind_of
from ..inputs.common.processors import processor_of, required_processor
from ..mechanisms.common.layout import full_pairs
from ..modeling.family.definition import family_in
from ..modeling.family.grid_config import check_mechanism_for_grid
from ..modeling.grids import family_of, grid_rule
from ..reports import Drawing, Report, Table
from .candidates import Candidate, read_candidates
from .diagnosis import WIDTH, costs, percent
from .layer_attention import LayerAttention, sampled_rows
from .loading import load_for_diagnosis
from .measure import MeasuredLayers
from .watching import of_tower, run_stack, tower_that_reads, watched_layers, watched_on_grid, watching

USUAL = (
    "window2d:window=14", "window2d:window=7", "local2d:radius=8", "neighborhood:kernel_size=17", "axial",
    "segmented:block_size=196,integration=pooled,order=tiles:14x14", "bigbird:block_size=64,order=tiles:8x8",
    "block_top_k:block_size=64,num_blocks=4,order=tiles:8x8",
)  # fmt: skip
"""Candidates by default. Most pre-trained models with windows have a width of 14."""
QUERIES = 1024


@dataclass(frozen=True)
class PictureLayer:
    """The attention of one layer on a picture.

    name, mechanism: names of the attention module and of the mechanism that runs there.
    mass: the share of the softmax over all tokens that each candidate keeps, from 0 to 1, mean over heads and queries.
    attention: ``(rows, columns)``, the class token's attention weights on the patches, mean over heads. Without a class token, the mean
        over queries. They sum to 1.
    """

    name: str
    mechanism: str
    mass: tuple[float, ...]
    attention: Tensor


@dataclass(frozen=True)
class PictureDiagnosis:
    """The attention of a model on one picture.

    picture: its file. pixels: ``(height, width, 3)``, 0 to 1, as the model sees it; of a spectrogram ``(mel bins, frames, 3)``, from the
        lowest frequency.
    noun, size: the noun for the input, for example "picture", and its size as text.
    grid: grid of the input's tokens.
    pairs, full_pairs: number of query–key pairs per head for each candidate, and for full attention.
    reasons: candidate as text -> why it is not applicable.
    """

    model: str
    model_class: str
    picture: str
    pixels: Tensor
    grid: Grid
    queries: int
    candidates: tuple[Candidate, ...]
    pairs: tuple[int, ...]
    full_pairs: int
    reasons: dict[str, str]
    layers: tuple[PictureLayer, ...]
    noun: str
    size: str

    @property
    def reader(self) -> str:
        """The queries whose attention the maps show, as text."""
        return "the class token" if self.grid.prefix else "the patches, on average,"

    def report(self) -> Report:
        """For terminal and page: what mechanisms keep of the attention, and maps of it over the picture."""
        read = f"{self.model_class} on {self.picture}: {self.size}, {self.grid}"
        about = f"{read}. Shares of the softmax over all tokens, mean over heads and {self.queries:,} queries."
        report = Report(f"What {self.model} attends to on {self.picture}", about, WIDTH)
        report.say(read, "strong", only="terminal")
        rows, names = [], [str(candidate) for candidate in self.candidates]
        shares = [[layer.mass[number] for layer in self.layers] for number in range(len(names))]
        costs = [percent(pairs / self.full_pairs) for pairs in self.pairs]
        for name, masses, cost in zip(names, shares, costs, strict=True):
            if name not in self.reasons:
                least = min(range(len(masses)), key=masses.__getitem__)
                rows.append((name, percent(sum(masses) / len(masses)), f"{percent(masses[least])} ({least})", cost))
        report.section("What mechanisms keep of it")
        report.table(Table(("mechanism", "kept", "least (layer)", "pairs"), rows, "kept of the attention"))
        by_layer = [
            (f"{number} ({layer.mechanism})", *("" if math.isnan(share) else percent(share) for share in layer.mass))
            for number, layer in enumerate(self.layers)
        ]
        report.table(Table(("layer", *names), by_layer, "kept in each layer"), only="page")
        for name, reason in self.reasons.items():
            report.say(f"{name}: {reason}", "quiet")
        report.section(f"Where {self.reader} looks")
        for number, layer in enumerate(self.layers):
            report.add(Drawing(partial(self._map, layer), f"attention of layer {number}"), "page")
        return report

    def _map(self, layer: PictureLayer) -> str:
        """A layer's attention over the picture; of a video, with the time steps side by side."""
        from .charts import attention_on_picture

        attention = layer.attention if layer.attention.dim() == 2 else torch.cat(list(layer.attention), 1)
        from_below = self.noun == "spectrogram"  # high frequencies are drawn at the top
        return attention_on_picture(*((part.flip(0) if from_below else part) for part in (self.pixels, attention)))

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form."""
        return {
            "model": self.model,
            "class": self.model_class,
            "picture": self.picture,
            "image_size": list(self.pixels.shape[:2]),
            "grid": list(self.grid.sizes),
            "prefix_tokens": self.grid.prefix,
            "queries": self.queries,
            "full_pairs": self.full_pairs,
            "candidates": [
                {"candidate": str(candidate), "pairs": pairs, "mass": [layer.mass[number] for layer in self.layers]}
                for number, (candidate, pairs) in enumerate(zip(self.candidates, self.pairs, strict=True))
            ],
            "not_applicable": self.reasons,
            "layers": [{"name": layer.name, "mechanism": layer.mechanism, "attention": layer.attention.tolist()} for layer in self.layers],
        }


@quiet_libraries()
def diagnose_picture(
    model: str | Path | nn.Module,
    picture: Path,
    *,
    processor: Any | None = None,
    candidates: Sequence[str] | None = None,
    queries: int = QUERIES,
    device: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
) -> PictureDiagnosis:
    """Measure every layer's attention on ``picture``, and how much of it mechanisms on the grid of patches would keep.

    Numbers are computed from the layers' queries and keys, with a softmax over all tokens. Memory is linear in the number of tokens.

    Args:
        model: a picture checkpoint, long or not (a folder or a Hub repository id), or a model in memory.
        picture: a file that Pillow reads; for a video model a folder of frames, or an array; for a spectrogram model a recording, which
            the feature extractor cuts or pads.
        processor: for a model in memory, its image processor or feature extractor.
        candidates: mechanisms on a grid such as ``"window2d:window=14"``; by default :data:`USUAL`.
        queries: number of measured queries, spread over the picture.
        device, revision, token: as for :func:`diagnose`.
    Raises:
        MissingExtraError: Pillow is not installed.
        DataError, AudioError: the file cannot be read: see :func:`read_picture_file` and :func:`read_audio`.
        CheckpointError: the checkpoint cannot be loaded, or has no image processor.
        BackendError: the model reads neither pictures nor spectrograms.
        OptionError, UnknownMechanismError, GridError: a candidate or setting does not exist, or the picture's size does not fit.
    """
    choices = read_candidates(USUAL if candidates is None else candidates)
    for candidate in choices:
        check_mechanism_for_grid(candidate.mechanism, candidate.options)
    if candidates is None:
        choices = [replace(candidate, by_user=False) for candidate in choices]
    loaded = load_for_diagnosis(model, device=device, revision=revision, token=token)
    name, network = loaded.name, loaded.model
    whole, (network, tower) = network, tower_that_reads(network, text=False)
    stack: Any = watched_layers(network)
    rule = grid_rule(stack, of_pixels=False)
    if processor is None and loaded.source is not None:
        processor = processor_of(rule, loaded.folder)
    kind: Any = kind_of(family_of(stack, of_pixels=False))
    user = kind.user_inputs
    processor = required_processor(processor, name, user.reads)
    values = user.processed(rule, stack.config, processor, picture).to(stack.device, stack.dtype)
    _, arguments, grid = watched_on_grid(network, {rule.input: values})
    reasons: dict[str, str] = {}
    rows = sampled_rows(grid.length, queries)
    measured, maps = MeasuredLayers(choices, reasons, rows, grid), dict[int, Tensor]()

    def see(number: int, layer: LayerAttention) -> None:
        measured.see(number, layer)
        maps[number] = _attention(layer, grid, rows)

    with watching(stack, see):
        run_stack(stack, arguments)
    pairs = tuple(costs(choices, reasons, grid.length, False, *measured.shape, grid))
    masses = [tuple(mean["captured"].mean(0).tolist()) for mean in measured.means()]
    layers = [PictureLayer(*measured.names[number], mass, maps[number]) for number, mass in zip(sorted(maps), masses, strict=True)]
    seen = user.as_seen(values[0], processor, grid.sizes[0])
    return PictureDiagnosis(
        model=name, model_class=of_tower(type(whole).__name__, tower), picture=str(picture), pixels=seen, grid=grid,
        queries=len(rows), candidates=tuple(choices), pairs=pairs, full_pairs=full_pairs(grid.length, False),
        reasons=reasons, layers=tuple(layers), noun=rule.noun,
        size=rule.describe(rule.size_of(values)),
    )  # fmt: skip


def _attention(layer: LayerAttention, grid: Grid, rows: Tensor) -> Tensor:
    """Attention weights on the patches, ``(rows, columns)``: of the first prefix token or, without one, the mean of queries ``rows``."""
    readers = torch.tensor([0]) if grid.prefix else rows
    total = torch.zeros(grid.cells, dtype=torch.float64)
    for block in layer.blocks(readers):
        total += layer.scores(block).softmax(-1)[..., grid.prefix :].double().sum((0, 1, 2)).cpu()
    return (total / total.sum()).view(grid.sizes)


def is_drawn(name: str | Path, *, revision: str | None = None, token: str | bool | None = None) -> bool:
    """Whether :func:`html_page` can draw the attention of this checkpoint."""
    family = family_in(open_source(name, revision=revision, token=token).config)
    return family is not None and kind_of(family).drawn
