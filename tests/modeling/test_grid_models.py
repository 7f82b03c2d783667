"""Long models of pictures: equal to their base with full attention at every size, equal to their definition with windows."""

from __future__ import annotations

import importlib
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForImageClassification

from hf_longattn.errors import GridError, OptionError
from hf_longattn.families import FAMILIES
from hf_longattn.modeling.grids import tiled_positions

SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64, "image_size": 32, "patch_size": 4}
BASES = [name for name in FAMILIES if FAMILIES[name].grid is not None]
HEADS = [(base, head) for base in BASES for head in FAMILIES[base].heads]
WINDOWS = {"mechanism": "window2d", "window": 8}


def saved(base: str, head: str, folder: Path) -> nn.Module:
    """A small model of the base, saved in ``folder``."""
    torch.manual_seed(0)
    family = FAMILIES[base]
    model: Any = getattr(importlib.import_module(family.base_package), head)(family.base_config_class(**SIZES, num_labels=5)).eval()
    model.save_pretrained(folder)
    return model


def long_model(base: str, head: str, folder: Path, **config: Any) -> Any:
    return FAMILIES[base].model_class(head).from_pretrained(folder, **config).eval()


def tensors(outputs: Any) -> list[Tensor]:
    return [value for value in outputs.to_tuple() if isinstance(value, Tensor)]


@pytest.mark.parametrize(("base", "head"), HEADS)
@torch.no_grad()
def test_full_attention_is_the_base_at_every_size(base: str, head: str, tmp_path: Path) -> None:
    plain = saved(base, head, tmp_path)
    model = long_model(base, head, tmp_path, long_attention={"mechanism": "full"})
    for size in ((32, 32), (48, 48), (40, 64)):
        if size[0] != size[1] and head.endswith("ForMaskedImageModeling"):
            continue  # the base's decoder reads square pictures only
        pixels = torch.randn(2, 3, *size)
        resized = {"interpolate_pos_encoding": True} if FAMILIES[base].grid.interpolates and size != (32, 32) else {}
        for of_base, of_long in zip(tensors(plain(pixels, **resized)), tensors(model(pixels)), strict=True):
            torch.testing.assert_close(of_long, of_base, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("base", BASES)
@torch.no_grad()
def test_windows_without_prefix_and_tiled_positions_are_the_base_on_each_crop(base: str, tmp_path: Path) -> None:
    """Layer by layer, on the patches alone: the class token of the base is left out, since it sees one crop only."""
    family = FAMILIES[base]
    head = next(name for name in family.heads if name.endswith(("Model", "ForImageClassification")))
    plain: Any = saved(base, head, tmp_path).base_model
    attention = {**WINDOWS, "prefix_tokens": "none"}
    model = long_model(base, head, tmp_path, long_attention=attention, position_extension="tile").base_model
    prefix = family.grid.prefix_of(plain.config)
    pixels = torch.randn(1, 3, 64, 96)
    cells = model(pixels).last_hidden_state[:, prefix:].unflatten(1, (16, 24))
    layers = [module for module in plain.modules() if type(module).__name__.endswith("Layer") and hasattr(module, "attention")]
    norm = next(module for name, module in plain.named_children() if "norm" in name)
    for row, column in ((0, 0), (0, 2), (1, 1)):
        crop = pixels[..., row * 32 : row * 32 + 32, column * 32 : column * 32 + 32]
        states = plain.embeddings(crop)
        states = states[0] if isinstance(states, tuple) else states
        states = states[:, prefix:]
        for layer in layers:
            states = layer(states)
        expected = norm(states).unflatten(1, (8, 8))
        torch.testing.assert_close(cells[:, row * 8 : row * 8 + 8, column * 8 : column * 8 + 8], expected, rtol=1e-5, atol=1e-5)


def test_positions_are_repeated_along_both_axes() -> None:
    table = torch.arange(2 + 9.0).view(1, 11, 1)
    rows = tiled_positions(table, 4, 16, 20)[0, :, 0]
    assert rows[:2].tolist() == [0, 1]
    assert rows[2:].view(4, 5).tolist() == [[2, 3, 4, 2, 3], [5, 6, 7, 5, 6], [8, 9, 10, 8, 9], [2, 3, 4, 2, 3]]


@pytest.mark.parametrize("base", BASES)
def test_gradient_checkpointing_changes_nothing(base: str, tmp_path: Path) -> None:
    head = next(name for name in FAMILIES[base].heads if name.endswith(("ForImageClassification", "Model")))
    saved(base, head, tmp_path)
    pixels = torch.randn(2, 3, 40, 48)
    grads = []
    for settings in (None, {"use_reentrant": False}, {"use_reentrant": True}):
        model = long_model(base, head, tmp_path, long_attention={**WINDOWS, "window": 3}).train()
        if settings is not None:
            model.activation_checkpointing_enable(settings)
        embedded: Any = model.get_input_embeddings()
        if settings is not None and settings["use_reentrant"]:  # whose inputs must need gradients
            pixels = pixels.requires_grad_()
        tensors(model(pixels))[0].square().mean().backward()
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
