"""Scored rows that are trained on, too: found by their content, whatever their files and ids are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from datasets import Dataset

from hf_longattn.data.qa_schemas import load_qa
from hf_longattn.data.rows import rows_of, trained_rows

LABELLED = {"text": ("text",), "label": ("label",)}


def test_trained_rows_are_found_by_content(tmp_path: Path) -> None:
    rows = [{"text": f"text {number}", "label": "ab"[number % 2]} for number in range(6)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "b.csv").write_text("label,text\n" + "".join(f"{row['label']},{row['text']}\n" for row in reversed(rows[2:])) + "a,other\n")
    train, scored = (rows_of(str(tmp_path / name), "train", LABELLED, {}) for name in ("a.jsonl", "b.csv"))
    assert (trained_rows(train, scored), trained_rows(train, train), trained_rows(train.select([]), scored)) == (4, 6, 0)
    assert trained_rows(*(rows_of(str(tmp_path / name), "train", {"text": ("text",)}, {}) for name in ("b.csv", "a.jsonl"))) == 4
    assert trained_rows(train, Dataset.from_list([{"text": "text 0", "label": "b"}])) == 0

    words = Dataset.from_list([{"words": ["a", "b"], "tags": ["O", "O"]}, {"words": ["a b"], "tags": ["O"]}])
    assert trained_rows(words, words.select([1])) == 1
    assert trained_rows(words.select([0]), words) == 1


def test_trained_questions_are_found_whatever_their_ids_and_schema(tmp_path: Path) -> None:
    question: dict[str, Any] = {"question": "which?", "answers": [{"text": "tree", "answer_start": 2}]}
    nested = {"data": [{"title": "t", "paragraphs": [{"context": "a tree", "qas": [{**question, "id": "x"}]}]}]}
    (tmp_path / "a.json").write_text(json.dumps(nested))
    flat = {"question": "which?", "context": "a tree", "answers": {"text": ["tree"], "answer_start": [2]}}
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (flat, {**flat, "question": "who?"})))
    assert trained_rows(load_qa(tmp_path / "a.json"), load_qa(tmp_path / "b.jsonl")) == 1
