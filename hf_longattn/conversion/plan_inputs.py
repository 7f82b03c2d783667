"""What a conversion decides for inputs that are not texts, and which settings apply to which kinds of input.

A new kind of input is one more name in the settings that it takes, what to type for its size, and a function that decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..configuration import LongAttentionConfig
from ..errors import OptionError
from ..modeling.family.definition import Family
from .architectures import Architecture
from .config import ConversionConfig
from .input_sizes import InputSizes
from .plan_positions import PositionWarning

TEXT, PICTURES, VIDEOS, SPECTROGRAMS, SOUND = "text", "pictures", "videos", "spectrograms", "sound"
SIZE, SEARCH, VERIFICATION = "size", "search", "verification"
"""What a setting gives, for which other kinds of input may have another setting."""


@dataclass(frozen=True)
class InputPlan:
    """What the settings of a conversion decide for inputs that are not texts.

    sizes: of source and result.
    attention: of every layer.
    positions: the rule for positions, as a report says it, and ``extension``, as the result's config does.
    fields: of the result's config, that say for what size it was converted.
    warnings: mechanisms for which the positions do not hold without training.
    files: JSON files with other values than the source's.
    """

    sizes: InputSizes
    attention: LongAttentionConfig
    positions: str
    extension: str = "tile"
    fields: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[PositionWarning, ...] = ()
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


class InputSetting(NamedTuple):
    """What a setting is, the kinds of input that take it, and what it gives."""

    reason: str
    kinds: tuple[str, ...] = (TEXT,)
    gives: str = ""


SETTINGS = {
    "max_length": InputSetting("--max-length counts the tokens of a text", gives=SIZE),
    "image_size": InputSetting("--image-size is the size of pictures", (PICTURES, VIDEOS), SIZE),
    "frames": InputSetting("--frames is the number of frames of a video", (VIDEOS,), SIZE),
    "audio_seconds": InputSetting("--audio-seconds is the length of sounds", (SPECTROGRAMS, SOUND), SIZE),
    "max_decoder_length": InputSetting("--max-decoder-length is for the decoder of an encoder-decoder"),
    "decoder_long_attention": InputSetting("--decoder-mechanism is for the decoder of an encoder-decoder"),
    "search_text": InputSetting("--search-text is a text", gives=SEARCH),
    "search_images": InputSetting("--search-images are pictures", (PICTURES, VIDEOS), SEARCH),
    "search_audio": InputSetting("--search-audio is a recording", (SPECTROGRAMS, SOUND), SEARCH),
    "verify_text": InputSetting("--verify-text is a text", gives=VERIFICATION),
    "verify_audio": InputSetting("--verify-audio is a recording", (SOUND,), VERIFICATION),
    "init_from_text": InputSetting("--init-from-text runs the source on a text"),
}
"""Settings that models of some kinds of input alone have a use for."""
INSTEAD = {
    (SIZE, TEXT): "give its length as --max-length 4096",
    (SIZE, PICTURES): "give the size as --image-size 1024",
    (SIZE, VIDEOS): "give the size as --image-size 448 --frames 32",
    (SIZE, SPECTROGRAMS): "give the length as --audio-seconds 30",
    (SIZE, SOUND): "give its duration as --audio-seconds 600",
    (SEARCH, TEXT): "give a text as --search-text",
    (SEARCH, PICTURES): "give pictures as --search-images FOLDER",
    (SEARCH, VIDEOS): "give videos as --search-images FOLDER",
    (SEARCH, SPECTROGRAMS): "give recordings as --search-audio FILE",
    (SEARCH, SOUND): "give recordings as --search-audio FILE",
    (VERIFICATION, SOUND): "give a recording as --verify-audio FILE",
}
"""What to type for what a setting gives, by the kind of input."""


def input_kinds(family: Family) -> tuple[str, ...]:
    """What models of a family read."""
    if family.towers:
        return tuple(kind for tower in family.towers.values() for kind in input_kinds(tower))
    if family.audio is not None:
        return (SOUND,)
    return (TEXT,) if family.grid is None else (f"{family.grid.noun}s",)


def refuse_other_settings(architecture: Architecture, request: ConversionConfig) -> None:
    """Raise :class:`OptionError` for a setting of other kinds of input than the model's."""
    kinds = input_kinds(architecture.family)
    for name, setting in SETTINGS.items():
        if getattr(request, name) is not None and not set(kinds) & set(setting.kinds):
            instead = next((INSTEAD[setting.gives, kind] for kind in kinds if (setting.gives, kind) in INSTEAD), "leave it out")
            raise OptionError(f"{setting.reason}, but a {architecture.source_class} reads {' and '.join(kinds)}; {instead}.")
