"""Features of regions are means over their pixels, of what the model says of the whole image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_longattn import LongBertConfig, LongBertModel, LongWav2Vec2Config, LongWav2Vec2Model
from hf_longattn.errors import BackendError, GridError, LongAttentionError
from hf_longattn.evaluation.regions import dense_features, region_features, tile_boxes
from hf_longattn.families import FAMILIES
from tests.alike import kind_of_family
from tests.cells import every_cell

from ..modeling import grid_models

PATCH, SIZE = grid_models.PATCH, (40, 24)
BOXES = [[(0, 0, 24, 40), (3, 5, 9, 30), (8, 8, 12, 12)], [(23, 39, 24, 40), (0, 0, 1, 1), (1, 2, 22, 39)]]


@pytest.fixture
def model(tmp_path: Path) -> Any:
    grid_models.saved("vit", "ViTModel", tmp_path)
    return grid_models.long_model("vit", "ViTModel", tmp_path, long_attention={"mechanism": "window2d", "window": 4})


def mean_of_pixels(features: Tensor, box: tuple[int, int, int, int]) -> Tensor:
    """The mean of an image's features over a box, pixel by pixel."""
    left, top, right, bottom = box
    total = sum(features[y // PATCH, x // PATCH].double() for y in range(top, bottom) for x in range(left, right))
    return total / ((right - left) * (bottom - top))  # type: ignore[operator]


def test_a_region_is_the_mean_over_its_pixels(model: Any) -> None:
    pixels = torch.randn(2, 3, *SIZE)
    features = dense_features(model, pixels)
    assert features.shape == (2, 10, 6, model.config.hidden_size)
    with torch.no_grad():
        states = model(pixels).last_hidden_state[:, 1:]
    torch.testing.assert_close(features.flatten(1, 2), states)
    regions = region_features(model, {"pixel_values": pixels}, BOXES, normalize=False)
    for image, of_image, boxes in zip(features, regions, BOXES, strict=True):
        expected = torch.stack([mean_of_pixels(image, box) for box in boxes])
        torch.testing.assert_close(of_image.double(), expected, rtol=1e-5, atol=1e-6)
    unit = region_features(model, pixels, BOXES)
    torch.testing.assert_close(unit[0], regions[0] / regions[0].norm(dim=1, keepdim=True))


def test_boxes_of_the_photo_are_those_of_what_the_model_reads(model: Any) -> None:
    pixels = torch.randn(2, 3, *SIZE)
    expected = region_features(model, pixels, torch.tensor([[3.0, 5, 9, 30]]))
    measured = region_features(model, pixels, torch.tensor([[7.5, 10, 22.5, 60]]), size=(80, 60))
    torch.testing.assert_close(measured, expected)
    assert len(measured) == 2


def test_tiles_cover_the_image(model: Any) -> None:
    pixels = torch.randn(1, 3, *SIZE)
    assert tile_boxes((5, 7), (3, 4)).tolist() == [[0, 0, 4, 3], [4, 0, 7, 3], [0, 3, 4, 5], [4, 3, 7, 5]]
    (tiles,) = region_features(model, pixels, tile=16, normalize=False)
    (boxes,) = region_features(model, pixels, [tile_boxes(SIZE, 16)], normalize=False)
    assert tiles.shape == (6, model.config.hidden_size)
    assert torch.equal(tiles, boxes)
    (many,) = region_features(model, pixels, tile=2, normalize=False)
    torch.testing.assert_close(many.unflatten(0, (20, 12))[::2, ::2].flatten(0, 1), dense_features(model, pixels)[0].flatten(0, 1))


def test_a_region_knows_the_rest_of_the_image(model: Any) -> None:
    model.use_base_attention()
    pixels = torch.randn(1, 3, 32, 32)
    changed = pixels.clone()
    changed[..., 16:, 16:] += 3
    box = [[(0, 0, 16, 16)]]
    (before,), (after,) = region_features(model, pixels, box), region_features(model, changed, box)
    assert (before - after).abs().max() > 1e-4
    assert model.training is False


@every_cell(
    "base",
    [
        base
        for base in grid_models.BASES
        if FAMILIES[base].rule.shapes is None and base not in ("vit_mae", "dinat", *grid_models.SPECTROGRAMS, *grid_models.VIDEOS)
    ],
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


@pytest.mark.parametrize("base", grid_models.VIDEOS)
def test_a_model_of_videos_has_no_regions(base: str, tmp_path: Path) -> None:
    grid_models.saved(base, grid_models.base_model(base), tmp_path)
    with pytest.raises(BackendError, match="reads videos, not images; give a model of images"):
        dense_features(grid_models.long_model(base, grid_models.base_model(base), tmp_path), torch.randn(1, 4, 3, 32, 32))


def test_layers_on_different_grids(tmp_path: Path) -> None:
    grid_models.saved("dinat", "DinatModel", tmp_path)
    with pytest.raises(BackendError, match="The layers of a LongDinatModel are on different grids"):
        dense_features(grid_models.long_model("dinat", "DinatModel", tmp_path), torch.randn(1, 3, 32, 32))


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({}, "Regions are boxes or tiles"),
    ({"boxes": BOXES, "tile": 8}, "Regions are boxes or tiles"),
    ({"boxes": BOXES[:1]}, "boxes for 1 images, but 2 images"),
    ({"boxes": [[(0, 0, 25, 1)], []]}, r"no box \(0.0, 0.0, 25.0, 1.0\); give 0 <= left < right <= 24"),
    ({"boxes": [[(4, 4, 4, 9)], []]}, "no box"),
    ({"boxes": [[(0, 0, 4)], []]}, r"A box is \(left, top, right, bottom\)"),
    ({"tile": 0}, "must have pixels along both axes"),
]


@pytest.mark.parametrize(("settings", "sentence"), REFUSED, ids=[sentence for _, sentence in REFUSED])
def test_refusals(settings: dict[str, Any], sentence: str, model: Any) -> None:
    with pytest.raises(LongAttentionError, match=sentence):
        region_features(model, torch.randn(2, 3, *SIZE), **settings)


def test_a_image_without_boxes_has_no_regions_and_other_models_are_refused(model: Any) -> None:
    regions = region_features(model, torch.randn(2, 3, *SIZE), [BOXES[0], []])
    assert regions[1].shape == (0, model.config.hidden_size)
    with pytest.raises(GridError, match="multiple of the patch"):
        region_features(model, torch.randn(1, 3, 30, 30), tile=8)
    text = LongBertModel(LongBertConfig(num_hidden_layers=1, hidden_size=32, num_attention_heads=2, intermediate_size=32, vocab_size=9))
    sound = LongWav2Vec2Model(LongWav2Vec2Config(num_hidden_layers=1, hidden_size=32, num_attention_heads=2, intermediate_size=32))
    for other, given in (text, "text"), (sound, "recording"):
        with pytest.raises(BackendError, match=f"reads no images on a grid of patches; give a {given} instead"):
            region_features(other, torch.randn(1, 3, 32, 32), tile=8)
