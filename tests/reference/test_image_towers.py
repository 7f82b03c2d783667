"""Vision towers without Long classes: images of one size are on a grid, packed ones are sequences."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface

from hf_longattn.errors import OptionError
from hf_longattn.families import enable_long_attention
from hf_longattn.modeling.generic import towers_of
from tests.cases import every_case
from tests.modeling.test_generic import build_towers

WHOLE_ROWS = "reference_flash_rows"
"""An attention implementation by whose name transformers hands over whole rows, with the borders of their
sequences."""
CASES = ["pixtral", "qwen2_vl", "qwen2_5_vl"]
WINDOW = {"towers": {"vision": {"mechanism": "window", "window": 6}}}
ON_GRID = {"towers": {"vision": {"mechanism": "window2d", "window": 3}}}


def attend_in_window(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, scaling: float, **kwargs: Any
) -> Any:
    """transformers' eager attention under the dense mask of a window on every sequence of a row."""
    position = torch.arange(key.shape[2])
    numbers = torch.bucketize(position, kwargs["cu_seq_lens_q"].long()[1:], right=True)
    seen = (numbers[:, None] == numbers) & ((position[:, None] - position).abs() <= 3)
    weights = (query @ key.mT * scaling).masked_fill(~seen, -torch.inf).softmax(-1)
    return (weights @ value).transpose(1, 2).contiguous(), weights


@torch.no_grad()
def features(tower: Any, case: str, inputs: dict[str, Tensor]) -> Tensor:
    if case == "pixtral":
        return tower(inputs["pixel_values"], image_sizes=inputs["image_sizes"]).last_hidden_state
    return tower(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"]).pooler_output


def double(case: str) -> tuple[Any, dict[str, Tensor]]:
    model, inputs = build_towers(case)
    return model.double(), {
        name: value.double() if value.is_floating_point() else value for name, value in inputs.items()
    }


@every_case("case", CASES)
def test_a_window_over_packed_images_stays_in_its_image(case: str) -> None:
    """A mechanism counts patches in the order in which the tower has them."""
    model, inputs = double(case)
    tower = towers_of(model)["vision"]
    AttentionInterface.register(WHOLE_ROWS, attend_in_window)
    plain, tower.config._attn_implementation = tower.config._attn_implementation, WHOLE_ROWS
    expected = features(tower, case, inputs)
    tower.config._attn_implementation = plain
    enable_long_attention(model, WINDOW)
    assert torch.allclose(features(tower, case, inputs), expected, rtol=0, atol=1e-12)


@every_case("case", CASES)
def test_a_mechanism_on_a_grid_is_refused_for_packed_images(case: str) -> None:
    model, _ = build_towers(case)
    with pytest.raises(OptionError, match="packs images of different sizes into one row, and mechanism 'window2d'"):
        enable_long_attention(model, ON_GRID)


@every_case("case", ["clip", "siglip", "llava"])
def test_images_of_one_size_are_on_one_grid(case: str) -> None:
    """Of SigLIP, whose attention modules hand no keywords on, too; class tokens are before the grid."""
    model, inputs = double(case)
    tower = towers_of(model)["vision"]
    prefix = 0 if case == "siglip" else 1
    places = torch.tensor([(row, column) for row in range(8) for column in range(8)])
    seen = torch.ones(prefix + 64, prefix + 64, dtype=torch.bool)
    seen[prefix:, prefix:] = (places[:, None] // 3 == places[None] // 3).all(-1)
    mask = torch.where(seen, 0.0, -torch.inf).double()[None, None]

    def attend(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, scaling: float, **kwargs: Any
    ) -> Any:
        weights = (query @ key.mT * scaling + mask).softmax(-1)
        return (weights @ value).transpose(1, 2).contiguous(), weights

    AttentionInterface.register(WHOLE_ROWS, attend)
    tower.set_attn_implementation("eager")
    for stack in [tower, *(module for module in tower.modules() if hasattr(module, "config"))]:
        stack.config._attn_implementation = WHOLE_ROWS
    with torch.no_grad():
        expected = tower(inputs["pixel_values"]).last_hidden_state
    tower.config._attn_implementation = "sdpa"
    enable_long_attention(model, ON_GRID)
    with torch.no_grad():
        assert torch.allclose(tower(inputs["pixel_values"]).last_hidden_state, expected, rtol=0, atol=1e-12)


def gradient(tower: Any, pixels: Tensor) -> Tensor:
    tower.zero_grad()
    tower(pixels).last_hidden_state.sin().sum().backward()
    return next(value.grad for name, value in tower.named_parameters() if name.endswith("q_proj.weight")).clone()


def test_checkpointed_layers_of_images_know_the_grid() -> None:
    model, inputs = double("siglip")
    enable_long_attention(model, ON_GRID)
    tower = towers_of(model)["vision"].train()
    expected = gradient(tower, inputs["pixel_values"])
    tower.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert torch.allclose(gradient(tower, inputs["pixel_values"]), expected, rtol=0, atol=1e-12)
