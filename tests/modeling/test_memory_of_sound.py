"""An hour of sound in windows takes memory in proportion to that of its minutes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hf_longattn.families import LongWav2Vec2Config, LongWav2Vec2Model
from scripts.dev.benchmarks.memory import Memory, answer, exponent, growth, in_a_new_process

SAMPLES = 16_000
"""In a second."""


@torch.no_grad()
def measured(minutes: float) -> dict[str, Any]:
    """MiB of a pass over so many minutes, in this process."""
    torch.manual_seed(0)
    config = LongWav2Vec2Config(
        hidden_size=64, num_attention_heads=4, intermediate_size=128, conv_dim=[32] * 7, num_hidden_layers=1,
        long_attention={"mechanism": "window", "left": 512, "right": 512},
    )  # fmt: skip
    model = LongWav2Vec2Model(config).eval()
    sound = torch.randn(1, int(60 * minutes * SAMPLES))
    model(sound[:, : 2 * SAMPLES])  # lazy imports and threads
    return {"mebibytes": growth(lambda: model(sound))}


@pytest.mark.slow
def test_the_memory_of_an_hour_is_that_of_its_minutes() -> None:
    peaks = []
    for minutes in (5, 15, 60):
        found = in_a_new_process(__name__, {"minutes": minutes}, f"{minutes} minutes of sound")
        peaks.append(Memory("longattn", minutes, 0, found["mebibytes"]))
    power = exponent(peaks)
    assert power is not None
    assert power < 1.03
    assert peaks[-1].extra < 12.5 * peaks[0].extra


if __name__ == "__main__":
    answer(measured)
