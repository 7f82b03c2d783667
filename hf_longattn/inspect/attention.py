"""Diagnose a model: run it on a text, at several lengths, and measure its attention."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel

from ..conversion.load import quiet_libraries
from ..conversion.source import open_source, refuse_quantised
from ..conversion.tokenizer import load_tokenizer
from ..engines.token_grid import Grid
from ..errors import InputError, OptionError
from ..files import is_long
from ..inspect.device import chosen_device
from ..loading import load_weights
from ..mechanisms.common.layout import full_pairs
from ..mechanisms.common.masked import needs_training_by
from ..modeling.attach.attention_sites import layer_mechanisms
from ..modeling.family.definition import known_family, length_before_conversion, longest_input
from ..positions.trained_distances import TILE
from .candidates import Candidate, read_candidates, reading_of, usual_candidates
from .diagnosis import Diagnosis, LengthDiagnosis, stack_heads
from .layer_attention import LayerAttention, LayerDiagnosis, RowSums, sampled_rows
from .texts import TextIds
from .watching import is_causal, tower_of_texts, watch, watched_inputs, watched_stack

LENGTHS = (512, 1024, 2048, 4096, 8192)
"""Default lengths in tokens. Lengths beyond the model's maximum or the text are left out."""
SHORTEST = 16
"""Minimum length in tokens."""
QUERIES = 1024
"""Default number of queries that are measured at each length: one query from each of as many equal parts of the
text."""
Progress = Callable[[str], None]


@dataclass(frozen=True)
class CapturedMass:
    """The share of the softmax of every layer and head that each candidate keeps, for one input.

    Attributes:
        candidates: mechanisms with options.
        mass: the share, from 0 to 1, as a mean over queries, ``(layers, H, candidates)`` in float64. NaN for a
            candidate that is not applicable.
        reasons: candidate as text -> why it is not applicable.
    """

    candidates: tuple[Candidate, ...]
    mass: Tensor
    reasons: Mapping[str, str]


@quiet_libraries()
def diagnose(
    model: str | Path | nn.Module,
    text: str | Path | Tensor,
    *,
    processor: Any | None = None,
    lengths: Sequence[int] | None = None,
    queries: int = QUERIES,
    candidates: Sequence[str] | None = None,
    device: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    progress: Progress | None = None,
) -> Diagnosis:
    """Measure how the attention of every layer and head spreads as a text grows.

    The diagnosis also says which share of this attention each candidate mechanism would retain.

        print(hf_longattn.diagnose("bert-base-uncased", Path("book.txt"), lengths=[128, 512]).conclusion())

    The numbers are defined in :mod:`hf_longattn.inspect.layer_attention`. They are computed from the queries and keys
    of the layers, with a softmax over all keys that the base model's own attention sees. A Long model runs its
    mechanisms, so that its hidden states are the same as in use. Its numbers are still for a softmax over all keys.
    In an encoder-decoder model, the encoder is measured. Memory is linear in the length.

    Args:
        model: a checkpoint of transformers, converted or not (a folder or a Hub name), or a model in memory, which is
            not changed.
        text: the text itself, a file (``Path``), or token ids ``(N,)`` without special tokens.
        processor: the tokenizer of a model in memory.
        lengths: the lengths to measure, in tokens, special tokens included. By default 512 to 8,192, as far as the
            model and the text are long enough.
        queries: number of queries to measure at each length. If a text has fewer tokens, all are measured.
        candidates: mechanisms such as ``"window:window=512"``. By default :func:`.usual_candidates`.
        device: "cpu", "cuda" …; default: the accelerator if there is one. A model in memory stays on its device.
        revision, token: of the Hub repository.
        progress: function called with a sentence before each forward pass.

    Raises:
        InputError: the text or the model ends before a length.
        CheckpointError: the text is empty, or the checkpoint cannot be loaded or is quantised.
        DataError, InputError: a file cannot be read.
        BackendError: the model's attention does not use transformers' AttentionInterface, or the model reads no text.
        OptionError: a candidate or setting does not exist.
    """
    if queries < 1:
        raise OptionError(
            f"queries is {queries}, but at least 1 query must be measured; for example queries={QUERIES}."
        )
    if lengths is not None and not lengths:
        raise OptionError("There is no length; give for example --lengths 512,2K, or leave it out.")
    progress = progress or silent

    # The model, and the stack of layers to watch
    folder: Path | None = None
    if isinstance(model, nn.Module):
        name = str(getattr(getattr(model, "config", None), "name_or_path", "")) or type(model).__name__
        loaded: Any = model
        has_long_attention = bool(layer_mechanisms(model))
    else:
        name = str(model)
        target = chosen_device(device)
        checkpoint = open_source(model, revision=revision, token=token)
        refuse_quantised(checkpoint)
        loaded = load_weights(AutoModel, checkpoint.folder, local_files_only=True, dtype=torch.float32)
        loaded.eval().to(target)
        has_long_attention = is_long(checkpoint.config)
        folder = checkpoint.folder
    network, tower = tower_of_texts(loaded)
    stack = watched_stack(network)

    # The text, and the lengths to measure
    if processor is None and folder is not None:
        processor = load_tokenizer(folder, stack.config)
    source, measured_lengths, notes = _read_text(stack, name, text, processor, lengths)

    # Measurements
    causal = is_causal(stack)
    chosen = usual_candidates(causal) if candidates is None else read_candidates(candidates)
    reasons: dict[str, str] = {}
    measured: list[LengthDiagnosis] = []
    for length in measured_lengths:
        progress(f"{length:,} tokens")
        start = time.perf_counter()
        layers = MeasuredLayers(chosen, reasons, sampled_rows(length, queries))
        watch(stack, source.plain(length), layers.see)
        measured.append(layers.at_length(length, causal, time.perf_counter() - start))
    problems = untrained(stack, layers, causal)  # they depend on the model, but not on the measured length

    device_name = str(stack.device)
    if stack.device.type == "cuda":
        device_name = torch.cuda.get_device_name(stack.device)
    elif stack.device.type == "cpu":
        device_name = f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"
    class_name = type(loaded).__name__
    return Diagnosis(
        model=name,
        model_class=f"{class_name}, tower {tower}" if tower else class_name,
        text=source.name,
        device=device_name,
        causal=causal,
        is_long=has_long_attention,
        candidates=tuple(chosen),
        reasons=reasons,
        lengths=tuple(measured),
        notes=tuple(notes),
        untrained=problems,
        tower=tower,
    )


def _read_text(
    stack: PreTrainedModel,
    name: str,
    text: str | Path | Tensor,
    tokenizer: Any | None,
    requested: Sequence[int] | None,
) -> tuple[TextIds, list[int], list[str]]:
    """The text, the lengths to measure, and notes for the user about default lengths that are left out.

    Args:
        name: name of the model in messages.
        requested: lengths from the user; ``None`` = default lengths.

    Raises:
        InputError: a length is too small, or beyond the model's positions or the text.
    """
    if requested is not None and min(requested) < SHORTEST:
        raise InputError(
            f"Lengths start at {SHORTEST} tokens, not {min(requested)}; give for example --lengths 512,2K."
        )
    limit = longest_input(stack.config)
    if requested is not None:
        lengths = sorted(set(requested))
    elif limit is None:
        lengths = list(LENGTHS)
    else:
        lengths = [length for length in LENGTHS if length <= limit] or [limit]
    if limit is not None and lengths[-1] > limit:
        raise InputError(
            f"{name!r} ends at {limit:,} tokens, but a length of {lengths[-1]:,} was given; convert it first "
            f"(longattn convert), or give lengths of at most {limit}."
        )
    source = TextIds(text, tokenizer, lengths[-1], stack.config.get_text_config().vocab_size)
    notes: list[str] = []
    if requested is not None:
        source.plain(lengths[-1])  # refuses a text that is too short before anything is measured
    else:
        if limit is not None and limit < LENGTHS[-1]:
            notes.append(f"The model ends at {limit:,} tokens; convert it to see its attention in longer texts.")
        if source.tokens < lengths[-1]:
            notes.append(f"The text has {source.tokens:,} tokens; a longer one shows greater lengths.")
        lengths = [length for length in lengths if length <= source.tokens] or lengths[:1]
    return source, lengths, notes


def untrained(stack: PreTrainedModel, layers: MeasuredLayers, causal: bool) -> dict[str, str]:
    """Candidate as text -> why the model's learned positions need training with it at twice the trained length.

    Candidates that need no training are left out.
    """
    config: Any = stack.config
    family = known_family(config)
    limit = longest_input(config)
    if limit is None or family is None or not any(table.learned for table in family.position_tables):
        return {}
    rule = getattr(config, "position_extension", TILE)
    trained = length_before_conversion(config) or limit
    longer = max(limit, 2 * trained)
    problems = {}
    for candidate in layers.candidates:
        if str(candidate) in layers.reasons:  # not applicable
            continue
        mechanism = candidate.sized(longer, *layers.shape)
        problem = needs_training_by(mechanism, rule, trained, longer, causal)
        if problem:
            problems[str(candidate)] = f"{problem}."
    return problems


def captured_mass(
    model: PreTrainedModel,
    ids: Tensor | Mapping[str, Tensor],
    candidates: Sequence[str | Candidate],
    *,
    queries: int = QUERIES,
    seed: int = 0,
) -> CapturedMass:
    """Measure how much of the softmax of every layer and head each candidate would keep.

    The numbers help to choose a mechanism. They take one forward pass, and memory linear in N.

    Args:
        model: a model of transformers, converted or not. It is not changed.
        ids: token ids ``(N,)`` with the tokenizer's special tokens, or the processor's output for one image or sound.
        candidates: mechanisms such as ``"longformer:window=512"``.
        queries: number of measured queries.
        seed: seed for the choice of queries.

    Raises:
        BackendError, OptionError: as in :func:`diagnose`.
    """
    chosen = read_candidates(candidates)
    reasons = dict[str, str]()
    stack, arguments, grid, length = watched_inputs(model, ids)
    layers = MeasuredLayers(chosen, reasons, sampled_rows(length, queries, seed), grid)
    watch(stack, arguments, layers.see)
    return CapturedMass(tuple(chosen), stack_heads([layer.captured for layer in layers.means()]), reasons)


@dataclass(eq=False)
class MeasuredLayers:
    """Sums of the numbers of every layer, over the queries of a forward pass.

    Attributes:
        reasons: candidate as text -> why it is not applicable. New reasons are added.
        rows: indices of the queries to measure.
        grid: grid of the tokens of an image.
        sums: number of a layer -> its sums.
        shape: number of heads, and width of a head.
    """

    candidates: Sequence[Candidate]
    reasons: dict[str, str]
    rows: Tensor
    grid: Grid | None = None
    sums: dict[int, RowSums] = field(default_factory=dict)
    shape: tuple[int, int] = (1, 1)

    def see(self, number: int, layer: LayerAttention) -> None:
        """Add the queries of layer ``number``. :func:`.watching.watch` calls this for every layer."""
        layer = replace(layer, call=layer.call.replace(grid=self.grid))
        readings: list[Any] = []
        for candidate in self.candidates:
            reading: Any = reading_of(candidate, layer, number)
            if isinstance(reading, str):
                self.reasons.setdefault(str(candidate), reading)
                reading = None
            readings.append(reading)
        sums = self.sums.setdefault(number, RowSums(layer, len(readings)))
        sums.add(layer, self.rows, readings)
        self.shape = (layer.heads, layer.q.shape[-1])

    def means(self) -> list[LayerDiagnosis]:
        """The means of every layer, in order. NaN for a candidate that is not applicable in some layer."""
        missing = [number for number, candidate in enumerate(self.candidates) if str(candidate) in self.reasons]
        layers = [self.sums[number].mean() for number in sorted(self.sums)]
        for layer in layers:
            layer.captured[:, missing] = torch.nan
        return layers

    def at_length(self, length: int, causal: bool, seconds: float) -> LengthDiagnosis:
        """The numbers of all layers at one length. ``seconds`` is the duration of the measurement."""
        in_full = full_pairs(length, causal)
        pairs = [in_full] * len(self.candidates)
        for number, candidate in enumerate(self.candidates):
            if str(candidate) not in self.reasons:
                pairs[number] = candidate.sized(length, *self.shape).pairs(length, causal)
        return LengthDiagnosis(
            length=length,
            queries=len(self.rows),
            bins=tuple(self.sums[min(self.sums)].bins),
            layers=tuple(self.means()),
            pairs=tuple(pairs),
            full_pairs=in_full,
            seconds=seconds,
        )


def silent(sentence: str) -> None:
    """A ``progress`` function that does nothing."""
