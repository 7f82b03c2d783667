"""The config of a Long audio model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from ...configuration import LongAttentionConfig
from ...errors import OptionError
from ...mechanisms.common.masked import MaskedMechanism
from ...mechanisms.common.options import ORDER
from ...mechanisms.common.registry import prototype
from .long_config import LongEncoderConfig


class LongAudioConfig(LongEncoderConfig):
    """Mixin before the base's config class: ``class LongWav2Vec2Config(LongAudioConfig, Wav2Vec2Config)``.

    long_attention: as in a text model; default: a ``window`` of :attr:`context_frames` on each side.
    long_audio_seconds: duration, in seconds, for which the model was converted. Longer sounds are read as well, up to the model's last
        position.
    """

    default_mechanism = "window"
    context_frames: ClassVar[int] = 512
    """Default number of frames that a frame sees on each side: 10.24 s, as in NeMo's ``att_context_size=[128, 128]`` of 80 ms frames."""

    if TYPE_CHECKING:
        long_audio_seconds: float | None
    else:
        long_audio_seconds = None

    def __post_init__(self, **kwargs: Any) -> None:
        seconds = kwargs.pop("long_audio_seconds", None)
        self.long_audio_seconds = None if seconds is None else audio_seconds(seconds, "long_audio_seconds")
        super().__post_init__(**kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "long_attention":
            for layer in range(self.num_hidden_layers):
                check_mechanism_for_audio(*self.long_attention.for_layer(layer))

    @classmethod
    def default_attention(cls) -> LongAttentionConfig:
        return LongAttentionConfig("window", left=cls.context_frames, right=cls.context_frames)


def audio_seconds(seconds: Any, name: str) -> float:
    """Check a duration and return it.

    Args:
        name: the name of the duration in messages.

    Raises:
        OptionError: it is not a number above 0.
    """
    if not isinstance(seconds, int | float) or isinstance(seconds, bool) or not 0 < seconds < float("inf"):
        raise OptionError(f"{name} is {seconds!r}, but must be a number of seconds above 0, for example 600.")
    return seconds


def check_mechanism_for_audio(mechanism: str, options: dict[str, Any]) -> None:
    """Raise :class:`OptionError` for a mechanism that cannot read sound. It needs token ids, a grid, or segments with a memory."""
    built = prototype(mechanism, options)
    instead = "choose for example 'window'."
    if built.capabilities.images == "never":
        raise OptionError(
            f"Mechanism {mechanism!r} reads one segment of a text after the other and remembers the earlier ones, but frames of a sound "
            f"see what comes after them; {instead}"
        )
    if built.capabilities.needs_grid or options.get(ORDER) is not None:
        raise OptionError(f"Mechanism {mechanism!r} with these options reads an image's patches, but a sound is one line; {instead}")
    if isinstance(built, MaskedMechanism) and built.global_token_ids is not None:
        raise OptionError(
            f"The options of mechanism {mechanism!r} name global tokens by their ids, but frames of a sound have none; name them by "
            "position, for example with global_tokens=0."
        )
