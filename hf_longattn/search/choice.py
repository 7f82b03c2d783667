"""Captured mass of candidates in each layer, the best choice of one candidate per layer under a budget, and its effect
on predictions.

The best choice within a budget is a multiple-choice knapsack, solved by dynamic programming
(:func:`best_under_total`):

    maximise  Σ_l value[l, c_l]   subject to   Σ_l cost[l, c_l] ≤ budget

Layer by layer, a partial choice stays if no other has more value at the same cost or less; costs are not rounded. If
more than 20,000 remain, the best in each 20,000th of the largest budget stays. A choice is therefore always within its
budget. A better choice can be missed only if it is cheaper by less than that fraction of the budget per layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..data.tokenization import special_ids
from ..errors import OptionError
from ..evaluation.token_loss import LossChange, in_chunks, token_losses, with_context
from ..inspect import Candidate, captured_mass
from ..inspect.attention import Progress
from .budget import Budget
from .design import FULL, Design, DesignCosts
from .model import SearchedModel, SearchInputs, SearchText

QUERIES = 512
"""Maximum queries per piece at which captured mass is measured."""
MAX_PARTIAL = 20_000
"""Maximum number of partial choices that stay after a layer."""
TOLERANCE = 1e-9
"""Costs or values with a smaller relative difference are equal."""
Numbers: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ScoreTable:
    """Captured mass of candidates by layer.

    scores: ``[layer][candidate as text]``. A candidate without a score is missing.
    reasons: candidate as text -> why it has no score.
    """

    scores: list[dict[str, float]]
    reasons: dict[str, str]

    def mean(self, design: Design) -> float | None:
        """The mean score of a design's layers; ``None`` if a layer has no score."""
        pairs = list(zip(self.scores, design.names, strict=True))
        if not all(name in row for row, name in pairs):
            return None
        return sum(row[name] for row, name in pairs) / len(pairs)


def mass_table(
    model: SearchedModel,
    text: SearchText | SearchInputs,
    candidates: Sequence[Candidate],
    length: Any,
    pieces: int,
    progress: Progress,
) -> ScoreTable:
    """Captured mass, from 0 to 1, in the checkpoint as it was trained. It is the mean over heads and over pieces of
    ``length`` tokens, or images or sounds of this size."""
    masses: list[Tensor] = []
    reasons: dict[str, str] = {}
    inputs: Sequence[Any] = text.pieces(length, pieces)
    for number, piece in enumerate(inputs):
        progress(f"captured mass, piece {number + 1}")
        measured = captured_mass(
            model.run_with(model.base_attention, short=True), piece, candidates, queries=QUERIES, seed=number
        )
        reasons |= dict(measured.reasons)
        masses.append(measured.mass.mean(1))
    mean = torch.stack(masses).mean(0)
    judged = [(number, str(candidate)) for number, candidate in enumerate(candidates) if str(candidate) not in reasons]
    return ScoreTable([{name: float(row[number]) for number, name in judged} for row in mean], reasons)


def choose(table: ScoreTable, candidates: Sequence[Candidate], costs: DesignCosts, budget: Budget) -> Design:
    """The best design within the budget.

    Raises:
        OptionError: no design meets the budget; the message has the cost of the cheapest design.
    """
    judged = [candidate for candidate in candidates if any(str(candidate) in row for row in table.scores)]
    if not judged:
        why = next(iter(table.reasons.values()), "")
        raise OptionError(f"No candidate can be judged by captured mass ({why.rstrip('.')}); give other candidates.")
    full_seconds = costs.layers * costs.seconds[str(FULL)]
    names = list(map(str, judged))
    values: Numbers = np.array([[row.get(name, np.nan) for name in names] for row in table.scores])
    seconds: Numbers = np.array([[costs.seconds[name] for name in names]] * costs.layers)
    best = best_under_total(values, seconds, budget.limit(full_seconds))
    if best is None:
        cheapest = costs.uniform(min(judged, key=lambda candidate: costs.seconds[str(candidate)]))
        enough = budget.like(costs.costed(cheapest).seconds, full_seconds)
        raise OptionError(
            f"No design meets the budget of {budget}: the cheapest, {cheapest}, needs {enough}; give --budget "
            f"{enough}, or a cheaper --candidate of `longattn search`."
        )
    return Design(tuple(judged[number] for number in best), costs.named)


def loss_change(model: SearchedModel, text: SearchText, pieces: int, design: Design) -> LossChange | None:
    """The change of the held-out loss from the checkpoint to the converted model without training.

    The model reads texts of the target length, the checkpoint chunks of at most its maximum length. ``None`` if no
    token is predicted.

    Args:
        model: the model to convert; it must predict tokens.
        pieces: maximum number of pieces of ``text``.
    """
    special = ([], []) if model.tokenizer is None else special_ids(model.tokenizer)
    causal = model.original.shape.causal
    texts = []
    for ids, labels in text.predicted(model.length, pieces, causal=causal):
        chunk = min(len(ids), model.trained_length)
        tokens = len(ids) // chunk * chunk
        texts.append((ids[None, :tokens].to(model.device), labels[None, :tokens], chunk))
    original = model.run_with(model.base_attention, short=True)
    before = []
    for ids, labels, chunk in texts:
        rows = zip(*(x.split(1) for x in in_chunks(ids, labels, chunk, special)), strict=True)
        losses = torch.cat([token_losses(original, *row, causal=causal) for row in rows])
        before.append(with_context(losses, chunk, causal=causal))
    converted = model.run_with(design.attention())
    after = [token_losses(converted, ids, labels, causal=causal) for ids, labels, _ in texts]
    return LossChange.of(torch.cat(before), torch.cat(after))


def best_under_total(values: Numbers, costs: Numbers, limit: float) -> list[int] | None:
    """The candidate of each layer in the best choice whose costs sum to at most ``limit``; ``None`` if even the
    cheapest exceeds it.

    Args:
        values: ``(layers, candidates)``; nan or -inf where a candidate is impossible.
        costs: ``(layers, candidates)`` of at least 0; inf where impossible.
    """
    possible = np.isfinite(values) & np.isfinite(costs)
    limit *= 1 + TOLERANCE
    cost = value = np.zeros(1)
    steps: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]] = []
    for layer in range(len(values)):
        numbers = np.flatnonzero(possible[layer])
        total = (cost[:, None] + costs[layer, numbers]).ravel()
        worth = (value[:, None] + values[layer, numbers]).ravel()
        order = np.lexsort((-worth, total))
        order = order[total[order] <= limit]
        if not len(order):
            return None
        highest = np.maximum.accumulate(worth[order])
        order = order[np.concatenate([[True], highest[1:] > highest[:-1] + TOLERANCE])]
        if len(order) > MAX_PARTIAL:
            cell = np.floor(total[order] / limit * MAX_PARTIAL)
            # values rise, so the last of a cell is its best
            order = order[np.concatenate([cell[1:] > cell[:-1], [True]])]
        steps.append((order // len(numbers), numbers[order % len(numbers)]))
        cost = total[order]
        value = worth[order]
    at = len(cost) - 1  # costs and values both rise
    candidates = []
    for parents, chosen in reversed(steps):
        candidates.append(int(chosen[at]))
        at = int(parents[at])
    return candidates[::-1]
