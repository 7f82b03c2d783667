"""Run source and result on the same inputs, one after the other. Compare what they return."""

from __future__ import annotations

import bisect
import contextlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..inputs.common.base import InputKind
from ..inputs.common.running import floating_tensors
from ..inputs.text import VerificationText
from ..mechanisms.common.base import Mechanism
from ..modeling.family.config import attention_implementation
from ..modeling.family.sliding_window import keeps_window, own_windows
from ..reports import FAILED, MEASURED, NEEDS_TRAINING, PASSED, SKIPPED, Check, Difference, equality
from .flops import ModelShape, affordable_length, layer_mechanisms
from .long_models import Probe
from .model_loading import load_result, load_source, newly_initialised, outputs
from .plan import ConversionPlan
from .plan_tensors import ResultPlan
from .pooling import sentence_pooling
from .report import SHORT_TEXTS
from .verify_embeddings import EmbeddingCheck
from .verify_loss import LossCheck

FLOPS_AT_NEW_LENGTH = 4e12
"""Maximum FLOPs of the checks at the new length: about a minute on two cores. BERT-base at 4,096 tokens fits."""
FLOPS_AT_OLD_LENGTH = 1e12
PADDING = 37
"""Tokens of padding in the padding check: not a multiple of any block size."""
LOGITS_FROM_FILES = 6.4e7
"""Maximum bytes of the logits at the old length, for models that run from their files; four copies are in memory. If a quarter of the
largest tensor's bytes is more, that is the maximum."""
HIDDEN_STATES = "last_hidden_state"
"""Ending of the names of outputs with a vector for every token."""
DECODED = 32
"""Maximum number of decoder tokens of an encoder-decoder in the checks at the new length."""


@dataclass(frozen=True)
class Lengths:
    """The lengths in tokens at which a conversion is checked."""

    covered: int  # maximum up to `old` at which every layer computes the source's attention; 0 if there is none
    old: int
    new: int


def choose_lengths(plan: ConversionPlan, *, from_files: bool = False) -> Lengths:
    """The covered, old and new length. They are shorter if a large model would take too long, or its logits too much memory."""
    layers = layer_mechanisms(plan.attention, plan.shape, plan.new_length)
    decoder = []
    if plan.decoder is not None:
        shape = ModelShape.of(plan.config, causal=True, matrix_parameters=0, element_bytes=plan.shape.element_bytes)
        decoder = layer_mechanisms(plan.config.decoder_attention, shape, plan.decoder.new)
    windows = own_windows(plan.architecture.source_config) if plan.decoder is None else [None] * len(layers)

    def same(number: int, width: int | None, length: int) -> bool:
        if keeps_window(plan.attention, number, width):
            return True
        return _covers(layers[number], length, plan.shape.causal) and (width is None or length <= width)

    def covered(length: int) -> bool:
        encoder_covers = all(same(number, width, length) for number, width in enumerate(windows))
        return encoder_covers and all(_covers(layer, length, True) for layer in decoder)

    old = affordable_length(plan.old_length, plan.shape, layers, FLOPS_AT_OLD_LENGTH / 3)  # three passes
    if from_files and plan.skeleton.get_output_embeddings() is not None:
        old = min(old, length_from_files(plan))
    longest = bisect.bisect_left(range(1, old + 1), True, key=lambda length: not covered(length))  # shorter lengths are covered as well
    return Lengths(longest, old, affordable_length(plan.new_length, plan.shape, layers, FLOPS_AT_NEW_LENGTH / 4))


def _covers(layer: Mechanism, length: int, causal: bool) -> bool:
    """Whether a layer is full attention at this length, without memory tokens."""
    return layer.covers(length, causal) and (layer.traits.recursion is None or not layer.traits.recursion.memory)


def length_from_files(plan: ResultPlan) -> int:
    """Number of tokens whose logits take little memory compared with the largest tensor."""
    limit = max(LOGITS_FROM_FILES, plan.largest_tensor)  # a quarter of its bytes in fp32
    return max(64, int(limit / (4 * plan.config.vocab_size)))


AS_CONFIGURED, MECHANISMS, BASE = "as for texts of up to {}", "long attention", "full attention instead of the mechanism"
"""The attention of the result in a comparison: as it is; by mechanisms also for texts of up to ``exact_length``; or the source's."""


@dataclass(frozen=True)
class Comparison:
    """A comparison of the result's outputs with the source's for a text of ``length`` tokens.

    why: reason why they may differ; empty if they must be equal.
    """

    name: str
    length: int
    attention: str
    why: str


def comparisons(plan: ConversionPlan, lengths: Lengths) -> list[Comparison]:
    """The comparisons up to the old length."""
    change, covered, short = plan.position_change, lengths.covered, min(plan.short_texts.length, lengths.old)
    unchanged = min(plan.unchanged_tokens, lengths.old) if plan.unchanged_tokens > 1 else 0  # though positions change longer texts
    positions, chosen = "equal where positions are unchanged", list[Comparison]()
    if short:
        chosen.append(Comparison(SHORT_TEXTS, short, AS_CONFIGURED, plan.short_texts.reason))
    if 0 < unchanged <= covered:
        chosen.append(Comparison(positions, unchanged, MECHANISMS, ""))
    if covered:
        chosen.append(Comparison("equal where the mechanism covers the input", covered, MECHANISMS, change))
    if covered < lengths.old:
        if unchanged > covered:
            chosen.append(Comparison(positions, unchanged, BASE, ""))
        chosen.append(Comparison("equal at the old length with full attention", lengths.old, BASE, change))
        covers = f"covers inputs up to {covered} tokens" if covered else "is full attention at no length"
        if short == lengths.old:
            covers += f", but only texts of more than {plan.short_texts.length} tokens are read by it"
        why = " and ".join(filter(None, [change, f"the mechanism {covers}"]))
        chosen.append(Comparison("at the old length", lengths.old, MECHANISMS, why))
    return chosen


@contextlib.contextmanager
def attending(model: Any, attention: str, config: Any) -> Iterator[None]:
    """Run ``model``, whose config is ``config``, with the ``attention`` of a :class:`Comparison`."""
    if attention == BASE:
        model.use_base_attention()
    mechanisms = [module for module in model.modules() if isinstance(module, Mechanism)]
    for mechanism in mechanisms:
        mechanism.ignores_exact_length = attention != AS_CONFIGURED
    yield
    for mechanism in mechanisms:
        mechanism.ignores_exact_length = False
    if attention == BASE:
        model.set_attn_implementation(attention_implementation(config) or "longattn")


def check_texts(
    kind: InputKind, plan: ConversionPlan, result: Path, text: VerificationText, scratch: Path | None, given_text: bool
) -> list[Check]:
    """All checks of outputs of a model of texts. Source and result are never in memory together.

    The loss or the embeddings are measured on each model while it is loaded, on the result only if its outputs pass.

    Args:
        text: the models run on parts of it, at the lengths from :func:`choose_lengths`.
        scratch: if given, the weights stay in their files, see `load_source`.
        given_text: the text is the user's, so more time is spent on the losses.
    """
    lengths, from_files = choose_lengths(plan, from_files=scratch is not None), scratch is not None
    pooling = sentence_pooling(result) if plan.decoder is None else None  # sentence encoders have no decoder
    measurement = (
        LossCheck(plan, text, lengths.old, lengths.new, from_files=from_files, given_text=given_text)
        if pooling is None
        else EmbeddingCheck(plan, text, pooling, lengths.old, lengths.new)
    )
    if lengths.covered == plan.new_length:
        measurement.skipped = []  # outputs are compared at every length that the result reads
    cast = plan.cast if measurement.skipped is not None else None
    source, missing = load_source(plan.source, plan.architecture, cast, scratch)
    measurement.measure_source(source)
    if cast != plan.cast:  # outputs are compared with the source rounded to the result's dtype
        del source
        source, missing = load_source(plan.source, plan.architecture, plan.cast, scratch)
    headless = newly_initialised(missing, source)
    if plan.architecture.converter is not None:
        original = OriginalCheck(plan, text, lengths.old, headless)
        original.run_source(kind.compared_part(source, headless))
        del source
        model: Any = load_result(result, plan.architecture, plan.config, scratch=scratch)[0]
        checks = original.check(kind.compared_part(model, headless))
    else:
        limit = None if plan.decoder is None or plan.architecture.decoder_reads_text else plan.decoder.old  # of the source's decoder
        part, chosen = kind.compared_part(source, headless), comparisons(plan, lengths)
        at = sorted({comparison.length for comparison in chosen})
        expected = {length: outputs(part, text.tokens(length), decoder_tokens=limit) for length in at}
        del source, part
        model = load_result(result, plan.architecture, plan.config, scratch=scratch)[0]
        what, checks = "hidden states (the source has no weights for its head)" if headless else "outputs", []
        for comparison in chosen:
            ids = text.tokens(comparison.length)
            with attending(model, comparison.attention, plan.config):
                measured = outputs(kind.compared_part(model, headless), ids, decoder_tokens=limit)
            how = comparison.attention.format(plan.short_texts.length)
            detail = f"{what} at {comparison.length} tokens, {how}: largest difference from the source"
            values = {"length": comparison.length, "tokens": ids.numel(), "outputs": sorted(expected[comparison.length])}
            check = equality(comparison.name, detail, Difference.of(expected[comparison.length], measured), values, comparison.why)
            used = comparison.attention != MECHANISMS or comparison.length > plan.short_texts.length  # else only the check runs it
            checks.append(replace(check, status=MEASURED) if check.status == NEEDS_TRAINING and not used else check)
    at_new, states = _check_new(plan, model.base_model, text, lengths.new)
    checks += at_new
    return checks if any(check.status == FAILED for check in checks) else [*checks, *measurement.check(model, states)]


def _check_new(plan: ConversionPlan, backbone: Any, text: VerificationText, length: int) -> tuple[list[Check], dict[str, Tensor]]:
    """Check that hidden states at the new length are finite and unchanged by padding. Returns the checks and these states."""
    decoded = None if plan.decoder is None else min(plan.decoder.old, DECODED)

    ids = text.passages(1, length)
    states = _hidden_states(outputs(backbone, ids, decoder_tokens=decoded))
    finite = all_finite(states)
    at = f"at {length} tokens" + ("" if length == plan.new_length else f" (of {plan.new_length}: a large model, shortened)")
    finite_detail = f"hidden states {at} are {'' if finite else 'not '}finite"
    first = Check("finite at the new length", PASSED if finite else FAILED, finite_detail, {"length": length, "tokens": ids.numel()})

    name = "padding changes nothing"
    layers = layer_mechanisms(plan.attention, plan.shape, length)
    short = max(1, length - PADDING)
    if not any(name.endswith(HIDDEN_STATES) for name in states):
        return [first, Check(name, SKIPPED, f"the base returns no hidden states, but {', '.join(states) or 'nothing'}")], states
    if short == length:
        return [first, Check(name, SKIPPED, f"{length} tokens are too few for padding")], states
    if not all(layer.traits.ignores_padding for layer in layers):
        return [first, Check(name, SKIPPED, "the mechanism's options count padding, for equality with another implementation")], states
    takes_globals = any(layer.traits.takes_globals for layer in layers)
    places = "position_ids" in inspect.signature(type(backbone).forward).parameters
    sides = ("right", "left") if places else ("right",)  # without position_ids, left padding shifts the text
    passes_positions = places and getattr(backbone, "exact_length", None) is None  # otherwise the model counts from the text
    alone = ids[:, :short]
    marked = torch.zeros_like(alone)
    marked[:, : min(short, 8)] = 1
    marked[:, short // 2] = 1
    further = plan.architecture.family.rule.further_inputs(plan.config, *alone.shape)

    first_id = max((table.first_id(plan.config) for table in plan.architecture.family.position_tables), default=0)

    def masked(mask: Tensor, marks: Tensor) -> dict[str, Tensor]:
        # counted over real tokens: padding repeats the last position, or the first one in front of the text
        positions = {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0) + first_id} if passes_positions else {}
        return {"attention_mask": mask, **positions, **({"global_attention_mask": marks} if takes_globals else {})}

    def pad(values: Tensor, fill: int = 0) -> Tensor:
        gaps = {"right": (0, length - short), "left": (length - short, 0)}
        return torch.cat([nn.functional.pad(values, (*(0, 0) * (values.dim() - 2), *gaps[side]), value=fill) for side in sides])

    unpadded = _hidden_states(outputs(backbone, alone, decoder_tokens=decoded, **masked(torch.ones_like(alone), marked), **further))
    fill = plan.config.pad_token_id if isinstance(plan.config.pad_token_id, int) and plan.config.pad_token_id >= 0 else 0
    padded_masks = masked(pad(torch.ones_like(alone)), pad(marked)) | {name: pad(values) for name, values in further.items()}
    padded = _hidden_states(outputs(backbone, pad(alone, fill), decoder_tokens=decoded, **padded_masks))
    real = {"right": slice(short), "left": slice(-short, None)}
    expected = {output: state[0] for output, state in unpadded.items()}
    differences = {
        side: Difference.of(expected, {output: state[row, real[side]] for output, state in padded.items()})
        for row, side in enumerate(sides)
    }
    detail = (
        f"a text of {short} tokens alone, and padded to {length} on the {' and on the '.join(sides)}"
        f"{' with global tokens' if takes_globals else ''}{' and position_ids from the text' * passes_positions}: largest difference"
    )
    values = {**{side: difference.largest for side, difference in differences.items()}, "length": length, "tokens": short}
    worst = Difference.worst(differences.values()) if all_finite(padded) else Difference(output="padding")
    return [first, equality(name, detail, worst, values)], states


def _hidden_states(returned: dict[str, Tensor]) -> dict[str, Tensor]:
    """The hidden states among outputs; all outputs if there are none."""
    return {name: state for name, state in returned.items() if name.endswith(HIDDEN_STATES)} or returned


def all_finite(tensors: dict[str, Tensor]) -> bool:
    """Whether there are tensors, and all of their values are finite."""
    return bool(tensors) and all(bool(value.isfinite().all()) for value in tensors.values())


# Long models of other architectures (Longformer, BigBird …), compared with transformers' model.


class OriginalCheck:
    """Compares source and result on the converter's probes.

    Args:
        length: at most the source's maximum.
        headless: whether the source has no weights for its head.
    """

    def __init__(self, plan: ConversionPlan, text: VerificationText, length: int, headless: bool) -> None:
        self.plan, self.length, self.headless = plan, length, headless
        architecture, layers = plan.architecture, layer_mechanisms(plan.attention, plan.shape, plan.new_length)
        assert architecture.converter is not None
        takes_globals = any(layer.traits.takes_globals for layer in layers)
        probes = architecture.converter.probes(architecture.original_config, architecture.source_class, text, length)
        self.probes = [probe for probe in probes if takes_globals or "global_attention_mask" not in probe.inputs]

    def run_source(self, source: Any) -> None:
        """Keep the outputs of the source."""
        self.expected = [probe_outputs(source, probe.inputs) for probe in self.probes]

    def check(self, result: Any) -> list[Check]:
        """One check for each probe."""
        measured = [
            (probe, of_source, probe_outputs(result, probe.inputs)) for probe, of_source in zip(self.probes, self.expected, strict=True)
        ]
        return [_check_probe(self.plan, *outputs, self.length, self.headless) for outputs in measured]


def probe_outputs(model: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of one forward pass by name, with every layer's hidden states."""
    if model.base_model is model and inputs["input_ids"].dim() == 3:  # a model without a multiple-choice head reads the choices as rows
        inputs = {name: value.flatten(0, 1) for name, value in inputs.items()}
    with torch.no_grad():
        return floating_tensors(model(**inputs, output_hidden_states=True, return_dict=True))


def _check_probe(
    plan: ConversionPlan, probe: Probe, expected: dict[str, Tensor], measured: dict[str, Tensor], length: int, headless: bool
) -> Check:
    """Compare every common output at the real tokens. Relative to the largest value of this output in the source."""
    name = f"equal to the source, {probe.name}"
    common = sorted(expected.keys() & measured.keys())
    if not common:
        return Check(name, FAILED, "source and result have no output in common")
    rows = ({output: probe.rows(output, outputs[output]) for output in common} for outputs in (expected, measured))
    difference = Difference.of(*rows)
    layers = sum("hidden_states[" in output for output in common)
    names = [output for output in common if "hidden_states[" not in output]
    values = {"length": length, "tokens": int(probe.real.sum()), "outputs": common}
    head = " (the source has no weights for its head)" if headless else ""
    detail = (
        f"{', '.join([*names, f'{layers} hidden states'])}{head} of two texts of up to {length} tokens, {probe.name}: "
        f"largest difference from transformers' {plan.source.config['model_type']}"
    )
    same = plan.attention == plan.architecture.original_attention()
    return equality(name, detail, difference, values, plan.position_change if same else "the attention differs from the source's")
