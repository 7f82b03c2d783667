"""What the models of a family read: sizes of inputs, the spec of texts, and the base class for the specs of images,
sound and towers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ...errors import OptionError

if TYPE_CHECKING:
    from torch import Tensor

    from ...mechanisms import Mechanism

USUAL_LENGTH = 512
"""Maximum tokens of most short models."""
AUTO = "auto"
"""The value of the setting ``positions`` with which a conversion chooses how positions are extended."""
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
TOKENIZER_FILES = ("tokenizer*", "vocab*", "merges*", "*.model", "*.spm", "*.tiktoken")


def has_processor(folder: Path) -> bool:
    return any((folder / name).is_file() for name in PROCESSOR_FILES)


def tokenizer_files(folder: Path) -> list[Path]:
    return sorted({path for pattern in TOKENIZER_FILES for path in folder.glob(pattern) if path.is_file()})


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
        """The size in a report, by name, without the number of tokens: ``{"audio_seconds": 15.0}``. Empty for texts.
        JSON-serialisable."""
        values: dict[str, Any] = {}
        if self.name:
            values[self.name] = list(self.value) if isinstance(self.value, tuple) else self.value
        if self.grid is not None:
            values["grid"] = list(self.grid.sizes)
        return values

    def bound(self, layers: Sequence[Mechanism]) -> list[Mechanism]:
        """The mechanism of every layer for inputs of this size. If the input has a grid, each mechanism becomes one
        for that grid, and gets the number of its layer."""
        from ...mechanisms.common.capabilities import on_grid

        return [on_grid(mechanism, self.grid, layer=number) for number, mechanism in enumerate(layers)]


@dataclass(frozen=True)
class InputSizes:
    """Maximum input sizes of a conversion's source and result. For a model with several towers, those of the text
    tower."""

    spec: InputSpec
    at: Callable[[Any], InputSize]  # makes a size from a value that a user types
    old: InputSize  # of the source
    new: InputSize  # of the result
    reads_new: bool = False  # whether the source also reads inputs of the new size

    @property
    def grows(self) -> bool:
        return self.new != self.old

    def steps(self) -> list[InputSize]:
        """The old size, its doublings, and the new size."""
        sizes = [self.old]
        largest = self.new.value
        while sizes[-1].value != largest:
            value = sizes[-1].value
            if isinstance(value, tuple):
                double: Any = tuple(min(2 * side, most) for side, most in zip(value, largest, strict=True))
            else:
                double = min(2 * value, largest)
            sizes.append(self.at(double))
        return sizes

    def check(self, mechanism: Mechanism) -> None:
        """Raise :class:`LongAttentionError` if a layer cannot run the mechanism on inputs of these sizes."""
        from ...mechanisms.common.capabilities import on_grid

        self.spec.check_mechanism(mechanism)
        if self.new.grid is not None:
            on_grid(mechanism, self.new.grid, check=True)
            # the result also reads inputs of the old size; counting their pairs raises an error if that is impossible
            on_grid(mechanism, self.old.grid).pairs(self.old.tokens)


@dataclass(frozen=True)
class Example:
    """The part of a model card's code that depends on what a model reads. The template ``hub/card.md`` has the other
    code, which runs the model."""

    task: str | None  # the Hub's task name for a model without a head; None if these cards have no task
    # variable and class name of the tokenizer or processor; None if the folder has neither
    reader: tuple[str, str] | None = None
    inputs: str = ""  # Python lines that make `inputs`, for `model(**inputs)`; empty if the card only loads the model
    imports: tuple[str, ...] = ()  # import lines that `inputs` needs, besides those of torch and of transformers


class InputSpec:
    """Base class of input specs, which say what the models of a family read (:attr:`.definition.Family.spec`)."""

    reads: ClassVar[str]
    """Name of the modality, such as "sound"."""
    noun: ClassVar[str]
    """Noun for one input, in messages and tables."""
    nouns: ClassVar[str]
    """The same noun in the plural."""
    units: ClassVar[str] = ""
    """The unit of sizes, such as "seconds"; empty if sizes are numbers of tokens."""
    timed: ClassVar[bool] = False
    """Whether inputs have a duration."""
    mixins: ClassVar[tuple[str, str]] = ("modeling.mixin.LongAttentionMixin", "modeling.mixin.LongBaseModelMixin")
    """Dotted paths, below this package, of two mixins: for models with a head, and for the base model."""
    docstring: ClassVar[str] = """{base} with the mechanisms of ``config.long_attention``.

``forward`` takes the arguments of {base}, and ``global_attention_mask (B, N)``{whose}, 1 = global token,
``documents (B, N)``, the numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see
:meth:`new_memory`. :meth:`use_base_attention` computes the attention of {base} instead.
"""
    """The docstring of Long classes. ``base`` is the base's class, and ``whose`` is " of the encoder" or empty."""
    on_grid: ClassVar[bool] = False
    """Whether tokens are the patches of an image."""
    further: Mapping[str, int | str] = {}
    """Further arguments of ``forward`` with several integers per token, such as the boxes of words on a page. Each is
    mapped to its number of integers per token, or to the config field with this number."""

    def size(self, config: Any, value: Any) -> InputSize:
        """The size of an input for a model that is not divided into towers. ``value``: the size as a user types it."""
        raise NotImplementedError

    def sizes(self, family: Any, config: Any) -> InputSizes:
        """The sizes for which a model with this config was trained, and for which it was converted."""
        raise NotImplementedError

    def between(self, config: Any, old: Any, new: Any, reads_new: bool = False) -> InputSizes:
        """The sizes of a conversion from ``old`` to ``new``, which are values as for :meth:`size`."""
        at = partial(self.size, config)
        return InputSizes(self, at, at(old), at(new), reads_new)

    def check_mechanism(self, mechanism: Mechanism) -> None:
        """Raise :class:`OptionError` for a mechanism that cannot read these inputs."""
        if mechanism.capabilities.needs_grid:
            raise OptionError(f"{mechanism.name} reads a grid, and the model reads a {self.noun}.")

    def untrained(self, sizes: InputSizes, mechanism: Mechanism, strategy: str, positions: str, causal: bool) -> str:
        """Why the result of a conversion needs training with this mechanism; empty without a reason.

        Args:
            strategy: how the conversion extends positions.
            positions: the setting ``positions`` from which the strategy was chosen.
            causal: whether later tokens are hidden.
        """
        return ""

    def example(self, folder: Path, config: Any, length: int) -> Example:
        """Code for a model card that makes an input of at most ``length`` tokens.

        Args:
            folder: the model's folder, whose tokenizer or processor the code loads.
            config: the model's config.
        """
        return Example(None)

    def most_tokens(self, family: Any, config: Any) -> int:
        """Maximum number of tokens of one input. Rows of a position table that are not positions do not count.

        config: a config of the family or of its base.
        """
        return self.sizes(family, config).new.tokens

    def further_operations(self, config: Any, skeleton: Any) -> int:
        """Multiply-accumulate operations per token that are not those of attention or of linear layers.

        skeleton: the Long model on the meta device.
        """
        return 0

    def further_inputs(self, config: Any, rows: int, length: int) -> dict[str, Tensor]:
        """Values ``(rows, length, width)`` int64 for the arguments in :attr:`further`, the same in every call. Values
        never decrease along the width, so that they are valid boxes (left, top, right, bottom)."""
        import torch

        random = torch.Generator().manual_seed(0)
        values = {}
        for name, width in self.further.items():
            count = getattr(config, width) if isinstance(width, str) else width
            values[name] = torch.randint(2, (rows, length, count), generator=random).cumsum(-1)
        return values


@dataclass(frozen=True)
class TextSpec(InputSpec):
    """Token ids and, in some families, more numbers per token (LayoutLM, MarkupLM)."""

    reads, noun, nouns = "text", "text", "texts"
    further: Mapping[str, int | str] = field(default_factory=dict, compare=False)

    def size(self, config: Any, value: Any) -> InputSize:
        return InputSize(value, value, f"{value} tokens" if value else "any number of tokens")

    def sizes(self, family: Any, config: Any) -> InputSizes:
        """Lengths from :data:`USUAL_LENGTH` to the model's maximum.

        family: ``None`` for a model without a family.
        """
        if family is not None:
            longest = family.longest(config)
        else:
            longest = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
        return self.between(config, min(USUAL_LENGTH, longest or USUAL_LENGTH), longest or USUAL_LENGTH)

    def most_tokens(self, family: Any, config: Any) -> int:
        """Maximum number of tokens of a text, by the position table of the encoder, or of a decoder without one."""
        decoder_alone = family.two_stacks and not config.is_encoder_decoder
        table = next((entry for entry in family.position_tables if entry.decoder == decoder_alone), None)
        if table is None:
            return int(config.max_position_embeddings)
        if hasattr(config, table.field):
            return table.tokens(config)
        return family.base_length(config, table) - table.config_value(0, config)  # a base's config lacks the field

    def untrained(self, sizes: InputSizes, mechanism: Mechanism, strategy: str, positions: str, causal: bool) -> str:
        """Why longer texts need training with this mechanism and this strategy for positions; empty without a
        reason."""
        from ...mechanisms.common.masked import needs_training_by

        if strategy.startswith("rope:") and positions == AUTO:  # the conversion chooses rope scaling by the mechanism
            return ""
        return needs_training_by(mechanism, strategy, sizes.old.tokens, sizes.new.tokens, causal)

    def example(self, folder: Path, config: Any, length: int) -> Example:
        """Code for a model card that tokenizes a text. For models that also read word boxes, it only loads the
        tokenizer."""
        task = "feature-extraction"
        if not tokenizer_files(folder):
            return Example(task)
        reader = ("tokenizer", "AutoTokenizer")
        if self.further:
            return Example(task, reader)
        line = (
            f'inputs = tokenizer("A long document starts here. " * 50, truncation=True, max_length={length}, '
            'return_tensors="pt")'
        )
        return Example(task, reader, line)


PLAIN_TEXT = TextSpec()
"""The spec of models that read only token ids."""
