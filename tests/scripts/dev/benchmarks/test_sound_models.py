"""Models of sound in the shapes of checkpoints: equal to the stock model under the same band, and an hour in linear memory."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from scripts.dev.benchmarks.memory import Memory, exponent
from scripts.dev.benchmarks.sound_models import STOCK, WINDOW, build, measured, sound_of
from tests.modeling.audio_models import defined, seeing

pytestmark = pytest.mark.slow
LAYERS = 2
SECONDS = 26.0
"""A duration with more frames than a window."""
NARROW: dict[str, Any] = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128, "conv_dim": [32] * 7}


def of_largest(difference: Tensor, expected: Tensor) -> float:
    return float(difference.detach().abs().max() / expected.detach().abs().max())


def test_a_model_in_the_shape_of_a_checkpoint_is_the_stock_one_under_its_band() -> None:
    """Outputs, computed in stretches and at once, and gradients; samples become features without any, as in fine-tuning."""
    model, stock = build(WINDOW, LAYERS), build(STOCK, LAYERS)
    sound = sound_of(model, SECONDS)
    with torch.no_grad():
        frames = model(sound).last_hidden_state.shape[1]
        visible = defined(model, frames)
        assert not visible[0].all()
        with seeing(stock, *visible):
            expected = stock(sound).last_hidden_state
        assert of_largest(model(sound).last_hidden_state - expected, expected) < 1e-5
        assert of_largest(stock(sound).last_hidden_state - expected, expected) > 1e-3
    gradients: list[dict[str, Tensor]] = []
    for each in (model, stock):
        parameters = {path: value for path, value in each.named_parameters() if not path.startswith("feature_extractor")}
        for parameter in parameters.values():
            parameter.requires_grad_()
        with seeing(stock, *visible) if each is stock else nullcontext():
            states = each(sound).last_hidden_state
        assert of_largest(states - expected, expected) < 1e-5
        (states * torch.linspace(-1, 1, states.shape[-1])).square().mean().backward()
        gradients.append({path: parameter.grad for path, parameter in parameters.items() if parameter.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    largest = max(float(gradient.abs().max()) for gradient in gradients[1].values())
    for path, gradient in gradients[1].items():
        floor = 1e-3 * largest  # a key's bias has gradients of rounding errors alone
        assert float((gradients[0][path] - gradient).abs().max()) < 1e-4 * max(float(gradient.abs().max()), floor), path


def test_the_memory_of_an_hour_is_that_of_its_minutes() -> None:
    peaks = []
    for minutes in (5, 15, 60):
        row = measured(WINDOW, minutes * 60, 1, **NARROW)
        peaks.append(Memory(WINDOW, row["frames"], 0, row["mebibytes"]))
    growth = exponent(peaks)
    assert growth is not None
    assert growth < 1.03
    assert peaks[-1].extra < 12.5 * peaks[0].extra
