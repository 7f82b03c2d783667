"""Models of images as graphs: equal to the model, for several sizes with windows, without a matrix of all pairs of patches."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_longattn import compress_checkpoint, export_checkpoint
from hf_longattn.errors import ExportError, GridError, OptionError
from hf_longattn.export.graphs import onnx_runner
from hf_longattn.families import LongViTConfig, LongViTForImageClassification, LongViTModel
from tests.modeling.grid_models import inputs_of, long_model
from tests.modeling.grid_models import saved as saved_base

SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64, "num_labels": 5}
SIZE = [64, 96]
TOKENS = 1 + 16 * 24


def saved(folder: Path, kind: type[Any] = LongViTForImageClassification, **options: Any) -> Path:
    torch.manual_seed(0)
    attention = {"mechanism": "window2d", **options}
    config = LongViTConfig(**SIZES, image_size=32, patch_size=4, long_image_size=SIZE, long_attention=attention, initializer_range=0.2)
    kind(config).save_pretrained(folder)
    return folder


def check_no_matrix_of_all_pairs(file: Path, tokens: int) -> Any:
    """The graph in a file, none of whose tensors has as many numbers as there are pairs of tokens."""
    onnx = pytest.importorskip("onnx")
    graph = onnx.shape_inference.infer_shapes(onnx.load(file)).graph
    shapes = [[side.dim_value or 1 for side in value.type.tensor_type.shape.dim] for value in (*graph.value_info, *graph.input)]
    assert shapes
    assert max(map(math.prod, shapes)) < tokens**2
    return graph


@pytest.mark.slow
def test_onnx_is_equal_has_no_matrix_of_all_pairs(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    report = export_checkpoint(saved(tmp_path / "long", LongViTModel, window=5), tmp_path / "graph", int8=True)
    check_int8(report.int8, tmp_path / "graph")
    assert [check.values["batch"] for check in report.checks] == [3, 1]
    assert all(check.status == "passed" for check in report.checks)
    assert (report.inputs, report.outputs) == (("pixel_values",), ("last_hidden_state", "pooler_output"))
    assert (report.image_size, report.max_length) == (tuple(SIZE), TOKENS)
    graph = check_no_matrix_of_all_pairs(tmp_path / "graph" / "model.onnx", TOKENS)
    assert [side.dim_value for side in graph.input[0].type.tensor_type.shape.dim][1:] == [3, *SIZE]
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_param


@pytest.mark.usefixtures("programs_loaded_once")
@pytest.mark.parametrize("format", ["torch", pytest.param("onnx", marks=pytest.mark.slow)])
def test_a_graph_of_windows_takes_sizes_that_are_whole_windows_smaller(format: str, tmp_path: Path) -> None:
    """Windows and tiled positions of 8 patches of 4 pixels."""
    if format == "onnx":
        pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    config = LongViTConfig(
        **SIZES, image_size=32, patch_size=4, long_image_size=[96, 128], position_extension="tile",
        long_attention={"mechanism": "window2d", "window": 8},
    )  # fmt: skip
    model = LongViTForImageClassification(config).eval()
    model.save_pretrained(tmp_path / "long")
    report = export_checkpoint(tmp_path / "long", tmp_path / "graph", format=format)
    assert (report.image_size, report.image_step, report.min_length) == ((96, 128), 32, 1 + 16 * 16)
    assert [check.values["size"] for check in report.checks] == [[96, 128], [64, 64]]
    if format == "onnx":
        run = onnx_runner(tmp_path / "graph" / "model.onnx", ("logits",))
    else:
        program = torch.export.load(tmp_path / "graph" / "model.pt2").module()
        run = lambda inputs: program(**inputs)  # noqa: E731
    for height, width in ((64, 96), (96, 64), (64, 128)):
        pixels = torch.randn(2, 3, height, width)
        with torch.no_grad():
            expected = model(pixels, interpolate_pos_encoding=True).logits
        torch.testing.assert_close(run({"pixel_values": pixels})["logits"], expected, rtol=0, atol=1e-5)


def check_int8(int8: Any, folder: Path) -> None:
    """Linear layers in 8 bits, as near to the graph as the report says; the convolution of patches keeps its 32."""
    assert (int8["file"], int8["linear_layers"], int8["images"]) == ("model_int8.onnx", 6 + 1, 6)
    assert int8["bytes"]["int8"] == (folder / "model_int8.onnx").stat().st_size
    assert int8["outputs"]["last_hidden_state"]["relative_error"] < 0.05
    runs = [onnx_runner(folder / name, ("last_hidden_state",)) for name in ("model.onnx", "model_int8.onnx")]
    pixels = torch.randn(2, 3, *SIZE)
    expected, found = (run({"pixel_values": pixels})["last_hidden_state"] for run in runs)
    assert 0 < (found - expected).norm() / expected.norm() < 0.1


@pytest.mark.slow  # the quick tests have programs of texts and of sounds
@pytest.mark.usefixtures("programs_loaded_once")
def test_a_program_of_torch(tmp_path: Path) -> None:
    source = saved(tmp_path / "long", window=5)
    export_checkpoint(source, tmp_path / "graph", format="torch")
    pixels = torch.randn(2, 3, *SIZE)
    program = torch.export.load(tmp_path / "graph" / "model.pt2").module()
    model = LongViTForImageClassification.from_pretrained(source).eval()
    with torch.no_grad():
        torch.testing.assert_close(program(pixel_values=pixels)["logits"], model(pixels).logits, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("base", "head", "inputs"),
    [
        ("siglip2_vision_model", "Siglip2VisionModel", {"pixel_values": [16 * 24, 3 * 16]}),  # patches, as its processor cuts them
        ("dinov2", "Dinov2Backbone", {"pixel_values": [3, *SIZE]}),
        # a bias for every head, tile and key of a tile, which is linear in the patches, and more than their pairs in a smaller image
        ("beit", "BeitModel", {"pixel_values": [3, 160, 160]}),
    ],
)
def test_graphs_of_other_inputs_and_outputs(base: str, head: str, inputs: dict[str, list[int]], tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    of_pixels = inputs["pixel_values"]
    size = of_pixels[1:] if len(of_pixels) == 3 else SIZE
    saved_base(base, head, tmp_path / "short", num_hidden_layers=1, out_indices=[1])
    model = long_model(base, head, tmp_path / "short", long_attention={"mechanism": "window2d", "window": 4}, long_image_size=size)
    model.save_pretrained(tmp_path / "long")
    report = export_checkpoint(tmp_path / "long", tmp_path / "graph")
    assert all(check.status == "passed" for check in report.checks)
    graph = check_no_matrix_of_all_pairs(tmp_path / "graph" / "model.onnx", math.prod(size) // 16)
    shapes = {value.name: [side.dim_value for side in value.type.tensor_type.shape.dim] for value in graph.input}
    assert {name: shape[1:] for name, shape in shapes.items()} == inputs
    assert report.inputs == tuple(inputs)


def test_siglip_2_reads_images_of_one_size_without_padding(tmp_path: Path) -> None:
    saved_base("siglip2_vision_model", "Siglip2VisionModel", tmp_path)
    for extension in ("interpolate", "tile"):
        attention = {"mechanism": "window2d", "window": 3}
        model = long_model("siglip2_vision_model", "Siglip2VisionModel", tmp_path, long_attention=attention, position_extension=extension)
        model, inputs = model.double(), inputs_of("siglip2_vision_model", (24, 32))
        inputs["pixel_values"] = inputs["pixel_values"].double()
        with torch.no_grad():
            expected = model(**inputs)
            found = model(pixel_values=inputs["pixel_values"], spatial_shapes=(6, 8))
        # The base computes the weights of its interpolation in float32, since transformers 5.24 by a formula of its own.
        torch.testing.assert_close(found.last_hidden_state, expected.last_hidden_state, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.pooler_output, expected.pooler_output, atol=1e-5, rtol=1e-5)
        with pytest.raises(GridError, match="A sequence has 48 tokens, but its grid has 40"):
            model(pixel_values=inputs["pixel_values"], spatial_shapes=(5, 8))


def test_a_mask_of_global_tokens_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="graph of a model of images is written without global_attention_mask; leave"):
        export_checkpoint(saved(tmp_path / "long"), tmp_path / "graph", format="onnx", global_attention_mask=True)
    assert not (tmp_path / "graph").exists()


def test_compressions_are_measured_on_texts(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"reads pixel_values, and compressions are measured on texts; load it and call model\.optimize"):
        compress_checkpoint(saved(tmp_path / "long"), tmp_path / "small", method="bf16")
    assert not (tmp_path / "small").exists()
