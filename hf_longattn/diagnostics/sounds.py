"""Diagnose a sound model: its attention on recordings, and how much of it each mechanism would keep, in frames and seconds.

The measurement is the same as for texts (:mod:`~hf_longattn.diagnostics.measure`). A transformers checkpoint is loaded into its Long class,
with the attention of its base.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from ..configuration import LongAttentionConfig
from ..conversion import plan_conversion
from ..conversion.config import ConversionConfig
from ..conversion.model_loading import quiet_libraries
from ..conversion.plan import ConversionPlan
from ..conversion.sources.base import Source, open_source
from ..conversion.sources.folder import refuse_quantised
from ..errors import BackendError, OptionError
from ..inputs.common.base import kind_of, kind_of_model
from ..inputs.common.processors import required_processor
from ..inputs.common.sized import SizedKind
from ..inputs.sound import UserSounds, duration
from ..modeling.family.audio_config import audio_seconds as checked_seconds
from ..modeling.family.audio_config import check_mechanism_for_audio
from ..modeling.family.definition import family_in
from ..staging import unused_name
from .candidates import read_candidates, usual_for_sound
from .diagnosis import Diagnosis, LengthDiagnosis, Target
from .layer_attention import sampled_rows
from .loading import LoadedCheckpoint, load_for_diagnosis, load_planned
from .measure import QUERIES, MeasuredLayers, Progress, device_name, silent
from .watching import is_causal, watched_inputs

SECONDS = (7.5, 15.0, 30.0)
"""Durations in seconds that are measured by default, as far as the model and the recordings are long enough."""
STRETCHES = 4
"""Maximum number of excerpts of the recordings for each duration."""


@quiet_libraries()
def diagnose_sound(
    model: str | Path | nn.Module,
    recordings: Path,
    *,
    extractor: Any | None = None,
    audio_seconds: Sequence[float] | None = None,
    queries: int = QUERIES,
    candidates: Sequence[str] | None = None,
    within_mechanism: bool = False,
    device: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    progress: Progress | None = None,
) -> Diagnosis:
    """Measure how the attention of every layer and head spreads over sounds, and how much of it mechanisms would keep.

    The numbers are defined as in :func:`diagnose`, with frames as tokens, and are means over excerpts of the recordings. The features are
    computed from a whole recording, and cut afterwards. Memory is linear in the duration.

    Args:
        model: a sound checkpoint, long or not (a folder or a Hub repository id), or a Long model in memory. In an encoder-decoder model,
            the encoder is diagnosed.
        recordings: a recording, or a folder from which up to :data:`STRETCHES` recordings are read, evenly spaced.
        extractor: the feature extractor of a model in memory.
        audio_seconds: durations of the excerpts; by default 7.5, 15 and 30, as far as the model and the recordings are long enough.
        queries: number of measured queries at each duration, spread over the excerpts.
        candidates: mechanisms such as ``"window:left=64,right=64"``, in frames; by default :func:`.candidates.usual_for_sound`.
        within_mechanism, device, revision, token, progress: as for :func:`diagnose`.
    Returns:
        The diagnosis. Its ``frame_seconds`` is the duration of a frame.
    Raises:
        DataError, AudioError: there is no recording, or one cannot be read.
        LengthError: a duration exceeds the recordings or the model's maximum.
        CheckpointError: the checkpoint cannot be loaded, or has no feature extractor.
        BackendError: the model does not read sound.
        OptionError, UnknownMechanismError: a candidate or setting does not exist.
    """
    if queries < 1:
        raise OptionError(f"queries is {queries}, but at least 1 query must be measured; for example queries={QUERIES}.")
    if audio_seconds is not None and not audio_seconds:
        raise OptionError("There is no duration; give for example --audio-seconds 30, or leave it out.")
    chosen = usual_for_sound() if candidates is None else read_candidates(candidates)
    for candidate in chosen:
        check_mechanism_for_audio(candidate.mechanism, candidate.options)
    durations = None if audio_seconds is None else sorted({checked_seconds(seconds, "--audio-seconds") for seconds in audio_seconds})
    if isinstance(model, nn.Module):
        loaded = load_for_diagnosis(model)
        extractor = required_processor(extractor, loaded.name, "sound")
        kind = _checked_kind(kind_of_model(model.config), loaded.name, str(getattr(model.config, "model_type", "")))
        sounds: Any = kind.user_inputs(kind.rule, model.config, Path(), loaded.name, recordings, STRETCHES, extractor)
        durations = _usual_durations(sounds) if durations is None else durations
    else:
        loaded, sounds, durations = _load(open_source(model, revision=revision, token=token), recordings, durations, device)
    network, rule = loaded.model, sounds.rule
    class_name = type(network).__name__ if loaded.plan is None else loaded.plan.architecture.source_class
    reasons: dict[str, str] = {}
    measured = []
    for seconds in durations:
        start, stretches = time.perf_counter(), sounds.values(seconds)
        share = -(-queries // len(stretches))
        layers = MeasuredLayers(chosen, reasons, sampled_rows(1, 1))
        for number, stretch in enumerate(stretches):
            (progress or silent)(f"{duration(seconds)}, stretch {number + 1} of {len(stretches)}")
            stack, arguments, _, frames = watched_inputs(network, rule.arguments(stretch))
            layers.rows = sampled_rows(frames, share, seed=number)
            layers.watch(stack, arguments, within_mechanism=within_mechanism)
        causal, count = is_causal(stack), len(layers.rows) * len(stretches)
        measured.append(layers.at_length(frames, count, causal, time.perf_counter() - start))
    return Diagnosis(
        model=loaded.name, model_class=class_name, text=recordings.resolve().name, device=device_name(stack), causal=causal,
        is_long=loaded.plan is None, trained_length=_trained_frames(loaded.plan, durations[-1]), within_mechanism=within_mechanism,
        needle=None, candidates=tuple(chosen), reasons=reasons, lengths=tuple(measured),
        target=_target(loaded, class_name, sounds, durations[-1], measured[-1]),
        notes=tuple(_notes(loaded.plan, sounds, durations[-1], audio_seconds is None)), frame_seconds=rule.frame_seconds(sounds.config),
    )  # fmt: skip


def _load(
    source: Source, recordings: Path, durations: list[float] | None, device: str | None
) -> tuple[LoadedCheckpoint, UserSounds, list[float]]:  # fmt: skip
    """Load a checkpoint with mechanisms. Also returns its recordings, and the durations to measure."""
    family = family_in(source.config)
    kind = _checked_kind(None if family is None else kind_of(family), source.name, str(source.config.get("model_type")))
    refuse_quantised(source)
    if "long_attention" in source.config:
        loaded = replace(load_for_diagnosis(source.folder, device=device), name=source.name)
        sounds: Any = kind.user_inputs(kind.rule, loaded.model.config, source.folder, source.name, recordings, STRETCHES)
        return loaded, sounds, _usual_durations(sounds) if durations is None else durations
    attention = LongAttentionConfig("full") if kind.family.own_attention is None else None  # by default, a conversion keeps the base's own
    plan = plan_conversion(source, config=ConversionConfig(long_attention=attention))
    sounds = kind.user_inputs(kind.rule, plan.architecture.source_config, source.folder, source.name, recordings, STRETCHES)
    durations = _usual_durations(sounds) if durations is None else durations
    if durations[-1] > plan.inputs.new.value:
        plan = plan_conversion(source, config=ConversionConfig(long_attention=attention, audio_seconds=durations[-1], needs_training=True))
    return load_planned(source, plan, device, source.name), sounds, durations


def _checked_kind(kind: Any, name: str, model_type: str) -> SizedKind:
    """``kind`` if it is the input kind of sound models; raises :class:`BackendError` for any other."""
    if kind is not None and kind.timed:
        return kind
    if kind is not None and kind.units:
        raise BackendError(f"{name!r} is of type {model_type!r}, which reads {kind.nouns}; {kind.how_to_diagnose}")
    raise BackendError(
        f"{name!r} is of type {model_type!r}, which is not a family of sound; give it a text, or a recording to a model such as a Wav2Vec2."
    )


def _usual_durations(sounds: UserSounds) -> list[float]:
    """The durations in :data:`SECONDS` up to the maximum of model and recordings; if there is none, that maximum."""
    longest = min(sounds.longest, sounds.rule.longest_seconds(sounds.config))
    return [seconds for seconds in SECONDS if seconds <= longest] or [longest]


def _target(loaded: LoadedCheckpoint, class_name: str, sounds: UserSounds, seconds: float, last: LengthDiagnosis) -> Target:
    """The conversion to recommend, for the longest measured sounds or, if longer, the longest that the model reads already."""
    rule, config = sounds.rule, sounds.config
    longest = max(seconds, rule.durations(config)[1]) if loaded.plan is None else loaded.plan.inputs.new.value
    source = loaded.to_convert(loaded.plan is None)
    name = Path(source or class_name).name
    compare_at = max(1, int(seconds)) if seconds < longest else None
    return Target(
        source, unused_name(f"{name}-{longest:g}s"), last.length, audio_seconds=longest, compare_at=compare_at
    )  # fmt: skip


def _trained_frames(plan: ConversionPlan | None, seconds: float) -> int | None:
    """Maximum frames that a transformers checkpoint was made for, if longer sounds are measured; else ``None``."""
    if plan is None or plan.inputs.kind.rule.base_reads(plan.architecture.source_config, seconds):
        return None
    return plan.inputs.old.tokens if seconds > plan.inputs.old.value else None


def _notes(plan: ConversionPlan | None, sounds: UserSounds, seconds: float, chosen_here: bool) -> list[str]:
    """Sentences for the report about durations that were left out and positions that were extended."""
    notes = []
    if chosen_here and seconds < SECONDS[-1] and sounds.longest < SECONDS[-1]:
        notes.append(f"The longest recording has {duration(round(sounds.longest, 1))}; a longer one shows greater distances.")
    if plan is not None and _trained_frames(plan, seconds) is not None:
        notes.append(
            f"Positions were extended from {plan.inputs.old.words} to {duration(seconds)} without training: what full attention does in "
            f"longer sounds was never learned, so mechanisms are judged by what they keep at {plan.inputs.old.words} or less."
        )
    return notes
