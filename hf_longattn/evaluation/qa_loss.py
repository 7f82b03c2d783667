"""The loss of question answering over all correct spans."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


def span_loss(start_logits: Tensor, end_logits: Tensor, starts: Tensor, ends: Tensor, real: Tensor | None = None) -> Tensor:
    """The or-loss of distant supervision: −½ (log Σ p(start) + log Σ p(end)) over each row's correct starts and ends (Clark & Gardner
    2018, equation 2; Longformer's TriviaQA loss). With one answer it is BERT's loss.

    Args:
        start_logits, end_logits: (B, L).
        starts (B, K), ends (B, M): distinct correct tokens, padded with -1; token 0 is "no answer".
        real: (B, L), which tokens are not padding; padding takes part in no probability.

    Returns:
        One loss per row, (B,).
    """
    return (_or_loss(start_logits, starts, real) + _or_loss(end_logits, ends, real)) / 2


def _or_loss(logits: Tensor, places: Tensor, real: Tensor | None) -> Tensor:
    scores = logits.float() if real is None else logits.float().masked_fill(~real.bool(), -torch.inf)
    chosen = torch.log_softmax(scores, -1).gather(1, places.clamp(min=0))
    return -chosen.masked_fill(places < 0, -torch.inf).logsumexp(-1)


def qa_loss(outputs: Any, batch: Mapping[str, Any]) -> Tensor:
    """The loss of each row of a batch ``(B,)``.

    Args:
        outputs: of a question-answering model, for padded or packed inputs.
        batch: starts, ends; attention_mask or real (padded, (B, L)), or lengths (packed).
    """
    scores, real = (outputs.start_logits, outputs.end_logits), batch.get("real", batch.get("attention_mask"))
    if real is None and "lengths" in batch:  # documents of these lengths were packed into one row (1, T)
        documents = (packed[0].split(batch["lengths"].tolist()) for packed in scores)
        scores = tuple(pad_sequence(list(rows), batch_first=True, padding_value=-torch.inf) for rows in documents)
    return span_loss(*scores, batch["starts"], batch["ends"], real)
