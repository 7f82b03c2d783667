"""The contract of an input kind: six questions, and a registry.

Each kind is one file of :mod:`hf_longattn.inputs` with a subclass of :class:`InputKind`. A family's rule names the file. The rest of the
package asks through the methods of this class and through its :class:`~.sizes.Words`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ..errors import InputError, OptionError
from ..modeling.family.definition import Family, known_family
from ..modeling.generic import family_in
from ..names import load_module
from ..reports import Check
from .sizes import PARTS, SEARCH, SIZE, VERIFICATION, InputSizes, Words

SETTINGS = {
    "max_length": ("--max-length counts the tokens of a text", SIZE),
    "image_size": ("--image-size is the size of images", SIZE),
    "audio_seconds": ("--audio-seconds is the length of sounds", SIZE),
    "max_decoder_length": ("--max-decoder-length is for the decoder of an encoder-decoder", ""),
    "decoder_long_attention": ("--decoder-mechanism is for the decoder of an encoder-decoder", ""),
    "search_text": ("--search-text is a text", SEARCH),
    "search_images": ("--search-images are images", SEARCH),
    "search_audio": ("--search-audio is a recording", SEARCH),
    "verify_text": ("--verify-text is a text", VERIFICATION),
    "verify_audio": ("--verify-audio is a recording", VERIFICATION),
    "towers": ("--towers is for models of several towers", PARTS),
}
"""Setting that only some input kinds use -> (start of the error message for other kinds, key of :attr:`Words.instead` or "")."""


TEXT_TASK = "feature-extraction"
"""The task of a model of texts or sounds without a head."""


@dataclass(frozen=True)
class Example:
    """The part of a model card's code that only the kind of input knows. ``hub/card.md`` has the rest and runs the model.

    task: the Hub's name for the task of a model without a head. ``None`` if the card of such a model names no task, whatever its head.
    reader: variable and class name of the tokenizer or processor; ``None`` if the folder has neither.
    inputs: Python lines that make ``inputs``, for ``model(**inputs)``; empty if the card only loads the model.
    imports: import lines that ``inputs`` needs, besides those of torch and of transformers.
    """

    task: str | None
    reader: tuple[str, str] | None = None
    inputs: str = ""
    imports: tuple[str, ...] = ()


class InputKind(ABC):
    """The input kind of a family's models.

    words: its nouns, and the settings that apply.
    """

    words: ClassVar[Words]

    def __init_subclass__(cls) -> None:
        _KINDS[cls.__module__.rpartition(".")[2]] = cls

    def __init__(self, family: Family) -> None:
        self.family = family
        self.rule: Any = getattr(family, "rule", None)

    @property
    def parts(self) -> Mapping[str, InputKind]:
        """The kind of each part, by its name. A model of one stack is a single part named ""."""
        return {"": self}

    @property
    def apart(self) -> tuple[str, ...]:
        """Names of the parts that have mechanisms apart; empty for a model of one stack."""
        return tuple(filter(None, self.parts))

    @property
    def any_size(self) -> bool:
        """Whether a part of the model reads inputs of any size, so that there is no size to convert."""
        return any(part.any_size for name, part in self.parts.items() if name)

    @abstractmethod
    def sizes(self, config: Any) -> InputSizes:
        """The sizes for which a model with this config was trained, and for which it was converted."""

    @abstractmethod
    def plan(self, source: Any, architecture: Any, request: Any) -> Any:
        """The :class:`~hf_longattn.ConversionPlan` that follows from the settings of a conversion.

        Args:
            source, architecture, request: the source, its architecture, and the settings (a ``ConversionConfig``).

        Raises:
            OptionError, InputError: a setting does not fit the model.
            CheckpointError: the tokenizer or processor makes inputs that the source cannot read.
        """

    @abstractmethod
    def inputs(self, config: Any, folder: Path, text: tuple[str, str] | None = None, files: Path | None = None) -> Any:
        """Inputs of any size: ``at(size)`` has the arguments of ``forward`` for one input, ``describe()`` is its origin for a report.

        Args:
            config: the config of the model.
            folder: the folder with the model's tokenizer or processor.
            text: a text and its origin. files: a user's file or folder. Kinds that need neither use built-in inputs.
        """

    def processor(self, plan: Any, folder: Path, inputs: Any) -> list[Check]:
        """Check that the tokenizer or processor in the result's ``folder`` makes inputs for the result."""
        return []

    @abstractmethod
    def check(self, comparison: Any) -> list[Check]:
        """Run source and result of a conversion, a :class:`~hf_longattn.conversion.check.Comparison`, and compare what they return."""

    def example(self, folder: Path, config: Mapping[str, Any], length: int) -> Example:
        """The part of a card's code that makes an input of the model in ``folder``.

        Args:
            config, length: the values in its config file, and its maximum length in tokens.
        """
        return Example(None)

    def config_of(self, values: Mapping[str, Any]) -> Any:
        """The config with the ``values`` of a model's config file."""
        return self.family.config_class.from_dict(dict(values))

    def check_settings(self, architecture: Any, request: Any) -> None:
        """Refuse settings that no conversion of this architecture takes. Called before a search, which takes long.

        Raises:
            OptionError: a setting applies only to other kinds of input.
            InputError: the model has no size to convert.
        """
        for name, (reason, purpose) in SETTINGS.items():
            if getattr(request, name, None) is not None and name not in self.words.settings:
                reads, advice = self.words.reads or f"reads {self.words.nouns}", self.words.instead.get(purpose, "leave it out")
                raise OptionError(f"{reason}, but a {architecture.source_class} {reads}; {advice}.")
        if self.any_size:
            raise InputError(
                f"A {architecture.source_class} reads images of any size as lists of patches, so that there is no size to convert; load it "
                f"with hf_longattn.{architecture.long_class}.from_pretrained, whose config takes long_attention."
            )


_KINDS: dict[str, type[InputKind]] = {}
"""Name of a file of :mod:`hf_longattn.inputs` -> the kind of input that it defines."""


def kind_of(family: Family | None) -> InputKind:
    """The input kind of a family's models, from the file that the family's rule names. Texts for a model without a family."""
    name = "text" if family is None else family.rule.reads
    if name not in _KINDS:
        load_module("inputs", name)
    return _KINDS[name](family)  # type: ignore[arg-type]


def kind_in(config: Mapping[str, Any]) -> InputKind:
    """The input kind of a model with these values in its config file. Texts if no family knows it."""
    return kind_of(family_in(config))


def kind_of_model(config: Any) -> InputKind | None:
    """The input kind of a Long or stock model with this config. ``None`` if it belongs to no family."""
    family = known_family(config)
    return None if family is None else kind_of(family)
