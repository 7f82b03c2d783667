"""Stage 1: what each candidate is worth in each layer, and the best choice of one per layer under a budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from ..diagnostics import Candidate, captured_mass
from ..errors import OptionError
from .budget import Budget
from .candidates import FULL
from .costs import LayerCost
from .design import CostedDesign, Design
from .knapsack import Numbers, best_under_peak, front, thinned
from .model import SearchedModel
from .objectives import Divergence, divergence_by_layer
from .texts import SearchText

QUERIES = 512
"""Queries measured in each piece."""
Progress = Callable[[str], None]


@dataclass(frozen=True)
class ScoreTable:
    """Scores of candidates by layer, the greater the better.

    scores: ``[layer][candidate's text]``; candidates that cannot be judged are missing.
    reasons: of those, by text. failed: of candidates that no layer can run, by text.
    """

    scores: list[dict[str, float]]
    reasons: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def mass_table(
    model: SearchedModel, text: SearchText, candidates: Sequence[Candidate], length: int, pieces: int, queries: int, progress: Progress
) -> ScoreTable:
    """Captured mass, from 0 to 1, mean over heads and pieces, in the checkpoint as it was trained."""
    masses, reasons = list[torch.Tensor](), dict[str, str]()
    for number, piece in enumerate(text.pieces(length, pieces)):
        progress(f"captured mass, piece {number + 1}")
        measured = captured_mass(model.run_with(model.own_attention, short=True), piece, candidates, queries=queries, seed=number)
        reasons |= dict(measured.reasons)
        masses.append(measured.mass.mean(1))
    mean = torch.stack(masses).mean(0)
    judged = [number for number, one in enumerate(candidates) if str(one) not in reasons]
    return ScoreTable([{str(candidates[number]): float(row[number]) for number in judged} for row in mean], reasons)


def divergence_table(
    model: SearchedModel, divergence: Divergence, candidates: Sequence[Candidate], progress: Progress
) -> ScoreTable:  # fmt: skip
    """Minus the KL divergence of the model in which this layer alone runs the candidate."""
    divergences, failed = divergence_by_layer(divergence, candidates, model.own_design, progress)
    return ScoreTable([{name: -value for name, value in row.items()} for row in divergences], failed=failed)


@dataclass(frozen=True)
class CostTable:
    """Costs of candidates and how designs are priced.

    costs: of one layer, by the candidate's text, full attention's among them.
    sums: whether the bytes of all layers count together, as in a decoder, or those of the largest, as in an encoder.
    named: layers of designs, as of :class:`~hf_longattn.search.design.Design`.
    """

    costs: Mapping[str, LayerCost]
    layers: int
    sums: bool
    named: frozenset[int] = frozenset()

    def uniform(self, candidate: Candidate) -> Design:
        """The same in every layer."""
        return Design.uniform(candidate, self.layers, self.named)

    @property
    def full_seconds(self) -> float:
        return self.layers * self.costs[str(FULL)].seconds

    def priced(self, design: Design, table: ScoreTable | None = None, score: str = "mass", loss: float | None = None) -> CostedDesign:
        """A design with its costs and, if every layer was judged, its score."""
        costs = [self.costs[name] for name in design.names]
        sizes = [one.bytes for one in costs if one.bytes is not None]
        value = None
        if table is not None and all(name in row for name, row in zip(design.names, table.scores, strict=True)):
            total = sum(row[name] for name, row in zip(design.names, table.scores, strict=True))
            value = total / self.layers if score == "mass" else total
        size = None if len(sizes) < len(costs) else sum(sizes) if self.sums else max(sizes)
        return CostedDesign(design, sum(one.seconds for one in costs), size, value, loss)

    def price(self, name: str, budget: Budget) -> float:
        """Of one layer, in the budget's unit."""
        cost = self.costs[name]
        return float(cost.bytes or 0) if budget.of_memory else cost.seconds


def choose(
    table: ScoreTable, candidates: Sequence[Candidate], prices: CostTable, budget: Budget, score: str, points: int = 40
) -> tuple[CostedDesign, list[CostedDesign]]:
    """The best design within the budget, and the best ones under every budget, cheapest first.

    Raises:
        OptionError: nothing meets the budget; the sentence says what the cheapest design costs.
    """
    judged = [one for one in candidates if any(str(one) in row for row in table.scores)]
    if not judged:
        why = next(iter(table.reasons.values()), "")
        raise OptionError(f"No candidate can be judged by captured mass ({why.rstrip('.')}); add --score kl, or give other candidates.")
    names = [str(one) for one in judged]
    values: Numbers = np.array([[row.get(name, np.nan) for name in names] for row in table.scores])
    costs: Numbers = np.array([[prices.price(name, budget) for name in names]] * len(values))
    seconds: Numbers = np.array([[prices.costs[name].seconds for name in names]] * len(values))
    limit = budget.limit(prices.full_seconds)
    cheapest = cheapest_design(judged, prices, budget)
    least = cheapest_price(cheapest, prices, budget)
    if least > limit:
        raise refuse_budget(budget, cheapest, least, prices)
    peak = budget.of_memory and not prices.sums

    def design(numbers: tuple[int, ...]) -> CostedDesign:
        return prices.priced(Design(tuple(judged[one] for one in numbers), prices.named), table, score)

    best = best_under_peak(values, seconds, costs, limit) if peak else next(iter(front(values, costs, limit)[-1:]), None)
    if best is None:  # a rounding error of the last unit
        return prices.priced(cheapest, table, score), [prices.priced(cheapest, table, score)]
    if peak:
        steps = [best_under_peak(values, seconds, costs, one) for one in sorted({float(one) for one in costs[0]})]
        everything = [one for one in steps if one is not None]
    else:
        everything = front(values, costs)
    chosen = [design(one.candidates) for one in thinned(everything, points)]
    return design(best.candidates), list({one.design.names: one for one in chosen}.values())


def cheapest_design(candidates: Sequence[Candidate], prices: CostTable, budget: Budget) -> Design:
    """The candidate with the lowest price in every layer."""
    return prices.uniform(min(candidates, key=lambda one: prices.price(str(one), budget)))


def cheapest_price(design: Design, prices: CostTable, budget: Budget) -> float:
    """Of a uniform design, in the budget's unit."""
    one = prices.price(design.names[0], budget)
    return one if budget.of_memory and not prices.sums else one * prices.layers


def refuse_budget(budget: Budget, cheapest: Design, least: float, prices: CostTable) -> OptionError:
    """What is said of a budget that nothing meets."""
    offered = budget.like(least, prices.full_seconds)
    return OptionError(
        f"No design meets the budget of {budget}: the cheapest, {cheapest}, needs {offered}; give --budget {offered}, or a cheaper "
        "--candidate of `longattn search`."
    )
