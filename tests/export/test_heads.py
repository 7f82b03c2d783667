"""Re-rankers and classifiers of texts, pairs and tokens: graphs with their heads, labels and settings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from hf_longattn import export_checkpoint
from hf_longattn.conversion import convert_checkpoint

onnxruntime = pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.slow

QUERY = "How is a frozen dataclass copied with one field changed?"
TEXTS = ["dataclasses.replace returns a new object.", "A river meets the sea. " * 150, "copy", "An object of a frozen dataclass. " * 60]


def small_classifier(folder: Path, checkpoints: Path, labels: list[str], base: str = "SequenceClassification") -> Path:
    """A BERT of two layers with random weights, the tokenizer of the reference encoder, and named labels."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=8192, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, initializer_range=0.5,
        pad_token_id=0, id2label=dict(enumerate(labels)), label2id={label: number for number, label in enumerate(labels)},
    )  # fmt: skip
    getattr(transformers, f"BertFor{base}")(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(checkpoints / "bert-python-512" / name, folder / name)
    return folder


def graph_logits(file: Path, *texts: str) -> np.ndarray:
    tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent)
    (logits,) = onnxruntime.InferenceSession(str(file)).run(["logits"], dict(tokenizer(*texts, return_tensors="np")))
    return logits[0]


@pytest.mark.parametrize("activation", ["Sigmoid", "Identity", "of old files"])
def test_exported_re_ranker_scores_as_the_cross_encoder_does(activation: str, repository: Path, tmp_path: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    plain = small_classifier(tmp_path / "plain", repository / "model_cards", ["relevant"])
    source = tmp_path / "source"
    if activation == "of old files":  # no list of modules, and the activation in the config
        config = json.loads((plain / "config.json").read_text())
        config["sentence_transformers"] = {"activation_fn": "torch.nn.modules.linear.Identity", "version": "4.0.1"}
        (plain / "config.json").write_text(json.dumps(config))
        source = plain
    else:
        function = getattr(torch.nn, activation)()
        sentence_transformers.CrossEncoder(str(plain), activation_fn=function).save_pretrained(str(source))
    convert_checkpoint(source, tmp_path / "long", mechanism="longformer", window=64, max_length=2048)
    report = export_checkpoint(tmp_path / "long", tmp_path / "graph")
    assert report.inputs == ("input_ids", "attention_mask", "token_type_ids")
    config = json.loads((tmp_path / "graph" / "config.json").read_text())
    assert (config["id2label"], config["architectures"]) == ({"0": "relevant"}, ["BertForSequenceClassification"])
    for name in ("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"):
        assert (tmp_path / "graph" / name).is_file() == (source / name).is_file()
    model = sentence_transformers.CrossEncoder(str(tmp_path / "long"))
    assert model.tokenizer.model_max_length == 2048
    pairs = [(QUERY, text) for text in TEXTS]
    logits = np.array([graph_logits(tmp_path / "graph" / "model.onnx", *pair)[0] for pair in pairs])
    expected = model.predict(pairs, activation_fn=torch.nn.Identity(), batch_size=1)
    assert np.ptp(expected) > 0.01
    np.testing.assert_allclose(logits, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("head", "labels", "question"),
    [("SequenceClassification", ["entails", "contradicts", "neither"], (QUERY,)), ("TokenClassification", ["O", "B-NAME", "I-NAME"], ())],
)
def test_exported_classifier_has_labels(head: str, labels: list[str], question: tuple[str, ...], repository: Path, tmp_path: Path) -> None:
    source = small_classifier(tmp_path / "source", repository / "model_cards", labels, head)
    convert_checkpoint(source, tmp_path / "long", mechanism="window", window=64, max_length=2048)
    export_checkpoint(tmp_path / "long", tmp_path / "graph")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "graph")
    assert [config.id2label[number] for number in range(3)] == labels
    model = getattr(transformers, f"AutoModelFor{head}").from_pretrained(tmp_path / "long").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "graph")
    for text in TEXTS:
        with torch.no_grad():
            expected = model(**tokenizer(*question, text, return_tensors="pt")).logits[0]
        found = graph_logits(tmp_path / "graph" / "model.onnx", *question, text)
        np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-4)
