"""The study of seams: a jump at borders is measured, tiles are what the model says of each, and the stored page has the stored figures."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import ViTConfig, ViTModel

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from scripts.dev import RESULTS
from scripts.dev.studies.seams import (
    CELLS,
    PATCH,
    PICTURE,
    READINGS,
    REFERENCE,
    SHOWN,
    SIDE,
    at_borders,
    centred,
    in_tiles,
    markdown,
    measured,
    step_over_borders,
)

ROWS, COLUMNS = (side // PATCH for side in SHOWN)


@pytest.fixture(scope="module")
def model() -> ViTModel:
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=SIDE, patch_size=PATCH
    )  # fmt: skip
    return ViTModel(config, add_pooling_layer=False).eval()


def test_only_features_that_jump_at_borders_have_seams() -> None:
    random = torch.randn(ROWS, COLUMNS, 6, generator=torch.Generator().manual_seed(0))
    assert 0.9 < step_over_borders(random) < 1.1
    tile = random[::CELLS, ::CELLS].repeat_interleave(CELLS, 0).repeat_interleave(CELLS, 1)
    assert step_over_borders(tile + 0.01 * random) > 100


def test_tiles_and_centred_crops_are_what_the_model_says_of_them(model: ViTModel) -> None:
    pixels = torch.randn(1, 3, *SHOWN, generator=torch.Generator().manual_seed(0))

    def of_crop(row: int, column: int) -> torch.Tensor:
        crop = pixels[..., PATCH * row : PATCH * row + SIDE, PATCH * column : PATCH * column + SIDE]
        with torch.no_grad():
            return model(crop).last_hidden_state[0, 1:].view(CELLS, CELLS, -1)

    tiles, middles = in_tiles(model, pixels), centred(model, pixels)
    assert tiles.shape == middles.shape == (ROWS, COLUMNS, 8)
    torch.testing.assert_close(tiles[8:16, 24:32], of_crop(8, 24))
    torch.testing.assert_close(middles[20, 30], of_crop(16, 26)[4, 4])
    torch.testing.assert_close(middles[0, COLUMNS - 1], of_crop(0, COLUMNS - CELLS)[0, CELLS - 1])
    figures = measured({"tiles": tiles, REFERENCE: middles})
    assert figures[REFERENCE]["difference_at_borders"] == 0 < figures["tiles"]["difference_at_borders"]


def test_patches_at_borders_are_those_next_to_another_tile() -> None:
    border = at_borders(16, 24)
    assert not any(border[place] for place in ((0, 0), (3, 3), (15, 23)))
    assert all(border[place] for place in ((7, 0), (8, 3), (3, 7), (3, 16)))


def test_the_stored_page_is_made_from_the_stored_figures() -> None:
    result = json.loads((RESULTS / "seams.json").read_text(encoding="utf-8"))
    assert (RESULTS / "seams.md").read_text(encoding="utf-8") == markdown(result)
    assert READINGS.keys() | {REFERENCE} <= result["readings"].keys()
    assert PICTURE.stat().st_size < 150_000
