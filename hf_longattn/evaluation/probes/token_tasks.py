"""Tasks over tokens that mean nothing: recall of pairs (Zoology), induction, copying.

Each class is a task of a fixed size; ``batch(size, generator)`` returns tokens and labels ``(B, N)``: the next token at targets,
:data:`IGNORED` elsewhere. They train small models. `longattn probe` asks checkpoints with the tokenizer's ids as symbols.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ...errors import OptionError
from .task import IGNORED, TokenTask, register_probe

ZOOLOGY = "Arora et al. 2023, Zoology"


class Recall(ABC):
    """Facts, which are keys with a value, and later questions, which are keys.

    The value follows the keys of a question. Distances from the facts follow a power law, so that most are near; the rest is random.

    length: tokens of a text.
    vocab: tokens.
    power: exponent of the distances' law, ``p(gap) ∝ gap^(power - 1)``; small values ask for near facts.

    Raises:
        OptionError: the facts do not fit into the text or into the vocabulary.
    """

    length: int
    vocab: int
    power: float

    @abstractmethod
    def needs(self) -> tuple[int, int]:
        """The minimum length of a text, and size of the vocabulary."""

    @abstractmethod
    def facts(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """All facts ``(B, F, W)``, and those asked for ``(B, Q, W)``: keys, then the value."""

    def __post_init__(self) -> None:
        length, vocab = self.needs()
        if not 0 < length <= self.length or vocab > self.vocab:
            raise OptionError(
                f"{self} does not fit: facts and questions need {length} tokens and a vocabulary of {vocab} at least; give more, or fewer "
                "facts."
            )

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Tokens and labels ``(B, N)`` of ``size`` texts: the value at each question's last key, else -100."""
        facts, asked = self.facts(size, generator)
        tokens = torch.randint(self.vocab, (size, self.length), generator=generator)
        context = facts.flatten(1)
        first, (count, width) = context.shape[1], asked.shape[1:]
        tokens[:, :first] = context
        law = torch.arange(1, (self.length - first) // width + 1, dtype=torch.float64) ** (self.power - 1)
        places = first + width * torch.multinomial(law.expand(size, -1), count, generator=generator)
        for column in range(width - 1):
            tokens.scatter_(1, places + column, asked[..., column])
        return tokens, torch.full_like(tokens, IGNORED).scatter_(1, places + width - 2, asked[..., -1])


def distinct(size: int, choices: int, count: int, generator: torch.Generator) -> Tensor:
    """Rows of ``count`` different numbers below ``choices``, ``(size, count)``."""
    return torch.rand(size, choices, generator=generator).topk(count, -1).indices


@dataclass(frozen=True)
class Mqar(Recall):
    """Multi-query associative recall (Arora et al. 2023, Zoology, section 3 and appendix E): key–value pairs, and later queries of the
    keys.

        k₁ v₁ k₂ v₂ … k_P v_P   x x k₂ x x x k₇ x k₁ …

    pairs: key–value pairs of a text. Each key is queried once.
    length, power: as in :class:`Recall`.
    vocab: tokens; the lower half are keys, the upper half values.
    """

    pairs: int = 8
    length: int = 64
    vocab: int = 128
    power: float = 0.1

    def needs(self) -> tuple[int, int]:
        return 4 * self.pairs, 2 * self.pairs

    def facts(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        keys = distinct(size, self.vocab // 2, self.pairs, generator)
        values = torch.randint(self.vocab // 2, self.vocab, (size, self.pairs), generator=generator)
        return (pairs := torch.stack([keys, values], -1)), pairs


@dataclass(frozen=True)
class Compositional(Recall):
    """Recall by two keys (zoology's compositional_mqar). The value depends on both keys of a grid.

        a x v₁ b y v₂ a y v₃ b x v₄   … b y … a x …

    side: number of first keys and of second keys, two or more. Each of their ``side²`` pairs is queried once.
    length, power: as in :class:`Recall`.
    vocab: tokens; a third are first keys, a third second ones, a third values.
    """

    side: int = 3
    length: int = 96
    vocab: int = 129
    power: float = 0.1

    def needs(self) -> tuple[int, int]:
        if self.side < 2:
            raise OptionError(f"A grid of keys has side 2 or more, not {self.side}; give a greater side.")
        return 6 * self.side**2, 3 * self.side**2

    def facts(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        third, pairs = self.vocab // 3, self.side**2
        order = torch.rand(size, pairs, generator=generator).argsort(-1)
        first = distinct(size, third, self.side, generator).repeat_interleave(self.side, 1).gather(1, order)
        second = third + distinct(size, third, self.side, generator).repeat(1, self.side).gather(1, order)
        values = 2 * third + distinct(size, third, pairs, generator)
        return (facts := torch.stack([first, second, values], -1)), facts


@dataclass(frozen=True)
class Forgetting(Recall):
    """Recall of the latest value (zoology's forgetting_mqar). Some keys get a second value, which is the target.

        a v₁ b v₂ c v₃   a v₄   … b … a …

    pairs, length, vocab, power: as in :class:`Mqar`.
    updates: keys with a second value.
    """

    pairs: int = 8
    updates: int = 4
    length: int = 96
    vocab: int = 128
    power: float = 0.1

    def needs(self) -> tuple[int, int]:
        if not 0 <= self.updates <= self.pairs:
            raise OptionError(f"0 to {self.pairs} updates fit, one for a pair, not {self.updates}; give another number.")
        return 4 * self.pairs + 2 * self.updates, max(4, 2 * self.pairs)

    def facts(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        half, pairs = self.vocab // 2, self.pairs
        keys = distinct(size, half, pairs, generator)
        values = torch.randint(self.vocab - half, (size, pairs), generator=generator)
        updated = torch.rand(size, pairs, generator=generator).argsort(-1)[:, : self.updates]
        moved = torch.randint(1, self.vocab - half, (size, self.updates), generator=generator)
        latest = values.scatter_add(1, updated, moved) % (self.vocab - half)  # another value, each equally likely
        old, asked = (torch.stack([keys, half + which], -1) for which in (values, latest))
        return torch.cat([old, asked.gather(1, updated[..., None].expand(-1, -1, 2))], 1), asked


@dataclass(frozen=True)
class Induction:
    """Induction (Olsson et al. 2022): a repeated token is followed by the same token as before.

        x x x a b x x … x a → b

    ``a`` occurs at these two places and ``b`` at one; everything else is random.

    length: tokens of a text.
    vocab: tokens.
    depth: where the pair lies, 0 at the beginning, 1 at the end; ``None`` = anywhere.

    Raises:
        OptionError: fewer than four tokens, or a vocabulary of fewer than three.
    """

    length: int = 64
    vocab: int = 128
    depth: float | None = None

    def __post_init__(self) -> None:
        if self.length < 4 or self.vocab < 3:
            raise OptionError(
                f"An induction text has 4 tokens or more of a vocabulary of 3 or more, not {self.length} tokens of {self.vocab}."
            )

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Tokens and labels ``(B, N)``: one label in each, at the last token."""
        pair = torch.rand(size, self.vocab, generator=generator).topk(2, -1).indices
        tokens = torch.randint(self.vocab - 2, (size, self.length), generator=generator)
        for taken in pair.sort(-1).values.T:  # in ascending order, so that all other tokens are equally likely
            tokens += tokens >= taken[:, None]
        last = self.length - 3
        places = torch.randint(last + 1, (size, 1), generator=generator)
        if self.depth is not None:
            places = torch.full_like(places, round(self.depth * last))
        tokens.scatter_(1, places, pair[:, :1]).scatter_(1, places + 1, pair[:, 1:])
        tokens[:, -1] = pair[:, 0]
        labels = torch.full_like(tokens, IGNORED)
        labels[:, -1] = pair[:, 1]
        return tokens, labels


@dataclass(frozen=True)
class Copy:
    """Long copy (as in Jelassi et al. 2024, "Repeat after me"): a random text, a separator, and the text again.

    length: tokens at most; a text is ``2 · half + 1`` long.
    vocab: tokens; the last one is the separator.
    given: tokens of the copy before the first target.

    Raises:
        OptionError: the copy has no target, or the vocabulary fewer than two tokens.
    """

    length: int = 65
    vocab: int = 128
    given: int = 0

    def __post_init__(self) -> None:
        if self.half <= self.given or self.vocab < 2:
            raise OptionError(
                f"{self.length} tokens of a vocabulary of {self.vocab} hold no copy of more than {self.given} tokens; "
                f"give {2 * self.given + 3} or more of 2 or more."
            )

    @property
    def half(self) -> int:
        """Tokens of the text that is copied."""
        return (self.length - 1) // 2

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Tokens and labels ``(B, 2 · half + 1)``: the next token at every token of the copy except the last."""
        text = torch.randint(self.vocab - 1, (size, self.half), generator=generator)
        tokens = torch.cat([text, text.new_full((size, 1), self.vocab - 1), text], 1)
        labels = torch.full_like(tokens, IGNORED)
        labels[:, self.half + self.given : -1] = text[:, self.given :]
        return tokens, labels


PAIRS, SIDE = 8, 3
SHOWN_OF_COPY = 8
"""Tokens of a copy that a checkpoint sees before the first target. They show it the task."""

for _task in (
    TokenTask("mqar", "eight values by their keys, among random tokens", ZOOLOGY, 4 * PAIRS, partial(Mqar, PAIRS)),
    TokenTask(
        "compositional", "nine values by two keys each, among random tokens", "zoology, compositional_mqar", 6 * SIDE**2,
        partial(Compositional, SIDE),
    ),
    TokenTask(
        "forgetting", "eight values, four of which have changed", "zoology, forgetting_mqar", 5 * PAIRS,
        partial(Forgetting, PAIRS, PAIRS // 2),
    ),
    TokenTask(
        "induction", "the token that followed when the last one occurred before", "Olsson et al. 2022", 4, Induction, placed=True
    ),
    TokenTask(
        "copy", "the second half of a random text that is repeated", "Jelassi et al. 2024", 2 * SHOWN_OF_COPY + 3,
        partial(Copy, given=SHOWN_OF_COPY),
    ),
):  # fmt: skip
    register_probe(_task)
