"""What a design does to the model's predictions on real text: the loss at the target length, or the KL divergence from the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..errors import LongAttentionError, OptionError, in_a_line
from ..evaluation.divergence import kl_divergence
from ..inspect import Candidate
from ..inspect.attention import Progress
from .design import Design
from .inputs import SearchInputs
from .model import SearchedModel
from .texts import SearchText
from .trial_model import Weights, check_predicts_tokens

FAILURES = (LongAttentionError, RuntimeError, MemoryError)
"""What a mechanism may raise while it is measured: a search goes on without it."""
PREDICTIONS_COMPARED = 256
"""Predictions of a piece that are compared."""
Transferred = Mapping[str, Mapping[int, Weights]]
"""Parameters of mechanisms after attention transfer: by candidate, then by layer."""


class HeldOutLoss:
    """Nats per masked or next token of pieces as long as the target, which the converted model reads without training.

    Args:
        model: to convert.
        text: pieces are made of.
        pieces: how many, at most.
        transferred: parameters of mechanisms.
    Raises:
        OptionError: the checkpoint has no language-modelling head.
    """

    name = "loss"
    what = "nats per predicted token"

    def __init__(self, model: SearchedModel, text: SearchText, pieces: int, transferred: Transferred | None = None) -> None:
        check_predicts_tokens(model)
        self.model, self.transferred = model, transferred or {}
        self.inputs = text.predicted(model.length, pieces, causal=model.original.shape.causal)

    @torch.no_grad()
    def __call__(self, design: Design) -> float:
        """The loss, mean over pieces."""
        model = self.model.run_with(design.attention(), weights=weights_of(design, self.transferred))
        losses = [
            float(model(input_ids=ids[None].to(model.device), labels=labels[None].to(model.device)).loss) for ids, labels in self.inputs
        ]
        return sum(losses) / len(losses)


class Divergence:
    """KL(checkpoint ‖ design) in nats, mean over predictions, of pieces that the checkpoint was trained to read.

    Of a language model the predictions are those of masked tokens, or of next tokens; of a classifier those of the text, of its tokens, of
    the image or of its places.

    Args:
        model, text, pieces, transferred: as for :class:`HeldOutLoss`; or images or recordings.
        length: of the pieces, or the size of the images or sounds.
    Raises:
        OptionError: the checkpoint has no head.
    """

    name = "kl"
    what = "nats of KL divergence"

    def __init__(
        self, model: SearchedModel, text: SearchText | SearchInputs, pieces: int, length: Any, transferred: Transferred | None = None
    ) -> None:  # fmt: skip
        self.model, self.transferred = model, transferred or {}
        masked = model.predicts_tokens and not model.original.shape.causal
        self.inputs: list[dict[str, Tensor]] = []
        self.places: list[Tensor | None] = []
        for piece, labels in text.predicted(length, pieces, causal=not masked):
            self.inputs.append(text.arguments(piece, model.device))  # type: ignore[arg-type]
            if labels is None:
                self.places.append(None)
                continue
            predicted = torch.nonzero(labels >= 0).flatten()
            self.places.append(predicted[:: max(1, len(predicted) // PREDICTIONS_COMPARED)][:PREDICTIONS_COMPARED])
        self.completed = text.completed
        self.expected = self._logits(model.run_with(model.base_attention, short=True))

    def __call__(self, design: Design) -> float:
        """The divergence, mean over pieces."""
        model = self.model.run_with(design.attention(), short=True, weights=weights_of(design, self.transferred))
        divergences = [float(kl_divergence(logits, expected)) for expected, logits in zip(self.expected, self._logits(model), strict=True)]
        return sum(divergences) / len(divergences)

    @torch.no_grad()
    def _logits(self, model: Any) -> list[Tensor]:
        """The logits of each piece, ``(predictions, classes)`` float32."""
        rows = []
        for arguments, places in zip(self.inputs, self.places, strict=True):
            logits = getattr(model(**self.completed(model, arguments)), "logits", None)
            if not isinstance(logits, Tensor):
                raise OptionError(
                    f"{self.model.source.name!r} has no head whose predictions could be compared; give a checkpoint with its "
                    "language-modelling or classification head, or leave --score kl and --objective kl out."
                )
            logits = logits[0].float().cpu()
            if logits.dim() == 3:  # (classes, height, width)
                logits = logits.flatten(1).T
            rows.append(logits if logits.dim() == 2 and places is None else logits[places] if logits.dim() == 2 else logits.reshape(1, -1))
        return rows


def weights_of(design: Design, transferred: Transferred) -> dict[int, Weights]:
    """The transferred parameters of a design's layers."""
    weights: dict[int, Weights] = {}
    for layer, name in enumerate(design.names):
        if layer in transferred.get(name, {}):
            weights[layer] = transferred[name][layer]
    return weights


def divergence_by_layer(
    divergence: Divergence, candidates: Sequence[Candidate], base: Design, progress: Progress | None = None
) -> tuple[list[dict[str, float]], dict[str, str]]:
    """KL divergence of models in which a single layer runs a candidate, ``[layer][candidate's text]``. The other layers run the
    checkpoint's ``base``. Also why candidates could not be measured, by their text."""
    table: list[dict[str, float]] = [{} for _ in base.layers]
    failed: dict[str, str] = {}
    for layer in range(len(base.layers)):
        for candidate in candidates:
            name = str(candidate)
            if name in failed:
                continue
            if progress is not None:
                progress(f"layer {layer}: {name}")
            try:
                table[layer][name] = divergence(replace(base, layers=(*base.layers[:layer], candidate, *base.layers[layer + 1 :])))
            except FAILURES as error:
                failed[name] = f"It failed in layer {layer}: {in_a_line(error)}."
    return [{name: value for name, value in row.items() if name not in failed} for row in table], failed
