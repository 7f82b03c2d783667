"""How a state of constant size goes back a few tokens: what it was before its last steps, and what these brought."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..mechanisms.base import Mechanism, State

LONGEST = 64
"""So many tokens can be taken back at least, if they have come since the last time."""


@dataclass(frozen=True)
class Step:
    """One call of :meth:`hf_longattn.mechanisms.base.Mechanism.advance`; tensors among ``arguments`` are ``(B, tokens, ...)``."""

    mechanism: Mechanism
    before: State | None
    q: Tensor
    k: Tensor
    v: Tensor
    arguments: dict[str, Any]

    @property
    def tokens(self) -> int:
        return self.q.shape[2]

    def state_after(self, tokens: int) -> State | None:
        """The state after the first tokens of the step."""
        if not tokens:
            return self.before
        q, k, v = (x[:, :, :tokens] for x in (self.q, self.k, self.v))
        arguments: dict[str, Any] = {name: x[:, :tokens] if isinstance(x, Tensor) else x for name, x in self.arguments.items()}
        return self.mechanism.advance(q, k, v, self.before, **arguments)[1]


class LastSteps:
    """The steps since tokens were last taken back, or the last of them."""

    def __init__(self) -> None:
        self._steps: list[Step] = []

    def __len__(self) -> int:
        """How many tokens can be taken back."""
        return sum(step.tokens for step in self._steps)

    def add(self, step: Step) -> None:
        self._steps.append(step)
        while len(self) - self._steps[0].tokens >= LONGEST:
            self._steps.pop(0)

    def take_back(self, tokens: int) -> State | None:
        """The state before the last tokens, at most ``len(self)``; what came before that cannot be taken back any more."""
        while tokens > self._steps[-1].tokens:
            tokens -= self._steps.pop().tokens
        state = self._steps[-1].state_after(self._steps[-1].tokens - tokens)
        self._steps.clear()
        return state

    def clear(self) -> None:
        self._steps.clear()
