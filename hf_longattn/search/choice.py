"""Measure what candidates keep of each layer's attention, choose one candidate per layer, and measure the effect.

The captured mass of a candidate is the share of a layer's softmax weights on the pairs that the candidate computes.
The choice of candidates c_l for the layers l within a budget is a multiple-choice knapsack (:func:`best_under_total`):

    maximise  Σ_l value[l, c_l]   subject to   Σ_l cost[l, c_l] ≤ budget

It is solved by dynamic programming. After each layer, a partial choice stays if no other has more value at the same
cost or less. Costs are not rounded, so a choice is always within its budget. If more than 20,000 partial choices
remain, the budget is divided into 20,000 equal parts, and the best partial choice in each part stays. A better choice
can be missed only if it is cheaper by less than such a part per layer.
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
"""Maximum number of queries in each input for which captured mass is measured."""
MAX_PARTIAL = 20_000
"""Maximum number of partial choices that stay after a layer."""
TOLERANCE = 1e-9
"""Rounding errors: the relative excess over the budget that is allowed, and the smallest difference of values."""
Numbers: TypeAlias = npt.NDArray[np.float64]


def measured_mass(
    model: SearchedModel, inputs: Sequence[Any], candidates: Sequence[Candidate], progress: Progress
) -> tuple[list[dict[str, float]], dict[str, str]]:
    """Measure the captured mass of candidates in the checkpoint with its trained attention.

    Args:
        inputs: pieces of a text, images or recordings.
        progress: called with a sentence before each input.

    Returns:
        For each layer a mapping of candidates (as text) to captured mass, from 0 to 1, as the mean over heads and
        inputs. Also a mapping of candidates (as text) to the reason why captured mass cannot be measured.
    """
    masses: list[Tensor] = []  # of each input, (layers, candidates)
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
    for layer_masses in torch.stack(masses).mean(0).tolist():
        scores.append({name: mass for name, mass in zip(names, layer_masses, strict=True) if name not in reasons})
    return scores, reasons


def choose(
    scores: Sequence[Mapping[str, float]],
    candidates: Sequence[Candidate],
    seconds: Mapping[str, float],
    budget: Budget,
    named: frozenset[int],
) -> Design:
    """Choose the design with the most captured mass within the budget.

    Args:
        scores: for each layer a mapping of candidates (as text) to captured mass.
        candidates: the candidates with a captured mass.
        seconds: candidate (as text) -> seconds for one layer. It includes full attention.
        named: as in :class:`.design.Design`.

    Raises:
        OptionError: no design meets the budget. The message has the cost of the cheapest design.
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
    """The change of the loss on held-out text, from the checkpoint to the converted model without training.

    The converted model reads texts of the target length. The checkpoint reads the same texts in chunks of at most its
    maximum length. Returns ``None`` if no token is predicted.

    Args:
        model: the model to convert, which must predict tokens.
        pieces: maximum number of texts that are cut from ``text``.
        design: the candidates of the converted model's layers.
    """
    special = ([], []) if model.tokenizer is None else special_ids(model.tokenizer)
    causal = model.original.shape.causal
    texts = []  # of each piece: ids (1, N), labels (1, N) and the length of a chunk
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
    """Choose one candidate for each layer, so that the sum of values is largest and the sum of costs at most
    ``limit``.

    Args:
        values, costs: ``(layers, candidates)``. Costs are above 0.

    Returns:
        The index of each layer's candidate. ``None`` if even the cheapest choice exceeds the limit.
    """
    limit *= 1 + TOLERANCE
    # cost and value of each partial choice, in rising order of both
    cost = value = np.zeros(1)
    # for each layer and partial choice: index of the partial choice before this layer, and the layer's candidate
    steps: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]] = []
    for layer in range(len(values)):
        # every partial choice with every candidate, in order of cost, within the limit
        new_cost = (cost[:, None] + costs[layer]).ravel()
        new_value = (value[:, None] + values[layer]).ravel()
        order = np.lexsort((-new_value, new_cost))
        order = order[new_cost[order] <= limit]
        if not len(order):
            return None
        # a choice stays if its value is higher than the value of every cheaper one
        highest = np.maximum.accumulate(new_value[order])
        order = order[np.concatenate([[True], highest[1:] > highest[:-1] + TOLERANCE])]
        if len(order) > MAX_PARTIAL:
            # the last choice in each part of the budget is the best of this part, since values rise with costs
            part = np.floor(new_cost[order] / limit * MAX_PARTIAL)
            order = order[np.concatenate([part[1:] > part[:-1], [True]])]
        steps.append(np.divmod(order, values.shape[1]))
        cost = new_cost[order]
        value = new_value[order]

    # the last choice is the best; follow it back through the layers
    index = len(cost) - 1
    candidates = []
    for parents, chosen in reversed(steps):
        candidates.append(int(chosen[index]))
        index = int(parents[index])
    return candidates[::-1]
