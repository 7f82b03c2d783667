"""Long models of images: equal to their base with full attention at every size, equal to their definition with
windows."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hf_longattn.errors import InputError, OptionError
from hf_longattn.families import FAMILIES
from hf_longattn.modeling.grids import tiled_positions
from tests.cases import every_case
from tests.grids import grid
from tests.modeling.grid_models import (
    BASES,
    HEADS,
    base_model,
    defined,
    inputs_of,
    long_model,
    reads,
    resized,
    saved,
    seeing,
    tensors,
)
from tests.reference.small_models import checkpoint_activations

WINDOWS = {"mechanism": "window2d", "window": 8}
ONE_LAYER = {"num_hidden_layers": 1, "out_indices": [1]}
NEW_SIZES = ((32, 32), (48, 48), (40, 64))
MECHANISMS = (
    {"mechanism": "window2d", "window": 3, "shift": "alternate"},
    {"mechanism": "window2d", "window": 5, "prefix_tokens": "none"},
)


COMPILED = ["vit", "siglip_vision_model", "beit", "dinov3_vit"]


@every_case(("base", "head"), HEADS, of=9, code=lambda base, head: base)
@torch.no_grad()
def test_images_with_full_attention_are_the_base_at_every_size(base: str, head: str, tmp_path: Path) -> None:
    plain = saved(base, head, tmp_path)
    model = long_model(base, head, tmp_path, long_attention={"mechanism": "full"})
    for size in filter(lambda size: reads(base, head, size), NEW_SIZES):
        inputs = inputs_of(base, size)
        outputs = tensors(plain(**inputs, **resized(base, size))), tensors(model(**inputs))
        torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-6)


@every_case(
    ("base", "mechanism"),
    [(base, mechanism) for base in BASES for mechanism in MECHANISMS],
    ids=lambda value: value if isinstance(value, str) else value["mechanism"],
    of=4,
    code=lambda base, mechanism: mechanism["mechanism"],
)
def test_images_with_a_mechanism_are_the_base_under_its_mask_with_gradients(
    base: str, mechanism: dict[str, Any], tmp_path: Path
) -> None:
    """With the gradients of every parameter, in float64."""
    head = base_model(base)
    size = (40, 64)
    plain = saved(base, head, tmp_path).double()
    model = long_model(base, head, tmp_path, long_attention=mechanism).double()
    inputs = {
        name: value.double() if value.is_floating_point() else value for name, value in inputs_of(base, size).items()
    }
    masks = defined(model, FAMILIES[base].spec.of_size(model.config, size))
    with seeing(plain, *masks):
        expected = tensors(plain(**inputs, **resized(base, size)))
    found = tensors(model(**inputs))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    for outputs in (expected, found):
        outputs[0].sin().mean().backward()
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(model.get_parameter(name).grad, parameter.grad, rtol=1e-4, atol=1e-6, msg=name)
    # what full attention is
    assert (tensors(plain(**inputs, **resized(base, size)))[0] - expected[0]).abs().max() > 1e-2


@every_case("base", BASES)
@torch.no_grad()
def test_windows_with_tiled_positions_are_the_base_on_each_crop(base: str, tmp_path: Path) -> None:
    """On the patches alone: the class token sees one crop in the base, and here all; so no patch sees it on either
    side."""
    plain = saved(base, base_model(base), tmp_path)
    attention = {**WINDOWS, "prefix_tokens": "none"}
    model = long_model(base, base_model(base), tmp_path, long_attention=attention, position_extension="tile")
    prefix = FAMILIES[base].spec.prefix_of(model.config)
    pixels = torch.randn(1, 3, 64, 96)
    cells = model(pixels).last_hidden_state[:, prefix:].unflatten(1, (16, 24))
    front = torch.arange(prefix + 64) < prefix
    for row, column in ((0, 0), (0, 2), (1, 1)):
        crop = pixels[..., row * 32 : row * 32 + 32, column * 32 : column * 32 + 32]
        with seeing(plain, front[:, None] == front):
            expected = plain(crop).last_hidden_state[:, prefix:].unflatten(1, (8, 8))
        torch.testing.assert_close(
            cells[:, row * 8 : row * 8 + 8, column * 8 : column * 8 + 8], expected, rtol=1e-4, atol=1e-4
        )


def test_tiled_positions_are_repeated_along_both_axes() -> None:
    table = torch.arange(2 + 9.0).view(1, 11, 1)
    embeddings = SimpleNamespace(position_embeddings=table, patch_size=4)
    rows = tiled_positions(embeddings, table, 16, 20)[0, :, 0]
    assert rows[:2].tolist() == [0, 1]
    assert rows[2:].view(4, 5).tolist() == [[2, 3, 4, 2, 3], [5, 6, 7, 5, 6], [8, 9, 10, 8, 9], [2, 3, 4, 2, 3]]


@every_case("base", BASES, of=4)
def test_gradient_checkpointing_of_images_changes_no_gradient(base: str, tmp_path: Path) -> None:
    head = base_model(base)
    saved(base, head, tmp_path)
    inputs = inputs_of(base, (40, 48))
    grads = []
    for settings in (None, {"use_reentrant": False}, {"use_reentrant": True}):
        model = long_model(base, head, tmp_path, long_attention={**WINDOWS, "window": 3}).train()
        if settings is not None:
            checkpoint_activations(model, **settings)
        embedded: Any = model.get_input_embeddings()
        if settings is not None and settings["use_reentrant"]:  # whose inputs must need gradients
            inputs["pixel_values"] = inputs["pixel_values"].requires_grad_()
        torch.manual_seed(0)
        tensors(model(**inputs))[0].square().mean().backward()
        grads.append(next(embedded.parameters()).grad)
    for grad in grads[1:]:
        torch.testing.assert_close(grad, grads[0])


@every_case("base", BASES, of=4)
def test_a_model_with_tiled_positions_is_copied_and_pickled(base: str, tmp_path: Path) -> None:
    saved(base, base_model(base), tmp_path)
    model = long_model(base, base_model(base), tmp_path, position_extension="tile")
    inputs = inputs_of(base, (40, 48))
    expected = tensors(model(**inputs))[0]
    copies = pickle.loads(pickle.dumps(model)), copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    for copied in copies:
        assert torch.equal(tensors(copied(**inputs))[0], expected)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("base", "axes"), grid([("vit", 1), *((base, 2) for base in COMPILED)], lambda base, axes: axes == 1)
)
@torch.no_grad()
def test_a_model_of_images_is_compiled_once_for_any_size(base: str, axes: int, tmp_path: Path) -> None:
    """As long as it is the same windows at the borders that are complete: along the width alone, or along both
    axes."""
    torch._dynamo.reset()
    saved(base, base_model(base), tmp_path, **ONE_LAYER)
    model = long_model(base, base_model(base), tmp_path, long_attention={**WINDOWS, "window": 3})
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for size, stance in (((40, 48), "default"), ((52 if axes == 2 else 40, 60), "fail_on_recompile")):
        inputs = inputs_of(base, size)
        of_image = inputs["pixel_values"]
        torch._dynamo.mark_dynamic(of_image, [of_image.ndim - number for number in range(1, 1 + axes)])
        with torch.compiler.set_stance(stance):
            output = tensors(compiled(**inputs))[0]
        torch.testing.assert_close(output, tensors(model(**inputs))[0], rtol=1e-4, atol=1e-4)


class TestRefusals:
    def test_vit_refuses_a_size_that_is_no_multiple_of_the_patch(self, tmp_path: Path) -> None:
        saved("vit", "ViTForImageClassification", tmp_path)
        model = long_model("vit", "ViTForImageClassification", tmp_path)
        with pytest.raises(
            InputError,
            match=r"height of an input is 30 pixels.*multiple of the patch's 4; resize it, for example to 32",
        ):
            model(torch.randn(1, 3, 30, 32))

    def test_masked_image_modeling_refuses_an_image_that_is_no_square(self, tmp_path: Path) -> None:
        saved("vit", "ViTForMaskedImageModeling", tmp_path / "vit")
        model = long_model("vit", "ViTForMaskedImageModeling", tmp_path / "vit")
        with pytest.raises(
            InputError, match=r"puts the patches of an image together to a square.* 32 × 64 pixels; crop or resize"
        ):
            model(torch.randn(1, 3, 32, 64))
        with pytest.raises(InputError, match=r"its loss for images of 32 × 32 pixels.*48 × 48 pixels; resize"):
            model(torch.randn(1, 3, 48, 48), bool_masked_pos=torch.rand(1, 12 * 12) > 0.5)
        assert model(torch.randn(1, 3, 32, 32), bool_masked_pos=torch.rand(1, 8 * 8) > 0.5).loss.isfinite()

    @pytest.mark.parametrize("mechanism", ["window", "longformer", "bigbird"])
    def test_vit_refuses_a_mechanism_for_texts_(self, mechanism: str) -> None:
        with pytest.raises(OptionError, match=f"'{mechanism}' sees neighbours along a text.*window2d"):
            FAMILIES["vit"].config_class(long_attention={"mechanism": mechanism})

    def test_vit_refuses_an_extension_of_positions_for_texts(self) -> None:
        with pytest.raises(OptionError, match="must be 'interpolate' or 'tile'"):
            FAMILIES["vit"].config_class(position_extension="random")
