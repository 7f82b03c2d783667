"""The durations of source and result where a model reads sound."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

from ..modeling.family.audio_rule import AudioRule
from ..modeling.family.definition import FAMILIES, Family, known_family, without_head


@dataclass(frozen=True)
class AudioDuration:
    """A sound of this many seconds, its samples or rows of features, and the frames on which the layers run."""

    seconds: float
    length: int
    frames: int
    unit: ClassVar[str] = "frames"

    @classmethod
    def of(cls, rule: AudioRule, config: Any, seconds: float) -> AudioDuration:
        """A sound of at least one frame, for a model with this config."""
        length = max(rule.length(seconds), rule.length_of(config, 1))
        return cls(seconds, length, rule.frames(config, length))

    def describe(self) -> str:
        """For example "15 seconds, 749 frames"."""
        return f"{self.words}, {self.tokens:,} {self.unit}"

    @property
    def words(self) -> str:
        """For example "15 seconds"."""
        return duration(self.seconds)

    @property
    def tokens(self) -> int:
        """The frames, which are the tokens of the layers."""
        return self.frames

    @property
    def typed(self) -> str:
        """The duration in the name of a folder."""
        return f"{self.seconds:g}s"

    @property
    def values(self) -> dict[str, Any]:
        """The duration for a report, JSON-serialisable."""
        return {"audio_seconds": self.seconds, "tokens": self.tokens}


@dataclass(frozen=True)
class AudioPlan:
    """The longest sound of source and result."""

    rule: AudioRule
    old: AudioDuration
    new: AudioDuration
    noun: ClassVar[str] = "sound"
    size_noun: ClassVar[str] = "duration"
    smaller: ClassVar[str] = "shorter"
    resizing: ClassVar[str] = ""

    @classmethod
    def of(cls, rule: AudioRule, config: Any) -> AudioPlan:
        """The durations for which a model with this config was trained, and for which it was converted."""
        trained, converted = rule.durations(config)
        return cls(rule, AudioDuration.of(rule, config, trained), AudioDuration.of(rule, config, converted))

    def resized(self, base: Any, size: AudioDuration) -> AbstractContextManager[dict[str, Any]]:
        """The base reads longer sounds as it is, without other arguments."""
        return nullcontext({})

    @property
    def grows(self) -> bool:
        return self.new.seconds > self.old.seconds

    def steps(self, config: Any) -> list[AudioDuration]:
        """The durations that a plan lists: the old one, its doublings, and the new one."""
        seconds = [self.old.seconds]
        while seconds[-1] * 2 < self.new.seconds:
            seconds.append(seconds[-1] * 2)
        return [AudioDuration.of(self.rule, config, step) for step in seconds + [self.new.seconds] * self.grows]

    def doublings(self, config: Any, count: int = 7) -> list[AudioDuration]:
        """Durations at which mechanisms are compared: the old one and its doublings."""
        return [AudioDuration.of(self.rule, config, 2**power * self.old.seconds) for power in range(count)]

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form."""
        return {"old_audio_seconds": self.old.seconds, "new_audio_seconds": self.new.seconds}


def audio_family(config: Any) -> Family | None:
    """The family of a model of sound, long or not; ``None`` for other models."""
    model_type = str(getattr(config, "base_model_type", None) or getattr(config, "model_type", ""))
    family = known_family(config) or FAMILIES.get(model_type.removesuffix("_encoder"))  # Moonshine's encoder has a config of its own
    return family if family is not None and family.audio is not None else None


def sound_model(family: Family, model: Any) -> Any:
    """The part of a model that reads the sound and has the layers with attention: the encoder where there is more, or the base model."""
    if not (family.two_stacks or family.holds_encoder):
        return without_head(model)
    return (model if hasattr(model, "encoder") else model.base_model).encoder


def duration(seconds: float) -> str:
    """For example "15 seconds"."""
    return f"{seconds:,.5g} seconds"
