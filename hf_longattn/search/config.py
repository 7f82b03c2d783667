"""The settings of a search."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..conversion.config import ConversionConfig
from ..conversion.sources.base import Source
from ..diagnostics import Candidate
from ..errors import LengthError
from .budget import Budget
from .model import SearchedModel
from .objectives import Divergence, HeldOutLoss, Progress, Transferred
from .texts import SearchText
from .transfer import transfer_attention

MODES, SCORE_NAMES, OBJECTIVES = ("mechanisms", "full-layers"), ("mass", "kl"), ("loss", "kl")
PIECES = 4
"""Pieces of the text that are read."""


@dataclass(frozen=True)
class SearchConfig:
    """The arguments of :func:`search_design`, checked; a worker process starts from them alone."""

    model: str
    text: str | Path | Tensor
    budget: Budget | None
    full_layers: int | None
    candidates: tuple[Candidate, ...]
    score: str
    objective: str
    trials: int
    workers: int
    transfer_steps: int
    pieces: int
    queries: int
    compare_at: int | None
    seed: int
    device: str
    conversion: ConversionConfig

    def settings(self) -> dict[str, Any]:
        """What a search that resumes must have in common with the one that was stopped."""
        if isinstance(self.text, Tensor):
            digest = hashlib.sha256(self.text.numpy().tobytes()).hexdigest()
        else:
            content = self.text.read_bytes() if isinstance(self.text, Path) and self.text.is_file() else str(self.text).encode()
            digest = hashlib.sha256(content).hexdigest()
        return {
            "model": self.model, "revision": self.conversion.revision, "text": digest, "budget": str(self.budget or self.full_layers),
            "mode": MODES[self.full_layers is not None], "length": self.conversion.max_length, "positions": self.conversion.positions,
            "candidates": list(map(str, self.candidates)), "score": self.score, "objective": self.objective,
            "transfer_steps": self.transfer_steps, "pieces": self.pieces, "queries": self.queries, "compare_at": self.compare_at,
            "seed": self.seed, "device": self.device,
        }  # fmt: skip

    def open_model(self, source: Source | None = None) -> SearchedModel:
        """The checkpoint, not yet loaded."""
        return SearchedModel.open(self.model if source is None else source, self.conversion, torch.device(self.device))

    def length_compared(self, model: SearchedModel) -> int:
        """Tokens of the pieces by which candidates are judged: what the checkpoint was trained to read.

        Raises:
            LengthError: ``compare_at`` is more than that.
        """
        trained = min(model.trained_length, model.length)
        if self.compare_at is not None and not 16 <= self.compare_at <= trained:
            raise LengthError(
                f"Candidates are compared at 16 to {trained:,} tokens, which {self.model!r} was trained to read, not at "
                f"{self.compare_at:,}; change --compare-at, or leave it out."
            )
        return trained if self.compare_at is None else self.compare_at

    def searched_text(self, model: SearchedModel) -> SearchText:
        """The text, tokenised as far as it is needed."""
        vocabulary = getattr(model.original.config.get_text_config(), "vocab_size", 2)
        return SearchText(self.text, model.tokenizer, self.pieces * model.length, vocabulary)

    def objective_of(self, model: SearchedModel, transferred: Transferred) -> HeldOutLoss | Divergence:
        """The objective of stage 2."""
        text = self.searched_text(model)
        if self.objective == "loss":
            return HeldOutLoss(model, text, self.pieces, transferred)
        return Divergence(model, text, self.pieces, self.length_compared(model), transferred)

    def transferred(self, model: SearchedModel, candidates: Sequence[Candidate], folder: Path, progress: Progress) -> Transferred:
        """Parameters of mechanisms after attention transfer, which are kept in ``folder``; none without ``transfer_steps``."""
        if not self.transfer_steps:
            return {}
        length = self.length_compared(model)
        return transfer_attention(self.model, self.text, candidates, self.transfer_steps, length, folder, self.seed, progress)
