"""A model of sound as one graph for sounds of any duration and any batch: what is traced, and how the written file is compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..conversion.report import Check
from ..conversion.sound import VerificationSound
from ..modeling.family.audio_rule import MASK
from ..private_apis import trace_errors
from .graphs import ExportedGraph, Runner, Traced, compare
from .model_graph import least_lengths
from .picture_graph import named_tensors

COMPARED = ((3, 0.0), (2, 0.3), (1, 1.0))
"""Batch sizes, and durations between the shortest and the longest, to compare."""
EXAMPLE_FRAMES = 600
"""Frames of the traced sound, unless the minimum is greater."""


class SoundGraph(ExportedGraph):
    """A model as a function of samples ``(B, N)``, and of their mask where padding changes nothing, that returns a dictionary of tensors.

    sounds: on which it is traced and compared.
    """

    advised = "longformer"

    def __init__(self, model: nn.Module, sounds: VerificationSound) -> None:
        super().__init__()
        self.model, self.sounds, self.rule = model, sounds, sounds.rule
        self.masked = not self.rule.why_padding_changes(sounds.config)

    def forward(self, input_values: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        mask = {} if attention_mask is None else {MASK: attention_mask}
        return dict(named_tensors(self.model(**{self.rule.input: input_values}, **mask, return_dict=True)))

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.rule.input, MASK) if self.masked else (self.rule.input,)

    def example(self, batch: int, length: int) -> dict[str, Tensor]:
        """A sound, turned by another stretch in each row, with padding after all but the first where the graph takes a mask."""
        sound = self.sounds.features(self.rule.seconds(length))[:, :length]
        rows = torch.cat([sound.roll(number * length // batch, 1) for number in range(batch)])
        if not self.masked:
            return {self.rule.input: rows}
        least = self.rule.length_of(self.sounds.config, 1)
        return self.rule.arguments(rows, [max(least, length - number * length // 7) for number in range(batch)])

    def traced(self, max_length: int) -> Traced:
        config = self.sounds.config
        tried = least_lengths(self, max_length)
        for frames in tried:
            shortest, longest = (self.rule.length_of(config, count) for count in (frames, max_length))
            example = self.example(2, self.rule.length_of(config, min(max_length, max(EXAMPLE_FRAMES, frames + 1))))
            sizes = {0: torch.export.Dim("batch", min=1), 1: torch.export.Dim("length", min=shortest, max=longest)}
            try:
                program = torch.export.export(self, (), kwargs=example, dynamic_shapes=dict.fromkeys(example, sizes))
            except trace_errors():  # a guard on the length
                if frames == tried[-1]:
                    raise
            else:
                return Traced(program, example, self.inputs, tuple(self(**example)), frames)
        raise AssertionError("no minimum length to try")

    def check(self, load: Callable[[], Runner], limits: tuple[int, int]) -> list[Check]:
        """As :meth:`ExportedGraph.check`, for each of ``COMPARED``; ``limits`` in frames."""
        run = load()
        shortest, longest = (self.rule.length_of(self.sounds.config, frames) for frames in limits)
        return [self._compared(run, batch, round(shortest + share * (longest - shortest))) for batch, share in COMPARED]

    def _compared(self, run: Runner, batch: int, length: int) -> Check:
        inputs = self.example(batch, length)
        with torch.no_grad():
            expected = self(**inputs)
        lengths = inputs[MASK].sum(1).tolist() if self.masked else [length] * batch
        rows = [self.rule.output_rows(self.sounds.config, each) for each in lengths]
        real = torch.arange(self.rule.output_rows(self.sounds.config, length)) < torch.tensor(rows)[:, None]

        def defined(output: Tensor) -> Any:
            return real if output.shape[:2] == real.shape else ...  # outputs at padding are undefined

        values: dict[str, Any] = {"batch": batch, "length": length}
        return compare(run, inputs, expected, f"{batch} × {self.rule.seconds(length):,.3g} seconds", values, defined)


class FeatureGraph(SoundGraph):
    """A model as a function of features ``(B, N, F)``, which is the name of the graph's input."""

    def forward(self, input_features: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        return super().forward(input_features, attention_mask)
