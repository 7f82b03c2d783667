"""Features of patches are what the model says of the whole image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hf_longattn import LongBertConfig, LongBertModel, LongWav2Vec2Config, LongWav2Vec2Model
from hf_longattn.errors import BackendError, GridError
from hf_longattn.evaluation.regions import dense_features
from hf_longattn.families import FAMILIES
from tests.alike import kind_of_family
from tests.cells import every_cell

from ..modeling import grid_models

PATCH, SIZE = grid_models.PATCH, (40, 24)


@pytest.fixture
def model(tmp_path: Path) -> Any:
    grid_models.saved("vit", "ViTModel", tmp_path)
    return grid_models.long_model("vit", "ViTModel", tmp_path, long_attention={"mechanism": "window2d", "window": 4})


def test_features_are_the_states_of_patches(model: Any) -> None:
    pixels = torch.randn(2, 3, *SIZE)
    features = dense_features(model, pixels)
    assert features.shape == (2, 10, 6, model.config.hidden_size)
    with torch.no_grad():
        states = model(pixels).last_hidden_state[:, 1:]
    torch.testing.assert_close(features.flatten(1, 2), states)
    assert torch.equal(dense_features(model, {"pixel_values": pixels}), features)


def test_a_region_knows_the_rest_of_the_image(model: Any) -> None:
    model.use_base_attention()
    pixels = torch.randn(1, 3, 32, 32)
    changed = pixels.clone()
    changed[..., 16:, 16:] += 3
    before, after = (dense_features(model, of)[0, :4, :4].mean((0, 1)) for of in (pixels, changed))
    assert (before - after).abs().max() > 1e-4
    assert model.training is False


@every_cell(
    "base",
    [base for base in grid_models.BASES if FAMILIES[base].rule.shapes is None and base != "dinat"],
    of=4,
    alike=kind_of_family,
)
def test_families_and_backbones(base: str, tmp_path: Path) -> None:
    family, size = FAMILIES[base], SIZE if FAMILIES[base].rule.interpolates else (32, 32)
    pixels = torch.randn(1, 3, *size)
    heads = [grid_models.base_model(base), *[head for head in family.model_classes if head.endswith("Backbone")]]
    for head in heads:
        plain = grid_models.saved(base, head, tmp_path / head)
        chosen = {"long_attention": {"mechanism": "full"}} if family.own_attention is None else {}
        model = grid_models.long_model(base, head, tmp_path / head, **chosen)
        features = dense_features(model, pixels)
        assert features.shape[:3] == (1, size[0] // PATCH, size[1] // PATCH)
        if head.endswith("Backbone"):
            with torch.no_grad():
                torch.testing.assert_close(features, model(pixels).feature_maps[-1].movedim(1, -1))
        else:
            torch.testing.assert_close(features, dense_features(plain, pixels), rtol=1e-4, atol=1e-4)


def test_layers_on_different_grids(tmp_path: Path) -> None:
    grid_models.saved("dinat", "DinatModel", tmp_path)
    with pytest.raises(BackendError, match="The layers of a LongDinatModel are on different grids"):
        dense_features(grid_models.long_model("dinat", "DinatModel", tmp_path), torch.randn(1, 3, 32, 32))


def test_part_of_a_patch_and_other_models_are_refused(model: Any) -> None:
    with pytest.raises(GridError, match="multiple of the patch"):
        dense_features(model, torch.randn(1, 3, 30, 30))
    text = LongBertModel(LongBertConfig(num_hidden_layers=1, hidden_size=32, num_attention_heads=2, intermediate_size=32, vocab_size=9))
    sound = LongWav2Vec2Model(LongWav2Vec2Config(num_hidden_layers=1, hidden_size=32, num_attention_heads=2, intermediate_size=32))
    for other, given in (text, "text"), (sound, "recording"):
        with pytest.raises(BackendError, match=f"reads no images on a grid of patches; give a {given} instead"):
            dense_features(other, torch.randn(1, 3, 32, 32))
