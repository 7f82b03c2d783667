"""The result of a search: the design, what it was chosen from, and its JSON form."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..evaluation.token_loss import LossChange
from ..inputs.kind import InputSize
from .config import Budget, readable_bytes, readable_seconds
from .costs import LayerCost
from .design import CostedDesign

FORMAT = 2
"""Number of the JSON form; it changes when a key changes its meaning or goes."""


@dataclass(frozen=True)
class LayerRow:
    """One layer: what each candidate is worth there, by its text; a candidate that cannot be judged is missing."""

    scores: Mapping[str, float]
    chosen: str


@dataclass(frozen=True)
class SearchResult:
    """The outcome of a search.

    Attributes:
        model: its name.
        text: the name of what was read.
        length: of the target, in tokens.
        compared_at: tokens at which ``score`` was measured.
        sizes: of a model of images or sound, the size of the target's and of those at which ``score`` was measured.
        full_seconds: of full attention in every layer.
        full_bytes: the same, its memory.
        chosen: the design.
        reason: why, in a sentence.
        front: the best designs by ``score`` under every budget, cheapest first.
        uniform: designs with one candidate in every layer.
        rows: the layers.
        costs: seconds and bytes of one layer, by candidate.
        reasons: why candidates were left out, by candidate.
        loss_change: of held-out text at the target length, from the checkpoint in chunks to the design without training.
        no_loss: why it was not measured.
        recipe: flags of `longattn convert`. file: in which they were written.
        machine: where it ran.
    """

    model: str
    text: str
    length: int
    compared_at: int
    budget: Budget
    score: str
    full_seconds: float
    full_bytes: int | None
    chosen: CostedDesign
    reason: str
    front: tuple[CostedDesign, ...]
    uniform: tuple[CostedDesign, ...]
    rows: tuple[LayerRow, ...]
    costs: Mapping[str, LayerCost]
    reasons: Mapping[str, str]
    machine: Mapping[str, Any]
    recipe: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    file: str | None = None
    loss_change: LossChange | None = None
    no_loss: str = ""
    sizes: tuple[InputSize, InputSize] | None = None
    material: str = "texts"

    @property
    def target(self) -> str:
        """What the result reads, in words."""
        return f"{self.length:,} tokens" if self.sizes is None else str(self.sizes[0])

    def compared_sizes(self) -> dict[str, Any]:
        """The sizes of the target's inputs and of those compared, by name; none of texts."""
        if self.sizes is None:
            return {}
        new, compared = self.sizes
        return {new.name: new.values[new.name], f"compared_{new.name}": compared.values[new.name]}

    @property
    def command(self) -> str:
        """The command that converts the checkpoint to the design, as a shell reads it."""
        destination = f"{Path(self.model).name}-long"
        return shlex.join(["longattn", "convert", self.model, destination, "--config", self.file or "design.yaml"])

    @property
    def loss_sentence(self) -> str:
        """What the design does to the predictions, or why that was not measured."""
        if self.loss_change is None:
            return f"No held-out loss was measured: {self.no_loss}" if self.no_loss else ""
        verdict = "worse, so train after the conversion" if self.loss_change.worse else "not worse"
        return f"Without training the held-out loss at {self.length:,} tokens is {verdict}: {self.loss_change}."

    def cost_of(self, costed: CostedDesign) -> str:
        """A design's cost in words."""
        if self.budget.of_memory:
            return readable_bytes(costed.bytes or 0)
        return f"{readable_seconds(costed.seconds)} ({costed.seconds / self.full_seconds:.3g} of full attention)"

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form."""
        full = self.full_seconds
        return {
            "format": FORMAT,
            "model": self.model,
            "text": self.text,
            "length": self.length,
            "compared_at": self.compared_at,
            **self.compared_sizes(),
            "budget": str(self.budget),
            "score": self.score,
            "chosen": self.chosen.to_dict(full),
            "reason": self.reason,
            "loss_change": None if self.loss_change is None else self.loss_change.to_dict(),
            **({"no_loss": self.no_loss} if self.no_loss else {}),
            "long_attention": self.chosen.design.attention().to_dict(),
            "recipe": dict(self.recipe),
            "command": self.command,
            "full_seconds": full,
            **({} if self.full_bytes is None else {"full_bytes": self.full_bytes}),
            "costs": {name: cost.to_dict() for name, cost in self.costs.items()},
            "layers": [{"chosen": row.chosen, "scores": dict(row.scores)} for row in self.rows],
            "front": [costed.to_dict(full) for costed in self.front],
            "uniform": [costed.to_dict(full) for costed in self.uniform],
            "left_out": dict(self.reasons),
            "notes": list(self.notes),
            "machine": dict(self.machine),
        }
