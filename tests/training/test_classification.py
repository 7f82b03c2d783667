"""Document classification: files of every shape, classes that are learned, scores by length, bad input in a sentence."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from hf_longattn.cli.train import train
from hf_longattn.conversion import convert_checkpoint
from hf_longattn.data.sources import DataError
from hf_longattn.errors import LongAttentionError, OptionError
from hf_longattn.modeling.attach.global_mask import global_token_ids
from hf_longattn.training.run import LOG_NAME
from hf_longattn.training.tasks import classify
from hf_longattn.training.tasks.classify import ClassificationDataArguments, class_names, encode_documents, label_names, read_labelled
from tests.grids import quickly
from tests.training.conftest import FAST, checkpoint, start_task

WORDS = {"loops": "for while break continue range next", "files": "open read write close path folder"}


def rows(count: int = 40) -> list[dict[str, str]]:
    """Documents of one of two sets of words, 20 to 120 of them."""
    choose = random.Random(0)
    labels = [label for label in WORDS for _ in range(count // 2)]
    return [{"text": " ".join(choose.choices(WORDS[label].split(), k=choose.randint(20, 120))), "label": label} for label in labels]


def table(folder: Path, data: list[dict[str, Any]], name: str = "data.jsonl") -> str:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in data))
    return str(folder / name)


def converted(kind: str, folder: Path, tokenizer: PreTrainedTokenizerBase) -> str:
    short = checkpoint(kind, folder / "short", tokenizer)
    convert_checkpoint(short, folder / "long", mechanism="window", max_length=128, window=32, verify=False)
    return str(folder / "long")


@pytest.mark.thorough
@pytest.mark.parametrize("kind", quickly(["mlm", "clm"], ["mlm"]))
def test_converted_model_learns_two_classes_of_documents(
    kind: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(classify.logger, "warning", said.append)
    run = {**FAST, "gradient_accumulation_steps": 2, "max_steps": 60, "learning_rate": 3e-3, "data": [table(tmp_path, rows())]}
    log = start_task("classify", model=converted(kind, tmp_path, tokenizer), output_dir=str(tmp_path / "out"), **run)
    assert (log["classes"], log["metrics"]["after"]["n"]) == (["files", "loops"], 4)
    assert any("documents are longer than 128 tokens and are cut" in words for words in said)
    assert all(entry["loss"] < 0.8 for entry in log["history"] if "loss" in entry)  # of a batch, not of the two that a step has
    assert log["metrics"]["after"]["accuracy"] == 100.0
    assert sum(bucket["n"] for bucket in log["by_length"].values()) == 4
    assert json.loads((tmp_path / "out" / LOG_NAME).read_text())["by_length"] == log["by_length"]
    trained = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert trained.config.id2label == {0: "files", 1: "loops"}
    assert trained.config.pad_token_id is not None


@pytest.mark.thorough
def test_question_column_of_classify_is_read_and_global(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    data = [{"text": "next path", "claim": row["text"], "label": row["label"]} for row in rows()]
    short = checkpoint("mlm", tmp_path / "short", tokenizer)
    convert_checkpoint(short, tmp_path / "long", mechanism="longformer", max_length=128, window=32, verify=False)
    run = {**FAST, "max_steps": 60, "learning_rate": 3e-3, "packing": False, "data": [table(tmp_path, data)]}
    given = {**run, "model": str(tmp_path / "long"), "output_dir": str(tmp_path / "out")}
    assert start_task("classify", **given, columns=["question=claim"])["metrics"]["after"]["accuracy"] == 100.0
    trained = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    pair = tokenizer("for while", "next path open", return_tensors="pt")
    rule = global_token_ids(trained)
    assert rule is not None
    marked = rule.mask(pair["input_ids"], pair["attention_mask"].bool()).sum()
    assert marked == pair["input_ids"][0].tolist().index(tokenizer.sep_token_id) + 1
    with pytest.raises(DataError, match=r"not 'clame'; name one with --columns question=NAME"):
        start_task("classify", **given, columns=["question=clame"])


def test_classes_keep_the_order_of_the_model() -> None:
    names = label_names(Dataset.from_dict({"label": ["10", "9", "-1"]}))
    assert names == ["-1", "9", "10"]
    for known, expected in ((["LABEL_0", "LABEL_1"], names), (["10", "9", "8", "-1"], ["10", "9", "8", "-1"])):
        assert class_names(names, known) == expected


def test_classes_include_those_of_the_held_out_documents_alone() -> None:
    train, held_out = (Dataset.from_dict({"label": labels}) for labels in (["b", "a"], ["c", "1", "01"]))
    assert label_names(train, held_out) == ["01", "1", "a", "b", "c"]
    assert label_names(Dataset.from_dict({"label": ["1", "10", "01", "9"]})) == ["01", "1", "9", "10"]


def test_labels_of_other_scripts_digits_are_sorted_as_texts() -> None:
    for labels in (["²", "①", "³"], ["--1", "1", "-"], ["9" * 5000, "1"], ["١", "2"]):
        assert label_names(Dataset.from_dict({"label": labels})) == sorted(labels)


def test_validation_labels_must_be_those_of_the_training_data(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label\n" + "".join(f"{code} text,{code}\n" for code in ("001", "010", "X99")))
    (tmp_path / "held.csv").write_text("text,label\n001 text,001\n010 text,010\n")
    table(tmp_path, [{"text": "a", "label": "001"}], "held.jsonl")
    table(tmp_path, [{"text": "a", "label": 1}], "numbers.jsonl")

    def classes(held: str) -> list[str]:
        data_args = ClassificationDataArguments(data=[str(tmp_path / "train.csv")], validation=str(tmp_path / held))
        return label_names(*read_labelled(data_args, "text", seed=0))

    for held in ("held.csv", "held.jsonl", "train.csv"):
        assert classes(held) == ["001", "010", "X99"]
    with pytest.raises(DataError, match=r"numbers.jsonl has the labels 1, but .*train.csv only 001, 010, X99; write the same"):
        classes("numbers.jsonl")


def test_predictions_are_scored_by_lengths_of_their_documents(tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: Any) -> None:
    """Predictions meet the lengths of their own documents, however training groups them."""
    seen: list[dict[str, int]] = []

    class Metric:
        def compute(self, predictions: list[int], references: list[dict[str, int]]) -> dict[str, Any]:
            seen[:] = references
            return {"accuracy": 0.0, "buckets": {}}

    monkeypatch.setattr(classify, "load_metric", lambda name: Metric())
    held = rows(10)[::-1]
    given = {"data": [table(tmp_path, rows())], "validation": table(tmp_path, held, "held.jsonl"), "per_device_train_batch_size": 3}
    start_task("classify", model=converted("mlm", tmp_path, tokenizer), output_dir=str(tmp_path / "out"), **given, max_steps=1, **FAST)
    expected = encode_documents(Dataset.from_list(held), tokenizer, 128, ["files", "loops"])
    assert [row["length"] for row in seen] == expected["document"][:]
    assert [row["label"] for row in seen] == expected["labels"][:]


def test_classify_refuses_labels_and_texts_that_do_not_fit(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, capsys: pytest.CaptureFixture[str]
) -> None:
    short = checkpoint("mlm", tmp_path / "short", tokenizer)
    data, one = table(tmp_path, rows()), table(tmp_path, rows()[:20], "one.jsonl")
    floats = table(tmp_path, [{"text": "x", "label": 0.5, "many": ["a"]}] * 4, "floats.jsonl")
    gap = table(tmp_path, [{"text": "x", "label": "a"}, {"text": "y", "label": None}], "gap.jsonl")
    cases: list[tuple[type[LongAttentionError], str, dict[str, Any]]] = [
        (OptionError, "exceeds the 64 tokens", {"max_length": 65}),
        (OptionError, "--columns takes ROLE=NAME, with a role of text, question, image, audio, label", {"columns": ["labels=a"]}),
        (DataError, "not 'labels'; name one with --columns label=NAME.*Did you mean 'label'", {"columns": ["label=labels"]}),
        (DataError, "All rows .* have the label 'loops'", {"data": [one]}),
        (DataError, r"Row 1 of .* has '0.5' in the column 'label'", {"data": [floats]}),
        (DataError, r"Row 1 of .* in the column 'many', no name or whole number", {"data": [floats], "columns": ["label=many"]}),
        (DataError, "Row 2 of .* has no label", {"data": [gap]}),
    ]
    for error, words, changes in cases:
        given = {"model": short, "output_dir": str(tmp_path / "o"), "data": [data]}
        with pytest.raises(error, match=words):
            start_task("classify", **{**given, **changes})
    assert train("classify", ["--model", short, "--output", str(tmp_path / "o"), "--data", one]) == 1
    assert capsys.readouterr().err.count("Error: ") == 1
    assert not (tmp_path / "o").exists()
