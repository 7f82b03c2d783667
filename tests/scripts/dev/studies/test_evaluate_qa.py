"""The evaluation of readers: answers "no answer" where that is an answer, and says before it runs what a model does not take."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForQuestionAnswering

from hf_longattn import convert_checkpoint
from hf_longattn.data.qa_schemas import save_qa
from scripts.dev.studies.evaluate_qa import main
from tests.trained import tokenizer_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that prefers "no answer", and data of which half have none; one document is longer than the model."""
    folder = tmp_path_factory.mktemp("evaluate")
    tokenizer = tokenizer_of("bert", 64)
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 64}
    model = BertForQuestionAnswering(BertConfig(vocab_size=len(tokenizer), **shape))
    embedding = model.bert.embeddings.word_embeddings.weight.data
    embedding[tokenizer.cls_token_id] *= 50  # so that the head can tell [CLS] from the others
    model.save_pretrained(folder / "short")
    tokenizer.save_pretrained(folder / "short")
    convert_checkpoint(folder / "short", folder / "long", mechanism="longformer", window=16, max_length=128, verify=False)
    context = "The keeper climbs the stairs. " * 30 + "The lamp is red."
    answers = [{"text": ["red"], "answer_start": [context.index("red.")]}, {"text": [], "answer_start": []}]
    records = [{"id": str(i), "question": "What is the lamp?", "context": context, "answers": answers[i % 2]} for i in range(6)]
    random.Random(0).shuffle(records)
    save_qa(records, folder / "data.jsonl")
    return folder


def rows(stem: Path) -> list[dict[str, object]]:
    stored = json.loads(stem.with_suffix(".json").read_text())["answers"]
    return [dict(zip(stored["columns"], row, strict=True)) for row in stored["rows"]]


@pytest.mark.parametrize(("threshold", "silent"), [(["--null-threshold=1e9"], True), (["--null-threshold=-1e9"], False), ([], None)])
def test_no_answer_is_an_answer(
    threshold: list[str], silent: bool | None, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    arguments = [
        "--long",
        f"row={folder / 'long'}",
        "--data",
        str(folder / "data.jsonl"),
        "--output",
        str(tmp_path / "qa"),
        "--no-baselines",
    ]
    assert main([*arguments, *threshold]) == 0
    texts = [row["text"] for row in rows(tmp_path / "qa")]
    assert len(texts) == 6
    if silent is not None:
        assert all((text == "") == silent for text in texts)
        assert [row["exact"] for row in rows(tmp_path / "qa")].count(1.0) == 3 * silent
    assert "F1, per cent" in capsys.readouterr().out


def test_a_length_that_the_model_does_not_take_is_refused_before_anything_runs(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    arguments = ["--data", str(folder / "data.jsonl"), "--output", str(tmp_path / "qa"), "--no-baselines"]
    assert main(["--long", f"row={folder / 'long'}", "--max-length", "8192", *arguments]) == 1
    assert "takes 128 tokens; give at most that" in capsys.readouterr().err
    assert main(["--short", str(folder / "short"), *arguments]) == 1
    assert "--short-length is 512" in capsys.readouterr().err
