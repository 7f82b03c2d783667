"""Models of sound as graphs for sounds of any duration, equal to the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hf_longattn import export_checkpoint
from hf_longattn.conversion import convert_checkpoint
from hf_longattn.errors import ExportError
from tests.modeling import audio_models


def converted(folder: Path, base: str = "wav2vec2", head: str = "Wav2Vec2ForCTC", **values: Any) -> Path:
    audio_models.saved(base, head, folder / "short", num_hidden_layers=1, num_conv_pos_embeddings=16, **values)
    convert_checkpoint(folder / "short", folder / "long", mechanism="window", left=9, right=4, verify=False)
    return folder / "long"


@pytest.mark.usefixtures("programs_loaded_once")
@pytest.mark.parametrize(
    ("format", "convolutions"),
    [
        ("torch", audio_models.THREE_CONVOLUTIONS),
        pytest.param("torch", {}, marks=pytest.mark.slow),
        pytest.param("onnx", {}, marks=pytest.mark.slow),  # translated in half a minute
    ],
    ids=lambda value: value if isinstance(value, str) else "three" if value else "seven",
)
def test_one_graph_for_all_durations(format: str, convolutions: dict[str, Any], tmp_path: Path) -> None:
    if format == "onnx":
        pytest.importorskip("onnxruntime")
    report = export_checkpoint(converted(tmp_path, **convolutions), tmp_path / "graph", format=format)
    assert [check.status for check in report.checks] == ["passed"] * 3
    assert [check.values["batch"] for check in report.checks] == [3, 2, 1]
    assert len({check.values["length"] for check in report.checks}) == 3
    assert report.inputs == ("input_values", "attention_mask")
    if format == "torch":
        graph = torch.export.load(tmp_path / "graph" / "model.pt2")
        sizes = [value.numel() for node in graph.graph.nodes if isinstance(value := node.meta.get("val"), torch.Tensor)]
        assert sizes


@pytest.mark.slow  # what pads is the same in every head
def test_a_graph_without_a_mask_where_padding_changes_the_source(tmp_path: Path) -> None:
    report = export_checkpoint(converted(tmp_path, feat_extract_norm="group"), tmp_path / "graph", format="torch")
    assert report.inputs == ("input_values",)
    assert [check.status for check in report.checks] == ["passed"] * 3


def test_options_for_texts(tmp_path: Path) -> None:
    folder = converted(tmp_path)
    with pytest.raises(ExportError, match="model of sound is written with its head and without global tokens; leave both options out"):
        export_checkpoint(folder, tmp_path / "graph", format="torch", global_attention_mask=True)
