"""Sound models as one graph for any duration and batch size: the inputs for tracing, and for comparing the written file."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..engines.common.global_rows import assume_in_graph
from ..errors import ExportError
from ..inputs.sound import VerificationSound
from ..modeling.family.audio_rule import MASK
from .graphs import Comparison, ExportedGraph, Int8Inputs, turned
from .model_graph import least_lengths

COMPARED = ((3, 0.0), (2, 0.3), (1, 1.0))
"""Batch sizes and durations to compare, from 0 for the shortest to 1 for the longest duration."""
EXAMPLE_FRAMES = 600
"""Number of frames of the traced sound, unless the minimum is greater."""
INT8_FRAMES = ((6, 512), (1, 2048))
"""Batch size and frames per sound for comparing an int8 copy, and for timing it."""
DECODED = "decoder_input_ids"
DECODED_TOKENS = 4
"""Number of decoder tokens for tracing and comparing."""


class SoundGraph(ExportedGraph):
    """A model as a function of samples ``(B, N)`` or features. Further inputs are a mask, if padding does not change the outputs, and the
    decoder's tokens, if the model has a decoder.

    sounds: the inputs for tracing and comparing.

    Raises:
        ExportError: the model is a transducer.
    """

    advised = "longformer"

    def __init__(self, model: nn.Module, sounds: VerificationSound) -> None:
        if hasattr(model, "joint"):
            raise ExportError(
                f"{type(model).__name__} is a transducer, whose recurrent decoder writes one label after the other and is not one graph; "
                "save its encoder by model.get_encoder().save_pretrained(folder) and export that."
            )
        taken = inspect.signature(model.forward).parameters
        super().__init__(model, {"use_cache": False} if "use_cache" in taken else None)
        self.sounds, self.rule = sounds, sounds.rule
        self.masked, self.decodes = not self.rule.why_padding_changes(sounds.config), DECODED in taken

    def forward(
        self,
        input_values: Tensor | None = None,
        input_features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
    ) -> dict[str, Tensor]:
        sound = input_values if input_features is None else input_features
        if sound is not None and decoder_input_ids is not None:
            assume_in_graph(decoder_input_ids.shape[0] == sound.shape[0])  # one symbol for both batch sizes, before shapes depend on them
        return self.run(
            input_values=input_values, input_features=input_features, attention_mask=attention_mask, decoder_input_ids=decoder_input_ids
        )

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.rule.input, *([MASK] if self.masked else []), *([DECODED] if self.decodes else []))

    def example(self, batch: int, length: int) -> dict[str, Tensor]:
        """A batch of one sound, with each copy rolled by another amount. If the graph takes a mask, all but the first end in padding."""
        rows = turned(self.sounds.features(self.rule.seconds(length)).narrow(self.rule.time_axis, 0, length), batch, self.rule.time_axis)
        config, least = self.sounds.config, self.rule.length_of(self.sounds.config, 1)
        lengths = [max(least, length - number * length // 7) for number in range(batch)] if self.masked else None
        inputs = self.rule.arguments(rows, lengths)
        if self.decodes:
            inputs[DECODED] = torch.arange(batch * DECODED_TOKENS).view(batch, DECODED_TOKENS) % config.vocab_size
        return {name: inputs[name] for name in self.inputs}

    def shortest_lengths(self, max_length: int) -> list[int]:
        return least_lengths(self, max_length)

    def traceable(self, shortest: int, max_length: int) -> tuple[dict[str, Tensor], dict[str, dict[int, Any]]]:
        """``shortest`` and ``max_length`` in frames."""
        config = self.sounds.config
        least, most = (self.rule.length_of(config, frames) for frames in (shortest, max_length))
        example = self.example(2, self.rule.length_of(config, min(max_length, max(EXAMPLE_FRAMES, shortest + 1))))
        batch, length = torch.export.Dim("batch", min=1), torch.export.Dim("length", min=least, max=most)
        sizes: dict[str, dict[int, Any]] = {name: {0: batch, 1: length} for name in example}
        sizes[self.rule.input] = {0: batch, self.rule.time_axis: length}
        if self.decodes:
            longest = getattr(config, "max_target_positions", getattr(config, "max_position_embeddings", None))
            sizes[DECODED] = {0: batch, 1: torch.export.Dim("decoder_length", min=2, max=longest)}
        return example, sizes

    def comparisons(self, limits: tuple[int, int]) -> Iterator[Comparison]:
        """``limits`` in frames."""
        shortest, longest = (self.rule.length_of(self.sounds.config, frames) for frames in limits)
        for batch, share in COMPARED:
            yield self._comparison(batch, shortest + round(share * (longest - shortest)))

    def _comparison(self, batch: int, length: int) -> Comparison:
        inputs = self.example(batch, length)
        lengths = inputs[MASK].sum(1).tolist() if self.masked else [length] * batch
        rows = [self.rule.output_rows(self.sounds.config, each) for each in lengths]
        real = torch.arange(self.rule.output_rows(self.sounds.config, length)) < torch.tensor(rows)[:, None]

        def defined(output: Tensor) -> Any:
            return real if output.shape[:2] == real.shape else ...  # outputs at padding are undefined

        return Comparison(inputs, f"{batch} × {self.rule.seconds(length):,.3g} seconds", {"batch": batch, "length": length}, defined)

    def int8_inputs(self, limits: tuple[int, int]) -> Int8Inputs:
        config = self.sounds.config
        lengths = [self.rule.length_of(config, min(max(frames, limits[0]), limits[1])) for _, frames in INT8_FRAMES]
        compared, timed = (self.example(batch, length) for (batch, _), length in zip(INT8_FRAMES, lengths, strict=True))
        seconds = [self.rule.seconds(length) for length in lengths]
        return Int8Inputs(compared, {"sounds": INT8_FRAMES[0][0], "audio_seconds": seconds[0]}, timed, {"audio_seconds": seconds[1]})
