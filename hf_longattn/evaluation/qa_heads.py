"""What question answering computes from a model's outputs beside its span scores: the loss over all correct spans, and HotpotQA's heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

KINDS = ("span", "yes", "no")
"""Kinds of answers, by their number."""
IGNORED = -100


def span_loss(start_logits: Tensor, end_logits: Tensor, starts: Tensor, ends: Tensor, real: Tensor | None = None) -> Tensor:
    """−½ (log Σ p(start) + log Σ p(end)) over all correct starts and ends of each row: the or-loss of distant supervision (Clark & Gardner
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


def rows_of(packed: Tensor, lengths: Tensor, padding: float = 0.0) -> Tensor:
    """``(B, L, …)`` from documents of ``lengths (B,)`` that were packed into one row ``(1, T, …)``."""
    return pad_sequence(list(packed[0].split(lengths.tolist())), batch_first=True, padding_value=padding)


class EvidenceHeads(nn.Module):
    """HotpotQA's heads beside the span's (Beltagy et al. 2020, appendix): the kind of the answer (a span, yes or no) from the first
    token, and whether a sentence supports it from the sentence's last token."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.kind = nn.Sequential(nn.Linear(size, size), nn.Tanh(), nn.Linear(size, len(KINDS)))
        self.sentence = nn.Sequential(nn.Linear(size, size), nn.GELU(), nn.Linear(size, 1))

    def forward(self, hidden: Tensor, sentences: Tensor) -> tuple[Tensor, Tensor]:
        """Scores of the kinds ``(B, 3)`` and of the sentences ``(B, S)``, from ``hidden (B, L, C)`` and the sentences' last tokens."""
        at = sentences.clamp(min=0)[..., None].expand(-1, -1, hidden.shape[-1])
        hidden = hidden.to(next(self.parameters()).dtype)
        return self.kind(hidden[:, 0]), self.sentence(hidden.gather(1, at))[..., 0]


def attach_evidence(model: nn.Module) -> EvidenceHeads:
    """``model.evidence``, initialised on first use; ``config.has_evidence_heads`` tells a reader to look for its weights."""
    if not hasattr(model, "evidence"):
        model.evidence = EvidenceHeads(model.config.hidden_size).to(model.device)  # type: ignore[union-attr,arg-type]
        model.config.has_evidence_heads = True  # type: ignore[union-attr]
    return model.evidence  # type: ignore[return-value]


def qa_loss(outputs: Any, batch: Mapping[str, Any], evidence: EvidenceHeads | None = None) -> Tensor:
    """The loss of each row of a batch ``(B,)``: the span's, and with ``evidence`` those of kind and sentences.

    Args:
        outputs: of a question-answering model, for padded or packed inputs; with ``evidence`` with its hidden states.
        batch: starts, ends; attention_mask or real (padded, (B, L)), or lengths (packed); with ``evidence`` kinds (B,), sentences (B, S)
            and supports (B, S).
    """
    scores, real = (outputs.start_logits, outputs.end_logits), batch.get("real", batch.get("attention_mask"))
    if real is None and "lengths" in batch:
        scores = (rows_of(scores[0], batch["lengths"], -torch.inf), rows_of(scores[1], batch["lengths"], -torch.inf))
    yes_or_no = batch["kinds"] > 0 if evidence is not None else None
    loss = span_loss(*scores, batch["starts"], batch["ends"], real)
    if evidence is None or yes_or_no is None:
        return loss
    kinds, sentences = evidence_scores(outputs, batch, evidence)
    asked = batch["sentences"] >= 0
    told = F.binary_cross_entropy_with_logits(sentences.float(), batch["supports"].float(), reduction="none") * asked
    kind = F.cross_entropy(kinds.float(), batch["kinds"], ignore_index=IGNORED, reduction="none")
    return loss.masked_fill(yes_or_no, 0.0) + kind + told.sum(1) / asked.sum(1).clamp(min=1)


def evidence_scores(outputs: Any, batch: Mapping[str, Any], evidence: EvidenceHeads) -> tuple[Tensor, Tensor]:
    """Scores of kinds and sentences of a batch, padded or packed; see :class:`EvidenceHeads`."""
    hidden = outputs.hidden_states[-1]
    if batch.get("attention_mask") is None and "lengths" in batch:
        hidden = rows_of(hidden, batch["lengths"])
    return evidence(hidden, batch["sentences"])
