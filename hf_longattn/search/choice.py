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

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..data.batching import masked_tokens
from ..data.tokenization import special_ids
from ..errors import OptionError
from ..evaluation.token_loss import LossChange, in_chunks, token_losses, with_context
from ..inspect import Candidate, captured_mass
from ..inspect.attention import Progress
from .budget import Budget
from .design import FULL, Design
from .model import SearchedModel, SearchText

QUERIES = 512
"""Maximum queries per piece at which captured mass is measured."""
MAX_PARTIAL = 20_000
"""Maximum number of partial choices that stay after a layer."""
TOLERANCE = 1e-9
"""Costs or values with a smaller relative difference are equal."""
Numbers: TypeAlias = npt.NDArray[np.float64]


def measured_mass(
    model: SearchedModel, inputs: Sequence[Any], candidates: Sequence[Candidate], progress: Progress
) -> tuple[list[dict[str, float]], dict[str, str]]:
    """Captured mass, from 0 to 1, in the checkpoint as it was trained: the mean over heads and over ``inputs``.

    Returns:
        For each layer candidate as text -> its captured mass, and candidate as text -> why it has none.
    """
    masses: list[Tensor] = []
    reasons: dict[str, str] = {}
    for number, piece in enumerate(inputs):
        progress(f"captured mass, piece {number + 1}")
        measured = captured_mass(
            model.run_with(model.base_attention, short=True), piece, candidates, queries=QUERIES, seed=number
        )
        reasons |= dict(measured.reasons)
        masses.append(measured.mass.mean(1))
    names = list(map(str, candidates))
    scores = []
    for row in torch.stack(masses).mean(0).tolist():
        scores.append({name: value for name, value in zip(names, row, strict=True) if name not in reasons})
    return scores, reasons


def choose(
    scores: Sequence[Mapping[str, float]],
    candidates: Sequence[Candidate],
    seconds: Mapping[str, float],
    budget: Budget,
    named: frozenset[int],
) -> Design:
    """The best design within the budget.

    Args:
        scores: for each layer candidate as text -> its captured mass.
        candidates: those that have a captured mass.
        seconds: candidate as text -> seconds of one layer; full attention is among them.
        named: as in :class:`.design.Design`.

    Raises:
        OptionError: no design meets the budget; the message has the cost of the cheapest design.
    """
    names = list(map(str, candidates))
    values: Numbers = np.array([[row[name] for name in names] for row in scores])
    costs: Numbers = np.array([[seconds[name] for name in names]] * len(scores))
    full_seconds = len(scores) * seconds[str(FULL)]
    best = best_under_total(values, costs, budget.limit(full_seconds))
    if best is None:
        cheapest = Design((min(candidates, key=lambda candidate: seconds[str(candidate)]),) * len(scores))
        enough = budget.like(sum(seconds[name] for name in cheapest.names), full_seconds)
        raise OptionError(
            f"No design meets the budget of {budget}: the cheapest, {cheapest}, needs {enough}; give --budget "
            f"{enough}, or a cheaper --candidate of `longattn search`."
        )
    return Design(tuple(candidates[number] for number in best), named)


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
    for number, ids in enumerate(text.pieces(model.length, pieces)):
        labels = ids
        if not causal:
            ids, labels = masked_tokens(ids, model.tokenizer, number)
        chunk = min(len(ids), model.original.old_length)
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

    ``values`` and ``costs`` are ``(layers, candidates)``; costs are above 0.
    """
    limit *= 1 + TOLERANCE
    cost = value = np.zeros(1)
    steps: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]] = []
    for layer in range(len(values)):
        total = (cost[:, None] + costs[layer]).ravel()
        worth = (value[:, None] + values[layer]).ravel()
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
        steps.append(np.divmod(order, values.shape[1]))
        cost = total[order]
        value = worth[order]
    at = len(cost) - 1  # costs and values both rise
    candidates = []
    for parents, chosen in reversed(steps):
        candidates.append(int(chosen[at]))
        at = int(parents[at])
    return candidates[::-1]
