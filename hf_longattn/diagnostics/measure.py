"""Diagnose a text model: run it on a text at several lengths, and measure its attention."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..configuration import LongAttentionConfig
from ..conversion.config import ConversionConfig
from ..conversion.long_models.base import checkpoint_converters
from ..conversion.model_loading import quiet_libraries
from ..data.masking import masked_tokens
from ..engines.common.grid import Grid
from ..errors import LengthError, LongAttentionError, OptionError
from ..evaluation.token_loss import LossChange, token_losses
from ..inputs.text import load_tokenizer
from ..mechanisms.common.layout import full_pairs
from ..modeling.family.definition import FAMILIES, LANGUAGE_MODELS, length_before_conversion, longest_input
from ..modeling.family.registration import MULTIMODAL_TYPE
from ..modeling.mixin import LongAttentionMixin
from ..staging import unused_name
from .candidates import Candidate, all_readings, read_candidates, usual_candidates
from .diagnosis import Diagnosis, LayerDiagnosis, LengthDiagnosis, Target, costs, stack_heads, untrained
from .layer_attention import MEANS, LayerAttention, RowSums, distance_bins, mass_on, sampled_rows
from .loading import LoadedCheckpoint, length_error, load_for_diagnosis
from .texts import DiagnosisText, Needle
from .trial_model import LossAgainstChunks, TrialModel, check_predicts_tokens
from .watching import (
    evaluating,
    has_mechanisms,
    is_causal,
    of_tower,
    run_stack,
    tower_that_reads,
    watched_inputs,
    watched_stack,
    watching,
    with_mechanisms,
)

LENGTHS = (512, 1024, 2048, 4096, 8192)
"""Lengths in tokens that are measured by default, as far as the model and the text are long enough."""
SHORTEST = 16
QUERIES = 1024
"""Number of queries measured at each length by default, one from each of as many equal parts of the text."""
Progress = Callable[[str], None]


@dataclass(frozen=True)
class CapturedMass:
    """The share of the softmax of every layer and head that each candidate keeps, for one input.

    mass: ``(layers, H, candidates)`` float64, from 0 to 1, mean over queries; nan for a candidate that is not applicable.
    pairs: number of query–key products per head for each candidate. full_pairs: for full attention.
    reasons: candidate as text -> why it is not applicable.
    """

    candidates: tuple[Candidate, ...]
    mass: Tensor
    pairs: tuple[int, ...]
    full_pairs: int
    reasons: Mapping[str, str]


@quiet_libraries()
def diagnose(
    model: str | Path | nn.Module,
    text: str | Path | Tensor,
    *,
    tokenizer: Any | None = None,
    lengths: Sequence[int] | None = None,
    queries: int = QUERIES,
    needle: Needle | None = Needle(),  # noqa: B008 - it is frozen
    candidates: Sequence[str] | None = None,
    within_mechanism: bool = False,
    extend: str | None = None,
    mechanism: Mapping[str, Any] | None = None,
    device: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    progress: Progress | None = None,
) -> Diagnosis:
    """Measure how the attention of every layer and head spreads as ``text`` grows, and how much of it mechanisms would keep.

        print(hf_longattn.diagnose("bert-base-uncased", Path("book.txt"), lengths=[128, 512]).conclusion())

    Numbers are computed from the layers' queries and keys, with a softmax over all keys that the base's own attention sees;
    :mod:`hf_longattn.diagnostics.layer_attention` defines them. A long model runs its mechanisms, so its hidden states are the same as in
    use, but the softmax is over all keys unless ``within_mechanism`` is set. In an encoder-decoder model, the encoder is diagnosed. Memory
    is linear in the length.

    Args:
        model: a checkpoint of transformers, long or not (a folder or a Hub repository id), or a model in memory, which is left as it was.
        text: the text itself, a file (``Path``), or token ids ``(N,)`` without special tokens.
        tokenizer: the tokenizer of a model in memory.
        lengths: in tokens, special tokens included; by default 512 to 8,192, as far as the model and the text are long enough.
        queries: number of measured queries at each length; a text with fewer tokens is measured at all of them.
        needle: a sentence that is planted at several depths, and its question at the end of the text; ``None`` for none. It is left out
            without a tokenizer.
        candidates: mechanisms such as ``"window:window=512"``; by default :func:`.candidates.usual_candidates`.
        within_mechanism: measure the softmax over the keys that each layer's own mechanism keeps.
        extend: how positions are extended to the longest length, as ``positions`` of a conversion: tile, interpolate, rope:yarn …
        mechanism: with ``extend``, the mechanism of the layers, as in a conversion; by default, a conversion's choice.
        device: "cpu", "cuda" …; by default the accelerator if there is one. A model in memory stays on its device.
        revision, token: of the Hub repository.
        progress: called with a sentence before each forward pass.
    Returns:
        The diagnosis.
    Raises:
        LengthError: the text or the model ends before a length.
        CheckpointError: the text is empty, or the checkpoint cannot be loaded or is quantised.
        BackendError: the model's attention does not use transformers' AttentionInterface.
        OptionError, UnknownMechanismError: a candidate or setting does not exist.
    """
    if queries < 1:
        raise OptionError(f"queries is {queries}, but at least 1 query must be measured; for example queries={QUERIES}.")
    if lengths is not None and (not lengths or min(lengths) < SHORTEST):
        raise LengthError(f"Lengths start at {SHORTEST} tokens, not {min(lengths, default=0)}; give for example --lengths 512,2K.")
    loaded = load_for_diagnosis(model, lengths, extend=extend, mechanism=mechanism, device=device, revision=revision, token=token)
    name, network = loaded.name, loaded.model
    if tokenizer is None and loaded.source is not None:
        tokenizer = load_tokenizer(loaded.folder)
    whole, (network, tower) = network, tower_that_reads(network, text=True)
    stack = watched_stack(network)
    causal = is_causal(stack)
    chosen = usual_candidates(causal) if candidates is None else read_candidates(candidates)
    limit = longest_input(stack.config)
    chosen_lengths = (
        sorted(set(lengths)) if lengths is not None else [length for length in LENGTHS if limit is None or length <= limit] or [limit or 0]
    )
    if limit is not None and chosen_lengths[-1] > limit:
        raise length_error(name, chosen_lengths[-1], limit)
    source = DiagnosisText(text, tokenizer, chosen_lengths[-1], stack.config.get_text_config().vocab_size)
    is_long = has_mechanisms(stack) and extend is None
    trained = None if loaded.plan is None else loaded.plan.old_length
    notes = _notes(source, chosen_lengths, limit, lengths is None)
    if trained is not None and chosen_lengths[-1] > trained:
        notes.append(
            f"Positions were extended from {trained:,} to {chosen_lengths[-1]:,} tokens without training: what full attention does beyond "
            f"{trained:,} tokens was never learned, so mechanisms are judged by what they keep up to there."
        )
    if lengths is None:
        chosen_lengths = [length for length in chosen_lengths if length <= source.tokens]
    if not chosen_lengths:
        source.check(min(LENGTHS[0], limit or LENGTHS[0]))
    for length in chosen_lengths:
        source.check(length)
    planted = None if source.tokenizer is None or isinstance(text, Tensor) else needle
    if planted is not None:
        source.planted(chosen_lengths[0], planted, planted.depths[0], masked=True)  # refuses a needle that does not fit, before any run
    reasons: dict[str, str] = {}
    sizes: tuple[int, int] = (1, 1)
    measured = []
    for length in chosen_lengths:
        at_length, sizes = _measure(stack, source, length, planted, chosen, reasons, queries, within_mechanism, progress or silent)
        measured.append(at_length)
    target = _target(whole, tower, loaded, is_long, max(limit or 0, chosen_lengths[-1]), extend)
    rule, before = _position_rule(stack.config, loaded, target, is_long)
    diagnosis = Diagnosis(
        model=name, model_class=of_tower(type(whole).__name__, tower), text=source.name, device=device_name(stack), causal=causal,
        is_long=is_long, trained_length=trained, within_mechanism=within_mechanism, needle=planted,
        candidates=tuple(chosen), reasons=reasons, lengths=tuple(measured), target=target, notes=tuple(notes),
        untrained=untrained(chosen, reasons, rule, (before, target.length), causal, *sizes),
    )  # fmt: skip
    return _with_losses(diagnosis, network, stack, loaded, source, progress or silent)


AUTOMATIC = ("auto", "tile", "rope:yarn")
"""Values of ``extend`` that a command can omit, since a conversion chooses them by itself."""
LOSSES_TRIED = 3
"""Maximum number of candidates whose loss is measured; the first whose loss is not worse ends the measurement."""


def _target(model: Any, tower: str, loaded: LoadedCheckpoint, is_long: bool, length: int, extend: str | None) -> Target:
    """The conversion that a diagnosis recommends."""
    source = loaded.to_convert(is_long)
    destination = unused_name(f"{Path(source or type(model).__name__).name}-{length}")
    return Target(source, destination, length, None if extend in AUTOMATIC else extend, _is_generic(model), tower)


def _position_rule(config: Any, loaded: LoadedCheckpoint, target: Target, is_long: bool) -> tuple[str, int]:
    """How the target's positions are extended (``""`` if a conversion chooses by the mechanism), and the length before that."""
    if is_long:
        family = FAMILIES.get(getattr(config, "base_model_type", ""))
        before = length_before_conversion(config)
        learned = family is not None and any(table.learned for table in family.position_tables)
        return (config.position_extension if learned else "", target.length if before is None else before)
    if loaded.plan is None:
        return "", target.length
    chosen_there = loaded.plan.positions.startswith("rope:") and target.positions is None
    return "" if chosen_there else loaded.plan.positions, loaded.plan.old_length


def _with_losses(
    diagnosis: Diagnosis, model: Any, stack: PreTrainedModel, loaded: LoadedCheckpoint, text: DiagnosisText, progress: Progress
) -> Diagnosis:
    """Add to the diagnosis the loss at the longest length of the first recommended candidates, up to the first whose loss is not worse.
    If the loss cannot be measured, the reason is added."""
    order = [diagnosis.candidates[number] for number in diagnosis.recommended_order()[:LOSSES_TRIED]]
    losses: dict[str, LossChange] = {}
    try:
        measure = _loss_measure(diagnosis, model, stack, loaded, text) if order else None
        for candidate in order:
            assert measure is not None
            progress(f"loss with {candidate}")
            change = measure(LongAttentionConfig(candidate.mechanism, **candidate.options))
            if change is not None:
                losses[str(candidate)] = change
            if change is None or not change.worse:
                break
    except LongAttentionError as error:
        return replace(diagnosis, losses=losses, no_loss=str(error))
    return replace(diagnosis, losses=losses)


def _loss_measure(
    diagnosis: Diagnosis, model: Any, stack: PreTrainedModel, loaded: LoadedCheckpoint, text: DiagnosisText
) -> Callable[[LongAttentionConfig], LossChange | None]:
    """A function that measures how the loss changes if every layer runs the given attention.

    Raises:
        LongAttentionError: no loss can be measured; the message gives the reason.
    """
    ids = text.plain(diagnosis.last.length)
    if diagnosis.is_long:
        raise OptionError("The model is long already; its conversion's report has the loss.")
    if diagnosis.target.generic:
        raise OptionError("The class has no Long class; the loss is measured for those.")
    if not diagnosis.causal and getattr(text.tokenizer, "mask_token_id", None) is None:
        raise OptionError("There is no tokenizer with a mask token.")
    inputs = (ids, ids) if diagnosis.causal else masked_tokens(ids, text.tokenizer)
    if loaded.source is not None:
        positions = "auto" if loaded.plan is None else loaded.plan.positions
        config = ConversionConfig(max_length=diagnosis.target.length, positions=positions)
        trial = TrialModel(loaded.source, config, stack.device)
        check_predicts_tokens(trial)
        return LossAgainstChunks(trial, [inputs])
    if not type(model).__name__.endswith(LANGUAGE_MODELS) or getattr(model.config, "is_encoder_decoder", False):
        raise OptionError(f"A {type(model).__name__} predicts no tokens.")
    shown, target = inputs[0][None].to(stack.device), inputs[1][None]

    def measure(attention: LongAttentionConfig) -> LossChange | None:
        with evaluating(model):
            before = token_losses(model, shown, target, causal=diagnosis.causal)
            with with_mechanisms(stack, attention):
                return LossChange.of(before, token_losses(model, shown, target, causal=diagnosis.causal))

    return measure


def captured_mass(
    model: PreTrainedModel, ids: Tensor | Mapping[str, Tensor], candidates: Sequence[str | Candidate], *, queries: int = QUERIES,
    seed: int = 0,
) -> CapturedMass:  # fmt: skip
    """Measure how much of the softmax of every layer and head of ``model`` each candidate would keep, on a text, picture or sound.

    It helps to choose a mechanism. It takes one forward pass, and memory linear in N.

    Args:
        model: a transformers model, long or not; it is left as it was.
        ids: token ids ``(N,)`` with the tokenizer's special tokens, or the processor's output for one picture or sound.
        candidates: mechanisms such as ``"longformer:window=512"``.
        queries: number of measured queries.
        seed: for the choice of queries.
    Raises:
        BackendError, OptionError, UnknownMechanismError: as :func:`diagnose`.
    """
    chosen = [Candidate.read(candidate) if isinstance(candidate, str) else candidate for candidate in candidates]
    reasons = dict[str, str]()
    stack, arguments, grid, length = watched_inputs(model, ids)
    layers = MeasuredLayers(chosen, reasons, sampled_rows(length, queries, seed), grid)
    layers.watch(stack, arguments)
    mass = stack_heads([means["captured"] for means in layers.means()])
    causal = is_causal(stack)
    return CapturedMass(
        tuple(chosen), mass, tuple(costs(chosen, reasons, length, causal, *layers.shape, grid)), full_pairs(length, causal), reasons
    )


class MeasuredLayers:
    """Sums of every layer's numbers over one or more forward passes of the same length.

    rows: indices of the queries that the next pass adds.
    """

    def __init__(self, candidates: Sequence[Candidate], reasons: dict[str, str], rows: Tensor, grid: Grid | None = None) -> None:
        self.candidates, self.reasons, self.rows, self.grid = candidates, reasons, rows, grid
        self.sums: dict[int, RowSums] = {}
        self.names: dict[int, tuple[str, str]] = {}
        """Layer -> names of its attention module and mechanism."""
        self.shape = (1, 1)
        """Number of heads, and width of a head."""

    def watch(self, stack: PreTrainedModel, inputs: Any, *, within_mechanism: bool = False) -> None:
        """Add one forward pass; the arguments are those of :func:`.watching.run_stack` and :func:`.watching.watching`."""
        with watching(stack, self.see, within_mechanism=within_mechanism):
            run_stack(stack, inputs)

    def see(self, number: int, layer: LayerAttention) -> None:
        """Add the queries at :attr:`rows` of one layer."""
        layer = layer.on(self.grid)
        readings = all_readings(self.candidates, layer, number)
        for candidate, reason in zip(self.candidates, readings, strict=True):
            if isinstance(reason, str):
                self.reasons.setdefault(str(candidate), reason)
        sums = self.sums.setdefault(number, RowSums(layer.length, layer.heads, len(readings)))
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

    def at_length(
        self, length: int, queries: int, causal: bool, seconds: float, on_needle: Sequence[Tensor] = (), needle_tokens: int = 0
    ) -> LengthDiagnosis:  # fmt: skip
        """All layers at one length.

        Args:
            queries: number of measured queries.
            seconds: duration of the measurement.
            on_needle: mass on the needle in each layer, ``(H, depths)``; empty without a needle.
        """
        layered = []
        for number, mean in enumerate(self.means()):
            share = on_needle[number] if on_needle else mean["distance"].new_full((len(mean["entropy"]), 0), torch.nan)
            numbers = {name: mean[name] for name in MEANS}
            layered.append(LayerDiagnosis(*self.names[number], numbers, mean["distance"], mean["captured"], share))
        return LengthDiagnosis(
            length=length, queries=queries, bins=tuple(distance_bins(length)),
            layers=tuple(layered), pairs=tuple(costs(self.candidates, self.reasons, length, causal, *self.shape, self.grid)),
            full_pairs=full_pairs(length, causal), needle_tokens=needle_tokens, needle_uniform=needle_tokens / length, seconds=seconds,
        )  # fmt: skip


def _measure(
    stack: PreTrainedModel,
    source: DiagnosisText,
    length: int,
    needle: Needle | None,
    candidates: Sequence[Candidate],
    reasons: dict[str, str],
    queries: int,
    within_mechanism: bool,
    progress: Progress,
) -> tuple[LengthDiagnosis, tuple[int, int]]:
    """Measure all layers at one length, in one pass over the text and one per depth of the needle. Also returns heads and head width."""
    start, rows = time.perf_counter(), sampled_rows(length, queries)
    progress(f"{length:,} tokens")
    layers = MeasuredLayers(candidates, reasons, rows)
    layers.watch(stack, source.plain(length), within_mechanism=within_mechanism)
    shares, tokens = list[list[Tensor]](), 0
    for depth in () if needle is None else needle.depths:
        progress(f"{length:,} tokens, needle at {depth:.0%}")
        planted = source.planted(length, needle, depth, masked=not is_causal(stack))  # type: ignore[arg-type]
        by_layer: dict[int, Tensor] = {}

        def see(number: int, layer: LayerAttention, by_layer: dict[int, Tensor] = by_layer, text: Any = planted) -> None:
            by_layer[number] = mass_on(layer, text.question, text.needle)

        with watching(stack, see, within_mechanism=within_mechanism):
            run_stack(stack, planted.ids)
        shares.append([by_layer[number] for number in sorted(by_layer)])
        tokens = len(planted.needle)
    on_needle = [torch.stack(depths, -1) for depths in zip(*shares, strict=True)]
    diagnosis = layers.at_length(length, len(rows), is_causal(stack), time.perf_counter() - start, on_needle, tokens)
    return diagnosis, layers.shape


def _notes(source: DiagnosisText, chosen_lengths: Sequence[int], limit: int | None, chosen_here: bool) -> list[str]:
    """Sentences for the report about lengths that were left out."""
    notes = []
    if chosen_here and limit is not None and limit < LENGTHS[-1]:
        notes.append(
            f"The model ends at {limit:,} tokens; convert it, or add --extend and --lengths, to see its attention in longer texts."
        )
    if chosen_here and chosen_lengths and source.tokens < chosen_lengths[-1]:
        notes.append(f"The text has {source.tokens:,} tokens; a longer one shows greater lengths.")
    return notes


def _is_generic(model: PreTrainedModel) -> bool:
    """Whether the model can be converted only with ``--generic``."""
    known = {*FAMILIES, MULTIMODAL_TYPE, *(converter.model_type for converter in checkpoint_converters())}
    return not isinstance(model, LongAttentionMixin) and model.config.model_type not in known


def device_name(stack: PreTrainedModel) -> str:
    if stack.device.type == "cpu":
        return f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"
    return torch.cuda.get_device_name(stack.device) if stack.device.type == "cuda" else str(stack.device)


def silent(sentence: str) -> None:
    """A ``progress`` function that does nothing."""
