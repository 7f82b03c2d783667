"""The study of seams: a jump at borders is measured, tiles are what the model says of each, and the stored page has the stored figures."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import ViTConfig, ViTForMaskedImageModeling

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from scripts.dev import RESULTS
from scripts.dev.studies.seams import (
    CELLS,
    IMAGE,
    OVERLAPPING,
    PATCH,
    READINGS,
    REFERENCE,
    SHOWN,
    SIDE,
    TILES,
    Reading,
    at_borders,
    by_tile,
    errors,
    markdown,
    measured,
    readings,
    step_over_borders,
)

ROWS, COLUMNS = (side // PATCH for side in SHOWN)


@pytest.fixture(scope="module")
def model() -> ViTForMaskedImageModeling:
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=8, num_hidden_layers=4, num_attention_heads=2, intermediate_size=8, image_size=SIDE, patch_size=PATCH,
        encoder_stride=PATCH,
    )  # fmt: skip
    return ViTForMaskedImageModeling(config).eval()


@pytest.fixture(scope="module")
def read(model: ViTForMaskedImageModeling, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Reading]:
    folder = tmp_path_factory.mktemp("small")
    model.save_pretrained(folder)
    return readings(model, folder)


def test_only_features_that_jump_at_borders_have_seams() -> None:
    random = torch.randn(ROWS, COLUMNS, 6, generator=torch.Generator().manual_seed(0))
    assert 0.9 < step_over_borders(random) < 1.1
    tile = random[::CELLS, ::CELLS].repeat_interleave(CELLS, 0).repeat_interleave(CELLS, 1)
    assert step_over_borders(tile + 0.01 * random) > 100


@pytest.mark.thorough
@torch.no_grad()
def test_tiles_and_centred_crops_are_what_the_model_says_of_them(model: ViTForMaskedImageModeling, read: dict[str, Reading]) -> None:
    generator = torch.Generator().manual_seed(0)
    pixels, masked = torch.randn(1, 3, *SHOWN, generator=generator), torch.rand(1, ROWS, COLUMNS, generator=generator) < 0.5

    def of_crop(row: int, column: int) -> torch.Tensor:
        crop = pixels[..., PATCH * row : PATCH * row + SIDE, PATCH * column : PATCH * column + SIDE]
        hidden = masked[:, row : row + CELLS, column : column + CELLS].flatten(1)
        return model.vit(crop, bool_masked_pos=hidden).last_hidden_state[0, 1:].view(CELLS, CELLS, -1)

    tiles, half, middles = (read[name](pixels, masked)[0] for name in (TILES, OVERLAPPING, REFERENCE))
    assert tiles.shape == half.shape == middles.shape == (ROWS, COLUMNS, 8)
    torch.testing.assert_close(tiles[8:16, 24:32], of_crop(8, 24))
    torch.testing.assert_close(half[10:14, 26:30], of_crop(8, 24)[2:6, 2:6])
    torch.testing.assert_close(middles[0, COLUMNS - 1], of_crop(0, COLUMNS - CELLS)[0, CELLS - 1])
    assert any(torch.allclose(middles[20, 30], of_crop(20 - at, 30 - at)[at, at], atol=1e-5) for at in (CELLS // 2 - 1, CELLS // 2))
    torch.testing.assert_close(by_tile(tiles[..., 0])[7], of_crop(8, 8)[..., 0].flatten())


@pytest.mark.slow
@torch.no_grad()
def test_the_figures_are_of_what_was_masked_and_paired_with_tiles(model: ViTForMaskedImageModeling, read: dict[str, Reading]) -> None:
    pixels = torch.randn(1, 3, *SHOWN, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    states = read[TILES](pixels, torch.zeros(1, ROWS, COLUMNS, dtype=torch.bool))
    restored = model(pixels[..., SIDE : 2 * SIDE, :SIDE]).reconstruction
    expected = 127.5 * (restored - pixels[..., SIDE : 2 * SIDE, :SIDE]).abs().mean(1)[0, :PATCH, :PATCH].mean()
    torch.testing.assert_close(errors(model, states, pixels)[0, CELLS, 0], expected)
    figures = measured(model, {name: read[name] for name in (TILES, "window2d", REFERENCE)}, [pixels], seed=0)
    assert figures[REFERENCE]["difference_at_borders"] == 0 < figures[TILES]["difference_at_borders"]
    assert figures[TILES]["gain_at_borders"] == [0, 0, 0]
    gain, low, high = figures[REFERENCE]["gain_at_borders"]
    assert low <= gain <= high
    assert gain == pytest.approx(figures[TILES]["error_at_borders"] - figures[REFERENCE]["error_at_borders"], abs=1e-4)


def test_patches_at_borders_are_those_next_to_another_tile() -> None:
    border = at_borders(16, 24)
    assert not any(border[place] for place in ((0, 0), (3, 3), (15, 23)))
    assert all(border[place] for place in ((7, 0), (8, 3), (3, 7), (3, 16)))


def test_the_stored_page_is_made_from_the_stored_figures() -> None:
    result = json.loads((RESULTS / "seams.json").read_text(encoding="utf-8"))
    assert (RESULTS / "seams.md").read_text(encoding="utf-8") == markdown(result)
    assert READINGS.keys() | {TILES, OVERLAPPING, REFERENCE} <= result["readings"].keys()
    assert IMAGE.stat().st_size < 150_000
