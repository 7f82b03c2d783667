"""Converted models and their stock checkpoints in the engines of docs/how-to/serve.md: equal scores, embeddings and
tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from hf_longattn import convert_checkpoint, export_native
from scripts.dev.benchmarks.engines import LEAST, LENGTHS, cosines, stock_minilm
from scripts.dev.real import LLAMA_CPP

from .test_graphs import ANSWERS, QUERY, small_classifier


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "lengths"),
    [
        pytest.param(
            "llama.cpp, F16", LENGTHS, marks=pytest.mark.skipif(not LLAMA_CPP.is_dir(), reason="type make llama-cpp")
        ),
        ("ONNX Runtime", LENGTHS[:2]),
        ("OpenVINO", LENGTHS[:2]),
    ],
)
def test_engine_embeds_with_a_stock_bert_as_sentence_transformers_does(
    engine: str, lengths: Sequence[int], tmp_path: Path
) -> None:
    pytest.importorskip("sentence_transformers")
    pytest.importorskip({"OpenVINO": "openvino"}.get(engine, "onnxruntime"))
    found = cosines(engine, lengths, stock_minilm(tmp_path / "stock"))
    assert min(found) >= LEAST, found


@pytest.mark.thorough
@pytest.mark.parametrize("labels", [["relevant"], ["entails", "contradicts", "neither"]])
def test_cross_encoder_and_pipeline_score_pairs_alike_with_long_and_stock_model(
    labels: list[str], repository: Path, tmp_path: Path
) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    source = small_classifier(tmp_path / "source", repository / "model_cards", labels)
    pairs, scores = [(QUERY, answer) for answer in ANSWERS], []
    convert_checkpoint(source, tmp_path / "long", mechanism="full", max_length=2048, verify=False)
    export_native(tmp_path / "long", tmp_path / "stock", verify=False)
    for name in ("long", "stock"):
        model = sentence_transformers.CrossEncoder(
            str(tmp_path / name), device="cpu", activation_fn=torch.nn.Identity()
        )
        assert model.max_seq_length == 2048
        scores.append(model.predict(pairs, batch_size=1).reshape(len(pairs), -1))
        pipeline = transformers.pipeline(
            "text-classification", str(tmp_path / name), device="cpu", function_to_apply="none", top_k=None
        )
        for (query, answer), expected in zip(pairs, scores[-1], strict=True):
            answers = {one["label"]: one["score"] for one in pipeline({"text": query, "text_pair": answer})}
            np.testing.assert_allclose([answers[label] for label in labels], expected, atol=1e-4)
    assert {type(model.transformers_model).__name__} == {"BertForSequenceClassification"}
    assert np.ptp(scores[0]) > 0.01
    np.testing.assert_allclose(*scores, atol=1e-4)
