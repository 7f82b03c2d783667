"""The functions of a conversion that depend on the kind of input, such as texts or images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..modeling.family.definition import Family
from ..reports import Check
from .architecture import Architecture
from .check import Comparison
from .plan import ConversionPlan
from .settings import ConversionConfig
from .source import Source

SETTINGS = {
    "max_length": "--max-length counts the tokens of a text",
    "image_size": "--image-size is the size of images",
    "audio_seconds": "--audio-seconds is the length of sounds",
    "max_decoder_length": "--max-decoder-length is for the decoder of an encoder-decoder",
    "decoder_long_attention": "--decoder-mechanism is for the decoder of an encoder-decoder",
    "verify_text": "--verify-text is a text",
    "verify_audio": "--verify-audio is a recording",
    "towers": "--towers is for models of several towers",
}
"""Setting that applies to some kinds of input only -> start of the error message for the other kinds."""


@dataclass(frozen=True)
class Modality:
    """The functions of a conversion for one kind of input. The table in :mod:`.convert` has all kinds.

    Attributes:
        settings: names of the settings in :data:`SETTINGS` that apply.
        plan: function of a source, its architecture and the settings that returns the plan. It refuses a setting that
            does not fit the model, and a tokenizer or processor that does not fit the source.
        inputs: function that returns an object with inputs of any size. Its method ``at(size)`` returns the arguments
            of ``forward`` for one input, and ``describe()`` says in a report where the inputs are from. The function's
            arguments are a family, the result's config, the folder with the tokenizer or processor, a text with its
            origin, and a recording of the user.
        check_processor: function that checks the tokenizer or processor in the result's folder. Its arguments are the
            plan, this folder, and the inputs.
        check: function that runs source and result, and compares them.
        files: the class for a user's files, a :class:`~.sized.UserFiles`; ``None`` if there is none.
        predicate: what such a model does, for messages. By default "reads" with the plural noun of the inputs.
    """

    settings: tuple[str, ...]
    plan: Callable[[Source, Architecture, ConversionConfig], ConversionPlan]
    inputs: Callable[[Family, Any, Path, tuple[str, str], Path | None], Any]
    check_processor: Callable[[ConversionPlan, Path, Any], list[Check]]
    check: Callable[[Comparison], list[Check]]
    files: Any = None
    predicate: str = ""
