"""The example of a server over loopback: the outputs of the graph, whoever else asks at the same time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertTokenizerFast, pipeline

from hf_longattn import LongBertConfig, LongBertForSequenceClassification, export_checkpoint
from tests.inspect.fakes import WORDS, graph, window

from .serving import ask, refusal, serving

pytest.importorskip("uvicorn")
pytest.importorskip("fastapi")
onnxruntime = pytest.importorskip("onnxruntime")

LENGTH = 256


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As an export of a model of sentence-transformers with a window of 16 tokens in two layers."""
    folder = window(tmp_path_factory.mktemp("encoder"), window=16)
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", *WORDS]))
    BertTokenizerFast(vocab=str(folder / "vocab.txt"), model_max_length=LENGTH).save_pretrained(folder)
    graph(folder / "model.onnx", window=32, pooled=True)
    report = {"outputs": ["last_hidden_state", "sentence_embedding"], "min_length": 1, "max_length": LENGTH}
    (folder / "export_report.json").write_text(json.dumps(report))
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": {}, "default_prompt_name": None}))
    return folder


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    from examples import serve_encoder

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ENCODER", str(folder))
        app = serve_encoder.application()
    with serving(app) as address:
        yield f"{address}/embed"


@pytest.mark.thorough
def test_many_clients_get_what_each_would_get_alone(url: str, folder: Path) -> None:
    texts = [" ".join(WORDS[(number + step) % len(WORDS)] for step in range(1 + 31 * number % 250)) for number in range(48)]
    with ThreadPoolExecutor(8) as clients:
        embeddings = list(clients.map(lambda text: ask(url, inputs=[text])[0], texts))
    tokenizer = BertTokenizerFast.from_pretrained(folder)
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    for text, embedding in zip(texts, embeddings, strict=True):
        ids = np.array([tokenizer(text)["input_ids"]])
        mean = session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0][0].mean(0)
        np.testing.assert_allclose(embedding, mean / np.linalg.norm(mean), atol=1e-5)
    np.testing.assert_allclose(ask(url, inputs=texts), embeddings, atol=1e-5)


def test_the_default_prompt_is_read_before_each_text(folder: Path, tmp_path: Path) -> None:
    from examples.serve_encoder import Encoder

    plain = Encoder(folder).embed(["the value tree"])
    shutil.copytree(folder, tmp_path / "encoder")
    settings = tmp_path / "encoder" / "config_sentence_transformers.json"
    settings.write_text(json.dumps({"prompts": {"query": "the value ", "document": ""}, "default_prompt_name": "query"}))
    np.testing.assert_allclose(Encoder(tmp_path / "encoder").embed(["tree"]), plain, atol=1e-6)


def test_texts_and_tokens_of_a_request_are_bounded(url: str) -> None:
    longer = "A text is longer than the 256 tokens that the model reads; send parts."
    for words in (300, 10_000):  # the second is not tokenised
        assert refusal(url, inputs=["tree " * words]) == (413, longer)
    for texts, problem in ([], "at least 1 item"), (["a"] * 257, "at most 256 items"), ([1], "valid string"):
        code, problems = refusal(url, inputs=texts)
        assert code == 422
        assert problem in problems


def test_an_empty_text_of_a_tokenizer_that_adds_nothing_is_refused(folder: Path, tmp_path: Path) -> None:
    from examples.serve_encoder import Encoder, HTTPException

    shutil.copytree(folder, tmp_path / "encoder")
    settings = json.loads((folder / "tokenizer.json").read_text())
    (tmp_path / "encoder" / "tokenizer.json").write_text(json.dumps({**settings, "post_processor": None}))
    with pytest.raises(HTTPException) as refused:
        Encoder(tmp_path / "encoder").embed(["tree", ""])
    assert (refused.value.status_code, refused.value.detail) == (422, "A text has no tokens; send texts that are not empty.")


def test_a_run_holds_a_bounded_number_of_rows_and_tokens(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from examples import serve_encoder

    rows, tokens = 10, 1280
    monkeypatch.setattr(serve_encoder, "ROWS", rows)
    monkeypatch.setattr(serve_encoder, "TOKENS", tokens)
    encoder = serve_encoder.Encoder(folder)
    batches: list[tuple[int, int]] = []
    run = encoder.run

    def record(encodings: list[Any]) -> Any:
        batches.append((len(encodings), max(map(len, encodings))))
        return run(encodings)

    monkeypatch.setattr(encoder, "run", record)
    assert len(encoder.embed(["the " * length for length in [1] * 25 + [200] * 7])) == 32
    assert batches == [(6, 202), (6, 202), (10, 3), (10, 3)]
    assert all(count <= rows and count * length <= tokens for count, length in batches)


def test_a_graph_without_embeddings_of_texts_is_refused_at_the_start(folder: Path, tmp_path: Path) -> None:
    from examples.serve_encoder import Encoder

    shutil.copytree(folder, tmp_path / "copy")
    report = {"outputs": ["logits"], "min_length": 1, "max_length": LENGTH}
    (tmp_path / "copy" / "export_report.json").write_text(json.dumps(report))
    (tmp_path / "copy" / "config_sentence_transformers.json").unlink()  # which the export of another model does not have
    with pytest.raises(ValueError, match="copy returns no sentence_embedding; export a model of sentence-transformers or a classifier"):
        Encoder(tmp_path / "copy")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    """The export of a classifier with large random weights in its head, so that scores differ; the model and the tokenizer."""
    folder, vocabulary, labels = (
        tmp_path_factory.mktemp("classifier"),
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS],
        ["bad", "fair", "good"],
    )
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    tokenizer = BertTokenizerFast(vocab=str(folder / "vocab.txt"), model_max_length=LENGTH)
    torch.manual_seed(0)
    config = LongBertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=LENGTH,
        long_attention={"mechanism": "longformer", "window": 32},
        id2label=dict(enumerate(labels)),
        label2id={label: number for number, label in enumerate(labels)},
    )
    model = LongBertForSequenceClassification(config).eval()
    torch.nn.init.normal_(model.classifier.weight, std=2.0)
    model.save_pretrained(folder / "long")
    tokenizer.save_pretrained(folder / "long")
    export_checkpoint(folder / "long", folder / "onnx")
    return folder / "onnx", model, tokenizer


@pytest.mark.slow
@pytest.mark.parametrize("problem", ["single_label_classification", "multi_label_classification", "regression", None])
def test_a_classifier_scores_labels_as_the_pipeline_does(classifier: Any, tmp_path: Path, problem: str | None) -> None:
    from examples.serve_encoder import application

    exported, model, tokenizer = classifier
    shutil.copytree(exported, tmp_path / "onnx")
    settings = json.loads((exported / "config.json").read_text())
    (tmp_path / "onnx" / "config.json").write_text(json.dumps({**settings, "problem_type": problem}))
    model.config.problem_type = problem
    pipe, texts = pipeline("text-classification", model=model, tokenizer=tokenizer), ["tree", " ".join(WORDS * 10)[:600], "value tree"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ENCODER", str(tmp_path / "onnx"))
        app = application()
    with serving(app) as address:
        answers = ask(f"{address}/predict", inputs=texts)
        assert refusal(f"{address}/predict", inputs=["tree " * 300])[0] == 413
    for text, answer in zip(texts, answers, strict=True):
        expected = pipe(text, top_k=None)
        assert [one["label"] for one in answer] == [one["label"] for one in expected]
        np.testing.assert_allclose([one["score"] for one in answer], [one["score"] for one in expected], atol=1e-5)
