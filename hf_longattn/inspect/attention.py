"""Diagnose a model: run it on a text, image or sound, at several lengths, and measure its attention."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel

from ..configuration import LongAttentionConfig
from ..conversion import plan_conversion
from ..conversion.settings import ConversionConfig
from ..conversion.source_models import chosen_device, load_as_result, open_source, quiet_libraries, refuse_quantised
from ..engines.token_grid import Grid
from ..errors import BackendError, InputError, OptionError
from ..files import AUDIO_SUFFIXES, is_long
from ..inputs.modality import Modality, modality_of, modality_of_model
from ..inputs.sound_inputs import duration
from ..inputs.tokenizer import load_tokenizer
from ..loading import load_weights
from ..mechanisms.common.layout import full_pairs
from ..mechanisms.common.masked import needs_training_by
from ..modeling.family.audio_spec import audio_seconds
from ..modeling.family.definition import FAMILIES, family_in, length_before_conversion, longest_input
from ..modeling.family.grid_spec import PIXELS
from ..modeling.grids import family_of
from ..positions.trained_distances import TILE
from .candidates import Candidate, candidates_for, costs, read_candidates, reading_of
from .diagnosis import Diagnosis, Image, LayerDiagnosis, LengthDiagnosis, stack_heads
from .layer_attention import MEANS, LayerAttention, RowSums, sampled_rows
from .texts import TextIds
from .watching import (
    NOT_DIAGNOSED,
    has_mechanisms,
    is_causal,
    run_stack,
    tower_that_reads,
    watched_inputs,
    watched_layers,
    watched_stack,
    watching,
)

LENGTHS = (512, 1024, 2048, 4096, 8192)
"""Default lengths in tokens. Lengths beyond the model's maximum or the text are left out."""
SHORTEST = 16
SECONDS = (7.5, 15.0, 30.0)
"""Default durations in seconds. Durations beyond the model's maximum or the recordings are left out."""
EXCERPTS = 4
"""Maximum number of excerpts of the recordings for each duration."""
QUERIES = 1024
"""Default number of queries measured at each length. The input is cut into this many equal parts, with one query from
each."""
IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
Progress = Callable[[str], None]


@dataclass(frozen=True)
class CapturedMass:
    """The share of the softmax of every layer and head that each candidate retains, for one input.

    mass: ``(layers, H, candidates)`` float64, from 0 to 1, mean over queries; nan for a candidate that is not
        applicable.
    reasons: candidate as text -> why it is not applicable.
    """

    candidates: tuple[Candidate, ...]
    mass: Tensor
    reasons: Mapping[str, str]


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A model to watch, in fp32 unless it was given in memory.

    name, class_name: names of the model (a checkpoint or in memory) and its class. is_long: whether it has mechanisms.
    folder: folder with the tokenizer or processor; ``None`` for a model in memory.
    """

    model: Any
    name: str
    class_name: str
    is_long: bool
    folder: Path | None = None


def load_to_watch(
    model: str | Path | nn.Module,
    *,
    device: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
) -> LoadedCheckpoint:
    """Load a checkpoint with its own class. A sound model is loaded as a Long class with full attention, as only those
    can be watched.

    Raises:
        CheckpointError: the checkpoint cannot be loaded, or is quantised.
        OptionError: there is no such device.
    """
    if isinstance(model, nn.Module):
        class_name = type(model).__name__
        name = str(getattr(getattr(model, "config", None), "name_or_path", "")) or class_name
        return LoadedCheckpoint(model, name, class_name, has_mechanisms(model))
    target = chosen_device(device)
    source = open_source(model, revision=revision, token=token)
    refuse_quantised(source)
    family = family_in(source.config)
    if family is not None and modality_of(family).timed and not is_long(source.config):
        plan = plan_conversion(source, config=ConversionConfig(long_attention=LongAttentionConfig("full")))
        (loaded, _), class_name = (
            load_as_result(source, plan.architecture, plan.config),
            plan.architecture.source_class,
        )
    else:
        loaded = load_weights(AutoModel, source.folder, local_files_only=True, dtype=torch.float32)
        class_name = type(loaded).__name__
    return LoadedCheckpoint(loaded.eval().to(target), str(model), class_name, is_long(source.config), source.folder)


@dataclass(frozen=True)
class ReadInputs:
    """Inputs of a diagnosis.

    name: name of the file. lengths: for each length, its name in messages, and inputs for
        :func:`.watching.watched_inputs`.
    frame_seconds: for sounds, seconds per frame.
    """

    name: str
    lengths: list[tuple[str, list[Any]]]
    notes: tuple[str, ...] = ()
    frame_seconds: float | None = None


@quiet_libraries()
def diagnose(
    model: str | Path | nn.Module,
    text: str | Path | Tensor,
    *,
    processor: Any | None = None,
    lengths: Sequence[float] | None = None,
    queries: int = QUERIES,
    candidates: Sequence[str] | None = None,
    device: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    progress: Progress | None = None,
) -> Diagnosis:
    """Measure how the attention of every layer and head spreads as a text grows.

    The diagnosis also says how much of the attention mechanisms would retain.

        print(hf_longattn.diagnose("bert-base-uncased", Path("book.txt"), lengths=[128, 512]).conclusion())

    Numbers are computed from the layers' queries and keys, with a softmax over all keys that the base's own attention
    sees; :mod:`hf_longattn.inspect.layer_attention` defines them. A long model runs its mechanisms, so its hidden
    states are the same as in use, but the softmax is over all keys. In an encoder-decoder model, the encoder is
    measured. Memory is linear in the length.

    Args:
        model: a checkpoint of transformers, long or not (a folder or a Hub repository id), or a model in memory, which
            is left as it was. Models of sound in memory must be Long models.
        text: the text itself, a file (``Path``), or token ids ``(N,)`` without special tokens. For a model of images a
            photo, for one of sound a recording, or a folder from which up to :data:`EXCERPTS` are read.
        processor: the tokenizer, image processor or feature extractor of a model in memory.
        lengths: in tokens, special tokens included; by default 512 to 8,192, as far as the model and the text are long
            enough. For sounds, durations in seconds; by default 7.5, 15 and 30. An image has one size, which its
            processor makes.
        queries: number of measured queries at each length; an input with fewer tokens is measured at all of them.
        candidates: mechanisms such as ``"window:window=512"``; by default usual ones, see
            :mod:`hf_longattn.inspect.candidates`.
        device: "cpu", "cuda" …; by default the accelerator if there is one. A model in memory stays on its device.
        revision, token: of the Hub repository.
        progress: called with a sentence before each forward pass.
    Returns:
        The diagnosis.
    Raises:
        InputError: the input or the model ends before a length.
        CheckpointError: the text is empty, or the checkpoint cannot be loaded, is quantised or has no processor.
        DataError, InputError: a file cannot be read.
        BackendError: the model's attention does not use transformers' AttentionInterface, or the model reads something
            else.
        OptionError, InputError: a candidate or setting does not exist, or an image's size does not fit.
    """
    if queries < 1:
        raise OptionError(
            f"queries is {queries}, but at least 1 query must be measured; for example queries={QUERIES}."
        )
    if lengths is not None and not lengths:
        raise OptionError("There is no length; give for example --lengths 512,2K, or leave it out.")
    loaded, progress = load_to_watch(model, device=device, revision=revision, token=token), progress or silent
    reads_text = is_text(text)
    network, tower = tower_that_reads(loaded.model, text=reads_text)
    modality: Modality | None = None
    if not reads_text:
        modality = modality_of_model(network.config)
        if modality is None or not (modality.drawn or modality.timed):
            if modality is not None and modality.units:
                model_type = network.config.model_type
                raise BackendError(
                    f"{loaded.name!r} is of type {model_type!r}, which reads {modality.nouns}; {NOT_DIAGNOSED}"
                )
            modality = modality_of(family_of(watched_layers(network)))
    if modality is None:
        read = _read_text(network, loaded, text, processor, lengths)
    elif modality.timed:
        read = _read_sounds(modality, network, loaded, Path(str(text)), processor, lengths)
    else:
        read = _read_image(modality, network, loaded, Path(str(text)), processor, lengths)
    stack = watched_inputs(network, read.lengths[0][1][0])[0]
    causal = is_causal(stack)
    chosen, reasons, measured = candidates_for(modality, candidates, causal), dict[str, str](), list[LengthDiagnosis]()
    for name, pieces in read.lengths:
        start, layers, share = time.perf_counter(), MeasuredLayers(chosen, reasons), -(-queries // len(pieces))
        for number, piece in enumerate(pieces):
            progress(name + (f", excerpt {number + 1} of {len(pieces)}" if len(pieces) > 1 else ""))
            stack, arguments, layers.layout, tokens = watched_inputs(network, piece)
            layers.rows = sampled_rows(tokens, share, seed=number)
            with watching(stack, layers.see):
                run_stack(stack, arguments)
        measured.append(layers.at_length(tokens, len(layers.rows) * len(pieces), causal, time.perf_counter() - start))
    device_name = torch.cuda.get_device_name(stack.device) if stack.device.type == "cuda" else str(stack.device)
    if stack.device.type == "cpu":
        device_name = f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"
    class_name = f"{loaded.class_name}, tower {tower}" if tower else loaded.class_name
    return Diagnosis(
        model=loaded.name,
        model_class=class_name,
        text=read.name,
        device=device_name,
        causal=causal,
        is_long=loaded.is_long,
        candidates=tuple(chosen),
        reasons=reasons,
        lengths=tuple(measured),
        notes=read.notes,
        untrained=untrained(stack, chosen, reasons, causal, *layers.shape) if modality is None else {},
        tower=tower,
        frame_seconds=read.frame_seconds,
        image=None if layers.layout is None else Image(layers.layout, read.lengths[0][0]),
    )


def is_text(source: object) -> bool:
    """Whether ``source`` is a text, token ids or a file of a text. Images, recordings and folders of these are not."""
    if not isinstance(source, Path):
        return True
    known = (*IMAGE_SUFFIXES, *AUDIO_SUFFIXES)
    files = source.rglob("*") if source.is_dir() else [source]
    return not any(file.suffix.lower() in known for file in files)


def _read_text(
    network: Any,
    loaded: LoadedCheckpoint,
    text: str | Path | Tensor,
    tokenizer: Any | None,
    requested: Sequence[float] | None,
) -> ReadInputs:
    """One text at each length. Raises :class:`InputError` if a length is too small, or beyond the model's positions or
    the text."""
    if requested is not None and min(requested) < SHORTEST:
        raise InputError(
            f"Lengths start at {SHORTEST} tokens, not {min(requested):g}; give for example --lengths 512,2K."
        )
    if tokenizer is None and loaded.folder is not None:
        tokenizer = load_tokenizer(loaded.folder, network.config)
    stack = watched_stack(network)
    limit = longest_input(stack.config)
    if requested is not None:
        lengths = sorted({int(length) for length in requested})
    else:
        lengths = [length for length in LENGTHS if limit is None or length <= limit] or [limit or 0]
    if limit is not None and lengths[-1] > limit:
        raise InputError(
            f"{loaded.name!r} ends at {limit:,} tokens, but a length of {lengths[-1]:,} was given; convert it first "
            "(longattn convert), or "
            f"give lengths of at most {limit}."
        )
    source, notes = TextIds(text, tokenizer, lengths[-1], stack.config.get_text_config().vocab_size), list[str]()
    if requested is None:
        if limit is not None and limit < LENGTHS[-1]:
            notes.append(f"The model ends at {limit:,} tokens; convert it to see its attention in longer texts.")
        if source.tokens < lengths[-1]:
            notes.append(f"The text has {source.tokens:,} tokens; a longer one shows greater lengths.")
        lengths = [length for length in lengths if length <= source.tokens] or lengths[:1]
    return ReadInputs(
        source.name, [(f"{length:,} tokens", [source.plain(length)]) for length in lengths], tuple(notes)
    )


def _read_sounds(
    modality: Any,
    network: Any,
    loaded: LoadedCheckpoint,
    recordings: Path,
    extractor: Any | None,
    requested: Sequence[float] | None,
) -> ReadInputs:
    """Excerpts of each duration from recordings.

    Raises:
        InputError: a duration exceeds the model's maximum or the recordings.
        CheckpointError: the model has no feature extractor.
    """
    spec, config, settings = (
        modality.spec,
        network.config,
        {"count": EXCERPTS, "model": loaded.name, "processor": extractor},
    )
    sounds = modality.inputs(config, loaded.folder or Path(), None, recordings, **settings)
    limit, notes = math.inf, list[str]()
    if not loaded.is_long and not spec.reads_longer:
        limit = float(spec.durations(config)[0])
    longest = min(sounds.longest, limit)
    durations = [seconds for seconds in SECONDS if seconds <= longest] or [longest]
    if requested is not None:
        durations = sorted({audio_seconds(seconds, "--lengths") for seconds in requested})
        if durations[-1] > limit:
            raise InputError(
                f"{loaded.name!r} reads up to {duration(round(limit, 1))}, but {duration(durations[-1])} were given; "
                "convert it first (longattn convert --audio-seconds), or give less."
            )
    elif sounds.longest < SECONDS[-1]:
        notes.append(
            f"The longest recording has {duration(round(sounds.longest, 1))}; a longer one shows greater distances."
        )
    lengths = [(duration(seconds), sounds.pieces(modality.sizes(config).at(seconds))) for seconds in durations]
    return ReadInputs(sounds.name, lengths, tuple(notes), spec.frame_seconds(config))


def _read_image(
    modality: Any,
    network: Any,
    loaded: LoadedCheckpoint,
    file: Path,
    processor: Any | None,
    requested: Sequence[float] | None,
) -> ReadInputs:
    """One image, at the size that the processor makes.

    Raises:
        OptionError: lengths were given.
        CheckpointError: the model has no processor.
    """
    if requested is not None:
        raise OptionError(
            f"{loaded.name!r} reads {modality.nouns}, which are measured at one size; leave --lengths out."
        )
    stack = watched_layers(network)
    images = modality.inputs(stack.config, loaded.folder or Path(), None, file, model=loaded.name, processor=processor)
    values = images.processed().to(stack.device, stack.dtype)
    return ReadInputs(file.name, [(modality.spec.describe(tuple(values.shape[-2:])), [{PIXELS: values}])])


def untrained(
    stack: PreTrainedModel,
    candidates: Sequence[Candidate],
    reasons: Mapping[str, str],
    causal: bool,
    heads: int,
    width: int,
) -> dict[str, str]:
    """Candidate as text -> why learned positions need training with it at twice the trained length. Other candidates
    are left out."""
    config: Any = stack.config
    family, limit = FAMILIES.get(getattr(config, "base_model_type", config.model_type)), longest_input(config)
    if limit is None or family is None or not any(table.learned for table in family.position_tables):
        return {}
    rule, trained = getattr(config, "position_extension", TILE), length_before_conversion(config) or limit
    longer, problems = max(limit, 2 * trained), {}
    for candidate in candidates:
        if str(candidate) in reasons:
            continue
        if why := needs_training_by(candidate.sized(longer, heads, width), rule, trained, longer, causal):
            problems[str(candidate)] = f"{why}."
    return problems


def captured_mass(
    model: PreTrainedModel,
    ids: Tensor | Mapping[str, Tensor],
    candidates: Sequence[str | Candidate],
    *,
    queries: int = QUERIES,
    seed: int = 0,
) -> CapturedMass:
    """Measure how much of the softmax of every layer and head each candidate would retain.

    It helps to choose a mechanism. It takes one forward pass, and memory linear in N.

    Args:
        model: a transformers model, long or not; it is left as it was.
        ids: token ids ``(N,)`` with the tokenizer's special tokens, or the processor's output for one image or sound.
        candidates: mechanisms such as ``"longformer:window=512"``.
        queries: number of measured queries.
        seed: for the choice of queries.
    Raises:
        BackendError, OptionError: as :func:`diagnose`.
    """
    chosen, reasons = read_candidates(candidates), dict[str, str]()
    stack, arguments, grid, length = watched_inputs(model, ids)
    layers = MeasuredLayers(chosen, reasons, sampled_rows(length, queries, seed), grid)
    with watching(stack, layers.see):
        run_stack(stack, arguments)
    return CapturedMass(tuple(chosen), stack_heads([means["captured"] for means in layers.means()]), reasons)


class MeasuredLayers:
    """Sums of every layer's numbers over one or more forward passes of the same length.

    rows: indices of the queries that the next pass adds. grid: grid of an image's tokens.
    """

    def __init__(
        self,
        candidates: Sequence[Candidate],
        reasons: dict[str, str],
        rows: Tensor | None = None,
        grid: Grid | None = None,
    ) -> None:
        self.candidates, self.reasons, self.layout = candidates, reasons, grid
        self.rows = torch.zeros(0, dtype=torch.long) if rows is None else rows
        self.sums: dict[int, RowSums] = {}
        self.names: dict[int, tuple[str, str]] = {}
        """Layer -> names of its attention module and mechanism."""
        self.shape = (1, 1)
        """Number of heads, and width of a head."""

    def see(self, number: int, layer: LayerAttention) -> None:
        """Add the queries at :attr:`rows` of one layer, which :func:`.watching.watching` reports."""
        if self.layout is not None:
            layer = replace(layer, call=layer.call.replace(grid=self.layout))
        readings = [reading_of(candidate, layer, number) for candidate in self.candidates]
        for candidate, reason in zip(self.candidates, readings, strict=True):
            if isinstance(reason, str):
                self.reasons.setdefault(str(candidate), reason)
        # the largest distance of two tokens
        furthest = layer.length - 1 if self.layout is None else max(self.layout.sizes) - 1
        sums = self.sums.setdefault(number, RowSums(furthest, layer.heads, len(readings)))
        sums.add(layer, self.rows, [None if isinstance(reading, str) else reading for reading in readings])
        self.shape = (layer.heads, layer.q.shape[-1])
        self.names[number] = (layer.name, layer.mechanism)

    def means(self) -> list[dict[str, Tensor]]:
        """The means of every layer, in order; nan for a candidate that is not applicable in some layer."""
        missing = [number for number, candidate in enumerate(self.candidates) if str(candidate) in self.reasons]
        means = [dict(self.sums[number].mean()) for number in sorted(self.sums)]
        for mean in means:
            mean["captured"][:, missing] = torch.nan
        return means

    def at_length(self, length: int, queries: int, causal: bool, seconds: float) -> LengthDiagnosis:
        """All layers at one length. queries: number of measured queries. seconds: duration of the measurement."""
        layers = [
            LayerDiagnosis(
                *self.names[number], {name: mean[name] for name in MEANS}, mean["distance"], mean["captured"]
            )
            for number, mean in zip(sorted(self.sums), self.means(), strict=True)
        ]
        return LengthDiagnosis(
            length=length,
            queries=queries,
            bins=tuple(self.sums[min(self.sums)].bins),
            layers=tuple(layers),
            pairs=costs(self.candidates, self.reasons, length, causal, *self.shape, self.layout),
            full_pairs=full_pairs(length, causal),
            seconds=seconds,
        )


def silent(sentence: str) -> None:
    """A ``progress`` function that does nothing."""
