"""Run source and result on the same sound at the old and the new duration, and compare what they return."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError
from ..mechanisms import Mechanism
from ..modeling.family.config import attention_implementation
from ..processor_files import FEATURE_EXTRACTOR
from .audio_seconds import AudioDuration, duration, sound_model
from .differences import Difference
from .flops import cost_at, layer_mechanisms
from .model_loading import load_result, load_source, newly_initialised
from .plan import ConversionPlan
from .plan_tensors import ResultPlan
from .processors import load_processor
from .report import FAILED, MEASURED, PASSED, SKIPPED, Check, equality
from .sound import VerificationSound
from .text import PARAGRAPHS, load_tokenizer
from .verify_outputs import FLOPS_AT_NEW_LENGTH
from .verify_sizes import SizeChecks, run_model

EXTRACTED_SECONDS = 2.0
"""Duration at which the written feature extractor is compared with the source's."""
PROCESSED_SECONDS = 600.0
"""Maximum duration of the sound that the written feature extractor must not cut. Spectrograms of it take seconds."""
WINDOW_SECONDS = 0.05
"""How much shorter than its sound a spectrogram may be: windows of 25 ms end before the sound does."""
PADDED = 0.9
"""The part of a sound that is left when it is compared with itself and padding after it."""


def check_feature_extractor(plan: ResultPlan, result: Path, inputs: VerificationSound) -> list[Check]:
    """The written feature extractor and tokenizer do what the source's do."""
    return [_check_extractor(plan, result, inputs), _check_tokenizer(plan, result)]


def _check_extractor(plan: ResultPlan, result: Path, inputs: VerificationSound) -> Check:
    name, rule, sound = "feature extractor", inputs.rule, plan.sound
    assert sound is not None
    if inputs.extractor is None:
        return Check(name, SKIPPED, f"the source has no feature extractor, so make inputs of {sound.new.words} as it was trained")
    try:
        written = VerificationSound(rule, plan.config, load_processor(result, FEATURE_EXTRACTOR), inputs.recording)
        same = torch.equal(written.features(EXTRACTED_SECONDS), inputs.features(EXTRACTED_SECONDS))
        duration_in = min(sound.new.seconds, PROCESSED_SECONDS)
        duration_out = rule.seconds(rule.as_input(written.processed(duration_in)).shape[1])
    except CheckpointError as error:
        return Check(name, FAILED, str(error).rstrip("."))
    kind = type(inputs.extractor).__name__
    detail = (
        f"the {kind} of the result gives {'the same input as' if same else 'another input than'} the source's, at "
        f"{inputs.sampling_rate:,} samples a second; a sound of {duration(duration_in)} becomes an input of "
        f"{duration(round(duration_out, 1))}"
    )
    if not (good := abs(duration_out - duration_in) <= WINDOW_SECONDS):
        detail += "; correct the fields of the feature extractor's file that cut or pad sounds"
    return Check(name, PASSED if same and good else FAILED, detail, {"audio_seconds": duration_out})


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
    sound, family = plan.sound, plan.architecture.family
    assert sound is not None
    layers = layer_mechanisms(plan.attention, plan.shape, None)
    old, new = sound.old, _affordable(plan, layers)
    grows = new.seconds > old.seconds
    at_old, at_new = inputs.at(old), inputs.at(new)
    source: Any
    source, missing = load_source(plan.source, plan.architecture, plan.cast, scratch)
    checks = SizeChecks(plan, sound, newly_initialised(missing, source))
    compared = partial(sound_model, family) if checks.headless else lambda model: model
    expected = run_model(compared(source), at_old)
    longer = grows and sound.rule.base_reads(plan.architecture.source_config, new.seconds)
    expected_new = run_model(sound_model(family, source), at_new) if longer else {}
    del source

    model: Any = load_result(result, plan.architecture, plan.config, scratch=scratch)[0]
    outputs = run_model(compared(model), at_old)
    states = run_model(sound_model(family, model), at_new)
    padding = _check_padding(plan, sound_model(family, model), inputs, new)
    model.use_base_attention()
    full = {} if checks.computes_source(layers, [old.frames] * len(layers)) else run_model(compared(model), at_old)
    full_new = run_model(sound_model(family, model), at_new) if longer else {}
    model.set_attn_implementation(attention_implementation(plan.config) or "longattn")
    del model

    at_new_duration = []
    if longer:
        why = "" if checks.computes_source(layers, [new.frames] * len(layers)) else checks.why_not_exact
        at_new_duration = checks.at_new(new, expected_new, states, full_new, why)
    elif grows:
        detail = f"does not apply: the source does not read {new.words}"
        at_new_duration = [Check(f"equal at the new duration with {checks.base_attention}", SKIPPED, detail)]
    return [*checks.at_old(expected, outputs, full), *at_new_duration, checks.finite(new, states), padding, _say_why_chunks_differ(inputs)]


def _affordable(plan: ConversionPlan, layers: Sequence[Mechanism]) -> AudioDuration:
    """The new duration, or a shorter one between it and the old one, if a large model would take too long."""
    sound = plan.sound
    assert sound is not None
    seconds = sound.new.seconds
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
    sound = inputs.features(at.seconds)
    length = round(PADDED * sound.shape[1])
    if rule.output_rows(config, length) < 1:
        return Check(name, SKIPPED, f"{at.words} are too short for padding")
    padded = sound.clone()
    padded[:, length:] = 0
    alone = run_model(base, rule.arguments(sound[:, :length], [length]))["last_hidden_state"]
    together = run_model(base, rule.arguments(padded, [length]))["last_hidden_state"][:, : alone.shape[1]]
    detail = f"a sound of {duration(rule.seconds(length))} alone, and padded to {at.words}: largest difference"
    return equality(name, detail, Difference.of({"frames": alone}, {"frames": together}), {})


def _say_why_chunks_differ(inputs: VerificationSound) -> Check:
    """What sees the whole sound besides attention, so that chunks of it are other inputs than the whole."""
    reasons = inputs.why_chunks_differ()
    effect = f": {reasons}, so that a chunk alone differs from the same frames in the whole sound before any attention"
    if not reasons:
        effect = "; before attention, each frame depends on the sound near it alone, as it does in chunks"
    return Check("what sees the whole sound", MEASURED, f"features were computed once, from the whole sound{effect}")
