"""Models of pictures as graphs for pictures of one size: equal to the model, without a matrix of all pairs of patches."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_longattn import compress_checkpoint, export_checkpoint
from hf_longattn.errors import ExportError, OptionError
from hf_longattn.families import LongViTConfig, LongViTForImageClassification

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "num_labels": 5}
SIZE = [64, 96]
TOKENS = 1 + 16 * 24


def saved(folder: Path, mechanism: str = "window2d", **options: Any) -> Path:
    torch.manual_seed(0)
    attention = {"mechanism": mechanism, **options}
    config = LongViTConfig(**SIZES, image_size=32, patch_size=4, long_image_size=SIZE, long_attention=attention)
    LongViTForImageClassification(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("mechanism", "options"), [("window2d", {"window": 5}), ("local2d", {"radius": 2})])
def test_onnx_is_equal_and_has_no_matrix_of_all_pairs(mechanism: str, options: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    report = export_checkpoint(saved(tmp_path / "long", mechanism, **options), tmp_path / "graph")
    assert [check.values["batch"] for check in report.checks] == [3, 1]
    assert all(check.status == "passed" for check in report.checks)
    assert (report.inputs, report.outputs) == (("pixel_values",), ("logits",))
    assert (report.image_size, report.max_length) == (tuple(SIZE), TOKENS)
    graph = onnx.shape_inference.infer_shapes(onnx.load(tmp_path / "graph" / "model.onnx")).graph
    shapes = [[side.dim_value or 1 for side in value.type.tensor_type.shape.dim] for value in (*graph.value_info, *graph.input)]
    assert shapes
    assert max(map(math.prod, shapes)) < TOKENS**2
    assert [side.dim_value for side in graph.input[0].type.tensor_type.shape.dim][1:] == [3, *SIZE]
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_param


def test_a_program_of_torch(tmp_path: Path) -> None:
    source = saved(tmp_path / "long", window=5)
    export_checkpoint(source, tmp_path / "graph", format="torch")
    pixels = torch.randn(2, 3, *SIZE)
    program = torch.export.load(tmp_path / "graph" / "model.pt2").module()
    model = LongViTForImageClassification.from_pretrained(source).eval()
    with torch.no_grad():
        torch.testing.assert_close(program(pixel_values=pixels)["logits"], model(pixels).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("option", ["int8", "global_attention_mask"])
def test_what_is_for_texts_is_refused(option: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=f"graph of a model of pictures is written without {option}; leave {option} out"):
        export_checkpoint(saved(tmp_path / "long"), tmp_path / "graph", format="onnx", **{option: True})  # type: ignore[arg-type]
    assert not (tmp_path / "graph").exists()


def test_compressions_are_measured_on_texts(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"reads pixel_values, and compressions are measured on texts; load it and call model\.optimize"):
        compress_checkpoint(saved(tmp_path / "long"), tmp_path / "small", method="bf16")
    assert not (tmp_path / "small").exists()
