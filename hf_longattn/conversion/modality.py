"""What a conversion does for models that read one kind of input: the functions that plan it, make inputs, and check
its result."""

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
"""Setting that only some modalities use -> start of the error message for other modalities."""


@dataclass(frozen=True)
class Modality:
    """The functions of a conversion for one kind of input, which the table in :mod:`.convert` names.

    settings: those in :data:`SETTINGS` that apply.
    plan: returns the plan for a source, its architecture and the settings. It refuses a setting that does not fit the
        model, and a tokenizer or processor whose inputs the source cannot read.
    inputs: returns inputs of any size for a family and a config of its models: ``at(size)`` returns the arguments of
        ``forward`` for one input, ``describe()`` their origin for a report. The further arguments are the folder with
        the tokenizer or processor, a text with its origin, and a recording of the user.
    check_processor: checks that the tokenizer or processor in the result's folder makes inputs that the result reads.
    check: runs source and result, and compares them.
    files: the class of a user's files, a :class:`~.sized.UserFiles`; ``None`` for inputs without files.
    predicate: says in messages what models do; by default "reads" with the plural noun.
    """

    settings: tuple[str, ...]
    plan: Callable[[Source, Architecture, ConversionConfig], ConversionPlan]
    inputs: Callable[[Family, Any, Path, tuple[str, str], Path | None], Any]
    check_processor: Callable[[ConversionPlan, Path, Any], list[Check]]
    check: Callable[[Comparison], list[Check]]
    files: Any = None
    predicate: str = ""
