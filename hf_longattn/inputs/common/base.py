"""The contract of an input kind. Its sizes and their words, the plan of a conversion, and the inputs and checks of verification.

Each kind is one file of :mod:`hf_longattn.inputs` with a class under ``@register_kind``. A family's rule names the file. The rest of the
package calls the methods of :class:`InputKind`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, TypeVar

from ...configuration import LongAttentionConfig
from ...errors import GridError, LengthError, OptionError, RegistrationError
from ...mechanisms import Mechanism, mechanism_info
from ...mechanisms.common.choice_text import write_numbers
from ...mechanisms.common.locality import needs_training_by
from ...mechanisms.common.options import EXACT_LENGTH
from ...modeling.family.definition import Family, known_family, without_head
from ...modeling.family.sliding_window import own_windows
from ...names import load_module, module_names
from ...reports import Check
from .examples import Example

Kind = TypeVar("Kind", bound="type[InputKind]")


@dataclass(frozen=True)
class StackLength:
    """Maximum length of a stack in the source and in the result."""

    old: int
    new: int

    @property
    def grows(self) -> bool:
        """Whether the result reads larger inputs than the source."""
        return self.new != self.old

    def check_grows(self, what: str = "length") -> None:
        """Raise :class:`LengthError` if the result reads fewer tokens than the source."""
        if self.new < self.old:
            raise LengthError(
                f"The source takes {self.old} tokens and conversion only extends it: a maximum {what} of {self.new} is too small, give at "
                f"least {self.old}."
            )


@dataclass(frozen=True)
class LengthCost:
    """Cost of one input: a row in a table of costs.

    size, size_name: the size in pixels along each axis, or in seconds, and its name in reports; ``None`` and empty for a text.
    """

    length: int
    attention_flops: int
    full_attention_flops: int
    other_flops: int
    activation_bytes: int  # the widest layer during inference: its input, q, k, v, output and the intermediate activation
    cache_bytes: int | None  # KV cache for decoding; None if the model does not decode
    size: Any = None
    size_name: str = ""

    @property
    def total_flops(self) -> int:
        return self.attention_flops + self.other_flops

    @property
    def shown_size(self) -> str:
        """The size as text in a table."""
        return "×".join(map(str, self.size)) if isinstance(self.size, tuple) else f"{self.size:,g}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form."""
        values = {name: value for name, value in vars(self).items() if name not in ("size", "size_name")}
        return {**values, self.size_name: self.size} if self.size_name else values


@dataclass(frozen=True)
class InputSize:
    """The size of one input.

    value: tokens, seconds, or pixels along each axis.
    tokens, unit: number of tokens in the layers, and their plural noun.
    words, typed, heading: the size in a sentence, as a command-line argument, and as a column heading.
    name, cost_name: the size's name in reports and in tables of costs; empty if ``value`` counts tokens.
    grid, layers: the grid of the tokens and the grid of every layer; ``None`` and empty for texts and sounds.
    """

    value: Any
    tokens: int
    words: str
    typed: str
    heading: str
    name: str = ""
    cost_name: str = ""
    unit: str = "tokens"
    grid: Any = None  # Grid

    def describe(self) -> str:
        """The size as text, for example "15 seconds, 749 frames"."""
        return f"{self.words}, {self.tokens:,} {self.unit}" if self.name else self.words

    @property
    def number(self) -> Any:
        """The value, JSON-serialisable."""
        return list(self.value) if isinstance(self.value, tuple) else self.value

    @property
    def values(self) -> dict[str, Any]:
        """The size for a report, JSON-serialisable."""
        return {**({self.name: self.number} if self.name else {}), "tokens": self.tokens}

    def bound(self, layers: Sequence[Mechanism]) -> list[Mechanism]:
        """The mechanism of every layer for inputs of this size. On a grid, mechanisms are bound to it and numbered by layer."""
        return [mechanism.on_grid(self.grid, layer=number) for number, mechanism in enumerate(layers)]


@dataclass(frozen=True)
class InputSizes:
    """Maximum inputs of source and result.

    kind, old, new: the input kind, and the sizes of source and result; with several towers, the kind and sizes of the text tower.
    old_words, new_words: ``old`` and ``new`` as text; with several towers, the sizes of all towers.
    longest: the result's maximum input with a noun, for example "sounds of 15 seconds, 749 frames".
    noun: singular noun of an input.
    units, token_unit: units of the size (empty for tokens), and units over which the layers attend.
    of_model, report: further JSON fields for reports on a model and on a plan, if the size is not counted in tokens.
    """

    kind: Any  # InputKind
    old: InputSize
    new: InputSize
    old_words: str
    new_words: str
    longest: str
    noun: str
    units: str = ""
    token_unit: str = "tokens"
    of_model: Mapping[str, Any] = field(default_factory=dict)
    report: Mapping[str, Any] = field(default_factory=dict)

    @property
    def grows(self) -> bool:
        """Whether the result reads larger inputs than the source."""
        return self.new != self.old

    def steps(self, config: Any) -> list[InputSize]:
        """The sizes that a plan lists for a model with this config. The old size, its doublings, and the new size."""
        values = [self.old.value]
        while values[-1] != self.new.value:
            values.append(self.kind.limited(self.kind.doubled(values[-1]), self.new.value))
        return [self.kind.size(config, value) for value in values]

    def doublings(self, config: Any) -> list[InputSize]:
        """Sizes for comparing mechanisms: the kind's first size and its doublings."""
        values = [self.kind.first_compared(self)]
        while len(values) < self.kind.compared:
            values.append(self.kind.doubled(values[-1]))
        return [self.kind.size(config, value) for value in values]

    def compared_values(self, sizes: Sequence[InputSize]) -> dict[str, Any]:
        """Sizes for comparing mechanisms, JSON-serialisable."""
        named = {f"{self.new.name.removesuffix('s')}s": [size.number for size in sizes]} if self.new.name else {}
        return {"lengths": [size.tokens for size in sizes], **named}


def layers_in_words(numbers: Sequence[int], count: int, noun: str = "layer") -> str:
    """Some of ``count`` layers as text: "every layer", "layer 3" or "layers 0-2,5"."""
    return f"every {noun}" if len(numbers) == count else f"{noun}{'s' if len(numbers) > 1 else ''} {write_numbers(numbers)}"


@dataclass(frozen=True)
class PositionWarning:
    """A warning against using the result without training. The problem, the advice and the harm are clauses."""

    problem: str
    advice: str
    harm: str = "results can become worse"

    def __str__(self) -> str:
        return f"{self.problem}, so {self.harm}; {self.advice}."


@dataclass(frozen=True)
class InputPlan:
    """The plan of a conversion for inputs that are not texts.

    sizes: sizes of source and result.
    attention: mechanisms of the layers.
    positions, extension: the rule for positions in reports, and in the result's config.
    fields: fields of the result's config with the size for which it was converted.
    warnings: reasons against using the result without training.
    files: name of each processor file to change -> its new contents.
    """

    sizes: InputSizes
    attention: LongAttentionConfig
    positions: str
    extension: str = "tile"
    fields: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[PositionWarning, ...] = ()
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


Layers = Callable[[LongAttentionConfig, int], list[Mechanism]]
"""Function (attention config, number of tokens) -> mechanism of every layer."""

AUTO = "auto"
"""Value of a setting that the conversion chooses itself."""
SIZE, SEARCH, VERIFICATION = "size", "search", "verification"
"""Purposes of settings: keys of :attr:`InputKind.instead`."""
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
}
"""Setting that only some input kinds use -> (start of the error message for other kinds, key of :attr:`InputKind.instead` or "")."""


NOT_DIAGNOSED = "look at hf_longattn.explain(model, inputs)."
"""End of the error message for models that ``longattn inspect MODEL INPUT`` cannot read."""


class InputKind(ABC):
    """The input kind of a family's models.

    lengthens: whether a conversion changes position tables or rotary positions. Otherwise it changes no tensor.
    has_plain_class: whether ``--generic``, too, converts families of this kind.
    noun, nouns: singular and plural noun of an input.
    units: units of a size; empty for tokens.
    material: noun for the inputs of a search.
    compared: number of sizes for comparing mechanisms.
    settings: names in :data:`SETTINGS` that apply to this kind.
    instead: purpose of a setting -> advice to give this kind's own option.
    diagnosed_with: the input of ``longattn inspect MODEL INPUT``, and the command; empty if this kind cannot be diagnosed.
    drawn, timed: whether a diagnosis has a map of attention for one input, or compares inputs of several durations.
    user_inputs: the subclass of :class:`.user_files.UserInputs` for this kind; ``None`` if no search or diagnosis reads its files.
    """

    lengthens: ClassVar[bool] = True
    has_plain_class: ClassVar[bool] = False
    noun: str
    nouns: str
    units: str = ""
    material: ClassVar[str] = "text"
    compared: ClassVar[int] = 7
    diagnosed_with: str = ""
    drawn: ClassVar[bool] = False
    timed: ClassVar[bool] = False
    user_inputs: Any = None
    settings: Collection[str]
    instead: Mapping[str, str] = {}

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

    def configs(self, config: Any) -> Mapping[str, Any]:
        """Name of each part -> its config."""
        return {"": config}

    @abstractmethod
    def sizes(self, config: Any) -> InputSizes:
        """The sizes for which a model was trained, and for which it was converted."""

    def size(self, config: Any, value: Any) -> InputSize:
        """The InputSize of ``value``, for a model with this config.

        Raises:
            GridError: an axis of an image is not a multiple of the patch.
        """
        raise NotImplementedError

    def fixed_sizes(self, config: Any) -> InputSizes | None:
        """The sizes of models that read inputs of one size only. ``None`` for others, such as texts."""
        return None

    def sizes_between(self, config: Any, old: Any, new: Any) -> InputSizes:
        """The InputSizes of a source of size ``old`` and a result of size ``new``. For a model with this config."""
        first, last = self.size(config, old), self.size(config, new)
        of_model, report = {}, {}
        if last.name:
            of_model, report = {last.name: last.number}, {f"old_{first.name}": first.number, f"new_{last.name}": last.number}
        if last.grid is not None:
            of_model["grid"] = report["new_grid"] = list(last.grid.sizes)
            report |= {"old_grid": list(first.grid.sizes), "prefix_tokens": last.grid.prefix}
        words = first.describe(), last.describe(), self.longest_words(last), self.noun, self.units, last.unit
        return InputSizes(self, first, last, *words, of_model, report)

    def longest_words(self, size: InputSize) -> str:
        """A maximum input of this size as text with a noun."""
        return f"{self.nouns} of {size.describe()}"

    def doubled(self, value: Any) -> Any:
        """The size doubled along every axis that can grow."""
        return 2 * value

    def limited(self, value: Any, largest: Any) -> Any:
        """``value``, but at most ``largest`` along every axis."""
        return min(value, largest)

    def halved(self, config: Any, value: Any, least: Any) -> Any:
        """About half of ``value``, but at least ``least`` along every axis."""
        return max(least, value / 2)

    def first_compared(self, sizes: InputSizes) -> Any:
        """The smallest size for comparing mechanisms."""
        return sizes.old.value

    def mechanisms(self, causal: bool) -> list[str]:
        """Names of mechanisms that can read this kind, for comparing costs."""
        return []

    def check_candidate(self, mechanism: Mechanism, sizes: InputSizes | None) -> None:
        """Raise :class:`LongAttentionError` if layers cannot run the mechanism on inputs of these sizes."""
        raise NotImplementedError

    def compared_at(self, sizes: InputSizes, config: Any, at: Any) -> Any:
        """The size at which a search compares mechanisms; for texts, a number of tokens. ``at``: the user's ``--compare-at``, or ``None``.

        Raises:
            LengthError, GridError: the source or the result cannot read this size.
            OptionError: mechanisms are not compared on this kind.
        """
        raise OptionError(f"Mechanisms are not compared on {self.nouns}; name one, for example --mechanism window.")

    def own_windows(self, sizes: InputSizes) -> list[str]:
        """Option strings of mechanisms with windows as large as the source's grid, such as "window2d:window=14". Empty without a grid."""
        return []

    def base(self, model: Any) -> Any:
        """The part of a model that reads the input and has the layers with attention."""
        return without_head(model)

    def stack(self, model: Any) -> Any:
        """The stack of layers that attends to the input. The encoder of an encoder-decoder, otherwise :meth:`base`."""
        return model.get_encoder() if model.config.is_encoder_decoder else self.base(model)

    def base_windows(self, config: Any, layers: int) -> list[int | None]:
        """Width of the sliding window in every layer of the base. ``None`` for a layer without one."""
        return own_windows(config)

    def untrained_distances(self, plan: Any, mechanism: Mechanism, positions: str) -> str:
        """Why the plan's positions need training with this mechanism, as a clause. Empty if they do not.

        Args:
            positions: the requested rule, which may be :data:`AUTO`.
        """
        if plan.positions.startswith("rope:") and positions == AUTO:  # the conversion chooses rope scaling by the mechanism
            return ""
        return needs_training_by(mechanism, plan.positions, plan.old_length, plan.new_length, plan.shape.causal)

    def further_operations(self, skeleton: Any, config: Any) -> int:
        """Multiply-accumulate operations per token besides linear layers.

        Args:
            skeleton: the Long model on the meta device.
        """
        return 0

    @property
    def how_to_diagnose(self) -> str:
        """How to diagnose models of this kind, as the end of an error message."""
        return f"give it {self.diagnosed_with}." if self.diagnosed_with else NOT_DIAGNOSED

    def compared_part(self, model: Any, headless: bool) -> Any:
        """The part of a model whose outputs are compared. The base model if the source has no head weights (``headless``), otherwise
        all."""
        return model.base_model if headless else model

    def training_step(self, plan: Any) -> dict[str, Any] | None:
        """How to train a result: :func:`train_command` or ``{"advice": text}``. ``None`` for texts, for which ``convert`` decides."""
        return None

    def tokenizer_length(self, plan: Any) -> int:
        """The limit of the result's tokenizer; 0 keeps the source's."""
        return int(plan.new_length)

    def introduce(self, plan: Any) -> str:
        """The inputs that a plan's result reads, as text."""
        return f"{self.nouns} of {plan.new_input}"

    @abstractmethod
    def verification_inputs(self, plan: Any, text: tuple[str, str], recording: str | Path | None = None) -> Any:
        """The inputs for verifying a result. Depending on the kind, made from ``text`` (text, origin), from ``recording``, or built in."""

    def arguments_at(self, inputs: Any, config: Any, size: InputSize) -> dict[str, Any]:
        """The arguments of ``forward`` for one of the verification ``inputs``, of this size."""
        return dict(inputs.at(size))

    @abstractmethod
    def check_reader(self, plan: Any, result: Path, inputs: Any) -> list[Check]:
        """Check that the tokenizer or processor in the folder ``result`` makes inputs for the result."""

    @property
    def any_size(self) -> bool:
        """Whether the model reads inputs of any size as lists of patches. Then there is no size to convert."""
        return False

    def check_has_size(self, architecture: Any) -> None:
        """Raise :class:`GridError` for a model without a size to convert."""
        if self.any_size:
            raise GridError(
                f"A {architecture.source_class} reads images of any size as lists of patches, so that there is no size to convert; load "
                f"it with hf_longattn.{architecture.long_class}.from_pretrained, whose config takes long_attention."
            )

    def example(self, folder: Path, config: Mapping[str, Any], length: int) -> Example:
        """The part of a card's code that makes an input of the model in ``folder``.

        Args:
            config, length: the values in its config file, and its maximum length in tokens.
        """
        return Example(None)

    def values_of(self, config: Mapping[str, Any]) -> SimpleNamespace:
        """The values in a config file, completed by the defaults of the base's config class."""
        return SimpleNamespace(**{**self.family.base_config_class().to_dict(), **config})

    def tokens_of(self, config: Mapping[str, Any]) -> int:
        """Maximum length, in tokens, of a model with these values in its config file."""
        return self.family.longest(self.values_of(config))

    def longest_read(self, config: Mapping[str, Any], length: int) -> str:
        """Sentences for a card: the maximum input, and what happens to longer inputs. The model has ``length`` tokens."""
        return f"It was made for inputs of up to {length:,} tokens. Longer ones may run, but were not verified."

    def limits(self, config: Mapping[str, Any], attentions: Mapping[str, LongAttentionConfig], length: int) -> list[str]:
        """The limits of a model for its card, each as one or two sentences."""
        limits = [self.longest_read(config, length)]
        for name, short in dict.fromkeys((of_stack.mechanism, of_stack.options.get(EXACT_LENGTH) or 0) for of_stack in attentions.values()):
            texts = f"on texts of up to {short:,} tokens by `{EXACT_LENGTH}`; besides, " if short else ""
            limits.append(f"When `{name}` equals full attention: {texts}{mechanism_info(name).exact_when}.")
        return limits

    def check_settings(self, source: str, request: Any) -> None:
        """Raise :class:`OptionError` for a setting that applies only to other kinds of input."""
        for name, (reason, gives) in SETTINGS.items():
            if getattr(request, name, None) is not None and name not in self.settings:
                raise OptionError(f"{reason}, but {source} reads {self.nouns}; {self.instead.get(gives, 'leave it out')}.")

    def check_parts(self, source: str, request: Any) -> None:
        """Raise :class:`OptionError` for mechanisms of towers, if there is one stack. Or the reverse."""
        if getattr(request, "towers", None) is not None:
            raise OptionError(f"--towers is for models of several towers, and {source} has one stack; give --mechanism.")


def train_command(task: str, *arguments: str, output: str = "trained") -> dict[str, Any]:
    """The ``next_step`` of a report: the `longattn train` command for the result. "{model}" stands for the model's name."""
    return {"command": ["longattn", "train", task, "--model", "{model}", *arguments, "--output", f"{{model}}-{output}"]}


_KINDS: dict[str, type[InputKind]] = {}
"""Name of a file of :mod:`hf_longattn.inputs` -> the kind of input that it defines."""


def register_kind(kind: Kind) -> Kind:
    """Class decorator that registers an input kind under the name of its file."""
    _KINDS[kind.__module__.rpartition(".")[2]] = kind
    return kind


def kind_of(family: Family) -> InputKind:
    """The input kind of a family's models, from the file that the family's rule names.

    Raises:
        RegistrationError: there is no such file, or it registers no kind.
    """
    name = family.rule.reads
    if name not in _KINDS and name in module_names("inputs"):
        load_module("inputs", name)
    if name not in _KINDS:
        raise RegistrationError(
            f"The rule of the family {family.base_model_type!r} reads {name!r}, for which there is no kind of input; add the file "
            f"hf_longattn/inputs/{name}.py with a class under @register_kind."
        )
    return _KINDS[name](family)


def kind_of_model(config: Any) -> InputKind | None:
    """The input kind of a Long or stock model with this config. ``None`` if it belongs to no family."""
    family = known_family(config)
    return None if family is None else kind_of(family)
