"""Stage 1: what each candidate is worth in each layer, and the best choice of one per layer under a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from ..errors import OptionError
from ..inspect import Candidate, captured_mass
from ..inspect.attention import Progress
from .design import Design, DesignCosts, unique
from .inputs import SearchInputs, SearchText
from .knapsack import Numbers, Solution, best_under_peak, front, thinned
from .model import SearchedModel
from .objectives import Objective, measured

DRAWN = 40
"""Best designs under every budget that are kept."""


@dataclass(frozen=True)
class ScoreTable:
    """Scores of candidates by layer; greater is better.

    scores: ``[layer][candidate's text]``; candidates that cannot be judged are missing.
    reasons: why those cannot be judged, by text. failed: why no layer can run a candidate, by text.
    """

    scores: list[dict[str, float]]
    reasons: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def total(self, design: Design) -> float | None:
        """The sum over a design's layers; ``None`` if one of them was not judged."""
        pairs = list(zip(self.scores, design.names, strict=True))
        return sum(row[name] for row, name in pairs) if all(name in row for row, name in pairs) else None


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


def divergence_table(divergence: Objective, candidates: Sequence[Candidate], base: Design, progress: Progress) -> ScoreTable:
    """Minus the KL divergence of the model in which this layer alone runs the candidate. The others run the checkpoint's ``base``."""
    table: list[dict[str, float]] = [{} for _ in base.layers]
    failed: dict[str, str] = {}
    for candidate in candidates:
        name = str(candidate)
        for layer, row in enumerate(table):
            progress(f"layer {layer}: {name}")
            value, why = measured(divergence, replace(base, layers=(*base.layers[:layer], candidate, *base.layers[layer + 1 :])))
            if why:
                failed[name] = f"It failed in layer {layer}: {why}."
                break
            row[name] = -value
    return ScoreTable([{name: value for name, value in row.items() if name not in failed} for row in table], failed=failed)


def choose(table: ScoreTable, candidates: Sequence[Candidate], costs: DesignCosts) -> tuple[Design, list[Design]]:
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
    amounts: Numbers = np.array([list(map(costs.of_layer, names))] * costs.layers)
    seconds: Numbers = np.array([[costs.by_candidate[name].seconds for name in names]] * costs.layers)
    if costs.peak:
        best = best_under_peak(values, seconds, amounts, costs.limit)
        solutions = [best_under_peak(values, seconds, amounts, peak) for peak in np.unique(amounts)]
    else:
        best = next(iter(front(values, amounts, costs.limit)[-1:]), None)
        solutions = list(front(values, amounts))
    if best is None:
        cheapest = costs.uniform(min(judged, key=lambda candidate: costs.of_layer(str(candidate))))
        enough = costs.budget.like(costs.of_design(cheapest), costs.full_seconds)
        raise OptionError(
            f"No design meets the budget of {costs.budget}: the cheapest, {cheapest}, needs {enough}; give --budget {enough}, or a cheaper "
            "--candidate of `longattn search`."
        )

    def design(solution: Solution) -> Design:
        return Design(tuple(judged[number] for number in solution.candidates), costs.named)

    return design(best), unique([design(solution) for solution in thinned([one for one in solutions if one is not None], DRAWN)])
