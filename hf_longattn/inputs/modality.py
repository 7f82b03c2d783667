"""The contract of a modality: texts, images, sound, or several towers.

Each modality is one file of :mod:`hf_longattn.inputs` with a subclass of :class:`Modality`. A family's ``spec.reads``
names the file.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from ..errors import OptionError
from ..mechanisms import Mechanism
from ..mechanisms.common.capabilities import on_grid, reads_grid
from ..mechanisms.common.registry import prototype
from ..modeling.family.definition import Family, known_family
from ..modeling.family.towers_spec import TOWERS
from ..modeling.generic import family_in
from ..names import load_module
from ..reports import Check

AUTO = "auto"
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
class InputSize:
    """The size of one input."""

    value: Any  # tokens, seconds, or pixels along each axis
    tokens: int  # number of tokens in the layers
    words: str  # the size in a sentence, for example "15 seconds"
    name: str = ""  # the size's name in reports; empty if `value` counts tokens
    grid: Any = None  # the Grid of the tokens; None for texts and sounds

    def __str__(self) -> str:
        """The size as text, for example "15 seconds, 749 tokens"."""
        return f"{self.words}, {self.tokens:,} tokens" if self.name else self.words

    @property
    def values(self) -> dict[str, Any]:
        """The size for a report, without the number of tokens. JSON-serialisable."""
        value = list(self.value) if isinstance(self.value, tuple) else self.value
        return {
            **({self.name: value} if self.name else {}),
            **({} if self.grid is None else {"grid": list(self.grid.sizes)}),
        }

    def bound(self, layers: Sequence[Mechanism]) -> list[Mechanism]:
        """The mechanism of every layer for inputs of this size. On a grid, mechanisms are bound to it and numbered by
        layer."""
        return [on_grid(mechanism, self.grid, layer=number) for number, mechanism in enumerate(layers)]


@dataclass(frozen=True)
class InputSizes:
    """Maximum input sizes of source and result. With several towers, sizes of the text tower."""

    modality: Modality
    at: Callable[[Any], InputSize]  # the size for a value, as a user may type it
    old: InputSize  # of the source
    new: InputSize  # of the result
    reads_new: bool = False  # whether the source also reads inputs of the new size

    @property
    def grows(self) -> bool:
        return self.new != self.old

    def steps(self) -> list[InputSize]:
        """The old size, its doublings, and the new size."""
        sizes, largest = [self.old], self.new.value
        while sizes[-1].value != largest:
            value = sizes[-1].value
            double = (
                tuple(min(2 * side, most) for side, most in zip(value, largest, strict=True))
                if isinstance(value, tuple)
                else None
            )
            sizes.append(self.at(min(2 * value, largest) if double is None else double))
        return sizes

    def check(self, mechanism: Mechanism) -> None:
        """Raise :class:`LongAttentionError` if a layer cannot run the mechanism on inputs of these sizes."""
        self.modality.check_mechanism(mechanism.name, mechanism.options.to_dict())
        if self.new.grid is not None:
            on_grid(mechanism, self.new.grid, check=True)
            on_grid(mechanism, self.old.grid).pairs(self.old.tokens)  # the result reads the old size, too


@dataclass(frozen=True)
class Example:
    """The part of a model card's code that depends on the modality. ``hub/card.md`` has the rest and runs the
    model."""

    task: str | None  # the Hub's task name for a model without a head; None if cards of this modality have no task
    reader: tuple[str, str] | None = (
        None  # variable and class name of the tokenizer or processor; None if the folder has neither
    )
    inputs: str = ""  # Python lines that make `inputs`, for `model(**inputs)`; empty if the card only loads the model
    imports: tuple[str, ...] = ()  # import lines that `inputs` needs, besides those of torch and of transformers


class WithTowers:
    """Facts about a model, or its modality."""

    towers: Mapping[str, Any]  # the same facts for each tower, by name; empty without towers

    @property
    def parts(self) -> Mapping[str, Any]:
        """The facts about every tower by name; without towers, these facts under an empty name."""
        return self.towers or {"": self}

    @property
    def tower_names(self) -> tuple[str, ...]:
        """Names of the towers, which have separate mechanisms; empty without towers."""
        return tuple(self.towers)

    def by_tower(self, describe: Callable[[Any], Any]) -> dict[str, Any]:
        """Report entry ``towers``: tower name -> result of ``describe``. Empty without towers."""
        return {TOWERS: {name: describe(tower) for name, tower in self.towers.items()}} if self.towers else {}


class Modality(WithTowers, ABC):
    """The type of a family's inputs. A subclass is named after its file: ``GridModality`` in ``grid_inputs.py``."""

    noun: ClassVar[str]  # noun for one input, in messages and tables
    nouns: str  # plural noun
    units: ClassVar[str] = ""  # what a size counts besides tokens
    settings: Sequence[str] = ()  # names in SETTINGS that apply
    reads: ClassVar[str] = ""  # predicate for models in messages; default: "reads" with the plural noun
    drawn: ClassVar[bool] = False  # whether a diagnosis has a map of attention for one input
    timed: ClassVar[bool] = False  # whether a diagnosis compares inputs of several durations

    def __init__(self, family: Family) -> None:
        self.family = family
        self.spec: Any = getattr(family, "spec", None)
        self.towers: Mapping[str, Modality] = {}

    def size(self, config: Any, value: Any) -> InputSize:
        """The size of an input for a model with one stack and this config. ``value``: the size as typed by a user."""
        raise NotImplementedError

    @abstractmethod
    def sizes(self, config: Any) -> InputSizes:
        """The sizes for which a model with this config was trained, and for which it was converted."""

    def between(self, config: Any, old: Any, new: Any, reads_new: bool = False) -> InputSizes:
        at = partial(self.size, config)
        return InputSizes(self, at, at(old), at(new), reads_new)

    def check_mechanism(self, name: str, options: dict[str, Any]) -> None:
        """Raise :class:`OptionError` for a mechanism that cannot read this modality."""
        if reads_grid(prototype(name, options)):
            raise OptionError(f"{name} reads a grid, and the model reads a {self.noun}.")

    def untrained(self, sizes: InputSizes, mechanism: Mechanism, strategy: str, positions: str, causal: bool) -> str:
        """Why the planned ``strategy`` for positions (``positions`` in the settings) needs training with this
        mechanism, or ""."""
        return ""

    @abstractmethod
    def plan(self, source: Any, architecture: Any, request: Any) -> Any:
        """The :class:`~hf_longattn.ConversionPlan` for a source, its architecture and the settings of a conversion.

        Refuses a setting that does not fit the model, and a tokenizer or processor whose inputs the source cannot
        read.
        """

    @abstractmethod
    def inputs(self, config: Any, folder: Path, text: tuple[str, str] | None = None, files: Path | None = None) -> Any:
        """Inputs of any size: ``at(size)`` returns the arguments of ``forward`` for one input, ``describe()`` its
        origin for a report.

        ``folder``: folder with the tokenizer or processor. ``text``: a text and its origin. Some modalities need no
            ``text`` or ``files``.
        """

    def processor(self, plan: Any, folder: Path, inputs: Any) -> list[Check]:
        """Check that the tokenizer or processor in the result's ``folder`` makes inputs that the result reads."""
        return []

    @abstractmethod
    def check(self, comparison: Any) -> list[Check]:
        """Run source and result of a conversion, and compare them. ``comparison``: a
        :class:`~.conversion.check.Comparison`."""

    def example(self, folder: Path, config: Mapping[str, Any], length: int) -> Example:
        """Code for a card that makes an input of at most ``length`` tokens for the model in ``folder`` with this
        config."""
        return Example(None)

    def config_of(self, values: Mapping[str, Any]) -> Any:
        return self.family.config_class.from_dict(dict(values))

    def check_settings(self, architecture: Any, request: Any) -> None:
        """Raise :class:`OptionError` for a setting that applies only to other models. Called before a search, which
        takes long."""
        for name, reason in SETTINGS.items():
            applies = name in self.settings
            if "decoder" in name:
                applies = applies and (bool(self.towers) or architecture.encoder_decoder)
            if getattr(request, name, None) is not None and not applies:
                reads = self.reads or f"reads {self.nouns}"
                raise OptionError(f"{reason}, but a {architecture.source_class} {reads}; leave it out.")


def modality_of(family: Family | None) -> Modality:
    """The modality of a family's models, from the file that ``family.spec.reads`` names. Texts for a model without a
    family."""
    name = "text" if family is None else family.spec.reads
    return getattr(load_module("inputs", f"{name}_inputs"), f"{name.title()}Modality")(family)


def modality_in(config: Mapping[str, Any]) -> Modality:
    """The modality of a model with these values in its config file. Text if the model has no family."""
    return modality_of(family_in(config))


def modality_of_model(config: Any) -> Modality | None:
    """The modality of a Long or stock model with this config. ``None`` if it belongs to no family."""
    family = known_family(config)
    return None if family is None else modality_of(family)
