"""The int8 copy of an exported graph: how near it is, and what it is refused for."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_longattn import export_checkpoint
from hf_longattn.cli import main
from hf_longattn.conversion import convert_checkpoint
from hf_longattn.errors import ExportError, MissingExtraError
from hf_longattn.export import int8
from hf_longattn.export.int8 import INT8_FILE, accuracy, graph_bytes, measure, quantise

from .conftest import LENGTH, saved


def test_accuracy_counts_real_tokens_only() -> None:
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    states, logits = torch.randn(2, 3, 8), torch.randn(2, 3, 5)
    noise = torch.zeros(2, 3, 1)
    noise[0, 2] = 100  # at padding
    expected = {"last_hidden_state": states, "logits": logits, "start_logits": logits[..., 0], "sentence_embedding": states[:, 0]}
    found = {"last_hidden_state": states + noise, "logits": logits + noise.flip(-1), "start_logits": logits[..., 0] + noise[..., 0],
             "sentence_embedding": -states[:, 0]}  # fmt: skip
    measured = accuracy(expected, found, mask)
    assert measured["last_hidden_state"] == pytest.approx({"relative_error": 0, "cosine": 1, "least_cosine": 1}, abs=1e-6)
    assert measured["logits"] == measured["start_logits"] == {"relative_error": 0, "same_choice": 1}
    assert measured["sentence_embedding"] == pytest.approx({"relative_error": 2, "cosine": -1, "least_cosine": -1})
    one_class = accuracy({"logits": torch.tensor([[1.0], [2.0]])}, {"logits": torch.tensor([[1.0], [1.0]])}, mask)
    assert one_class["logits"] == pytest.approx({"relative_error": 5**-0.5})
    other = accuracy({"logits": torch.tensor([[1.0, 2.0], [2.0, 1.0]])}, {"logits": torch.tensor([[1.0, 2.0], [2.0, 3.0]])}, mask)
    assert other["logits"]["same_choice"] == 0.5


def linear_graph(file: Path, constant: bool = True, width: int = 4) -> Path:
    onnx = pytest.importorskip("onnx")
    make, float32 = onnx.helper, onnx.TensorProto.FLOAT
    weights = onnx.numpy_helper.from_array(torch.randn(8, width).numpy(), "weights")
    inputs = [make.make_tensor_value_info("rows", float32, ["batch", 8])]
    inputs += [] if constant else [make.make_tensor_value_info("weights", float32, [8, width])]
    outputs = [make.make_tensor_value_info("scores", float32, ["batch", width])]
    node = make.make_node("MatMul", ["rows", "weights"], ["scores"], name="linear")
    made = make.make_graph([node], "linear", inputs, outputs, [weights] if constant else [])
    onnx.save(make.make_model(made, opset_imports=[make.make_opsetid("", 18)], ir_version=9), file)
    return file


def test_linear_layers_are_quantised_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    assert quantise(linear_graph(tmp_path / "graph.onnx"), tmp_path / "int8.onnx") == 1
    [weights] = [tensor for tensor in onnx.load(tmp_path / "int8.onnx").graph.initializer if list(tensor.dims) == [8, 4]]
    assert weights.data_type == onnx.TensorProto.UINT8  # of int8, processors without VNNI clip sums
    with pytest.raises(ExportError, match="no linear layer"):
        quantise(linear_graph(tmp_path / "product.onnx", constant=False), tmp_path / "int8.onnx")
    (tmp_path / "empty.onnx").write_bytes(b"")
    with pytest.raises(ExportError, match=r"cannot quantise this graph .*; export it without int8\."):
        quantise(tmp_path / "empty.onnx", tmp_path / "int8.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime.quantization", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'hf-longattn\[onnx\]'"):
        quantise(tmp_path / "graph.onnx", tmp_path / "int8.onnx")


def test_weights_beside_a_graph_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    graph, copy = linear_graph(tmp_path / "graph.onnx", width=256), tmp_path / "int8.onnx"
    onnx.save(onnx.load(graph), graph, save_as_external_data=True, location="graph.onnx.data", size_threshold=0)
    assert graph_bytes(graph) == graph.stat().st_size + 8 * 256 * 4
    monkeypatch.setattr(int8, "LARGEST_FILE", graph_bytes(graph) - 1)  # as if it did not fit into one file
    quantise(graph, copy)
    assert graph_bytes(copy) > copy.stat().st_size


def test_a_copy_that_does_not_work_is_refused() -> None:
    texts = {"input_ids": torch.ones(1, 3, dtype=torch.long), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    states = {"last_hidden_state": torch.randn(1, 3, 8)}

    def broken(inputs: Any) -> Any:
        raise RuntimeError("no kernel")

    with pytest.raises(ExportError, match=r"cannot run the quantised graph \(no kernel\)"):
        measure(lambda inputs: states, broken, texts, texts)
    with pytest.raises(ExportError, match="not finite"):
        measure(lambda inputs: states, lambda inputs: {"last_hidden_state": states["last_hidden_state"] / 0}, texts, texts)


@pytest.mark.slow
def test_the_graph_is_the_model_and_the_copy_lies_next_to_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    source = saved(tmp_path / "long", "window", window=32)
    with pytest.raises(SystemExit) as ended:
        main(["export", str(source), str(tmp_path / "graph"), "--int8", "--json"])
    assert not ended.value.code
    report = json.loads(capsys.readouterr().out)
    assert [check["values"]["length"] for check in report["checks"]] == [7, 333, LENGTH]
    assert all(check["status"] == "passed" and check["values"]["difference"] <= 1e-4 for check in report["checks"])
    assert (report["inputs"], report["max_length"]) == (["input_ids", "attention_mask"], LENGTH)
    assert report["outputs"] == ["last_hidden_state", "pooler_output"]
    assert {"model.onnx", "config.json", "export_report.json"} <= {path.name for path in (tmp_path / "graph").iterdir()}
    written = json.loads((tmp_path / "graph" / "export_report.json").read_text())
    assert written["opset"] == report["opset"]
    made = report["int8"]
    assert made == written["int8"]
    assert (made["file"], made["linear_layers"], made["texts"], made["tokens"]) == (INT8_FILE, 7, 6, 512)
    assert made["bytes"]["int8"] == (tmp_path / "graph" / INT8_FILE).stat().st_size
    assert made["outputs"]["last_hidden_state"]["least_cosine"] > 0.99
    with pytest.raises(ExportError, match=r"int8 is a copy of an ONNX graph; give format='onnx'"):
        export_checkpoint(source, tmp_path / "other", format="torch", int8=True)
    with pytest.raises(SystemExit) as ended:
        main(["export", str(source), str(tmp_path / "other"), "--int8", "--format", "native"])
    assert ended.value.code
    assert "--int8" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_nothing_is_kept_if_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(int8, "OPERATORS", ("Conv",))
    with pytest.raises(ExportError, match="no linear layer"):
        export_checkpoint(saved(tmp_path / "long", "window", window=32), tmp_path / "graph", int8=True)
    assert {path.name for path in tmp_path.iterdir()} == {"long"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("asset", "outputs", "agreeing"), [("bert-python-512", ("logits",), 0.98), ("bert-python-512-qa", ("start_logits", "end_logits"), 0.8)]
)
def test_trained_models_choose_the_same(asset: str, outputs: tuple[str, ...], agreeing: float, repository: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    convert_checkpoint(
        repository / "model_cards" / asset, tmp_path / "long", mechanism="longformer", window=256, max_length=4096, verify=False
    )  # fmt: skip
    made = export_checkpoint(tmp_path / "long", tmp_path / "graph", int8=True).int8
    assert made is not None
    assert made["bytes"]["int8"] < 0.7 * made["bytes"]["float32"]
    assert set(made["outputs"]) == set(outputs)
    for name in outputs:
        assert made["outputs"][name]["same_choice"] >= agreeing, made
