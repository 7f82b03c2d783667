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
from ..data.english import verification_text
from ..errors import OptionError
from ..inputs.common.base import InputSize
from ..inspect import Candidate
from .budget import Budget
from .candidates import read_candidates
from .inputs import SearchInputs, digest
from .model import SearchedModel
from .objectives import Divergence, HeldOutLoss, Progress, Transferred
from .texts import SearchText
from .transfer import transfer_attention

MODES, SCORE_NAMES, OBJECTIVES = ("mechanisms", "full-layers"), ("mass", "kl"), ("loss", "kl")
PIECES = 4
"""Pieces of the text that are read."""


@dataclass(frozen=True)
class SearchConfig:
    """The arguments of :func:`search_design`, checked; a worker process starts from them alone.

    text: or images; ``None`` for those that come with packages. candidates: ``None`` for the usual ones.
    """

    model: str
    text: str | Path | Tensor | None
    budget: Budget | None
    full_layers: int | None
    candidates: tuple[Candidate, ...] | None
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
        size, candidates = self.conversion.image_size, read_candidates(None) if self.candidates is None else self.candidates
        return {
            "model": self.model, "revision": self.conversion.revision, "text": hashlib.sha256(self._content()).hexdigest(),
            "budget": str(self.budget or self.full_layers),
            "mode": MODES[self.full_layers is not None], "length": self.conversion.max_length, "positions": self.conversion.positions,
            **({} if size is None else {"image_size": str(size)}),
            **({} if self.conversion.frames is None else {"frames": self.conversion.frames}),
            **({} if self.conversion.audio_seconds is None else {"audio_seconds": self.conversion.audio_seconds}),
            "candidates": list(map(str, candidates)), "score": self.score, "objective": self.objective,
            "transfer_steps": self.transfer_steps, "pieces": self.pieces, "queries": self.queries, "compare_at": self.compare_at,
            "seed": self.seed, "device": self.device,
        }  # fmt: skip

    def _content(self) -> bytes:
        """The text or the recording, or names and sizes of files."""
        if isinstance(self.text, Tensor):
            return self.text.numpy().tobytes()
        if isinstance(self.text, Path) and self.text.is_dir():
            return digest(self.text).encode()
        return self.text.read_bytes() if isinstance(self.text, Path) and self.text.is_file() else str(self.text).encode()

    def open_model(self, source: Source | None = None) -> SearchedModel:
        """The checkpoint, not yet loaded."""
        return SearchedModel.open(self.model if source is None else source, self.conversion, torch.device(self.device))

    def length_compared(self, model: SearchedModel) -> int | InputSize:
        """Tokens of the pieces by which candidates are judged: what the checkpoint was trained to read. The size of images is that of the
        result, since positions of images are interpolated between those that were trained; the duration of sounds is the result's up to a
        minute, where the checkpoint reads it.

        Raises:
            LengthError: ``compare_at`` is more than that.
            GridError: it is not a multiple of the patch.
        """
        original = model.original
        compared: int | InputSize = original.kind.compared_at(original.inputs, original.architecture.source_config, self.compare_at)
        return compared

    def inputs(self, model: SearchedModel) -> SearchText | SearchInputs:
        """The text, tokenised as far as it is needed, or images or recordings."""
        if model.original.kind.user_inputs is not None:
            return SearchInputs(self.text, model.original, self.pieces)
        text, name = verification_text(None) if self.text is None else (self.text, None)
        vocabulary = getattr(model.original.config.get_text_config(), "vocab_size", 2)
        searched = SearchText(text, model.tokenizer, self.pieces * model.length, vocabulary)
        searched.name = name or searched.name
        return searched

    def objective_of(self, model: SearchedModel, transferred: Transferred) -> HeldOutLoss | Divergence:
        """The objective of stage 2."""
        text: Any = self.inputs(model)
        if self.objective == "loss" and text.has_loss:
            return HeldOutLoss(model, text, self.pieces, transferred)
        return Divergence(model, text, self.pieces, self.length_compared(model), transferred)

    def transferred(self, model: SearchedModel, candidates: Sequence[Candidate], folder: Path, progress: Progress) -> Transferred:
        """Parameters of mechanisms after attention transfer, which are kept in ``folder``; none without ``transfer_steps``."""
        if not self.transfer_steps:
            return {}
        length = self.length_compared(model)
        if not isinstance(length, int) or self.text is None:
            raise OptionError("Attention transfer reads texts, and this model reads images or sound; leave --transfer-steps out.")
        return transfer_attention(self.model, self.text, candidates, self.transfer_steps, length, folder, self.seed, progress)
