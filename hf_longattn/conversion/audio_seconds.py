"""The durations of source and result where a model reads sound."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

from ..modeling.family.audio_rule import AudioRule
from ..modeling.family.definition import FAMILIES, Family, without_head


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
        return f"{self.words}, {self.frames:,} {self.unit}"

    @property
    def words(self) -> str:
        """For example "15 seconds"."""
        return duration(self.seconds)

    @property
    def values(self) -> dict[str, Any]:
        """The duration for a report, JSON-serialisable."""
        return {"audio_seconds": self.seconds, "tokens": self.frames}


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

    def resized(self, base: Any, size: AudioDuration) -> AbstractContextManager[dict[str, Any]]:
        """The base reads longer sounds as it is, without other arguments."""
        return nullcontext({})

    @property
    def grows(self) -> bool:
        return self.new.seconds > self.old.seconds

    def doublings(self, config: Any, count: int = 7) -> list[AudioDuration]:
        """Durations at which mechanisms are compared: the old one and its doublings."""
        return [AudioDuration.of(self.rule, config, 2**power * self.old.seconds) for power in range(count)]

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form."""
        return {"old_audio_seconds": self.old.seconds, "new_audio_seconds": self.new.seconds}


def audio_family(config: Any) -> Family | None:
    """The family of a model of sound, long or not; ``None`` for other models."""
    family = FAMILIES.get(getattr(config, "base_model_type", config.model_type))
    return family if family is not None and family.audio is not None else None


def sound_model(family: Family, model: Any) -> Any:
    """The part of a model that reads the sound and has the layers with attention: the encoder where there is more, or the base model."""
    if not (family.two_stacks or family.holds_encoder):
        return without_head(model)
    return (model if hasattr(model, "encoder") else model.base_model).encoder


def duration(seconds: float) -> str:
    """For example "15 seconds"."""
    return f"{seconds:,.5g} seconds"


def durations_up_to(old: float, new: float) -> list[float]:
    """The durations a plan lists: the old one, its doublings, and the new one."""
    seconds = [old]
    while seconds[-1] * 2 < new:
        seconds.append(seconds[-1] * 2)
    return seconds + [new] * (new > old)
