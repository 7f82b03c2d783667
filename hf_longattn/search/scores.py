"""Stage 1: what each candidate is worth in each layer, and the best choice of one per layer under a budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ..errors import OptionError
from ..inspect import Candidate, captured_mass
from .budget import Budget
from .candidates import FULL
from .costs import LayerCost
from .design import CostedDesign, Design
from .inputs import SearchInputs
from .knapsack import Numbers, best_under_peak, front, thinned
from .model import SearchedModel
from .objectives import Divergence, Progress, divergence_by_layer
from .texts import SearchText

QUERIES = 512
"""Queries measured in each piece."""


@dataclass(frozen=True)
class ScoreTable:
    """Scores of candidates by layer; greater is better.

    scores: ``[layer][candidate's text]``; candidates that cannot be judged are missing.
    reasons: why those cannot be judged, by text. failed: why no layer can run a candidate, by text.
    """

    scores: list[dict[str, float]]
    reasons: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def mass_table(
    model: SearchedModel, text: SearchText | SearchInputs, candidates: Sequence[Candidate], length: Any, pieces: int, queries: int,
    progress: Progress,
) -> ScoreTable:  # fmt: skip
    """Captured mass, from 0 to 1, in the checkpoint as it was trained. It is the mean over heads and pieces of ``length`` tokens, or
    images or sounds of this size."""
    masses, reasons = list[torch.Tensor](), dict[str, str]()
    of_text: Sequence[Any] = text.pieces(length, pieces)
    for number, piece in enumerate(of_text):
        progress(f"captured mass, piece {number + 1}")
        measured = captured_mass(model.run_with(model.base_attention, short=True), piece, candidates, queries=queries, seed=number)
        reasons |= dict(measured.reasons)
        masses.append(measured.mass.mean(1))
    mean = torch.stack(masses).mean(0)
    judged = [(number, str(candidate)) for number, candidate in enumerate(candidates) if str(candidate) not in reasons]
    return ScoreTable([{name: float(row[number]) for number, name in judged} for row in mean], reasons)


def divergence_table(
    model: SearchedModel, divergence: Divergence, candidates: Sequence[Candidate], progress: Progress
) -> ScoreTable:  # fmt: skip
    """Minus the KL divergence of the model in which this layer alone runs the candidate."""
    divergences, failed = divergence_by_layer(divergence, candidates, model.base_design, progress)
    return ScoreTable([{name: -value for name, value in row.items()} for row in divergences], failed=failed)


@dataclass(frozen=True)
class CostTable:
    """Costs of candidates, and of designs made of them.

    costs: of one layer, by the candidate's text, full attention's among them.
    sums: whether the bytes of all layers count together, as in a decoder, or those of the largest, as in an encoder.
    named: layers of designs, as in :class:`~hf_longattn.search.design.Design`.
    """

    costs: Mapping[str, LayerCost]
    layers: int
    sums: bool
    named: frozenset[int] = frozenset()

    def uniform(self, candidate: Candidate) -> Design:
        """The design with one candidate in every layer."""
        return Design.uniform(candidate, self.layers, self.named)

    @property
    def full_seconds(self) -> float:
        return self.layers * self.costs[str(FULL)].seconds

    def costed(self, design: Design, table: ScoreTable | None = None, score: str = "mass", loss: float | None = None) -> CostedDesign:
        """A design with its costs and, if every layer was judged, its score."""
        costs = [self.costs[name] for name in design.names]
        sizes = [cost.bytes for cost in costs if cost.bytes is not None]
        value = None
        if table is not None and all(name in row for name, row in zip(design.names, table.scores, strict=True)):
            total = sum(row[name] for name, row in zip(design.names, table.scores, strict=True))
            value = total / self.layers if score == "mass" else total
        size = None if len(sizes) < len(costs) else sum(sizes) if self.sums else max(sizes)
        return CostedDesign(design, sum(cost.seconds for cost in costs), size, value, loss)

    def layer_cost(self, name: str, budget: Budget) -> float:
        """What a candidate costs in one layer, in the budget's unit."""
        cost = self.costs[name]
        return float(cost.bytes or 0) if budget.of_memory else cost.seconds


def choose(
    table: ScoreTable, candidates: Sequence[Candidate], costs: CostTable, budget: Budget, score: str, points: int = 40
) -> tuple[CostedDesign, list[CostedDesign]]:
    """The best design within the budget, and the best ones under every budget, cheapest first.

    Raises:
        OptionError: nothing meets the budget; the sentence says what the cheapest design costs.
    """
    judged = [candidate for candidate in candidates if any(str(candidate) in row for row in table.scores)]
    if not judged:
        why = next(iter(table.reasons.values()), "")
        raise OptionError(f"No candidate can be judged by captured mass ({why.rstrip('.')}); add --score kl, or give other candidates.")
    names = list(map(str, judged))
    values: Numbers = np.array([[row.get(name, np.nan) for name in names] for row in table.scores])
    amounts: Numbers = np.array([[costs.layer_cost(name, budget) for name in names]] * len(values))
    seconds: Numbers = np.array([[costs.costs[name].seconds for name in names]] * len(values))
    limit = budget.limit(costs.full_seconds)
    cheapest = costs.uniform(min(judged, key=lambda candidate: costs.layer_cost(str(candidate), budget)))
    peak = budget.of_memory and not costs.sums
    lowest = costs.layer_cost(cheapest.names[0], budget) * (1 if peak else costs.layers)
    if lowest > limit:
        enough = budget.like(lowest, costs.full_seconds)
        raise OptionError(
            f"No design meets the budget of {budget}: the cheapest, {cheapest}, needs {enough}; give --budget {enough}, or a cheaper "
            "--candidate of `longattn search`."
        )

    def design(numbers: tuple[int, ...]) -> CostedDesign:
        return costs.costed(Design(tuple(judged[number] for number in numbers), costs.named), table, score)

    best = best_under_peak(values, seconds, amounts, limit) if peak else next(iter(front(values, amounts, limit)[-1:]), None)
    if best is None:  # a rounding error of the last unit
        return costs.costed(cheapest, table, score), [costs.costed(cheapest, table, score)]
    if peak:
        under_peaks = [best_under_peak(values, seconds, amounts, highest) for highest in sorted(set(amounts[0].tolist()))]
        solutions = [solution for solution in under_peaks if solution is not None]
    else:
        solutions = front(values, amounts)
    chosen = [design(solution.candidates) for solution in thinned(solutions, points)]
    return design(best.candidates), list({costed.design.names: costed for costed in chosen}.values())
