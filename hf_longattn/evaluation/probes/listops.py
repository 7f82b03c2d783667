"""ListOps (Nangia & Bowman 2018) as Long Range Arena generates it (Tay et al. 2021, section 2.2): nested operations on lists of digits.

    [MAX 4 3 [MIN 2 3 ] 1 0 [MED 1 5 8 9 2 ] ]  →  5

Operators, probabilities, depth, arguments and bounds of the length are those of google-research/long-range-arena
(lra_benchmarks/data/listops.py), without its brackets of pairs, as in its input pipeline.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...errors import LengthError, OptionError
from .task import CountTokens, ProbeSample, TextTask, register_probe

OPERATORS: dict[str, Callable[[Sequence[int]], int]] = {
    "[MIN": min,
    "[MAX": max,
    "[MED": lambda values: int(statistics.median(values)),
    "[SM": lambda values: sum(values) % 10,
}
END = "]"
OPERATION_SHARE = 0.25
"""Probability that an argument is an operation."""
TRIES = 100_000


@dataclass(frozen=True)
class ListOps:
    """The task.

    length: symbols of an expression, fewer than this.
    least: an expression has more symbols than this; default: a quarter of ``length``, as LRA's 500 of 2,000.
    max_depth, max_arguments: of the expressions.

    Raises:
        OptionError: bounds that no expression meets.
    """

    length: int = 2000
    least: int | None = None
    max_depth: int = 10
    max_arguments: int = 10

    def __post_init__(self) -> None:
        if self.length < 5 or self.max_depth < 2 or self.max_arguments < 2 or not 0 <= self.lower < self.length - 1:
            raise OptionError(
                f"No expression has more than {self.lower} and fewer than {self.length} symbols at depth {self.max_depth} with "
                f"{self.max_arguments} arguments; give a length of 5 or more, a lower bound below it, depth and arguments of 2 or more."
            )

    @property
    def lower(self) -> int:
        return self.length // 4 if self.least is None else self.least

    def draw(self, rng: random.Random) -> tuple[list[str], int]:
        """An expression and its value.

        Raises:
            OptionError: no expression was found; the bounds are too narrow, or too wide for the depth.
        """
        for _ in range(TRIES):
            symbols: list[str] = []
            value = self._node(1, symbols, rng)
            if value is not None and self.lower < len(symbols) < self.length:
                return symbols, value
        raise OptionError(
            f"No expression of {self.lower} to {self.length} symbols was found in {TRIES:,} tries; give other bounds, depth or arguments."
        )

    def _node(self, depth: int, symbols: list[str], rng: random.Random) -> int | None:
        """Append a node and return its value; ``None`` once the expression is too long."""
        if depth >= self.max_depth or rng.random() > OPERATION_SHARE:
            digit = rng.randrange(10)
            symbols.append(str(digit))
            return digit
        opened, values = len(symbols), []
        symbols.append("")  # the operator is drawn after its arguments
        for _ in range(rng.randint(2, self.max_arguments)):
            value = self._node(depth + 1, symbols, rng)
            if value is None or len(symbols) >= self.length:
                return None
            values.append(value)
        symbols[opened] = rng.choice(list(OPERATORS))
        symbols.append(END)
        return OPERATORS[symbols[opened]](values)


@register_probe
class ListOpsText(TextTask):
    """An expression in words, for checkpoints."""

    name = "listops"
    paper = "Tay et al. 2021, Long Range Arena"
    summary = "the value of nested operations on digits"
    smallest = 6
    new_tokens = 4

    def build(self, size: int, rng: random.Random, length: int, count: CountTokens, depth: float | None) -> ProbeSample:
        symbols, value = ListOps(size).draw(rng)
        wrong = tuple(str(digit) for digit in range(10) if digit != value)
        return ProbeSample(
            "", " ".join(symbols), "\nWhat is the value?", " The value is", (str(value),), wrong, self.new_tokens, score="first_number"
        )

    def sample(self, length: int, rng: random.Random, count: CountTokens, depth: float | None = None) -> ProbeSample:
        """An expression of at least a quarter of ``length`` tokens, if one fits."""
        symbols, _ = ListOps(100).draw(rng)
        framed = count(self.build(self.smallest, rng, length, count, depth).prompt) + self.new_tokens
        size = int((length - framed) * len(symbols) / count(" ".join(symbols)))
        while size >= self.smallest:
            sample = self.build(size, rng, length, count, depth)
            if count(sample.prompt) + self.new_tokens <= length:
                return sample
            size = size * 9 // 10
        raise LengthError(f"The probe {self.name!r} does not fit into {length:,} tokens; give greater --lengths.")
