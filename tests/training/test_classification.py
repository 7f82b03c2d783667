"""Document classification: files of every shape, classes that are learned, a stopped run that resumes, bad input in a sentence."""

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
from hf_longattn.data.documents import label_names, to_documents
from hf_longattn.data.sources import DataError, class_names, load_labelled
from hf_longattn.errors import LongAttentionError, OptionError
from hf_longattn.modeling.attach.token_globals import token_rule
from hf_longattn.training.parsing import build_arguments
from hf_longattn.training.tasks import classify as classification
from hf_longattn.training.tasks.classify import CLASSIFICATION, finetune_classification, read_labelled
from hf_longattn.training.training_loop import LOG_NAME
from tests.grids import quickly
from tests.training.conftest import FAST, checkpoint

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
def test_converted_model_learns_two_classes_of_documents(kind: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    data = table(tmp_path, rows())
    run = {**FAST, "gradient_accumulation_steps": 2, "max_steps": 60, "learning_rate": 3e-3}
    model = converted(kind, tmp_path, tokenizer)
    settings = build_arguments(CLASSIFICATION, model=model, output_dir=str(tmp_path / "out"), data=[data], **run)
    log = finetune_classification(*settings)
    assert (log["classes"], log["input_length"], log["documents"]["held_out"]) == (["files", "loops"], 128, 4)
    assert log["documents"]["cut"] > 0
    assert all(entry["loss"] < 0.8 for entry in log["history"] if "loss" in entry)  # of a batch, not of the two that a step has
    assert log["held_out"]["after"]["accuracy"] == 100.0
    assert sum(bucket["n"] for bucket in log["held_out"]["after"]["buckets"].values()) == 4
    assert json.loads((tmp_path / "out" / LOG_NAME).read_text())["classes"] == log["classes"]
    trained = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert trained.config.id2label == {0: "files", 1: "loops"}
    assert trained.config.pad_token_id is not None


@pytest.mark.thorough
def test_question_column_of_classify_is_read_and_global(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    data = [{"text": "next path", "claim": row["text"], "label": row["label"]} for row in rows()]
    short = checkpoint("mlm", tmp_path / "short", tokenizer)
    convert_checkpoint(short, tmp_path / "long", mechanism="longformer", max_length=128, window=32, verify=False)
    run = {**FAST, "max_steps": 60, "learning_rate": 3e-3, "question_column": "claim", "packing": False}
    given = {"model": str(tmp_path / "long"), "output_dir": str(tmp_path / "out"), "data": [table(tmp_path, data)]}
    log = finetune_classification(*build_arguments(CLASSIFICATION, **given, **run))
    assert log["held_out"]["after"]["accuracy"] == 100.0
    trained = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    pair = tokenizer("for while", "next path open", return_tensors="pt")
    rule = token_rule(trained)
    assert rule is not None
    marked = rule.mask(pair["input_ids"], pair["attention_mask"].bool()).sum()
    assert marked == pair["input_ids"][0].tolist().index(tokenizer.sep_token_id) + 1
    with pytest.raises(OptionError, match="--question-column is an option for texts"):
        build_arguments(CLASSIFICATION, **given, question_column="claim", images=True)
    with pytest.raises(DataError, match="name one with --question-column"):
        finetune_classification(*build_arguments(CLASSIFICATION, **{**given, "output_dir": str(tmp_path / "o")}, question_column="clame"))


def test_labelled_documents_are_read_from_a_folder_for_each_class(tmp_path: Path) -> None:
    data = rows(6)
    for number, row in enumerate(data):
        (tmp_path / "texts" / row["label"]).mkdir(exist_ok=True, parents=True)
        (tmp_path / "texts" / row["label"] / f"{number}.txt").write_text(row["text"])
    found = load_labelled(str(tmp_path / "texts"))
    expected = sorted((row["text"], row["label"]) for row in data)
    assert sorted(zip(found["text"], found["label"], strict=True)) == expected


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

    def classes(held: str, **changes: Any) -> list[str]:
        given = {"model": "none", "output_dir": str(tmp_path / "out"), "data": [str(tmp_path / "train.csv")]}
        _, data_args, _ = build_arguments(CLASSIFICATION, **given, validation=str(tmp_path / held), **changes)
        return label_names(*read_labelled(data_args, seed=0))

    for held in ("held.csv", "held.jsonl", "train.csv"):
        assert classes(held) == ["001", "010", "X99"]
    with pytest.raises(DataError, match=r"numbers.jsonl has the labels 1, but .*train.csv only 001, 010, X99; write the same"):
        classes("numbers.jsonl")


def test_predictions_are_scored_by_lengths_of_their_documents(tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: Any) -> None:
    """Predictions meet the lengths of their own documents, however training groups them."""
    seen: list[dict[str, int]] = []

    class Metric:
        def compute(self, predictions: list[int], references: list[dict[str, int]]) -> dict[str, float]:
            seen[:] = references
            return {"accuracy": 0.0, "accuracy_se": 0.0, "macro_f1": 0.0}

    monkeypatch.setattr(classification, "load_metric", lambda name: Metric())
    data = table(tmp_path, rows())
    held = table(tmp_path, rows(10)[::-1], "held.jsonl")
    given = {"model": converted("mlm", tmp_path, tokenizer), "output_dir": str(tmp_path / "out"), "data": [data], "validation": held}
    finetune_classification(*build_arguments(CLASSIFICATION, **given, max_steps=1, per_device_train_batch_size=3, **FAST))
    expected = to_documents(load_labelled(held), tokenizer, 128, ["files", "loops"])
    assert [row["length"] for row in seen] == expected["document"][:]
    assert [row["label"] for row in seen] == expected["labels"][:]


def test_classify_refuses_labels_and_texts_that_do_not_fit(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, capsys: pytest.CaptureFixture[str]
) -> None:
    short = checkpoint("mlm", tmp_path / "short", tokenizer)
    data = table(tmp_path, rows())
    one = table(tmp_path, rows()[:20], "one.jsonl")
    floats = table(tmp_path, [{"text": "x", "label": 0.5, "none": None, "many": ["a"]}] * 4, "floats.jsonl")
    gap = table(tmp_path, [{"text": "x", "label": "a"}, {"text": "y", "label": None}], "gap.jsonl")
    mixed = table(tmp_path, [{"text": "x", "label": 1}, {"text": "y", "label": "a"}], "mixed.jsonl")
    texts = table(tmp_path, [{"text": "x", "label": "a"}, {"text": 5, "label": "b"}], "texts.jsonl")
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "a.txt").write_text("text")
    cases: list[tuple[type[LongAttentionError], str, dict[str, Any]]] = [
        (OptionError, "name two columns", {"label_column": "text"}),
        (OptionError, "exceeds the 64 tokens", {"max_length": 65}),
        (DataError, "columns text, label, not 'labels'; name one with --label-column. Did you mean 'label'", {"label_column": "labels"}),
        (DataError, "All documents .* have the label 'loops'", {"data": [one]}),
        (DataError, "holds float64, but a class is a name", {"data": [floats]}),
        (DataError, "holds a list, but a class", {"data": [floats], "label_column": "many"}),
        (DataError, "Row 2 of .* has no label", {"data": [gap]}),
        (DataError, "column 'label' of .* holds values of different types", {"data": [mixed]}),
        (DataError, "column 'text' of .* holds values of different types, not text", {"data": [texts]}),
        (DataError, "has no sub-folders", {"data": [str(tmp_path / "flat")]}),
        (DataError, "text alone; give a table with columns for text and label, or a folder", {"data": [str(tmp_path / "flat" / "a.txt")]}),
        (OptionError, "too few to hold some back", {"data": [table(tmp_path, rows(2), "two.jsonl")]}),
    ]
    for error, words, changes in cases:
        given = {"model": short, "output_dir": str(tmp_path / "o"), "data": [data]}
        with pytest.raises(error, match=words):
            finetune_classification(*build_arguments(CLASSIFICATION, **{**given, **changes}))
    assert train("classify", ["--model", short, "--output", str(tmp_path / "o"), "--data", one]) == 1
    assert capsys.readouterr().err.count("Error: ") == 1
    assert not (tmp_path / "o").exists()
