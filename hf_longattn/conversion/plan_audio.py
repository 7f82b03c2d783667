"""What a conversion plans for a model of sound: durations, the attention, and what convolutions cost."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..configuration import LongAttentionConfig
from ..errors import LengthError, PositionError
from ..modeling.family.audio_config import audio_seconds, refuse_reading
from ..modeling.family.definition import Family
from ..processor_files import FEATURE_EXTRACTOR, ProcessorFile
from .architectures import Architecture
from .audio_seconds import AudioDuration, AudioPlan, duration, sound_model
from .config import AUTO, ConversionConfig
from .flops import ModelShape
from .plan_inputs import InputPlan
from .plan_positions import PositionWarning
from .processors import load_processor, values_with
from .sources.base import Source

COUNTED_SECONDS = 10.0
"""The sound on which the operations of convolutions are counted, without storage."""


def plan_sound(source: Source, architecture: Architecture, request: ConversionConfig) -> InputPlan:
    """What is decided for a model that reads sound.

    Raises:
        LengthError: as :func:`audio_durations`, or a duration at which the result is of no use until it is trained.
    """
    positions, sound = audio_positions(architecture, request.positions), audio_durations(architecture, request)
    warnings = audio_warnings(architecture, sound)
    if warnings and not request.needs_training:
        old = f"{sound.old.seconds:g}"
        raise LengthError(
            f"A {architecture.source_class} of {sound.new.words} is of no use untrained: {warnings[0].problem}; leave --audio-seconds out, "
            f"and transcribe longer recordings with transformers' pipeline('automatic-speech-recognition', …, chunk_length_s={old}), or "
            "convert it with --needs-training and train it yourself."
        )
    return InputPlan(
        sizes=sound,
        attention=audio_attention(architecture, request),
        positions=positions,
        fields={"long_audio_seconds": sound.new.seconds} if sound.grows else {},
        warnings=warnings,
        files=extractor_files(source, sound),
    )


def audio_durations(architecture: Architecture, request: ConversionConfig) -> AudioPlan:
    """The durations of source and result.

    Raises:
        OptionError: not a duration.
        LengthError: shorter than the source's, or longer than a table of positions that is not extended.
    """
    rule, config = architecture.family.audio, architecture.source_config
    assert rule is not None
    old, read = rule.durations(config)
    new = read if request.audio_seconds is None else rule.converted_seconds(audio_seconds(request.audio_seconds, "--audio-seconds"))
    if new < old:
        raise LengthError(
            f"The source was trained on sounds of up to {duration(old)} and conversion only extends it: {duration(new)} are too few, give "
            f"at least --audio-seconds {old:g}."
        )
    most = rule.longest_seconds(config)
    if new > max(old, most):
        raise LengthError(
            f"A {architecture.source_class} has positions for {duration(most)} of sound, which are not extended, so --audio-seconds "
            f"{new:g} is too long; give at most --audio-seconds {math.floor(most):g}."
        )
    return AudioPlan(rule, AudioDuration.of(rule, config, old), AudioDuration.of(rule, config, new))


def audio_positions(architecture: Architecture, positions: str) -> str:
    """How positions are encoded, which a conversion does not change.

    Raises:
        PositionError: the request's ``positions`` are another rule.
    """
    if positions != AUTO:
        raise PositionError(f"--positions is for tables and rotary positions, which a {architecture.source_class} has not; leave it out.")
    rule: Any = architecture.family.audio
    return str(rule.positions)


def audio_attention(architecture: Architecture, request: ConversionConfig) -> LongAttentionConfig:
    """The attention that was asked for; without any, that of the source where it is not full attention, or the family's.

    Raises:
        OptionError: a mechanism for something else than sound.
    """
    kind: Any = architecture.family.config_class
    rule: Any = architecture.family.audio
    base_attention = architecture.family.own_attention
    default = kind.default_attention() if base_attention is None else base_attention(architecture.source_config)
    attention = request.attention() if request.names_attention else default
    layers = rule.layers(architecture.source_config)
    attention.check_layers(layers)
    for layer in range(layers):
        refuse_reading(*attention.for_layer(layer))
    return attention


def with_convolutions(shape: ModelShape, skeleton: nn.Module, family: Family, config: Any) -> ModelShape:
    """``shape`` whose matrices stand for the convolutions of a frame as well, by the number of their operations, in a model of sound.

    Args:
        skeleton: the long model without storage.
        family, config: of the model.
    """
    rule = family.audio
    if rule is None:
        return shape
    counted, operations = AudioDuration.of(rule, config, COUNTED_SECONDS), 0

    def count(module: Any, args: Any, output: Any) -> None:
        nonlocal operations
        frames: torch.Tensor = output[0] if isinstance(output, tuple) else output
        operations += 2 * module.weight[0].numel() * frames.numel()

    model: Any = copy.deepcopy(skeleton).eval()  # whose config is its own
    model.use_base_attention()
    for module in model.modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d)):
            module.register_forward_hook(count)
    with torch.no_grad():
        sound_model(family, model)(**rule.arguments(rule.seeded(config, COUNTED_SECONDS).to("meta")))
    return replace(shape, matrix_parameters=shape.matrix_parameters + operations // (2 * counted.frames))


def audio_warnings(architecture: Architecture, sound: AudioPlan) -> tuple[PositionWarning, ...]:
    """Why a result does not read longer sounds as its source reads short ones, without training."""
    problem = sound.rule.why_train(architecture.source_config, architecture.source_class) if sound.grows else ""
    advice = "train the result with transformers' Trainer on sounds of the new duration"
    return (PositionWarning(problem, advice, "transcripts are of no use"),) if problem else ()


def extractor_files(source: Source, plan: AudioPlan) -> dict[str, dict[str, Any]]:
    """The file of the feature extractor where it cuts or pads sounds to the duration; none where the source has none."""
    changed, place = plan.rule.extractor_fields(plan.new.seconds), ProcessorFile.find(source.folder, FEATURE_EXTRACTOR)
    if place is None or not (changed and plan.grows):
        return {}
    return place.with_values(values_with(place, load_processor(source.folder, FEATURE_EXTRACTOR), changed))
