"""What a design does to the model's predictions on real text: the loss at the target length, or the KL divergence from the checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..configuration import LongAttentionConfig
from ..data.tokenization import special_ids
from ..errors import LongAttentionError, OptionError, in_a_line
from ..evaluation.divergence import kl_divergence
from ..evaluation.token_loss import LossChange, chunk_losses, token_losses, with_context
from ..inspect import Candidate
from ..inspect.attention import Progress
from .design import Design
from .inputs import SearchInputs
from .model import SearchedModel
from .texts import SearchText

FAILURES = (LongAttentionError, RuntimeError, MemoryError)
"""What a mechanism may raise while it is measured: a search goes on without it."""
PREDICTIONS_COMPARED = 256
"""Predictions of a piece that are compared."""


def check_predicts_tokens(model: SearchedModel) -> None:
    """Refuse a checkpoint for which no held-out loss can be measured.

    Raises:
        OptionError: the checkpoint has no language-modelling head, or is an encoder-decoder.
    """
    if not model.predicts_tokens:
        raise OptionError(
            f"{model.source.name!r} is a {model.original.architecture.source_class}, which predicts no tokens, so it has no held-out loss."
        )


class HeldOutLoss:
    """Nats per masked or next token of pieces as long as the target, which the converted model reads without training.

    Args:
        model: to convert.
        text: pieces are made of.
        pieces: how many, at most.
    Raises:
        OptionError: the checkpoint has no language-modelling head.
    """

    def __init__(self, model: SearchedModel, text: SearchText, pieces: int) -> None:
        check_predicts_tokens(model)
        self.model = model
        self.inputs = text.predicted(model.length, pieces, causal=model.original.shape.causal)

    @torch.no_grad()
    def __call__(self, design: Design) -> float:
        """The loss, mean over pieces."""
        model = self.model.run_with(design.attention())
        losses = [
            float(model(input_ids=ids[None].to(model.device), labels=labels[None].to(model.device)).loss) for ids, labels in self.inputs
        ]
        return sum(losses) / len(losses)


class Divergence:
    """KL(checkpoint ‖ design) in nats, mean over predictions, of pieces that the checkpoint was trained to read.

    Of a language model the predictions are those of masked tokens, or of next tokens; of a classifier those of the text, of its tokens, of
    the image or of its places.

    Args:
        model, text, pieces: as for :class:`HeldOutLoss`; or images or recordings.
        length: of the pieces, or the size of the images or sounds.
    Raises:
        OptionError: the checkpoint has no head.
    """

    def __init__(self, model: SearchedModel, text: SearchText | SearchInputs, pieces: int, length: Any) -> None:
        self.model = model
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
        model = self.model.run_with(design.attention(), short=True)
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


class LossAgainstChunks:
    """Measures how the loss on long texts changes, without training, if every layer runs a given attention.
    The reference is the checkpoint with its own attention, on chunks of at most its own maximum length.

    Args:
        model: the checkpoint; it must predict tokens.
        inputs: pairs of token ids to read and targets to predict, ``(N,)`` each, with at least one chunk of tokens.
    """

    def __init__(self, model: SearchedModel, inputs: Sequence[tuple[Tensor, Tensor]]) -> None:
        self.model, self.causal = model, model.original.shape.causal
        self.inputs = [self._whole_chunks(shown, target) for shown, target in inputs]
        self._before: list[Tensor] | None = None

    def _whole_chunks(self, shown: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Text and targets, ``(1, N)`` each, without the last tokens that do not fill a chunk; the text is on the model's device."""
        chunk = self.chunk(len(shown))
        tokens = len(shown) // chunk * chunk
        return shown[None, :tokens].to(self.model.device), target[None, :tokens]

    def chunk(self, tokens: int) -> int:
        """Number of tokens per chunk for a text of ``tokens`` tokens."""
        return min(tokens, self.model.trained_length)

    def __call__(self, attention: LongAttentionConfig) -> LossChange | None:
        """The change over the tokens of all texts; ``None`` if no token is predicted."""
        if self._before is None:
            original = self.model.run_with(self.model.base_attention, short=True)
            special = ([], []) if self.model.tokenizer is None else special_ids(self.model.tokenizer)
            self._before = [
                chunk_losses(original, *pair, self.chunk(pair[0].shape[1]), causal=self.causal, special=special) for pair in self.inputs
            ]
        converted = self.model.run_with(attention)
        before, after = list[Tensor](), list[Tensor]()
        for chunked, (shown, target) in zip(self._before, self.inputs, strict=True):
            before.append(with_context(chunked, self.chunk(len(chunked)), causal=self.causal))
            after.append(token_losses(converted, shown, target, causal=self.causal))
        return LossChange.of(torch.cat(before), torch.cat(after))


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
