"""Images of different sizes in one batch are each on their own grid: packed patches, SigLIP 2, frames of a video."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface, Siglip2VisionConfig, Siglip2VisionModel
from transformers.vision_utils import get_vision_window_index

from hf_longattn.families import LongSiglip2VisionConfig, LongSiglip2VisionModel, enable_long_attention
from hf_longattn.modeling.generic import towers_of
from tests.cases import every_case
from tests.modeling.test_generic import build_towers

WHOLE_ROWS = "reference_flash_rows"
"""An attention implementation by whose name transformers hands over whole rows, with the borders of their
sequences."""
CASES = ["pixtral", "qwen2_vl", "qwen2_5_vl"]
Sees = Callable[[Tensor, Tensor], Tensor]
"""Places of queries and of keys ``(…, 2)`` -> whether the one sees the other."""
MECHANISMS: dict[str, tuple[dict[str, Any], Sees]] = {
    "window2d": ({"mechanism": "window2d", "window": 3}, lambda q, k: (q // 3 == k // 3).all(-1))
}


def places(case: str, tower: Any, inputs: dict[str, Tensor]) -> Tensor:
    """Row and column of every patch in its image ``(N, 2)``, in the order of the tower's patches, one after the
    other."""
    if case == "pixtral":
        sizes = [(height // 4, width // 4) for height, width in inputs["image_sizes"].tolist()]
        return torch.tensor(
            [(row, column) for rows, columns in sizes for row in range(rows) for column in range(columns)]
        )
    grids = inputs["image_grid_thw"]
    listed = [
        (2 * block_row + row, 2 * block_column + column)
        for frames, rows, columns in grids.tolist()
        for _ in range(frames)
        for block_row in range(rows // 2)
        for block_column in range(columns // 2)
        for row in range(2)
        for column in range(2)
    ]
    patches = torch.tensor(listed)
    if case == "qwen2_vl":
        return patches
    order, _ = get_vision_window_index(grids, tower.spatial_merge_size, tower.window_size, tower.patch_size)
    return patches.unflatten(0, (-1, 4))[order].flatten(0, 1)


def under_mask(patches: Tensor, sees: Sees) -> Any:
    """transformers' eager attention under the dense mask of a mechanism on every sequence of a row."""

    def attend(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, scaling: float, **kwargs: Any
    ) -> Any:
        offsets = kwargs["cu_seq_lens_q"].long()
        numbers = torch.bucketize(torch.arange(len(patches)), offsets[1:], right=True)
        first = torch.stack([patches[numbers == number].amin(0) for number in range(len(offsets) - 1)])
        within = patches - first[numbers]  # windows are grids of their own
        seen = (numbers[:, None] == numbers) & sees(within[:, None], within[None])
        scores = query @ key.mT * scaling
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        return (weights @ value).transpose(1, 2).contiguous(), weights

    return attend


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


@pytest.mark.thorough
@every_case("name", MECHANISMS)
@every_case("case", CASES)
def test_every_packed_image_is_on_its_own_grid(case: str, name: str) -> None:
    model, inputs = double(case)
    attention, sees = MECHANISMS[name]
    tower = towers_of(model)["vision"]
    AttentionInterface.register(WHOLE_ROWS, under_mask(places(case, tower, inputs), sees))
    plain, tower.config._attn_implementation = tower.config._attn_implementation, WHOLE_ROWS
    expected = features(tower, case, inputs)
    tower.config._attn_implementation = plain
    full = features(tower, case, inputs)
    enable_long_attention(model, {"towers": {"vision": attention}})
    measured = features(tower, case, inputs)
    assert torch.allclose(measured, expected, rtol=0, atol=1e-12)
    assert not torch.allclose(measured, full, rtol=0, atol=1e-3)


@every_case("case", CASES)
def test_a_window_over_packed_images_stays_in_its_image(case: str) -> None:
    """Without a grid, a mechanism counts patches in the order in which the tower has them."""
    model, inputs = double(case)
    tower = towers_of(model)["vision"]
    order = torch.arange(len(places(case, tower, inputs)))[:, None].expand(-1, 2)
    AttentionInterface.register(WHOLE_ROWS, under_mask(order, lambda q, k: ((q - k).abs() <= 3).all(-1)))
    plain, tower.config._attn_implementation = tower.config._attn_implementation, WHOLE_ROWS
    expected = features(tower, case, inputs)
    tower.config._attn_implementation = plain
    enable_long_attention(model, {"towers": {"vision": {"mechanism": "window", "window": 6}}})
    assert torch.allclose(features(tower, case, inputs), expected, rtol=0, atol=1e-12)


@every_case("case", CASES)
def test_packed_images_are_as_if_each_were_alone(case: str) -> None:
    model, inputs = double(case)
    tower = towers_of(model)["vision"]
    enable_long_attention(model, {"towers": {"vision": {"mechanism": "window2d", "window": 2}}})
    together = features(tower, case, inputs)
    if case == "pixtral":
        sizes = inputs["image_sizes"]
        alone = [
            features(
                tower,
                case,
                {"pixel_values": image[None, :, :height, :width], "image_sizes": torch.tensor([[height, width]])},
            )
            for image, (height, width) in zip(inputs["pixel_values"], sizes.tolist(), strict=True)
        ]
        assert torch.allclose(together, torch.cat(alone, 1), rtol=0, atol=1e-12)
        return
    grids = inputs["image_grid_thw"]
    parts = zip(inputs["pixel_values"].split(grids.prod(1).tolist()), grids, strict=True)
    alone = [features(tower, case, {"pixel_values": patches, "image_grid_thw": grid[None]}) for patches, grid in parts]
    assert torch.allclose(together, torch.cat(alone), rtol=0, atol=1e-12)


def test_frames_of_a_video_are_each_on_a_grid() -> None:
    model, inputs = double("qwen2_vl")
    tower = towers_of(model)["vision"]
    enable_long_attention(model, {"towers": {"vision": {"mechanism": "window2d", "window": 2}}})
    patches = inputs["pixel_values"][:48]
    video = features(tower, "qwen2_vl", {"pixel_values": patches, "image_grid_thw": torch.tensor([[2, 4, 6]])})
    frames = [
        features(tower, "qwen2_vl", {"pixel_values": part, "image_grid_thw": torch.tensor([[1, 4, 6]])})
        for part in patches.split(24)
    ]
    assert torch.allclose(video, torch.cat(frames), rtol=0, atol=1e-12)


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
    enable_long_attention(model, {"towers": {"vision": {"mechanism": "window2d", "window": 3}}})
    with torch.no_grad():
        assert torch.allclose(tower(inputs["pixel_values"]).last_hidden_state, expected, rtol=0, atol=1e-12)


def gradient(case: str, tower: Any, inputs: dict[str, Tensor]) -> Tensor:
    tower.zero_grad()
    arguments = {"grid_thw": inputs["image_grid_thw"]} if case == "qwen2_vl" else {}
    tower(inputs["pixel_values"], **arguments).last_hidden_state.sin().sum().backward()
    return next(
        value.grad for name, value in tower.named_parameters() if name.endswith(("qkv.weight", "q_proj.weight"))
    ).clone()


@pytest.mark.parametrize("case", ["siglip", "qwen2_vl"])
def test_checkpointed_layers_of_images_know_the_grid(case: str) -> None:
    model, inputs = double(case)
    enable_long_attention(model, {"towers": {"vision": {"mechanism": "window2d", "window": 2}}})
    tower = towers_of(model)["vision"].train()
    expected = gradient(case, tower, inputs)
    tower.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert torch.allclose(gradient(case, tower, inputs), expected, rtol=0, atol=1e-12)


SHAPES = torch.tensor([[5, 3], [2, 7], [4, 4]])
CELLS = 16
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "patch_size": 4,
    "num_patches": 16,
}
DENSE = "reference_dense_grids"


def inputs() -> dict[str, Tensor]:
    lengths = SHAPES.prod(1)
    generator = torch.Generator().manual_seed(0)
    return {
        "pixel_values": torch.randn(len(SHAPES), CELLS, 48, dtype=torch.float64, generator=generator),
        "pixel_attention_mask": (torch.arange(CELLS) < lengths[:, None]).long(),
        "spatial_shapes": SHAPES,
    }


@torch.no_grad()
def states(model: Any) -> Tensor:
    """Of the real patches, one image after the other."""
    seen: list[Tensor] = []
    with model.get_submodule("post_layernorm").register_forward_hook(lambda module, args, output: seen.append(output)):
        model(**inputs())
    return seen[0][inputs()["pixel_attention_mask"].bool()]


@pytest.mark.thorough
@pytest.mark.parametrize("name", MECHANISMS)
def test_every_siglip2_image_of_a_batch_is_on_its_own_grid(name: str, tmp_path: Path) -> None:
    attention, sees = MECHANISMS[name]
    torch.manual_seed(0)
    plain: Any = Siglip2VisionModel(Siglip2VisionConfig(**SIZES)).double().eval()
    with torch.no_grad():
        plain.embeddings.position_embedding.weight.normal_()
    plain.save_pretrained(tmp_path)
    patches = torch.arange(CELLS)
    masks = []
    for rows, columns in SHAPES.tolist():
        places = torch.stack([patches // columns, patches % columns], -1)
        real = patches < rows * columns
        masks.append(sees(places[:, None], places[None]) & real[None] | torch.eye(CELLS, dtype=torch.bool))

    def attend(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, scaling: float, **kwargs: Any
    ) -> Any:
        scores = (query @ key.mT * scaling).masked_fill(~torch.stack(masks)[:, None], -torch.inf)
        return (scores.softmax(-1) @ value).transpose(1, 2).contiguous(), None

    AttentionInterface.register(DENSE, attend)
    for layer in plain.encoder.layers:
        layer.self_attn.config = Siglip2VisionConfig(**SIZES)
        layer.self_attn.config._attn_implementation = DENSE
    config = LongSiglip2VisionConfig.from_pretrained(tmp_path, long_attention=attention)
    long: Any = LongSiglip2VisionModel.from_pretrained(tmp_path, config=config, dtype=torch.float64).eval()
    assert torch.allclose(states(long), states(plain), rtol=0, atol=1e-12)
    full = Siglip2VisionModel.from_pretrained(tmp_path, dtype=torch.float64).eval()
    assert not torch.allclose(states(long), states(full), rtol=0, atol=1e-3)
