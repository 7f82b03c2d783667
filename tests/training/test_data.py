"""SQuAD-shaped data in every form that people have it; what does not fit is refused with one sentence."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from hf_longattn.training.data import DataError, load_qa, save_qa

RECORD = {"id": "1", "context": "The fox is red.", "question": "What is red?", "answers": {"text": ["fox"], "answer_start": [4]}}
QAS = [{"id": "1", "question": RECORD["question"], "answers": [{"text": "fox", "answer_start": 4}]}]
NESTED = {"data": [{"title": "t", "paragraphs": [{"context": RECORD["context"], "qas": QAS}]}]}


@pytest.mark.parametrize("form", ["squad.json", "records.json", "data.jsonl", "data.csv", "spans.csv", "data.parquet", "dataset", "splits"])
def test_every_form(form: str, tmp_path: Path) -> None:
    path = tmp_path / form
    data = Dataset.from_list([RECORD])
    if form == "squad.json":
        path.write_text(json.dumps(NESTED))
    elif form == "records.json":
        path.write_text(json.dumps([RECORD]))
    elif form == "data.jsonl":
        save_qa([RECORD], path)
    elif form == "data.csv":
        write_csv(path, {**RECORD, "answers": json.dumps(RECORD["answers"])})
    elif form == "spans.csv":
        write_csv(path, {**{name: RECORD[name] for name in ("id", "context", "question")}, "answer": "fox", "answer_start": 4})
    elif form == "data.parquet":
        data.to_parquet(str(path))
    elif form == "dataset":
        data.save_to_disk(str(path))
    else:
        DatasetDict({"train": data, "test": data}).save_to_disk(str(path))
    (record,) = load_qa(path, "train").to_list()
    assert {key: record[key] for key in RECORD} == RECORD


def write_csv(path: Path, record: dict) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(record))
        writer.writeheader()
        writer.writerow(record)


def test_a_csv_question_without_an_answer(tmp_path: Path) -> None:
    write_csv(tmp_path / "data.csv", {"context": "c", "question": "?", "answer": "", "answer_start": ""})
    assert load_qa(tmp_path / "data.csv")[0]["answers"] == {"text": [], "answer_start": []}


def test_columns_of_any_shape_beside_those_that_are_needed(tmp_path: Path) -> None:
    save_qa([{**RECORD, "meta": [["a", 1], "b"]}, {**RECORD, "meta": 5}], tmp_path / "data.jsonl")
    assert len(load_qa(tmp_path / "data.jsonl")) == 2


def test_squad_2_without_answer(tmp_path: Path) -> None:
    path = tmp_path / "squad2.json"
    qas = [{"id": "1", "question": "?", "answers": [], "is_impossible": True}]
    path.write_text(json.dumps({"data": [{"title": "t", "paragraphs": [{"context": "c", "qas": qas}]}]}))
    assert load_qa(path)[0]["answers"]["text"] == []


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({k: v for k, v in RECORD.items() if k != "answers"}, "lacks the column 'answers'"),
        ({**RECORD, "answers": {"text": ["fox"], "answer_start": [5]}}, "is not at character 5"),
        ({**RECORD, "answers": ["fox"]}, "as in SQuAD"),
        ({**RECORD, "answers": {"text": ["yes"], "answer_start": [-1]}}, "yes and no questions"),
        ({**RECORD, "question": " "}, "all questions of .* are empty"),
        ({**RECORD, "context": [["title", ["a sentence"]], "b"]}, "do not have SQuAD's schema"),
        (
            {"question": "?", "answer": "yes", "supporting_facts": [["t", 0]], "context": [["t", ["a sentence"]]]},
            "looks like HotpotQA's own JSON",
        ),
        ({**RECORD, "context": ["a"]}, "context must be one text"),
    ],
)
def test_wrong_schema(record: dict, message: str, tmp_path: Path) -> None:
    save_qa([record], tmp_path / "data.jsonl")
    with pytest.raises(DataError, match=message):
        load_qa(tmp_path / "data.jsonl")


def test_wrong_sources(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        load_qa(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(DataError, match="not valid JSON"):
        load_qa(tmp_path / "bad.json")
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(DataError, match="no 'data' entry"):
        load_qa(tmp_path / "other.json")
    data = Dataset.from_list([RECORD])
    DatasetDict({"train": data, "validation": data}).save_to_disk(str(tmp_path / "splits"))
    with pytest.raises(DataError, match="Did you mean 'validation'"):
        load_qa(tmp_path / "splits", "validaton")
