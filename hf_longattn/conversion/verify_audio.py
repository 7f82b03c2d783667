"""Run source and result on the same sound at the old and the new duration, and compare what they return."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..mechanisms import Mechanism
from ..private_apis import attention_implementation
from .audio_seconds import AudioDuration, duration, sound_model
from .flops import cost_at, layer_mechanisms
from .model_loading import load_result, load_source, newly_initialised
from .plan import ConversionPlan
from .plan_tensors import ResultPlan
from .processors import load_feature_extractor
from .report import FAILED, MEASURED, PASSED, SKIPPED, TOLERANCE, Check, equality
from .sound import VerificationSound
from .text import PARAGRAPHS, load_tokenizer
from .verify_grid import float_tensors
from .verify_outputs import FLOPS_AT_NEW_LENGTH, all_finite, difference

EXTRACTED_SECONDS = 2.0
"""The sound on which the written feature extractor is tried."""
DECODER_INPUT = "decoder_input_ids"
"""The argument of ``forward`` with the tokens of a decoder, which is given one."""
PADDED = 0.9
"""The part of a sound that is left when it is compared with itself and padding after it."""


def check_feature_extractor(plan: ResultPlan, result: Path, inputs: VerificationSound) -> list[Check]:
    """The written feature extractor and tokenizer do what the source's do."""
    return [_check_extractor(plan, result, inputs), _check_tokenizer(plan, result)]


def _check_extractor(plan: ResultPlan, result: Path, inputs: VerificationSound) -> Check:
    name = "feature extractor"
    if inputs.extractor is None:
        return Check(name, SKIPPED, "the source has no feature extractor")
    try:
        written = VerificationSound(inputs.rule, plan.config, load_feature_extractor(result), inputs.recording)
        same = torch.equal(written.features(EXTRACTED_SECONDS), inputs.features(EXTRACTED_SECONDS))
    except CheckpointError as error:
        return Check(name, FAILED, str(error).rstrip("."))
    kind = type(inputs.extractor).__name__
    detail = f"the {kind} of the result gives {'the same input as' if same else 'another input than'} the source's, at "
    return Check(name, PASSED if same else FAILED, f"{detail}{inputs.sampling_rate:,} samples a second")


def _check_tokenizer(plan: ResultPlan, result: Path) -> Check:
    name, source = "tokenizer", load_tokenizer(plan.source.folder)
    if source is None:
        return Check(name, SKIPPED, "the source has no tokenizer")
    try:
        written = load_tokenizer(result)
    except CheckpointError as error:
        return Check(name, FAILED, str(error).rstrip("."))
    ids = [None if tokenizer is None else tokenizer(PARAGRAPHS)["input_ids"] for tokenizer in (source, written)]
    same = ids[0] == ids[1]
    return Check(name, PASSED if same else FAILED, f"token ids of a transcript {'' if same else 'not '}equal to the source's")


def check_sound(plan: ConversionPlan, result: Path, inputs: VerificationSound, scratch: Path | None = None) -> list[Check]:
    """All checks of outputs; the two models are never in memory together.

    `scratch`: if given, the weights stay in their files, see `load_source`.
    """
    sound = plan.sound
    assert sound is not None
    old, new = sound.old, _affordable(plan)
    grows = new.seconds > old.seconds
    layers = layer_mechanisms(plan.attention, plan.shape, None)
    covered = _computes_source(plan, layers, old)
    at_old, at_new = inputs.at(old.seconds), inputs.at(new.seconds)
    source: Any
    source, missing = load_source(plan.source, plan.architecture, plan.cast, scratch)
    headless = newly_initialised(missing, source)
    family = plan.architecture.family
    compared = partial(sound_model, family) if headless else lambda model: model
    expected = run_on_sound(compared(source), at_old)
    longer = grows and sound.rule.base_reads(plan.architecture.source_config, new.seconds)
    expected_new = run_on_sound(sound_model(family, source), at_new) if longer else {}
    del source

    model: Any = load_result(result, plan.architecture, plan.config, scratch=scratch)[0]
    outputs = run_on_sound(compared(model), at_old)
    states = run_on_sound(sound_model(family, model), at_new)
    padding = _check_padding(plan, sound_model(family, model), inputs, new)
    model.use_base_attention()
    full = {} if covered else run_on_sound(compared(model), at_old)
    full_new = run_on_sound(sound_model(family, model), at_new) if longer else {}
    model.set_attn_implementation(attention_implementation(plan.config) or "longattn")
    del model

    what = "hidden states (the source has no weights for its head)" if headless else "outputs"
    full_attention = family.base_attention_name

    def compare(name: str, at: AudioDuration, how: str, expected: dict[str, Tensor], measured: dict[str, Tensor], why: str = "") -> Check:
        largest, relative = difference(expected, measured)
        values = {"audio_seconds": at.seconds, "tokens": at.frames, "outputs": sorted(expected), "max_abs_difference": largest}
        return equality(name, f"{how}: largest difference from the source {largest:.1e}", relative, values, why)

    why_not = "the mechanism does not cover the sound" if family.own_attention is None else "the mechanism is another one"
    checks = []
    if covered:
        how = f"{what} at {old.describe()}, long attention"
        checks.append(compare("equal where the mechanism covers the input", old, how, expected, outputs))
    else:
        how = f"{what} at {old.describe()}, {full_attention} instead of the mechanism"
        checks.append(compare(f"equal at the old duration with {full_attention}", old, how, expected, full))
        checks.append(compare("at the old duration", old, f"{what} at {old.describe()}, long attention", expected, outputs, why_not))
    if longer:
        shortened = "" if new.seconds == sound.new.seconds else f" (of {duration(sound.new.seconds)}: a large model, a shorter sound)"
        where = f"hidden states at {new.describe()}{shortened}"
        name = f"equal at the new duration with {full_attention}"
        checks.append(compare(name, new, f"{where}, {full_attention}", expected_new, full_new))
        exact = _computes_source(plan, layers, new)
        how = f"{where}, long attention, the source with {full_attention}"
        checks.append(compare("at the new duration", new, how, expected_new, states, "" if exact else why_not))
    elif grows:
        name = f"equal at the new duration with {full_attention}"
        checks.append(Check(name, SKIPPED, f"does not apply: the source does not read {duration(new.seconds)}"))
    finite = all_finite(states)
    detail = f"hidden states at {new.describe()} are {'' if finite else 'not '}finite"
    values = {"audio_seconds": new.seconds, "tokens": new.frames}
    checks.append(Check("finite at the new duration", PASSED if finite else FAILED, detail, values))
    return [*checks, padding, _what_is_whole(inputs)]


def run_on_sound(model: Any, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """All floating-point tensors that one forward pass returns, by name."""
    arguments = dict(inputs)
    if DECODER_INPUT in inspect.signature(type(model).forward).parameters:
        start = getattr(model.config, "decoder_start_token_id", None) or 0
        arguments[DECODER_INPUT] = torch.full((1, 1), min(start, model.config.vocab_size - 1))
    with torch.no_grad():
        return float_tensors(model(**arguments, return_dict=True))


def _computes_source(plan: ConversionPlan, layers: Sequence[Mechanism], at: AudioDuration) -> bool:
    """Whether every layer computes the source's attention on a sound of this duration."""
    if (own := plan.architecture.family.own_attention) is not None:
        return plan.attention.same_layers(own(plan.architecture.source_config), len(layers))
    return all(layer.covers(at.frames) for layer in layers)


def _affordable(plan: ConversionPlan) -> AudioDuration:
    """The new duration, or a shorter one between it and the old one, if a large model would take too long."""
    sound = plan.sound
    assert sound is not None
    layers, seconds = layer_mechanisms(plan.attention, plan.shape, None), sound.new.seconds
    while True:
        at = AudioDuration.of(sound.rule, plan.architecture.source_config, seconds)
        cost = cost_at(at.frames, plan.shape, layers)
        flops = 2 * (cost.full_attention_flops + cost.other_flops) + 3 * cost.total_flops
        if flops <= FLOPS_AT_NEW_LENGTH or seconds <= sound.old.seconds:
            return at
        seconds = max(sound.old.seconds, seconds / 2)


def _check_padding(plan: ConversionPlan, base: Any, inputs: VerificationSound, at: AudioDuration) -> Check:
    """The frames of a sound with padding after it are those of the sound alone."""
    name, rule, config = "padding changes nothing", inputs.rule, plan.config
    if why := rule.why_padding_changes(config):
        return Check(name, SKIPPED, f"does not apply: {why}, so that padding changes what the source computes as well")
    whole = inputs.features(at.seconds)
    length = round(PADDED * whole.shape[1])
    if rule.output_rows(config, length) < 1:
        return Check(name, SKIPPED, f"{duration(at.seconds)} are too short for padding")
    padded = whole.clone()
    padded[:, length:] = 0
    alone = run_on_sound(base, rule.arguments(whole[:, :length], [length]))["last_hidden_state"]
    together = run_on_sound(base, rule.arguments(padded, [length]))["last_hidden_state"][:, : alone.shape[1]]
    largest = float((alone - together).abs().max())
    good = largest <= TOLERANCE * max(1.0, float(alone.abs().max()))
    detail = f"a sound of {duration(rule.seconds(length))} alone, and padded to {duration(at.seconds)}: largest difference {largest:.1e}"
    return Check(name, PASSED if good else FAILED, detail, {"max_abs_difference": largest, "tolerance": TOLERANCE})


def _what_is_whole(inputs: VerificationSound) -> Check:
    """What sees the whole sound besides attention, so that chunks of it are other inputs than the whole."""
    name, whole = "what sees the whole sound", inputs.whole()
    once = "features were computed once, from the whole sound"
    if not whole:
        return Check(name, MEASURED, f"{once}; before attention, each frame depends on the sound near it alone, as it does in chunks")
    return Check(
        name, MEASURED, f"{once}: {whole}, so that a chunk alone differs from the same frames in the whole sound before any attention"
    )
