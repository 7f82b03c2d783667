"""Stock models as ONNX graphs in blocks: equal to transformers' eager attention in two runtimes, and without tensors
of N×N."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from hf_longattn import export_checkpoint
from hf_longattn.errors import CheckpointError
from hf_longattn.files import GRAPHS, read_json, write_json
from scripts.dev.tools.small_models import small_config
from tests.reference.small_models import padding, tokens

onnx, onnxruntime, openvino = (pytest.importorskip(name) for name in ("onnx", "onnxruntime", "openvino"))
onnx_blocks = pytest.importorskip("hf_longattn.export.onnx_blocks")
pytest.importorskip("transformers.exporters")

Run = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]
SIZES = {
    "vocab_size": 200,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "max_position_embeddings": 1032,
}
OWN = {
    "modernbert": {"local_attention": 32, "global_attn_every_n_layers": 2, "cls_token_id": 1, "sep_token_id": 2},
    "eurobert": {"num_key_value_heads": 2},
}
FULL_LAYERS = {"modernbert": 1}
"""Layers without windows, of models that have both."""


def runtimes(folder: Path) -> dict[str, Run]:
    """The ONNX graph in ONNX Runtime and in OpenVINO, and OpenVINO's own. OpenVINO computes in bf16 by default on some
    processors."""
    file = folder / GRAPHS["onnx"]
    session = onnxruntime.InferenceSession(str(file))
    names, outputs = [value.name for value in session.get_inputs()], [value.name for value in session.get_outputs()]

    def in_onnxruntime(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(outputs, session.run(outputs, {name: inputs[name] for name in names}), strict=True))

    def in_openvino(file: Path) -> Run:
        compiled = openvino.Core().compile_model(str(file), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

        def run(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            found = compiled({name: inputs[name] for name in names})
            return {name: found[name] for name in outputs}

        return run

    of_openvino = in_openvino(folder / "openvino" / GRAPHS["openvino"])
    return {"onnxruntime": in_onnxruntime, "openvino of ONNX": in_openvino(file), "openvino": of_openvino}


def stock(folder: Path, base: str) -> Path:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(base, **{**SIZES, **OWN.get(base, {})})
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block holds 10 queries of 512 tokens, or 48 tokens, so that short inputs have many, and the last of them is
    not full."""
    for name, size in {"WHOLE_SCORES": 4000, "BLOCK_SCORES": 5120, "BLOCK_TOKENS": 48}.items():
        monkeypatch.setattr(onnx_blocks, name, size)


@pytest.mark.slow
@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("base", ["bert", "roberta", "modernbert", "eurobert"])
def test_graph_of_a_stock_model_equals_eager_attention_at_every_length_with_padding(base: str, tmp_path: Path) -> None:
    source = stock(tmp_path / base, base)
    export_checkpoint(source, tmp_path / "graph")
    export_checkpoint(source, tmp_path / "graph" / "openvino", format="openvino")
    assert read_json(tmp_path / "graph" / "config.json") == read_json(source / "config.json")
    loops = [
        node
        for node in onnx.load(tmp_path / "graph" / "model.onnx", load_external_data=False).graph.node
        if node.op_type == "Loop"
    ]
    assert sum(loop.attribute[0].g.name.endswith("feed_forward") for loop in loops) == SIZES["num_hidden_layers"]
    of_openvino = openvino.Core().read_model(tmp_path / "graph" / "openvino" / GRAPHS["openvino"]).get_ops()
    kinds = [operator.get_type_name() for operator in of_openvino]
    assert kinds.count("ScaledDotProductAttention") == FULL_LAYERS.get(base, SIZES["num_hidden_layers"])
    model: Any = transformers.AutoModel.from_pretrained(source, attn_implementation="eager").eval()
    for batch, length in ((2, 7), (1, 16), (3, 101), (1, 700)):
        inputs = {"input_ids": tokens(batch, length), "attention_mask": padding(batch, length)}
        real = inputs["attention_mask"].bool().numpy()
        with torch.no_grad():
            expected = model(**inputs).last_hidden_state.numpy()[real]
        for name, run in runtimes(tmp_path / "graph").items():
            found = run({key: value.numpy() for key, value in inputs.items()})["last_hidden_state"][real]
            assert abs(found - expected).max() <= 1e-5 * abs(expected).max(), (name, batch, length)


@pytest.mark.slow
@pytest.mark.usefixtures("small_blocks")
def test_largest_tensor_of_a_graph_grows_with_the_length_and_not_its_square(tmp_path: Path) -> None:
    export_checkpoint(stock(tmp_path / "bert", "bert"), tmp_path / "graph")
    largest = []
    for length in (256, 1024):
        options = onnxruntime.SessionOptions()
        options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "profile")
        session = onnxruntime.InferenceSession(str(tmp_path / "graph" / "model.onnx"), options)
        session.run(None, {"input_ids": tokens(1, length).numpy(), "attention_mask": np.ones((1, length), np.int64)})
        events = read_json(Path(session.end_profiling()))
        largest.append(max(int(event.get("args", {}).get("output_size", 0)) for event in events))
    assert largest[0] >= 4 * 256 * 32
    assert largest[1] <= 4.5 * largest[0]  # the last block is padded


@pytest.mark.slow
def test_graph_of_a_real_sentence_encoder_returns_what_encode_returns(real_folder: Path, tmp_path: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    export_checkpoint(real_folder, tmp_path / "graph")
    export_checkpoint(real_folder, tmp_path / "graph" / "openvino", format="openvino")
    encoder = sentence_transformers.SentenceTransformer(str(real_folder), device="cpu")
    encoder.max_seq_length = 512
    texts = ["A river meets the sea. " * 300, "What is a monad?", "The cat sat on the mat. " * 20]
    expected = encoder.encode(texts)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "graph")
    assert tokenizer.model_max_length == 512
    inputs = tokenizer(texts, padding=True, truncation=True, return_tensors="np")
    for name, run in runtimes(tmp_path / "graph").items():
        assert abs(run(inputs)["sentence_embedding"] - expected).max() <= 1e-5 * abs(expected).max(), name


def test_export_refuses_stock_models_whose_graph_would_hold_all_scores_or_two_stacks(tmp_path: Path) -> None:
    for base in ("mpnet", "bart"):
        transformers.AutoModel.from_config(small_config(base)).save_pretrained(tmp_path / base)
    (tmp_path / "new").mkdir()
    write_json(tmp_path / "new" / "config.json", {"model_type": "newer", "architectures": ["NewerModel"]})
    for name, sentence in {
        "mpnet": "its graph would hold all N×N scores; type longattn convert .* DST, and export DST",
        "bart": "a BartModel has a decoder",
        "new": "is a 'newer' model, and transformers .* has no class for it",
    }.items():
        with pytest.raises(CheckpointError, match=sentence):
            export_checkpoint(tmp_path / name, tmp_path / "graph")
    assert not (tmp_path / "graph").exists()
