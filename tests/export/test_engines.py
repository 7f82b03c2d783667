"""Converted models and their stock checkpoints in the engines of docs/how-to/serve.md: equal scores, embeddings and
tokens."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from hf_longattn import convert_checkpoint, export_native
from scripts.dev.benchmarks.engines import LEAST, LENGTHS, cosines, stock_minilm
from scripts.dev.real import LLAMA_CPP
from tests.conversion.conftest import LLAMA
from tests.trained import tokenizer_of

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


@pytest.mark.slow
def test_transformers_serve_continues_a_text_with_a_stock_decoder_as_generate_does(tmp_path: Path) -> None:
    for module in ("fastapi", "uvicorn", "openai"):
        pytest.importorskip(module, reason="type pip install 'transformers[serving]'")
    source, stock = tmp_path / "source", tmp_path / "stock"
    tokenizer = tokenizer_of("gpt2")
    tokenizer.save_pretrained(source)
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**LLAMA, "vocab_size": len(tokenizer)})).save_pretrained(
        source
    )
    convert_checkpoint(source, tmp_path / "long", mechanism="window", window=16, max_length=128, verify=False)
    export_native(tmp_path / "long", stock, verify=False)
    model, prompt = (
        transformers.AutoModelForCausalLM.from_pretrained(stock),
        "The mechanism decides which keys a query can see. " * 3,
    )
    ids = tokenizer(prompt, return_tensors="pt")
    expected = tokenizer.decode(
        model.generate(**ids, max_new_tokens=12, do_sample=False)[0, ids["input_ids"].shape[1] :]
    )
    assert expected.strip()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", "from transformers.cli.transformers import main; main()", "serve", str(stock)]
    with subprocess.Popen([*command, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]) as server:
        try:
            while True:
                assert server.poll() is None
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=60)
                    break
                except urllib.error.URLError:  # it is starting
                    time.sleep(0.5)
            body = json.dumps({"model": str(stock), "prompt": prompt, "max_tokens": 12, "temperature": 0}).encode()
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/v1/completions", body, {"Content-Type": "application/json"}
            )
            assert json.load(urllib.request.urlopen(request, timeout=300))["choices"][0]["text"] == expected
        finally:
            server.terminate()
