"""Models of sound as graphs for sounds of any duration, equal to the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hf_longattn import export_checkpoint
from hf_longattn.conversion import convert_checkpoint
from hf_longattn.errors import ExportError
from hf_longattn.families import FAMILIES
from scripts.dev.tools.small_models import SOUND_FAMILIES
from tests.modeling import audio_models


def converted(folder: Path, base: str = "wav2vec2", head: str = "Wav2Vec2ForCTC", **values: Any) -> Path:
    audio_models.saved(base, head, folder / "short", num_hidden_layers=1, num_conv_pos_embeddings=16, **values)
    convert_checkpoint(folder / "short", folder / "long", mechanism="window", left=9, right=4, verify=False)
    return folder / "long"


@pytest.mark.slow
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


def head_of(base: str) -> str:
    """The class of a family that writes text, or its only one."""
    heads = FAMILIES[base].model_classes
    return next((head for ending in ("ForConditionalGeneration", "ForCTC") for head in heads if head.endswith(ending)), next(iter(heads)))


def saved_long(base: str, folder: Path) -> Any:
    """A long model of the family, saved in ``folder``/long."""
    head = head_of(base)
    audio_models.saved(base, head, folder / "short", **audio_models.THREE_CONVOLUTIONS)
    attention = {"mechanism": "window", "left": 9, "right": 4}
    model = audio_models.long_model(base, head, folder / "short", long_attention=attention)
    model.save_pretrained(folder / "long")
    return model


@pytest.mark.usefixtures("programs_loaded_once")
@pytest.mark.slow
@pytest.mark.parametrize("base", SOUND_FAMILIES)
def test_every_family_is_a_graph(base: str, tmp_path: Path) -> None:
    """Of both parities of samples and frames, equal to the model."""
    model = saved_long(base, tmp_path)
    report = export_checkpoint(tmp_path / "long", tmp_path / "graph", format="torch")
    assert [check.status for check in report.checks] == ["passed"] * 3
    rule: Any = FAMILIES[base].rule
    program = torch.export.load(tmp_path / "graph" / "model.pt2").module()
    decoded = {"decoder_input_ids": torch.arange(1, 7)[None]} if "decoder_input_ids" in report.inputs else {}
    for frames in (report.min_length + 5, report.min_length + 6):
        inputs = {**rule.arguments(rule.seeded(model.config, rule.seconds(rule.length_of(model.config, frames)))), **decoded}
        inputs |= (
            {"attention_mask": torch.ones(1, inputs[rule.input].shape[1], dtype=torch.long)} if "attention_mask" in report.inputs else {}
        )
        inputs = {name: inputs[name] for name in report.inputs}
        with torch.no_grad():
            expected = model(**inputs, return_dict=True)
        for name, output in program(**inputs).items():
            torch.testing.assert_close(output, expected[name.removeprefix("output_")], rtol=1e-4, atol=1e-5)


@pytest.mark.slow  # what pads is the same in every head
def test_a_graph_without_a_mask_where_padding_changes_the_source(tmp_path: Path) -> None:
    report = export_checkpoint(converted(tmp_path, feat_extract_norm="group"), tmp_path / "graph", format="torch")
    assert report.inputs == ("input_values",)
    assert [check.status for check in report.checks] == ["passed"] * 3


def test_options_for_texts(tmp_path: Path) -> None:
    folder = converted(tmp_path)
    with pytest.raises(ExportError, match="model of sound is written with its head and without global tokens; leave both options out"):
        export_checkpoint(folder, tmp_path / "graph", format="torch", global_attention_mask=True)
