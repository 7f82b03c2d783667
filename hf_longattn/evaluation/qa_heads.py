"""The loss of question answering over all correct spans, and HotpotQA's heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_longattn.data.qa_markers import EVIDENCE, SENTENCE, TITLE, add_markers, make_global
from hf_longattn.data.tokenization import IGNORED

KINDS = ("span", "yes", "no")
"""Kinds of answers, by their number."""


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


def rows_of(packed: Tensor, lengths: Tensor, padding: float = 0.0) -> Tensor:
    """``(B, L, …)`` from documents of ``lengths (B,)`` that were packed into one row ``(1, T, …)``."""
    return pad_sequence(list(packed[0].split(lengths.tolist())), batch_first=True, padding_value=padding)


class EvidenceHeads(nn.Module):
    """HotpotQA's heads beside the span's (Beltagy et al. 2020, appendix), two layers each. The first token gives the kind of the answer
    (span, yes or no); the marker after a sentence and the marker before a title say whether sentence and paragraph support it."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.kind = nn.Sequential(nn.Linear(size, size), nn.Tanh(), nn.Linear(size, len(KINDS)))
        self.sentence = nn.Sequential(nn.Linear(size, size), nn.GELU(), nn.Linear(size, 1))
        self.paragraph = nn.Sequential(nn.Linear(size, size), nn.GELU(), nn.Linear(size, 1))

    def forward(self, hidden: Tensor, sentences: Tensor, paragraphs: Tensor) -> EvidenceScores:
        """Scores from ``hidden (B, L, C)``, at the tokens ``sentences (B, S)`` and ``paragraphs (B, P)``; -1 is padding."""
        hidden = hidden.to(next(self.parameters()).dtype)
        scores = [head(_at(hidden, places))[..., 0] for head, places in ((self.sentence, sentences), (self.paragraph, paragraphs))]
        return EvidenceScores(self.kind(hidden[:, 0]), *scores)


class EvidenceScores(NamedTuple):
    """The scores of a batch: of kinds ``(B, 3)``, sentences ``(B, S)`` and paragraphs ``(B, P)``."""

    kinds: Tensor
    sentences: Tensor
    paragraphs: Tensor


def _at(hidden: Tensor, places: Tensor) -> Tensor:
    return hidden.gather(1, places.clamp(min=0)[..., None].expand(-1, -1, hidden.shape[-1]))


def attach_evidence(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> EvidenceHeads:
    """Add ``model.evidence`` and its markers, whose weights are initialised on first use. ``config.has_evidence_heads`` tells a reader to
    load the heads, and ``config.global_token_ids`` lists the global markers."""
    if not hasattr(model, "evidence"):
        add_markers(model, tokenizer, EVIDENCE)
        make_global(model, tokenizer, (TITLE, SENTENCE))
        model.evidence = EvidenceHeads(model.config.hidden_size).to(model.device)
        model.config.has_evidence_heads = True
    return model.evidence


def qa_loss(outputs: Any, batch: Mapping[str, Any], evidence: EvidenceHeads | None = None) -> Tensor:
    """The loss of each row of a batch ``(B,)``: the span's; with ``evidence`` plus the losses of kind, sentences and paragraphs.

    Args:
        outputs: of a question-answering model, for padded or packed inputs; with ``evidence`` with its hidden states.
        batch: starts, ends; attention_mask or real (padded, (B, L)), or lengths (packed); with ``evidence`` kinds (B,), sentences and
            supports (B, S), paragraphs and relevant (B, P).
    """
    scores, real = (outputs.start_logits, outputs.end_logits), batch.get("real", batch.get("attention_mask"))
    if real is None and "lengths" in batch:
        scores = (rows_of(scores[0], batch["lengths"], -torch.inf), rows_of(scores[1], batch["lengths"], -torch.inf))
    loss = span_loss(*scores, batch["starts"], batch["ends"], real)
    if evidence is None:
        return loss
    predicted = evidence_scores(outputs, batch, evidence)
    kind = F.cross_entropy(predicted.kinds.float(), batch["kinds"], ignore_index=IGNORED, reduction="none")
    sentences = _binary_loss(predicted.sentences, batch["supports"].masked_fill(batch["sentences"] < 0, -1))
    paragraphs = _binary_loss(predicted.paragraphs, batch["relevant"])
    return loss.masked_fill(batch["kinds"] > 0, 0.0) + kind + sentences + paragraphs


def _binary_loss(scores: Tensor, targets: Tensor) -> Tensor:
    """The mean of each row, without targets below zero."""
    labelled = targets >= 0
    losses = F.binary_cross_entropy_with_logits(scores.float(), targets.clamp(min=0).float(), reduction="none") * labelled
    return losses.sum(1) / labelled.sum(1).clamp(min=1)


def evidence_scores(outputs: Any, batch: Mapping[str, Any], evidence: EvidenceHeads) -> EvidenceScores:
    """Scores of a batch, padded or packed; see :class:`EvidenceHeads`."""
    hidden = outputs.hidden_states[-1]
    if batch.get("attention_mask") is None and "lengths" in batch:
        hidden = rows_of(hidden, batch["lengths"])
    scores: EvidenceScores = evidence(hidden, batch["sentences"], batch["paragraphs"])
    return scores


def chosen_evidence(
    sentences: Mapping[int, float], paragraphs: Mapping[int, float], owner: Mapping[int, int], count: int | None
) -> list[int]:
    """The sentences with a score above zero; with ``count``, from exactly that many paragraphs, since every question of HotpotQA has two
    (Groeneveld et al. 2020; Longformer's constrained decoding).

    Paragraphs rank by the sum of their own score and the positive scores of their sentences. Without a positive sentence, the best one
    counts and is chosen.

    Args:
        sentences: scores by the sentences' numbers.
        paragraphs: scores by the paragraphs' numbers.
        owner: the paragraph of each sentence.
        count: paragraphs; ``None`` = any number.
    """
    if count is None:
        return [number for number, score in sorted(sentences.items()) if score > 0]
    inside: dict[int, list[int]] = {}
    for number in sorted(sentences):
        inside.setdefault(owner[number], []).append(number)
    chosen = {
        place: [number for number in numbers if sentences[number] > 0] or [max(numbers, key=lambda number: sentences[number])]
        for place, numbers in inside.items()
    }
    value = {place: paragraphs.get(place, 0.0) + sum(sentences[number] for number in numbers) for place, numbers in chosen.items()}
    best = sorted(value, key=lambda place: -value[place])[:count]
    return sorted(number for place in best for number in chosen[place])
