"""Scores of candidates in each layer, the best choice of one candidate per layer under a budget, and effects on
predictions.

The best choice within a budget is a multiple-choice knapsack, solved by dynamic programming
(:func:`best_under_total`):

    maximise  Σ_l value[l, c_l]   subject to   Σ_l cost[l, c_l] ≤ budget

Layer by layer, a partial choice stays if no other has more value at the same cost or less; costs are not rounded. If
more than 20,000 remain, the best in each 20,000th of the largest budget stays. A choice is therefore always within its
budget. A better choice can be missed only if it is cheaper by less than that fraction of the budget per layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..data.tokenization import special_ids
from ..errors import OptionError, in_a_line
from ..evaluation.token_loss import LossChange, in_chunks, kl_divergence, token_losses, with_context
from ..inputs.running import with_decoder_input
from ..inspect import Candidate, captured_mass
from ..inspect.attention import Progress
from .costs import FAILURES
from .design import FULL, Design, DesignCosts
from .model import SearchedModel, SearchInputs, SearchText

PREDICTIONS_COMPARED = 256
"""Maximum predictions per piece that are compared."""
QUERIES = 512
"""Maximum queries per piece at which captured mass is measured."""
MAX_PARTIAL = 20_000
"""Maximum number of partial choices that stay after a layer."""
TOLERANCE = 1e-9
"""Costs or values with a smaller relative difference are equal."""
Numbers: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ScoreTable:
    """Scores of candidates by layer; greater is better.

    scores: ``[layer][candidate as text]``. A candidate without a score is missing.
    reasons: candidate as text -> why it has no score. failed: candidate as text -> why no layer can run it.
    """

    scores: list[dict[str, float]]
    reasons: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def total(self, design: Design) -> float | None:
        """The sum of scores over a design's layers; ``None`` if a layer has no score."""
        pairs = list(zip(self.scores, design.names, strict=True))
        return sum(row[name] for row, name in pairs) if all(name in row for row, name in pairs) else None


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
    masses, reasons = list[torch.Tensor](), dict[str, str]()
    of_text: Sequence[Any] = text.pieces(length, pieces)
    for number, piece in enumerate(of_text):
        progress(f"captured mass, piece {number + 1}")
        measured = captured_mass(
            model.run_with(model.base_attention, short=True), piece, candidates, queries=QUERIES, seed=number
        )
        reasons |= dict(measured.reasons)
        masses.append(measured.mass.mean(1))
    mean = torch.stack(masses).mean(0)
    judged = [(number, str(candidate)) for number, candidate in enumerate(candidates) if str(candidate) not in reasons]
    return ScoreTable([{name: float(row[number]) for number, name in judged} for row in mean], reasons)


def divergence_table(
    divergence: Divergence, candidates: Sequence[Candidate], base: Design, progress: Progress
) -> ScoreTable:
    """Minus the KL divergence of a model in which one layer runs the candidate. The other layers run the checkpoint's
    ``base``."""
    table: list[dict[str, float]] = [{} for _ in base.layers]
    failed: dict[str, str] = {}
    for candidate in candidates:
        name = str(candidate)
        for layer, row in enumerate(table):
            progress(f"layer {layer}: {name}")
            try:
                value = divergence(replace(base, layers=(*base.layers[:layer], candidate, *base.layers[layer + 1 :])))
                why = "" if math.isfinite(value) else f"its loss is {value}"
            except FAILURES as error:
                why = in_a_line(error)
            if why:
                failed[name] = f"It failed in layer {layer}: {why}."
                break
            row[name] = -value
    return ScoreTable(
        [{name: value for name, value in row.items() if name not in failed} for row in table], failed=failed
    )


def choose(table: ScoreTable, candidates: Sequence[Candidate], costs: DesignCosts) -> Design:
    """The best design within the budget.

    Raises:
        OptionError: no design meets the budget; the message has the cost of the cheapest design.
    """
    judged = [candidate for candidate in candidates if any(str(candidate) in row for row in table.scores)]
    if not judged:
        why = next(iter(table.reasons.values()), "")
        raise OptionError(
            f"No candidate can be judged by captured mass ({why.rstrip('.')}); add --score kl, or give other "
            "candidates."
        )
    full_seconds = costs.layers * costs.by_candidate[str(FULL)].seconds
    memory, limit = costs.budget.of_memory, costs.budget.limit(full_seconds)
    peak = memory and not costs.causal  # an encoder's layer frees its memory before the next one needs it
    amount = {name: float(cost.bytes or 0) if memory else cost.seconds for name, cost in costs.by_candidate.items()}
    names = list(map(str, judged))
    values: Numbers = np.array([[row.get(name, np.nan) for name in names] for row in table.scores])
    amounts: Numbers = np.array([[amount[name] for name in names]] * costs.layers)
    if peak:
        seconds: Numbers = np.array([[costs.by_candidate[name].seconds for name in names]] * costs.layers)
        best = best_under_peak(values, seconds, amounts, limit)
    else:
        best = best_under_total(values, amounts, limit)
    if best is None:
        cheapest = min(judged, key=lambda candidate: amount[str(candidate)])
        enough = costs.budget.like((max if peak else sum)([amount[str(cheapest)]] * costs.layers), full_seconds)
        raise OptionError(
            f"No design meets the budget of {costs.budget}: the cheapest, {costs.uniform(cheapest)}, needs {enough}; "
            "give --budget "
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
    causal, texts = model.original.shape.causal, []
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


class Divergence:
    """KL(checkpoint ‖ design) in nats, the mean over predictions for pieces of a length that the checkpoint was
    trained on.

    A language model predicts masked or next tokens. A classifier predicts classes of a text or its tokens, or of an
    image or its pixels.

    Args:
        model: a model with any head. text: a text, images or recordings. pieces: maximum number of pieces.
        length: length of the pieces, or size of the images or sounds.
    Raises:
        OptionError: the checkpoint has no head.
    """

    def __init__(self, model: SearchedModel, text: SearchText | SearchInputs, pieces: int, length: Any) -> None:
        self.model = model
        masked = model.predicts_tokens and not model.original.shape.causal
        self.inputs = list[tuple[Any, Tensor | slice]]()
        """Each piece, and the positions of compared predictions: some positions with a label, or all positions without
        labels."""
        if isinstance(text, SearchText):
            read: list[tuple[Any, Tensor | None]] = [*text.predicted(length, pieces, causal=not masked)]
        else:
            read = [(piece, None) for piece in text.pieces(length, pieces)]
        for piece, labels in read:
            compared: Tensor | slice = slice(None)
            if labels is not None:
                predicted = torch.nonzero(labels >= 0).flatten()
                compared = predicted[:: max(1, len(predicted) // PREDICTIONS_COMPARED)][:PREDICTIONS_COMPARED]
            self.inputs.append((piece, compared))
        self.expected = self._logits(model.run_with(model.base_attention, short=True))

    def __call__(self, design: Design) -> float:
        model = self.model.run_with(design.attention(), short=True)
        divergences = [
            float(kl_divergence(logits, expected))
            for expected, logits in zip(self.expected, self._logits(model), strict=True)
        ]
        return sum(divergences) / len(divergences)

    @torch.no_grad()
    def _logits(self, model: Any) -> list[Tensor]:
        """The logits of each piece, ``(predictions, classes)`` float32."""
        rows = []
        for piece, compared in self.inputs:
            inputs = {"input_ids": piece[None]} if isinstance(piece, Tensor) else with_decoder_input(model, piece)
            logits = getattr(model(**{name: value.to(model.device) for name, value in inputs.items()}), "logits", None)
            if not isinstance(logits, Tensor):
                raise OptionError(
                    f"{self.model.source.name!r} has no head whose predictions could be compared; give a checkpoint "
                    "with its language-modelling or classification head, or leave --score kl out."
                )
            logits = logits[0].float().cpu()
            if logits.dim() == 3:  # (classes, height, width)
                logits = logits.flatten(1).T
            rows.append(logits[compared] if logits.dim() == 2 else logits.reshape(1, -1))
        return rows


def best_under_total(values: Numbers, costs: Numbers, limit: float) -> list[int] | None:
    """The candidate of each layer in the best choice whose costs sum to at most ``limit``; ``None`` if even the
    cheapest exceeds it.

    Args:
        values: ``(layers, candidates)``; nan or -inf where a candidate is impossible.
        costs: ``(layers, candidates)`` of at least 0; inf where impossible.
    """
    possible = np.isfinite(values) & np.isfinite(costs)
    limit *= 1 + TOLERANCE
    cost, value = np.zeros(1), np.zeros(1)
    steps: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]] = []
    for layer in range(len(values)):
        numbers = np.flatnonzero(possible[layer])
        total, worth = (
            (cost[:, None] + costs[layer, numbers]).ravel(),
            (value[:, None] + values[layer, numbers]).ravel(),
        )
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
        cost, value = total[order], worth[order]
    at, candidates = len(cost) - 1, []  # costs and values both rise
    for parents, chosen in reversed(steps):
        candidates.append(int(chosen[at]))
        at = int(parents[at])
    return candidates[::-1]


def best_under_peak(values: Numbers, costs: Numbers, peaks: Numbers, limit: float) -> list[int] | None:
    """The best candidate of each layer whose peak is at most ``limit``, for memory that a layer frees before the next
    one needs it. A tie goes to the cheaper candidate. ``None`` if some layer has no candidate."""
    allowed = np.isfinite(values) & (peaks <= limit)
    if not allowed.any(1).all():
        return None
    return [int(number) for number in np.lexsort((costs, -np.where(allowed, values, -np.inf)))[:, 0]]
