"""Tasks over tokens that mean nothing: recall of pairs (Zoology), induction, copying.

Each class is a task of a fixed size; ``batch(size, generator)`` returns tokens and labels ``(B, N)``: the next token at targets,
:data:`IGNORED` elsewhere. They train small models. `longattn probe` asks checkpoints with the tokenizer's ids as symbols.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import OptionError
from .task import IGNORED, TokenTask, register_probe

ZOOLOGY = "Arora et al. 2023, Zoology"


@dataclass(frozen=True)
class Mqar:
    """Multi-query associative recall (Arora et al. 2023, Zoology, section 3 and appendix E): key–value pairs, and later queries of the
    keys.

        k₁ v₁ k₂ v₂ … k_P v_P   x x k₂ x x x k₇ x k₁ …

    After each queried key, the next token is its value. The distance of a query from the pairs follows a power law, so that most are near.
    Random tokens fill the rest.

    pairs: key–value pairs of a text. Each key is queried once.
    length: tokens of a text, at least four for each pair.
    vocab: tokens; the lower half are keys, the upper half values.
    power: exponent of the distances' law, ``p(gap) ∝ gap^(power - 1)``; small values ask for near pairs.

    Raises:
        OptionError: the pairs do not fit into the text or into the vocabulary.
    """

    pairs: int = 8
    length: int = 64
    vocab: int = 128
    power: float = 0.1

    def __post_init__(self) -> None:
        if self.pairs < 1 or 4 * self.pairs > self.length:
            raise OptionError(f"{self.pairs} pairs do not fit into {self.length} tokens: a text has at least four tokens for each of them.")
        if 2 * self.pairs > self.vocab:
            raise OptionError(f"{self.pairs} pairs need {2 * self.pairs} tokens at least, but the vocabulary has {self.vocab}.")

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """``size`` texts: tokens ``(B, N)`` and labels ``(B, N)``, the value at each queried key, -100 elsewhere."""
        half, pairs = self.vocab // 2, self.pairs
        keys = torch.rand(size, half, generator=generator).topk(pairs, -1).indices
        values = torch.randint(half, self.vocab, (size, pairs), generator=generator)
        tokens = torch.randint(self.vocab, (size, self.length), generator=generator)
        tokens[:, : 2 * pairs] = torch.stack([keys, values], -1).flatten(1)
        places = questions(size, pairs, 2 * pairs, 2, self.length, self.power, generator)
        tokens.scatter_(1, places, keys)
        labels = torch.full_like(tokens, IGNORED).scatter_(1, places, values)
        return tokens, labels


def questions(size: int, count: int, first: int, width: int, length: int, power: float, generator: torch.Generator) -> Tensor:
    """Places ``(size, count)`` of queries of ``width`` tokens after ``first``, by the power law."""
    law = torch.arange(1, (length - first) // width + 1, dtype=torch.float64) ** (power - 1)
    return first + width * torch.multinomial(law.expand(size, -1), count, generator=generator)


@dataclass(frozen=True)
class Compositional:
    """Recall by two keys (zoology's compositional_mqar). The value depends on both keys of a grid.

        a x v₁ b y v₂ a y v₃ b x v₄   … b y … a x …

    side: number of first keys and of second keys. Each of their ``side²`` pairs is queried once.
    length: tokens of a text, at least six for each pair.
    vocab: tokens; a third are first keys, a third second ones, a third values.
    power: as in :class:`Mqar`.

    Raises:
        OptionError: the pairs do not fit into the text or into the vocabulary.
    """

    side: int = 3
    length: int = 96
    vocab: int = 129
    power: float = 0.1

    def __post_init__(self) -> None:
        if self.side < 2 or 6 * self.pairs > self.length:
            raise OptionError(
                f"A grid of side {self.side} does not fit into {self.length} tokens: the side is 2 or more, and a text has at least six "
                f"tokens for each of its {self.pairs} pairs."
            )
        if self.pairs > self.vocab // 3:
            raise OptionError(f"{self.pairs} pairs need {3 * self.pairs} tokens at least, but the vocabulary has {self.vocab}.")

    @property
    def pairs(self) -> int:
        return self.side**2

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Tokens and labels ``(B, N)``: the value at each queried second key."""
        third, pairs = self.vocab // 3, self.pairs

        def chosen(count: int) -> Tensor:
            return torch.rand(size, third, generator=generator).topk(count, -1).indices

        order = torch.rand(size, pairs, generator=generator).argsort(-1)
        first = chosen(self.side).repeat_interleave(self.side, 1).gather(1, order)
        second = (third + chosen(self.side)).repeat(1, self.side).gather(1, order)
        values = 2 * third + chosen(pairs)
        tokens = torch.randint(self.vocab, (size, self.length), generator=generator)
        tokens[:, : 3 * pairs] = torch.stack([first, second, values], -1).flatten(1)
        places = questions(size, pairs, 3 * pairs, 3, self.length, self.power, generator)
        tokens.scatter_(1, places, first).scatter_(1, places + 1, second)
        return tokens, torch.full_like(tokens, IGNORED).scatter_(1, places + 1, values)


@dataclass(frozen=True)
class Forgetting:
    """Recall of the latest value (zoology's forgetting_mqar). Some keys get a second value, which is the target.

        a v₁ b v₂ c v₃   a v₄   … b … a …

    pairs, length, vocab, power: as in :class:`Mqar`.
    updates: keys with a second value.

    Raises:
        OptionError: the pairs do not fit into the text or into the vocabulary.
    """

    pairs: int = 8
    updates: int = 4
    length: int = 96
    vocab: int = 128
    power: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.updates <= self.pairs:
            raise OptionError(f"0 to {self.pairs} updates fit, one for a pair, not {self.updates}; give another number.")
        if self.pairs < 1 or 4 * self.pairs + 2 * self.updates > self.length:
            raise OptionError(
                f"{self.pairs} pairs with {self.updates} updates do not fit into {self.length} tokens: a text has at least four tokens for "
                "each pair and two for each update."
            )
        if 2 * self.pairs > self.vocab or self.vocab < 4:
            raise OptionError(f"{self.pairs} pairs need {max(4, 2 * self.pairs)} tokens at least, but the vocabulary has {self.vocab}.")

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Tokens and labels ``(B, N)``: the latest value at each queried key."""
        half, pairs, context = self.vocab // 2, self.pairs, 2 * (self.pairs + self.updates)
        keys = torch.rand(size, half, generator=generator).topk(pairs, -1).indices
        values = torch.randint(self.vocab - half, (size, pairs), generator=generator)
        updated = torch.rand(size, pairs, generator=generator).argsort(-1)[:, : self.updates]
        moved = torch.randint(1, self.vocab - half, (size, self.updates), generator=generator)
        latest = values.scatter_add(1, updated, moved) % (self.vocab - half)  # another value, each equally likely
        old = torch.stack([keys, half + values], -1)
        new = torch.stack([keys.gather(1, updated), half + latest.gather(1, updated)], -1)
        tokens = torch.randint(self.vocab, (size, self.length), generator=generator)
        tokens[:, :context] = torch.cat([old, new], 1).flatten(1)
        places = questions(size, pairs, context, 2, self.length, self.power, generator)
        tokens.scatter_(1, places, keys)
        return tokens, torch.full_like(tokens, IGNORED).scatter_(1, places, half + latest)


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

register_probe(
    TokenTask(
        "mqar", "eight values by their keys, among random tokens", ZOOLOGY, 4 * PAIRS, lambda length, vocab, _: Mqar(PAIRS, length, vocab)
    )
)
register_probe(
    TokenTask(
        "compositional", "nine values by two keys each, among random tokens", "zoology, compositional_mqar", 6 * SIDE**2,
        lambda length, vocab, _: Compositional(SIDE, length, vocab),
    )
)  # fmt: skip
register_probe(
    TokenTask(
        "forgetting", "eight values, four of which have changed", "zoology, forgetting_mqar", 5 * PAIRS,
        lambda length, vocab, _: Forgetting(PAIRS, PAIRS // 2, length, vocab),
    )
)  # fmt: skip
register_probe(
    TokenTask("induction", "the token that followed when the last one occurred before", "Olsson et al. 2022", 4, Induction, placed=True)
)
register_probe(
    TokenTask(
        "copy", "the second half of a random text that is repeated", "Jelassi et al. 2024", 2 * SHOWN_OF_COPY + 3,
        lambda length, vocab, _: Copy(length, vocab, SHOWN_OF_COPY),
    )
)  # fmt: skip
