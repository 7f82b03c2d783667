"""What a design does to the model's predictions on real text: the loss at the target length, or the KL divergence from the checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..data.tokenization import special_ids
from ..errors import OptionError, in_a_line
from ..evaluation.divergence import kl_divergence
from ..evaluation.token_loss import LossChange, chunk_losses, token_losses, with_context
from .costs import FAILURES
from .design import Design
from .inputs import SearchInputs, SearchText
from .model import SearchedModel

PREDICTIONS_COMPARED = 256
"""Predictions of a piece that are compared."""
Objective = Callable[[Design], float]
"""A design -> a loss in nats."""


def measured(objective: Objective, design: Design) -> tuple[float, str]:
    """The loss of a design, and why it has none, as a clause."""
    try:
        loss = objective(design)
    except FAILURES as error:
        return math.nan, in_a_line(error)
    return loss, "" if math.isfinite(loss) else f"its loss is {loss}"


class HeldOutLoss:
    """Nats per masked or next token of pieces as long as the target, which the converted model reads without training.

    Args:
        model: to convert; it must predict tokens.
        text: pieces are made of.
        pieces: how many, at most.
    """

    def __init__(self, model: SearchedModel, text: SearchText | SearchInputs, pieces: int) -> None:
        self.model, self.causal = model, model.original.shape.causal
        self.inputs: list[tuple[Any, Any]] = list(text.predicted(model.length, pieces, causal=self.causal))

    @torch.no_grad()
    def __call__(self, design: Design) -> float:
        """The loss, mean over pieces."""
        model = self.model.run_with(design.attention())
        losses = [
            float(model(input_ids=ids[None].to(model.device), labels=labels[None].to(model.device)).loss) for ids, labels in self.inputs
        ]
        return sum(losses) / len(losses)

    def change(self, design: Design) -> LossChange | None:
        """The change from the checkpoint, which reads chunks of at most its own maximum length; ``None`` if no token is predicted."""
        special = ([], []) if self.model.tokenizer is None else special_ids(self.model.tokenizer)
        texts = []
        for ids, labels in self.inputs:
            chunk = min(len(ids), self.model.trained_length)
            tokens = len(ids) // chunk * chunk
            texts.append((ids[None, :tokens].to(self.model.device), labels[None, :tokens], chunk))
        original = self.model.run_with(self.model.base_attention, short=True)
        before = []
        for ids, labels, chunk in texts:
            losses = chunk_losses(original, ids, labels, chunk, causal=self.causal, special=special)
            before.append(with_context(losses, chunk, causal=self.causal))
        converted = self.model.run_with(design.attention())
        after = [token_losses(converted, ids, labels, causal=self.causal) for ids, labels, _ in texts]
        return LossChange.of(torch.cat(before), torch.cat(after))


class Divergence:
    """KL(checkpoint ‖ design) in nats, mean over predictions, of pieces that the checkpoint was trained to read.

    Of a language model the predictions are those of masked tokens, or of next tokens; of a classifier those of the text, of its tokens, of
    the image or of its places.

    Args:
        model, text, pieces: as for :class:`HeldOutLoss`; or images or recordings, and any head.
        length: of the pieces, or the size of the images or sounds.
    Raises:
        OptionError: the checkpoint has no head.
    """

    def __init__(self, model: SearchedModel, text: SearchText | SearchInputs, pieces: int, length: Any) -> None:
        self.model, self.text = model, text
        masked = model.predicts_tokens and not model.original.shape.causal
        self.inputs = [(piece, _places(labels)) for piece, labels in text.predicted(length, pieces, causal=not masked)]
        self.expected = self._logits(model.run_with(model.base_attention, short=True))

    def __call__(self, design: Design) -> float:
        """The divergence, mean over pieces."""
        model = self.model.run_with(design.attention(), short=True)
        divergences = [float(kl_divergence(logits, expected)) for expected, logits in zip(self.expected, self._logits(model), strict=True)]
        return sum(divergences) / len(divergences)

    @torch.no_grad()
    def _logits(self, model: Any) -> list[Tensor]:
        """The logits of each piece, ``(predictions, classes)`` float32."""
        rows = []
        for piece, places in self.inputs:
            logits = getattr(model(**self.text.arguments(piece, model)), "logits", None)  # type: ignore[arg-type]
            if not isinstance(logits, Tensor):
                raise OptionError(
                    f"{self.model.source.name!r} has no head whose predictions could be compared; give a checkpoint with its "
                    "language-modelling or classification head, or leave --score kl and --objective kl out."
                )
            logits = logits[0].float().cpu()
            if logits.dim() == 3:  # (classes, height, width)
                logits = logits.flatten(1).T
            rows.append(logits[places] if logits.dim() == 2 else logits.reshape(1, -1))
        return rows


def _places(labels: Tensor | None) -> Tensor | slice:
    """The places whose predictions are compared: some of those with a label, or all places of an input without labels."""
    if labels is None:
        return slice(None)
    predicted = torch.nonzero(labels >= 0).flatten()
    return predicted[:: max(1, len(predicted) // PREDICTIONS_COMPARED)][:PREDICTIONS_COMPARED]
