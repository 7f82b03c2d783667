"""Long models of pictures: equal to their base with full attention at every size, equal to their definition with windows."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForImageClassification

from hf_longattn.engines.common.grid import Grid
from hf_longattn.errors import GridError, OptionError
from hf_longattn.families import FAMILIES
from hf_longattn.modeling.grids import tiled_positions
from tests.modeling.grid_models import (
    BASES,
    HEADS,
    base_model,
    defined,
    inputs_of,
    long_model,
    patches,
    reads,
    resized,
    saved,
    seeing,
    tensors,
)

WINDOWS = {"mechanism": "window2d", "window": 8}
NEW_SIZES = ((32, 32), (48, 48), (40, 64))
MECHANISMS = ({"mechanism": "window2d", "window": 3, "shift": "alternate"}, {"mechanism": "neighborhood", "kernel_size": 5})


@pytest.mark.parametrize(("base", "head"), HEADS)
@torch.no_grad()
def test_full_attention_is_the_base_at_every_size(base: str, head: str, tmp_path: Path) -> None:
    plain = saved(base, head, tmp_path)
    model = long_model(base, head, tmp_path, long_attention={"mechanism": "full"})
    for size in filter(lambda size: reads(head, size), NEW_SIZES):
        inputs = inputs_of(base, size)
        outputs = tensors(plain(**inputs, **resized(base, size))), tensors(model(**inputs))
        for of_base, of_long in zip(*outputs, strict=True):
            torch.testing.assert_close(of_long, of_base, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mechanism", MECHANISMS, ids=lambda mechanism: mechanism["mechanism"])
@pytest.mark.parametrize("base", [base for base in BASES if base != "data2vec-vision"])  # whose base takes no mask: the next test
@torch.no_grad()
def test_a_mechanism_is_the_base_with_its_definition_as_a_mask(base: str, mechanism: dict[str, Any], tmp_path: Path) -> None:
    head = base_model(base)
    plain = saved(base, head, tmp_path)
    model = long_model(base, head, tmp_path, long_attention=mechanism)
    inputs = inputs_of(base, (40, 64))
    grid = Grid((10, 16), FAMILIES[base].grid.prefix_of(model.config))
    masks = defined(model, grid)
    if base == "vit_mae":  # the patches that are left, in the base's order
        cells = inputs["noise"].argsort(1)[:, : grid.cells // 4] + 1
        places = torch.cat([torch.zeros(2, 1, dtype=torch.long), cells], 1)
        masks = [torch.stack([mask[row][:, row] for row in places])[:, None] for mask in masks]
    with seeing(plain, *masks):
        expected = tensors(plain(**inputs, **resized(base, (40, 64))))
    for of_base, of_long in zip(expected, tensors(model(**inputs)), strict=True):
        torch.testing.assert_close(of_long, of_base, rtol=1e-4, atol=1e-4)
    assert (tensors(plain(**inputs, **resized(base, (40, 64))))[0] - expected[0]).abs().max() > 1e-2  # what full attention is


@pytest.mark.parametrize("base", [base for base in BASES if base != "data2vec-vision"])
@torch.no_grad()
def test_windows_without_prefix_and_tiled_positions_are_the_base_on_each_crop(base: str, tmp_path: Path) -> None:
    """On the patches alone: the class token sees one crop in the base, and here all; so no patch sees it on either side."""
    whole_picture = {"mask_ratio": 0.0} if base == "vit_mae" else {}
    plain = saved(base, base_model(base), tmp_path, **whole_picture)
    attention = {**WINDOWS, "prefix_tokens": "none"}
    model = long_model(base, base_model(base), tmp_path, long_attention=attention, position_extension="tile")
    prefix = FAMILIES[base].grid.prefix_of(model.config)
    pixels = torch.randn(1, 3, 64, 96)
    inputs = patches(pixels) if FAMILIES[base].grid.shapes else {"pixel_values": pixels}
    raster = {"noise": torch.arange(24.0 * 16)[None]} if base == "vit_mae" else {}
    cells = model(**inputs, **raster).last_hidden_state[:, prefix:].unflatten(1, (16, 24))
    front = torch.arange(prefix + 64) < prefix
    for row, column in ((0, 0), (0, 2), (1, 1)):
        crop = pixels[..., row * 32 : row * 32 + 32, column * 32 : column * 32 + 32]
        inputs = patches(crop) if FAMILIES[base].grid.shapes else {"pixel_values": crop}
        raster = {"noise": torch.arange(64.0)[None]} if base == "vit_mae" else {}
        with seeing(plain, front[:, None] == front):
            expected = plain(**inputs, **raster).last_hidden_state[:, prefix:].unflatten(1, (8, 8))
        torch.testing.assert_close(cells[:, row * 8 : row * 8 + 8, column * 8 : column * 8 + 8], expected, rtol=1e-4, atol=1e-4)


def test_positions_are_repeated_along_both_axes() -> None:
    table = torch.arange(2 + 9.0).view(1, 11, 1)
    rows = tiled_positions(table, 4, 16, 20)[0, :, 0]
    assert rows[:2].tolist() == [0, 1]
    assert rows[2:].view(4, 5).tolist() == [[2, 3, 4, 2, 3], [5, 6, 7, 5, 6], [8, 9, 10, 8, 9], [2, 3, 4, 2, 3]]


@pytest.mark.parametrize("base", BASES)
def test_gradient_checkpointing_changes_nothing(base: str, tmp_path: Path) -> None:
    head = base_model(base)
    saved(base, head, tmp_path)
    inputs, grads = inputs_of(base, (40, 48)), []
    for settings in (None, {"use_reentrant": False}, {"use_reentrant": True}):
        model = long_model(base, head, tmp_path, long_attention={**WINDOWS, "window": 3}).train()
        if settings is not None:
            model.activation_checkpointing_enable(settings)
        embedded: Any = model.get_input_embeddings()
        if settings is not None and settings["use_reentrant"]:  # whose inputs must need gradients
            inputs["pixel_values"] = inputs["pixel_values"].requires_grad_()
        torch.manual_seed(0)
        tensors(model(**inputs))[0].square().mean().backward()
        grads.append(next(embedded.parameters()).grad)
    for grad in grads[1:]:
        torch.testing.assert_close(grad, grads[0])


def test_twenty_threads_with_pictures_of_different_sizes(tmp_path: Path) -> None:
    saved("vit", "ViTModel" if "ViTModel" in FAMILIES["vit"].heads else "ViTForImageClassification", tmp_path)
    model = long_model("vit", "ViTForImageClassification", tmp_path, long_attention={**WINDOWS, "window": 3})
    pictures = [torch.randn(1, 3, 16 + 4 * (number % 5), 48 - 4 * (number % 7)) for number in range(20)]
    with torch.no_grad():
        expected = [model(pixels).logits for pixels in pictures]
    results: dict[int, Tensor] = {}

    def run(number: int) -> None:
        with torch.no_grad():
            results[number] = model(pictures[number]).logits

    threads = [threading.Thread(target=run, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, logits in enumerate(expected):
        torch.testing.assert_close(results[number], logits)


def test_compiled_and_exported_without_a_graph_break(tmp_path: Path) -> None:
    saved("vit", "ViTForImageClassification", tmp_path)
    model = long_model("vit", "ViTForImageClassification", tmp_path, long_attention={**WINDOWS, "window": 3})
    pixels = torch.randn(2, 3, 40, 48)
    with torch.no_grad():
        expected = model(pixels).logits
        torch.testing.assert_close(torch.compile(model, backend="aot_eager", fullgraph=True)(pixels).logits, expected)
    torch.testing.assert_close(torch.export.export(model, (pixels,)).module()(pixels).logits, expected)


def test_saved_and_loaded_by_the_auto_class(tmp_path: Path) -> None:
    saved("vit", "ViTForImageClassification", tmp_path / "short")
    model = long_model("vit", "ViTForImageClassification", tmp_path / "short", long_attention=WINDOWS, long_image_size=[64, 96])
    model.save_pretrained(tmp_path / "long")
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "long").eval()
    assert type(loaded) is type(model)
    assert loaded.config.long_image_size == [64, 96]
    assert loaded.config.image_size == 32
    pixels = torch.randn(1, 3, 64, 96)
    torch.testing.assert_close(loaded(pixels).logits, model(pixels).logits)


class TestRefusals:
    def test_a_size_that_is_no_multiple_of_the_patch(self, tmp_path: Path) -> None:
        saved("vit", "ViTForImageClassification", tmp_path)
        model = long_model("vit", "ViTForImageClassification", tmp_path)
        with pytest.raises(GridError, match=r"height of an input is 30 pixels.*multiple of the patch's 4; resize it, for example to 32"):
            model(torch.randn(1, 3, 30, 32))

    @pytest.mark.parametrize("mechanism", ["window", "longformer", "bigbird"])
    def test_a_mechanism_for_texts_without_an_order(self, mechanism: str) -> None:
        with pytest.raises(OptionError, match=f"'{mechanism}' sees neighbours along a text.*order=tiles:8x8"):
            FAMILIES["vit"].config_class(long_attention={"mechanism": mechanism})
        FAMILIES["vit"].config_class(long_attention={"mechanism": mechanism, "order": "tiles:8x8"})

    def test_positions_of_texts(self) -> None:
        with pytest.raises(OptionError, match="must be 'interpolate' or 'tile'"):
            FAMILIES["vit"].config_class(position_extension="random")
