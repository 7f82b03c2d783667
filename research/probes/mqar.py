"""Multi-query associative recall (Arora et al. 2023, Zoology, section 3 and appendix E): key–value pairs, and the keys asked for later.

    k₁ v₁ k₂ v₂ … k_P v_P   x x k₂ x x x k₇ x k₁ …

At each asked key the next token is its value. The distance of a question from the pairs follows a power law, so that most are near,
and the rest of the text is filled with random tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hf_longattn.errors import OptionError

IGNORED = -100


@dataclass(frozen=True)
class Mqar:
    """The task.

    pairs: key–value pairs of a text; each key is asked for once.
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
        """``size`` texts: tokens ``(B, N)`` and labels ``(B, N)``, the value at each asked key and -100 elsewhere."""
        half, pairs = self.vocab // 2, self.pairs
        keys = torch.rand(size, half, generator=generator).topk(pairs, -1).indices
        values = torch.randint(half, self.vocab, (size, pairs), generator=generator)
        tokens = torch.randint(self.vocab, (size, self.length), generator=generator)
        tokens[:, : 2 * pairs] = torch.stack([keys, values], -1).flatten(1)
        gaps = (self.length - 2 * pairs) // 2
        law = torch.arange(1, gaps + 1, dtype=torch.float64) ** (self.power - 1)
        places = 2 * pairs + 2 * torch.multinomial(law.expand(size, -1), pairs, generator=generator)
        tokens.scatter_(1, places, keys)
        labels = torch.full_like(tokens, IGNORED).scatter_(1, places, values)
        return tokens, labels
