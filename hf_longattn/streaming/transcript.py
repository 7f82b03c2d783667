"""Live transcripts: greedy CTC decoding of the frames of a stream."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import StreamError
from .model import Stream, read_state, write_state

CONTEXT = 16
"""Number of previous labels that are decoded together with new ones, as context for the tokenizer."""
EPSILON = 1e-7
"""Added to the variance, as in transformers' feature extractors of samples."""
LABELS = "labels"
"""Name of a tensor of the state: the last frame's label, then the last labels of the transcript."""


class LiveTranscript:
    """A live transcript of one recording by a CTC model: ``print(live.feed(samples), end="")``.

    Args:
        model: a CTC model that reads streams, see :class:`Stream`.
        processor: its processor or tokenizer. The CTC blank is the tokenizer's padding token, as in transformers.
        chunk: as for :class:`Stream`.
        normalise: mean and standard deviation for scaling the samples, from similar recordings. Those of the stream are unknown before its
            end.
    Raises:
        StreamError: the model does not support streams, or ``normalise`` is required by the feature extractor and missing.
    """

    def __init__(self, model: Any, processor: Any, *, chunk: int | None = None, normalise: tuple[float, float] | None = None) -> None:
        extractor = getattr(processor, "feature_extractor", None)
        if getattr(extractor, "do_normalize", False) and normalise is None:
            raise StreamError(
                f"{type(extractor).__name__} scales every utterance by its own mean and deviation (do_normalize), which are unknown "
                "before its end; give those of a similar recording, for example normalise=(0.0, 0.05)."
            )
        if normalise is not None and not normalise[1] > 0:
            raise StreamError(f"normalise is {normalise!r}, but must be a mean and a standard deviation above 0; for example (0.0, 0.05).")
        self.stream, self.normalise = Stream(model, chunk=chunk), normalise
        self.tokenizer: Any = getattr(processor, "tokenizer", processor)
        self._blank = self.tokenizer.pad_token_id
        self._last: int = self._blank
        self._labels: list[int] = []

    def feed(self, sound: Tensor | np.ndarray, *, start: int | None = None) -> str:
        """Add samples, and return the text that has become final since the previous call.

        Arguments and errors are those of :meth:`Stream.feed`, for one row.
        """
        piece = torch.as_tensor(sound)
        if piece.dim() == (2 if self.stream.reads_samples else 3) and len(piece) != 1:
            raise StreamError(f"A live transcript has one sequence, but the piece has {len(piece)} rows; make a LiveTranscript for each.")
        if self.normalise is not None:
            mean, deviation = self.normalise
            piece = (piece - mean) / (deviation**2 + EPSILON) ** 0.5
        return self._text(self.stream.feed(piece, start=start))

    def finish(self) -> str:
        """End the audio and return the rest of the text."""
        return self._text(self.stream.finish())

    def _text(self, logits: Tensor) -> str:
        """The text of the next frames, from logits ``(1, m, labels)``."""
        new = []
        for label in logits[0].argmax(-1).tolist():
            if label not in (self._last, self._blank):
                new.append(label)
            self._last = label
        before = self._decoded(self._labels)
        self._labels += new
        text = self._decoded(self._labels)[len(before) :]
        del self._labels[:-CONTEXT]
        return text

    def _decoded(self, labels: list[int]) -> str:
        return str(self.tokenizer.decode(labels, group_tokens=False, clean_up_tokenization_spaces=False)) if labels else ""

    def state_dict(self) -> dict[str, Tensor]:
        """The state as tensors: the state of the stream, and the last labels."""
        return {**self.stream.state_dict(), LABELS: torch.tensor([self._last, *self._labels])}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Resume from a state. Errors are those of :meth:`Stream.load_state_dict`."""
        if LABELS not in state:
            raise StreamError("This is the state of a stream without its transcript; load it into a Stream.")
        self.stream.load_state_dict({name: x for name, x in state.items() if name != LABELS})
        self._last, *self._labels = state[LABELS].tolist()

    def save(self, file: str | Path) -> None:
        """Write the state to a safetensors file, as :meth:`Stream.save`."""
        write_state(file, self.state_dict(), self.stream.about())

    def load(self, file: str | Path) -> None:
        """Resume from a file that :meth:`save` wrote. Errors are those of :meth:`Stream.load`."""
        self.load_state_dict(read_state(file, self.stream.about()))
