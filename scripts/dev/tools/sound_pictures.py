"""What a frame of a sound sees with each mechanism, for docs/how-to/speech.md: a spectrogram, and below it a strip for each mechanism."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import torch
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from hf_longattn.engines.common.call import AttentionCall
from hf_longattn.inputs.sound import seeded_sound
from hf_longattn.mechanisms.common.registry import mechanism_from

FILE = "seen_by_a_frame.svg"
SECONDS, RATE, SAMPLES_PER_FRAME = 4, 16_000, 640
FRAMES = SECONDS * RATE // SAMPLES_PER_FRAME
"""Frames of 40 ms, so that one is wide enough to be seen."""
QUERY = 42
"""The frame that looks."""
LAYERS = 4
NOTHING, THROUGH, SEEN = 0, 1, 2
COLOURS = {NOTHING: "#f4f4f4", THROUGH: "#bcd3ee", SEEN: "#3572b0"}


class Strip(NamedTuple):
    """A mechanism with its options, as they are typed."""

    mechanism: str
    options: dict[str, Any]

    @property
    def title(self) -> str:
        return f"{self.mechanism} {' '.join(f'{name}={value}' for name, value in self.options.items())}".strip()


STRIPS = (
    Strip("full", {}),
    Strip("window", {"left": 8, "right": 8}),
    Strip("window", {"left": 12, "right": 2}),
    Strip("window", {"left": 12, "right": 0}),
    Strip("chunked", {"chunk_size": 8, "left_chunks": 1}),
    Strip("longformer", {"window": 16, "global_tokens": 0}),
    Strip("segmented", {"block_size": 8, "integration": "previous"}),
)


def seen(strip: Strip) -> Tensor:
    """What the frame sees, ``(frames,)``: :data:`SEEN` in one layer, :data:`THROUGH` all :data:`LAYERS` of them, or :data:`NOTHING`."""
    mechanism = mechanism_from(strip.mechanism, strip.options, num_heads=1, head_dim=4, max_length=FRAMES)
    q = torch.zeros(1, 1, FRAMES, 4)
    with torch.no_grad():
        pairs = mechanism.weights(q, q, AttentionCall(causal=False))[0, 0] > 1e-9
    reached = torch.linalg.matrix_power(pairs.double(), LAYERS) > 0
    return torch.where(pairs[QUERY], SEEN, torch.where(reached[QUERY], THROUGH, NOTHING))


def spectrogram() -> NDArray[np.float64]:
    """Decibels of a seeded voice without words, ``(frequencies, frames)``."""
    samples = seeded_sound(SECONDS * RATE, RATE)
    frames = samples.reshape(FRAMES, SAMPLES_PER_FRAME) * np.hanning(SAMPLES_PER_FRAME)
    power = np.abs(np.fft.rfft(frames, axis=1))[:, : SAMPLES_PER_FRAME // 8] ** 2  # up to 2 kHz
    return np.maximum(10 * np.log10(power + 1e-6), -30).T


def draw(file: Path) -> None:
    """Write the drawing as one SVG, the same bytes each time."""
    extent = (0.0, float(SECONDS), 0.0, 1.0)
    with matplotlib.rc_context({"svg.hashsalt": "hf_longattn", "svg.fonttype": "none"}):
        figure = Figure(figsize=(10, 5.6), layout="constrained")
        axes = figure.subplots(1 + len(STRIPS), 1, sharex=True, height_ratios=[4, *[1] * len(STRIPS)])
        axes[0].imshow(spectrogram(), origin="lower", aspect="auto", extent=(0, SECONDS, 0, 2), cmap="magma", interpolation="none")
        axes[0].set_ylabel("kHz", fontsize=8)
        axes[0].tick_params(labelsize=8)
        colours = ListedColormap([COLOURS[kind] for kind in sorted(COLOURS)])
        for axis, strip in zip(axes[1:], STRIPS, strict=True):
            axis.imshow(
                seen(strip)[None].numpy(), cmap=colours, vmin=NOTHING, vmax=SEEN, aspect="auto", extent=extent, interpolation="none"
            )
            axis.set_yticks([])
            axis.set_ylabel(strip.title, rotation=0, ha="right", va="center", fontsize=8)
            for side in axis.spines.values():
                side.set_visible(False)
        for axis in axes:
            axis.axvline((QUERY + 0.5) * SAMPLES_PER_FRAME / RATE, color="crimson", linewidth=1.5)
        axes[-1].set_xlabel("seconds", fontsize=8)
        axes[-1].tick_params(labelsize=8)
        figure.savefig(file, metadata={"Date": None})
