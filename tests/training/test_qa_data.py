"""Questions in every schema and file that people have them; what cannot be used is counted, shown, and left out on request."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

from hf_longattn.training.data import DataError
from hf_longattn.training.qa_data import load_qa, occurrences, save_qa

RECORD = {"id": "1", "context": "The fox is red.", "question": "What is red?", "answers": {"text": ["fox"], "answer_start": [4]}}
QAS = [{"id": "1", "question": RECORD["question"], "answers": [{"text": "fox", "answer_start": 4}]}]
NESTED = {"data": [{"title": "t", "paragraphs": [{"context": RECORD["context"], "qas": QAS}]}]}
HOTPOT = {
    "_id": "h",
    "question": "Who painted the tower?",
    "answer": "Ann Lee",
    "supporting_facts": [["Tower", 1], ["Ann Lee", 0]],
    "context": [
        ["Tower", ["The tower is old.", " It was painted by Ann Lee."]],
        ["Ann Lee", ["Ann Lee was a painter."]],
        ["Other", ["Ann Lee."]],
    ],
}


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
    assert (record["gold"], record["kind"], record["sentences"]) == (["fox"], "span", [])


def write_csv(path: Path, record: dict) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(record))
        writer.writeheader()
        writer.writerow(record)


def read(rows: list[dict[str, Any]], folder: Path, **options: Any) -> list[dict[str, Any]]:
    save_qa(rows, folder / "rows.jsonl")
    return load_qa(folder / "rows.jsonl", **options).to_list()


def test_a_csv_question_without_an_answer(tmp_path: Path) -> None:
    write_csv(tmp_path / "data.csv", {"context": "c", "question": "?", "answer": "", "answer_start": ""})
    (record,) = load_qa(tmp_path / "data.csv")
    assert (record["answers"], record["kind"]) == ({"text": [], "answer_start": []}, "none")


def test_columns_of_any_shape_beside_those_that_are_needed(tmp_path: Path) -> None:
    assert len(read([{**RECORD, "meta": [["a", 1], "b"]}, {**RECORD, "meta": 5}], tmp_path)) == 2


def test_squad_2_without_answer(tmp_path: Path) -> None:
    path = tmp_path / "squad2.json"
    qas = [{"id": "1", "question": "?", "answers": [], "is_impossible": True}]
    path.write_text(json.dumps({"data": [{"title": "t", "paragraphs": [{"context": "c", "qas": qas}]}]}))
    assert load_qa(path)[0]["kind"] == "none"


def test_answers_without_places_are_found_wherever_they_stand(tmp_path: Path) -> None:
    (record,) = read([{"question": "?", "context": "Fox, a foxglove, the  red\nfox.", "answer": ["fox", "red fox", "wolf"]}], tmp_path)
    assert record["answers"] == {"text": ["Fox", "red\nfox", "fox"], "answer_start": [0, 22, 26]}
    assert record["gold"] == ["fox", "red fox", "wolf"]
    assert occurrences("a+b a+bc", ["a+b", ""])["answer_start"] == [0]


def test_mrqa(tmp_path: Path) -> None:
    qa = {
        "qid": "q",
        "question": "?",
        "answers": ["Fox"],
        "detected_answers": [{"text": "fox", "char_spans": [[4, 6]], "token_spans": [[1, 1]]}],
    }
    save_qa([{"header": {"dataset": "x"}}, {"id": "", "context": RECORD["context"], "qas": [qa]}], tmp_path / "mrqa.jsonl")
    (record,) = load_qa(tmp_path / "mrqa.jsonl").to_list()
    assert (record["id"], record["answers"], record["gold"]) == ("q", {"text": ["fox"], "answer_start": [4]}, ["Fox"])
    hub = {"text": ["fox"], "char_spans": [{"start": [4], "end": [6]}], "token_spans": [{"start": [1], "end": [1]}]}
    row = {"context": RECORD["context"], "qid": "q", "question": "?", "detected_answers": hub, "answers": ["Fox"]}
    Dataset.from_list([row]).save_to_disk(str(tmp_path / "hub"))
    assert load_qa(tmp_path / "hub").to_list() == load_qa(tmp_path / "mrqa.jsonl").to_list()


def test_trivia_qa(tmp_path: Path) -> None:
    row = {
        "question": "?",
        "question_id": "t1",
        "entity_pages": {"title": ["a", "b"], "wiki_context": ["No such animal.", "The Red Fox lives. A red fox."]},
        "search_results": {"title": [], "search_context": []},
        "answer": {"value": "Red Fox", "aliases": ["Vulpes"]},
    }
    unmatched = {**row, "answer": {"value": "wolf", "aliases": []}}
    Dataset.from_list([row, unmatched]).save_to_disk(str(tmp_path / "trivia"))
    first, second = load_qa(tmp_path / "trivia").to_list()
    assert first["context"] == "No such animal.\n\nThe Red Fox lives. A red fox."
    assert first["answers"]["text"] == ["Red Fox", "red fox"]
    assert (second["answers"]["text"], second["gold"], second["kind"]) == ([], ["wolf"], "span")


def test_natural_questions(tmp_path: Path) -> None:
    words = ["<p>", "The", "red", "fox", "</p>", "runs"]
    note = {"short_answers": [{"start_token": [2], "end_token": [5]}], "yes_no_answer": [-1]}
    row = {
        "id": "n",
        "document": {"title": "Fox", "tokens": {"token": words, "is_html": [word.startswith("<") for word in words]}},
        "question": {"text": "what runs"},
        "annotations": note,
    }
    Dataset.from_list([row]).save_to_disk(str(tmp_path / "nq"))
    (record,) = load_qa(tmp_path / "nq").to_list()
    assert (record["context"], record["answers"]) == ("The red fox runs", {"text": ["red fox"], "answer_start": [4]})
    simple = {"example_id": 5, "document_text": " ".join(words), "question_text": "what runs"}
    plain = {"short_answers": [{"start_token": 2, "end_token": 5}], "yes_no_answer": "NONE"}
    said = {"short_answers": [], "yes_no_answer": "YES"}
    first, second = read([{**simple, "annotations": [plain]}, {**simple, "annotations": [said]}], tmp_path)
    assert (first["context"], first["answers"]) == (record["context"], record["answers"])
    assert (second["kind"], second["gold"], second["answers"]["text"]) == ("yes", ["yes"], [])


def test_hotpot_qa(tmp_path: Path) -> None:
    (record,) = read([HOTPOT], tmp_path)
    told = [record["context"][one["start"] : one["end"]] for one in record["sentences"]]
    assert told == ["The tower is old.", "It was painted by Ann Lee.", "Ann Lee was a painter.", "Ann Lee."]
    assert [one["supports"] for one in record["sentences"]] == [False, True, True, False]
    assert record["answers"]["answer_start"] == [record["context"].index("Ann Lee."), record["context"].index("Ann Lee was")]
    hub = {
        **{name: HOTPOT[name] for name in ("question", "answer")},
        "id": "h",
        "supporting_facts": {"title": ["Tower", "Ann Lee"], "sent_id": [1, 0]},
        "context": {"title": [title for title, _ in HOTPOT["context"]], "sentences": [texts for _, texts in HOTPOT["context"]]},
    }
    Dataset.from_list([hub]).save_to_disk(str(tmp_path / "hub"))
    assert load_qa(tmp_path / "hub").to_list() == [record]
    (no,) = read([{**HOTPOT, "answer": "no"}], tmp_path)
    assert (no["kind"], no["gold"], no["answers"]["text"]) == ("no", ["no"], [])


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({k: v for k, v in RECORD.items() if k != "answers"}, "lacks the column .* it has context, id, question"),
        ({"text": "a", "label": 1}, "lacks the columns .*; it has label, text"),
        ({**RECORD, "answers": {"text": ["fox"], "answer_start": [5]}}, "is not at character 5"),
        ({**RECORD, "answers": ["wolf"]}, "'wolf' is not in the context"),
        ({**RECORD, "answers": 5}, "as in SQuAD"),
        ({**RECORD, "answers": {"text": ["yes"], "answer_start": [-1]}}, "yes and no questions"),
        ({**RECORD, "question": " "}, "all questions of .* are empty"),
        ({**RECORD, "question": 5}, "question must be one text, not int"),
        ({**RECORD, "context": ["a"]}, "context must be one text, not list"),
        ({**HOTPOT, "answer": "wolf"}, "'wolf' is not in the context"),
        ({**HOTPOT, "context": "text"}, "has not the shape of HotpotQA"),
    ],
)
def test_wrong_rows(record: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read([record], tmp_path)


def test_bad_rows_are_counted_three_are_shown_and_all_are_left_out_on_request(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bad = [{**RECORD, "id": f"bad{number}", "answers": {"text": ["wolf"], "answer_start": [number]}} for number in range(5)]
    with pytest.raises(DataError, match=r"5 of 6 questions .* bad0.*; .*bad1.*; .*bad2.* …; .* --skip_bad_rows") as caught:
        read([*bad, RECORD], tmp_path)
    assert "bad3" not in str(caught.value)
    assert [record["id"] for record in read([*bad, RECORD], tmp_path, skip_bad_rows=True)] == ["1"]
    with pytest.raises(DataError, match="5 of 5"):
        read(bad, tmp_path, skip_bad_rows=True)


def test_wrong_sources(tmp_path: Path) -> None:
    for name, contents, message in (
        ("bad.json", "{", "not valid JSON"),
        ("other.json", "{}", "no 'data' entry"),
        ("trivia.json", '{"Data": []}', "keeps its documents in other files"),
        ("empty.json", "", "contains no questions"),
        ("empty.jsonl", "", "contains no questions"),
        ("empty.csv", "", "contains no questions"),
    ):
        (tmp_path / name).write_text(contents)
        with pytest.raises(DataError, match=message):
            load_qa(tmp_path / name)
    with pytest.raises(DataError, match="does not exist"):
        load_qa(tmp_path / "none.json")
    data = Dataset.from_list([RECORD])
    DatasetDict({"train": data, "validation": data}).save_to_disk(str(tmp_path / "splits"))
    with pytest.raises(DataError, match="Did you mean 'validation'"):
        load_qa(tmp_path / "splits", "validaton")
