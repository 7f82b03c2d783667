"""The size of one input, and the sizes of a model's inputs, with the words for both."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import InputError, OptionError
from ..mechanisms import Mechanism, list_mechanisms
from ..mechanisms.common.locality import needs_training_by
from ..mechanisms.common.registry import prototype
from ..modeling.family.grid_config import TILE
from ..modeling.family.towers_config import TOWERS

AUTO = "auto"
"""Value of a setting that the conversion chooses itself."""
NOT_DIAGNOSED = "look at hf_longattn.explain(model, inputs)."
"""End of the error message for models that ``longattn inspect MODEL INPUT`` cannot read."""
SIZE, SEARCH, VERIFICATION, PARTS = "size", "search", "verification", "parts"
"""Purposes of settings: keys of :attr:`Words.instead`."""


def refuse_grid(name: str, options: Mapping[str, Any]) -> None:
    """Raise :class:`OptionError` for a mechanism that reads the patches of an image."""
    if prototype(name, dict(options)).reads_grid:
        raise OptionError(f"{name} reads a grid, and the model reads a text.")


@dataclass(frozen=True)
class Words:
    """Words of a kind of input, for messages and tables.

    noun, nouns: singular and plural of an input. units: units of a size; empty for tokens.
    size: noun for a size.
    material: noun for the inputs of a search.
    settings: names in :data:`.kind.SETTINGS` that apply. instead: purpose of a setting that does not -> advice to give this kind's own.
    reads: what a model of this kind reads or does, as a predicate; empty for "reads" with the plural noun.
    longer: a sentence on inputs larger than those for which a model was made.
    how_to_diagnose: how to diagnose models of this kind, as the end of an error message.
    drawn, timed: whether a diagnosis has a map of attention for one input, or compares inputs of several durations.
    check: raises :class:`OptionError` for a mechanism (name, options) that cannot read this kind.
    """

    noun: str
    nouns: str
    units: str = ""
    size: str = "length"
    material: str = "text"
    settings: Collection[str] = ()
    instead: Mapping[str, str] = field(default_factory=dict)
    reads: str = ""
    longer: str = "Longer ones may run, but were not verified."
    how_to_diagnose: str = NOT_DIAGNOSED
    drawn: bool = False
    timed: bool = False
    check: Callable[[str, dict[str, Any]], None] = refuse_grid


@dataclass(frozen=True)
class InputSize:
    """The size of one input.

    value: tokens, seconds, or pixels along each axis.
    tokens, unit: number of tokens in the layers, and their plural noun.
    words, typed, heading: the size in a sentence, as a command-line argument, and as a column heading.
    name, cost_name: the size's name in reports and in tables of costs; empty if ``value`` counts tokens.
    grid: the grid of the tokens; ``None`` for texts and sounds.
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


def doubled(value: Any) -> Any:
    """A size's value, doubled along every axis."""
    return tuple(2 * side for side in value) if isinstance(value, tuple) else 2 * value


@dataclass(frozen=True)
class InputSizes:
    """Maximum inputs of source and result, made by :func:`sizes_between`.

    old, new: the sizes of source and result; with several towers, the sizes of the text tower.
    at: function from a value, as a user may type it, to the InputSize.
    compared, largest_compared: the size at which a search compares mechanisms by default, and the maximum.
    old_words, new_words: ``old`` and ``new`` as text; with several towers, the sizes of all towers.
    longest: the result's maximum input with a noun, for example "sounds of 15 seconds, 749 frames".
    of_model, report: further JSON fields for reports on a model and on a plan, if the size is not counted in tokens.
    """

    words: Words
    old: InputSize
    new: InputSize
    at: Callable[[Any], InputSize]
    compared: InputSize
    largest_compared: InputSize
    old_words: str
    new_words: str
    longest: str
    of_model: Mapping[str, Any] = field(default_factory=dict)
    report: Mapping[str, Any] = field(default_factory=dict)

    @property
    def grows(self) -> bool:
        """Whether the result reads larger inputs than the source."""
        return self.new != self.old

    def steps(self) -> list[InputSize]:
        """The sizes that a plan lists: the old size, its doublings, and the new size."""
        steps, largest = [self.old], self.new.value
        while steps[-1].value != largest:
            value = doubled(steps[-1].value)
            steps.append(self.at(tuple(map(min, value, largest)) if isinstance(value, tuple) else min(value, largest)))
        return steps

    def doublings(self) -> list[InputSize]:
        """Sizes for comparing the costs of mechanisms: texts from 1,024 tokens on, other inputs from the old size on."""
        values = [self.old.value if self.old.name else 1024]
        while len(values) < (4 if self.old.grid else 7):
            values.append(doubled(values[-1]))
        return [self.at(value) for value in values]

    def compare_at(self, value: Any) -> InputSize:
        """The size at which a search compares mechanisms: the user's ``value``, or a default for ``None``.

        Raises:
            InputError: the checkpoint or the result does not read this size.
        """
        size, most = self.compared if value is None else self.at(value), self.largest_compared
        if not 0 < size.tokens <= most.tokens:
            raise InputError(
                f"Mechanisms are compared on {self.words.nouns} of up to {most.words}, which the checkpoint reads, not of {size.words}; "
                "change --compare-at, or leave it out."
            )
        return size

    def mechanisms(self, causal: bool) -> list[str]:
        """Names of mechanisms that can read these inputs, for comparing costs."""
        if self.new.grid is not None:
            return ["full", *list_mechanisms(grid=True)]
        names = list_mechanisms(causal=causal, grid=False)
        return [name for name in names if not (self.words.timed and prototype(name, {}).traits.remembers)]

    def check(self, mechanism: Mechanism) -> None:
        """Raise :class:`LongAttentionError` if a layer cannot run the mechanism on inputs of these sizes."""
        self.words.check(mechanism.name, mechanism.options.to_dict())
        if self.new.grid is not None:
            mechanism.on_grid(self.new.grid, check=True)
            mechanism.on_grid(self.old.grid).pairs(self.old.tokens)  # the result reads the old size, too

    def own_windows(self) -> list[str]:
        """Option strings of mechanisms with windows as large as the source's grid, such as "window2d:window=14". Empty without a grid."""
        if self.old.grid is None:
            return []
        side = min(self.old.grid.sizes)
        return [f"window2d:window={side}", f"segmented:block_size={side * side},integration=pooled,order=tiles:{side}x{side}"]

    def fits_tiles(self, layer: Mechanism) -> bool:
        """Whether every cell sees only cells in its own repetition of a position table that is tiled over the new grid."""
        blocks = layer.grid_blocks(self.new.grid)
        return blocks is not None and all(side % block == 0 for side, block in zip(self.old.grid.sizes, blocks, strict=True))

    def untrained(self, mechanism: Mechanism, rule: str, positions: str, causal: bool) -> str:
        """Why positions need training with this mechanism, as a clause. Empty if they do not.

        Args:
            rule, positions: the planned rule for positions, and the requested one, which may be :data:`AUTO`.
        """
        if self.new.grid is not None:
            tiled = positions == TILE and not self.fits_tiles(mechanism.on_grid(self.new.grid))
            return "sees cells of several repetitions of the tiled positions" if tiled else ""
        if self.new.name or (rule.startswith("rope:") and positions == AUTO):  # the conversion chooses rope scaling by the mechanism
            return ""
        return needs_training_by(mechanism, rule, self.old.tokens, self.new.tokens, causal)


def sizes_between(
    words: Words, at: Callable[[Any], InputSize], old: Any, new: Any, compared: Any = None, largest_compared: Any = None
) -> InputSizes:
    """The InputSizes of a source of size ``old`` and a result of size ``new``, as values for ``at``.

    Args:
        compared, largest_compared: the values at which a search compares mechanisms; by default the new size.
    """
    first, last = at(old), at(new)
    of_model, report = {}, {}
    if last.name:
        of_model, report = {last.name: last.number}, {f"old_{first.name}": first.number, f"new_{last.name}": last.number}
    if last.grid is not None:
        of_model["grid"] = report["new_grid"] = list(last.grid.sizes)
        report |= {"old_grid": list(first.grid.sizes), "prefix_tokens": last.grid.prefix}
    longest = f"{words.nouns} of {last.describe()}" if last.name else f"up to {last.tokens:,} tokens" if last.tokens else last.words
    default = last if compared is None else at(compared)
    most = default if largest_compared is None else at(largest_compared)
    return InputSizes(words, first, last, at, default, most, first.describe(), last.describe(), longest, of_model, report)


TEXTS = Words(
    noun="text",
    nouns="texts",
    settings=("max_length", "max_decoder_length", "decoder_long_attention", "search_text", "verify_text"),
    reads="reads text",
    instead={SIZE: "give its length as --max-length 4096", SEARCH: "give a text as --search-text", PARTS: "give --mechanism"},
)
"""The words of texts. Of any family, since plain classes and search have sizes of texts, too."""


def text_sizes(old: int, new: int) -> InputSizes:
    """The InputSizes of a source of ``old`` tokens and a result of ``new`` tokens. 0 for no limit."""

    def at(tokens: int) -> InputSize:
        words = f"{tokens} tokens" if tokens else "any number of tokens"
        return InputSize(value=tokens, tokens=tokens, words=words, typed=str(tokens), heading=f"{tokens // 1024}K")

    return sizes_between(TEXTS, at, old, new, min(old, new))


def text_part(parts: Mapping[str, Any]) -> Any:
    """The plan or inspection that reads the longest texts. One of a model's ``parts``."""
    return max((part for part in parts.values() if not part.inputs.new.name), key=lambda part: part.inputs.new.tokens)


class WithTowers:
    """Facts about a model. If it has several towers, there are such facts about each of them in ``towers``, by name."""

    towers: Mapping[str, Any]
    attention: Any

    @property
    def parts(self) -> Mapping[str, Any]:
        """The facts about every tower by name; without towers, these facts under an empty name."""
        return self.towers or {"": self}

    @property
    def apart(self) -> tuple[str, ...]:
        """Names of the towers, which have mechanisms apart; empty without towers."""
        return tuple(self.towers)

    def long_attention(self) -> dict[str, Any]:
        """The mechanisms as in a config: those of every tower, or of the only stack."""
        if self.towers:
            return {TOWERS: {name: tower.attention.to_dict() for name, tower in self.towers.items()}}
        return dict(self.attention.to_dict())

    def report_of_towers(self) -> dict[str, Any]:
        """The towers' entry in a report; empty without towers."""
        return {TOWERS: {name: tower.to_dict() for name, tower in self.towers.items()}} if self.towers else {}
