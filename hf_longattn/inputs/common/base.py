"""The contract of a kind of input: sizes and their words, what a conversion plans, what verification feeds and checks.

Each kind is one file of :mod:`hf_longattn.inputs` with a class under ``@register_kind``. Everything else asks the kind of a family by the
methods of :class:`InputKind`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, TypeVar

from ...checks import Check
from ...configuration import LongAttentionConfig
from ...engines.common.grid import Grid
from ...errors import GridError, OptionError, RegistrationError
from ...mechanisms import Mechanism, mechanism_info
from ...mechanisms.common.locality import needs_training_by
from ...mechanisms.common.on_grid import on_grid
from ...modeling.family.definition import FAMILIES, Family, known_family, without_head
from ...modeling.family.sliding_window import own_windows
from ...naming import load_module, module_names
from ...options import EXACT_LENGTH
from .examples import Example, Head, head_of

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


@dataclass(frozen=True)
class LengthCost:
    """One row of a table of costs, for one input.

    size, size_name: pixels along each axis, or seconds, and what reports call them; empty for a text.
    """

    length: int
    attention_flops: int
    full_attention_flops: int
    other_flops: int
    activation_bytes: int  # the widest layer during inference: its input, q, k, v, output and the intermediate activation
    cache_bytes: int | None  # keys and values kept for decoding; None when the model does not decode
    size: Any = None
    size_name: str = ""

    @property
    def total_flops(self) -> int:
        return self.attention_flops + self.other_flops

    @property
    def shown_size(self) -> str:
        """The size in a table."""
        return "×".join(map(str, self.size)) if isinstance(self.size, tuple) else f"{self.size:,g}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form."""
        values = {name: value for name, value in vars(self).items() if name not in ("size", "size_name")}
        return {**values, self.size_name: self.size} if self.size_name else values


@dataclass(frozen=True)
class InputSize:
    """The size of one input.

    value: as tokens, as seconds, or as pixels along each axis.
    tokens: of the layers, and what these are called (``unit``).
    words, typed, heading: the size in a sentence, as it is typed, and at the head of a column.
    name, cost_name: what reports call it, and tables of costs; empty where tokens say it.
    grid: of the tokens of an input that is not one line, and that of every layer (``layers``).
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
    layers: tuple[Grid, ...] = ()

    def describe(self) -> str:
        """For example "15 seconds, 749 frames"."""
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
        """The mechanism of every layer for inputs of this size; on grids, each has the number of its layer."""
        if not self.layers:
            return list(layers)
        of_grids = []
        for number, (mechanism, grid) in enumerate(zip(layers, self.layers, strict=True)):
            bound = on_grid(mechanism, grid)
            if bound is not mechanism:
                bound.layer = number
            of_grids.append(bound)
        return of_grids

    def layer_tokens(self, layers: int) -> list[int]:
        """The tokens of every layer."""
        return [grid.length for grid in self.layers] or [self.tokens] * layers


@dataclass(frozen=True)
class InputSizes:
    """The largest inputs of source and result.

    kind, old, new: of the input and its sizes; of several towers, those of the longest texts.
    old_words, new_words: the same in words.
    longest: that of the result, with a noun.
    noun: what an input is called.
    units, token_unit: what its size counts (empty where that is tokens), and what the layers attend over.
    of_model, report: for reports of a model and of a plan, JSON-serialisable, where lengths in tokens do not say it.
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
        """The sizes that a plan lists: the old one of a model with this config, its doublings, and the new one."""
        values = [self.old.value]
        while values[-1] != self.new.value:
            values.append(self.kind.limited(self.kind.doubled(values[-1]), self.new.value))
        return [self.kind.size(config, value) for value in values]

    def doublings(self, config: Any) -> list[InputSize]:
        """Sizes at which mechanisms are compared: the first one and its doublings."""
        values = [self.kind.first_compared(self)]
        while len(values) < self.kind.compared:
            values.append(self.kind.doubled(values[-1]))
        return [self.kind.size(config, value) for value in values]

    def compared_values(self, sizes: Sequence[InputSize]) -> dict[str, Any]:
        """Sizes at which mechanisms are compared, JSON-serialisable."""
        named = {f"{self.new.name.removesuffix('s')}s": [size.number for size in sizes]} if self.new.name else {}
        return {"lengths": [size.tokens for size in sizes], **named}


@dataclass(frozen=True)
class PositionWarning:
    """What speaks against using the result without training: the problem, what to do about it, and the harm, all clauses."""

    problem: str
    advice: str
    harm: str = "results can become worse"

    def __str__(self) -> str:
        return f"{self.problem}, so {self.harm}; {self.advice}."


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


Layers = Callable[[LongAttentionConfig, int], list[Mechanism]]
"""The mechanism of every layer of a model with an attention, for a number of tokens."""

AUTO = "auto"
"""A setting that is chosen."""
SIZE, SEARCH, VERIFICATION = "size", "search", "verification"
"""What a setting gives, for which other kinds of input may have another setting."""
SETTINGS = {
    "max_length": ("--max-length counts the tokens of a text", SIZE),
    "image_size": ("--image-size is the size of pictures", SIZE),
    "frames": ("--frames is the number of frames of a video", SIZE),
    "audio_seconds": ("--audio-seconds is the length of sounds", SIZE),
    "max_decoder_length": ("--max-decoder-length is for the decoder of an encoder-decoder", ""),
    "decoder_long_attention": ("--decoder-mechanism is for the decoder of an encoder-decoder", ""),
    "search_text": ("--search-text is a text", SEARCH),
    "search_images": ("--search-images are pictures", SEARCH),
    "search_audio": ("--search-audio is a recording", SEARCH),
    "verify_text": ("--verify-text is a text", VERIFICATION),
    "verify_audio": ("--verify-audio is a recording", VERIFICATION),
    "init_from_text": ("--init-from-text runs the source on a text", ""),
}
"""Setting that models of some kinds of input alone have a use for -> what it is, and what it gives."""


NOT_DIAGNOSED = "look at hf_longattn.explain(model, inputs)."
"""What to do for a diagnosis of other models."""
TEXT, SIZED, TOWERS_APART = "text", "sized", "towers apart"
"""How a conversion plans and verifies a model: by the lengths of its stacks, by a size that changes no tensor, or tower by tower."""


class InputKind(ABC):
    """One kind of input, of the models of a family.

    planned_as: :data:`TEXT`, :data:`SIZED` or :data:`TOWERS_APART`.
    noun, nouns: what one input is called, and all of them.
    units: what a size counts; empty where that is tokens.
    material: what a search reads.
    compared: number of sizes at which mechanisms are compared.
    settings: names in :data:`SETTINGS` that apply to it.
    instead: what a setting gives -> what to type for it.
    diagnosed_with: what ``longattn diagnose`` takes for it, and the command; empty where it has nothing for it.
    drawn: whether a diagnosis draws the attention on one input.
    trained_by: words of ``longattn train`` without which it does not read all of the input.
    heads: ending of a class -> how its models are run.
    """

    planned_as: ClassVar[str] = TEXT
    noun: str
    nouns: str
    units: str = ""
    material: ClassVar[str] = "text"
    compared: ClassVar[int] = 7
    diagnosed_with: str = ""
    drawn: ClassVar[bool] = False
    trained_by: Collection[str] = ()
    heads: Mapping[str, Head] = {}
    settings: Collection[str]
    instead: Mapping[str, str] = {}

    def __init__(self, family: Family) -> None:
        self.family = family

    @classmethod
    @abstractmethod
    def reads(cls, family: Family) -> bool:
        """Whether the models of a family read this kind of input."""

    @abstractmethod
    def sizes(self, config: Any) -> InputSizes:
        """The sizes for which a model was trained, and for which it was converted."""

    def size(self, config: Any, value: Any) -> InputSize:
        """The size with this value, for a model with this config.

        Raises:
            GridError: an axis of a picture is not a multiple of the patch.
        """
        raise NotImplementedError

    def sizes_between(self, config: Any, old: Any, new: Any) -> InputSizes:
        """The sizes with these values."""
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
        """What is read up to this size, with a noun."""
        return f"{self.nouns} of {size.describe()}"

    def doubled(self, value: Any) -> Any:
        """Twice the size along everything that can grow."""
        return 2 * value

    def limited(self, value: Any, largest: Any) -> Any:
        """A size of at most the largest one."""
        return min(value, largest)

    def halved(self, config: Any, value: Any, least: Any) -> Any:
        """About half the size, but at least the least one."""
        return max(least, value / 2)

    def first_compared(self, sizes: InputSizes) -> Any:
        """The smallest size at which mechanisms are compared."""
        return sizes.old.value

    def mechanisms(self, causal: bool) -> list[str]:
        """Names of mechanisms that such inputs take, by which costs are compared."""
        return []

    def check_candidate(self, mechanism: Mechanism, sizes: InputSizes | None) -> None:
        """Raise :class:`LongAttentionError` for a mechanism that single layers cannot run on such inputs."""
        raise NotImplementedError

    def compared_at(self, sizes: InputSizes, config: Any, at: Any) -> Any:
        """The size at which a search compares mechanisms, of texts in tokens; ``at`` is what a user gives, or ``None``.

        Raises:
            LengthError, GridError: the source or the result does not read this size.
            OptionError: mechanisms are not compared on such inputs.
        """
        raise OptionError(f"Mechanisms are not compared on {self.nouns}; name one, for example --mechanism window.")

    def own_windows(self, sizes: InputSizes) -> list[str]:
        """Mechanisms whose windows have the source's size, as text."""
        return []

    def base(self, model: Any) -> Any:
        """The part of a model that reads the input and has the layers with attention."""
        return without_head(model)

    def arguments_of_head(self, model: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of ``forward`` of a model, with those that its head needs besides its input."""
        return dict(arguments)

    def base_windows(self, config: Any, layers: int) -> list[int | None]:
        """The width of the sliding window of every layer of a base; ``None`` where it has none."""
        return own_windows(config)

    def untrained_distances(self, plan: Any, mechanism: Mechanism, positions: str) -> str:
        """Why the positions of a plan do not hold for a mechanism without training, a clause; empty if they do.

        Args:
            positions: the rule that was asked for.
        """
        if plan.positions.startswith("rope:") and positions == AUTO:  # a conversion chooses them by the mechanism
            return ""
        return needs_training_by(mechanism, plan.positions, plan.old_length, plan.new_length, plan.shape.causal)

    def further_operations(self, skeleton: Any, config: Any) -> int:
        """Operations for each token besides those of matrices, as a number of weights.

        Args:
            skeleton: the long model without storage.
        """
        return 0

    def seeded(self, config: Any, ids: Any) -> dict[str, Any]:
        """What a model reads next to ``ids (B, N)``, the same at every call."""
        return {}

    @property
    def how_to_diagnose(self) -> str:
        """What to do for a diagnosis of its models, a clause."""
        return f"give it {self.diagnosed_with}." if self.diagnosed_with else NOT_DIAGNOSED

    def compared_part(self, model: Any, headless: bool) -> Any:
        """The part whose outputs are compared; ``headless`` if the source has no weights for its head."""
        return model.base_model if headless else model

    def training_step(self, plan: Any) -> dict[str, Any] | None:
        """How a result is trained, as :func:`train_command` gives it, or ``{"advice": text}``; ``None`` for a model of texts."""
        return None

    def tokenizer_length(self, plan: Any) -> int:
        """The limit of the result's tokenizer; 0 keeps the source's."""
        return int(plan.new_length)

    def introduce(self, plan: Any) -> str:
        """What the result of a plan reads, in words."""
        return f"{self.nouns} of {plan.new_input}"

    @abstractmethod
    def verification_inputs(self, plan: Any, text: tuple[str, str], recording: str | Path | None = None) -> Any:
        """The inputs that a result is verified with: a text, with its origin, or a recording, where the source reads one."""

    @abstractmethod
    def check_reader(self, plan: Any, result: Path, inputs: Any) -> list[Check]:
        """The tokenizer or processor is in the written folder, and makes inputs for the result."""

    @property
    def any_size(self) -> bool:
        """Whether inputs of any size are read as lists of patches, so that there is no size to convert."""
        return False

    def check_has_size(self, architecture: Any) -> None:
        """Raise :class:`GridError` for a model without a size to convert."""
        if self.any_size:
            raise GridError(
                f"A {architecture.source_class} reads pictures of any size as lists of patches, so that there is no size to convert; load "
                f"it with hf_longattn.{architecture.long_class}.from_pretrained, whose config takes long_attention."
            )

    def head(self, folder: Path, architecture: str) -> Head | None:
        """How a saved model of this class is loaded and run; ``None`` for one without an example."""
        return head_of(architecture, self.heads)

    def example(self, folder: Path, config: Mapping[str, Any], head: Head, length: int, metadata: Mapping[str, Any]) -> Example | None:
        """The code in a card that runs a saved model once; ``None`` where files are missing that it needs.

        Args:
            folder, config: of the model: its files, and the values of its config file.
            head, length: of the model, and the tokens that it takes.
            metadata: of its card, whose language and tags say what texts it reads.
        """
        return None

    def values_of(self, config: Mapping[str, Any]) -> SimpleNamespace:
        """The values of a config file, with the defaults of the family's base for those that it leaves out."""
        return SimpleNamespace(**{**self.family.base_config_class().to_dict(), **config})

    def tokens_of(self, config: Mapping[str, Any]) -> int:
        """Maximum length of a model with these values in its config file."""
        return self.family.longest(self.values_of(config))

    def longest_read(self, config: Mapping[str, Any], length: int) -> str:
        """What a model of ``length`` tokens reads at most, and what becomes of longer inputs, a sentence or two for its card."""
        return f"It was made for inputs of up to {length:,} tokens. Longer ones may run, but were not verified."

    def limits(self, config: Mapping[str, Any], attentions: Mapping[str, LongAttentionConfig], length: int) -> list[str]:
        """The limits of a model for its card, a sentence or two each."""
        limits = [self.longest_read(config, length)]
        for name, short in dict.fromkeys((of_stack.mechanism, of_stack.options.get(EXACT_LENGTH) or 0) for of_stack in attentions.values()):
            texts = f"on texts of up to {short:,} tokens by `{EXACT_LENGTH}`; besides, " if short else ""
            limits.append(f"When `{name}` equals full attention: {texts}{mechanism_info(name).exact_when}.")
        return limits

    def check_settings(self, source: str, request: Any) -> None:
        """Raise :class:`OptionError` for a setting of other kinds of input."""
        for name, (reason, gives) in SETTINGS.items():
            if getattr(request, name, None) is not None and name not in self.settings:
                raise OptionError(f"{reason}, but {source} reads {self.nouns}; {self.instead.get(gives, 'leave it out')}.")


def train_command(task: str, *arguments: str, output: str = "trained") -> dict[str, Any]:
    """A step that trains a result, as a report keeps it, with "{model}" for the model's name."""
    return {"command": ["longattn", "train", task, "--model", "{model}", *arguments, "--output", f"{{model}}-{output}"]}


def register_kind(kind: Kind) -> Kind:
    """Enter a class into the table of kinds."""
    _KINDS[kind.__module__] = kind
    return kind


_KINDS: dict[str, type[InputKind]] = {}
"""Module -> the kind of input that it defines."""


@cache
def input_kinds() -> tuple[type[InputKind], ...]:
    """All kinds: a file of :mod:`hf_longattn.inputs` each."""
    for name in module_names("inputs"):
        load_module("inputs", name)
    return tuple(_KINDS.values())


def kind_of(family: Family) -> InputKind:
    """What the models of a family read.

    Raises:
        RegistrationError: no kind reads its inputs, or several do.
    """
    kinds = [kind for kind in input_kinds() if kind.reads(family)]
    if len(kinds) != 1:
        raise RegistrationError(
            f"The inputs of the family {family.base_model_type!r} are of {len(kinds)} kinds "
            f"({', '.join(kind.__name__ for kind in kinds) or 'none'}), and must be of one; correct reads() in hf_longattn/inputs."
        )
    return kinds[0](family)


def kind_of_model(config: Any) -> InputKind | None:
    """What a model with this config reads, long or not; ``None`` for a model without a family."""
    family = known_family(config)
    if family is None:  # Moonshine's encoder has a config of its own
        model_type = str(getattr(config, "base_model_type", None) or getattr(config, "model_type", ""))
        family = FAMILIES.get(model_type.removesuffix("_encoder"))
    return None if family is None else kind_of(family)
