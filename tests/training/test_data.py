"""Names on the Hub with subsets (a folder with a card that lists subsets is read as a repository is), and texts from several columns."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

from hf_longattn.errors import OptionError
from hf_longattn.training.data import DataError, load_or_refuse, load_text, read_source
from hf_longattn.training.qa_data import load_qa

CARD = """---
configs:
- config_name: first
  data_files: first.jsonl
- config_name: second.part
  data_files: second.jsonl
---
"""


@pytest.fixture
def repository(tmp_path: Path) -> str:
    (tmp_path / "README.md").write_text(CARD)
    for name in ("first", "second"):
        (tmp_path / f"{name}.jsonl").write_text(f'{{"text": "{name}"}}\n')
    return str(tmp_path)


def test_a_subset_is_named_after_a_colon(repository: str) -> None:
    assert load_or_refuse(f"{repository}:second.part", "")["train"]["text"] == ["second"]


@pytest.mark.parametrize(
    ("subset", "sentence"),
    [
        ("", "has the subsets first, second.part; name one, for example .*:first$"),
        (":secondpart", "has the subsets first, second.part, not 'secondpart'. Did you mean 'second.part'"),
    ],
)
def test_a_missing_or_wrong_subset_is_told_with_those_that_there_are(repository: str, subset: str, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        load_or_refuse(repository + subset, "")


def test_a_text_from_several_columns(tmp_path: Path) -> None:
    rows = [
        {"task": "Add", "input": "1 2", "result": 3},
        {"task": "Greet", "input": "", "result": 4},
        {"task": None, "input": "x", "result": 5},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = load_text([str(path)], template=["{task} {input}: {result}", "{{{task}}}: {result}"])["text"]
    assert sorted(texts) == ["Add 1 2: 3", "{Greet}: 4"]


@pytest.mark.parametrize(
    ("template", "kind", "sentence"),
    [
        ("{tsak}", DataError, "has the columns task, not 'tsak'; name one with --template. Did you mean 'task'"),
        ("{task", OptionError, "is no format string"),
        ("task", OptionError, "must name columns in braces"),
        ("{task.real} {0}", OptionError, "must name columns in braces"),
        ("{}", OptionError, "must name columns in braces"),
    ],
)
def test_bad_templates(tmp_path: Path, template: str, kind: type[Exception], sentence: str) -> None:
    (tmp_path / "rows.jsonl").write_text('{"task": "Add"}\n')
    with pytest.raises(kind, match=sentence):
        load_text([str(tmp_path / "rows.jsonl")], template=[template])


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize("read", [read_source, load_qa])
@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("train/data-00000-of-00001.arrow", Path.unlink),
        ("train/data-00000-of-00001.arrow", cut),
        ("train/state.json", cut),
        ("train/state.json", lambda file: file.write_text("[]")),
        ("train/dataset_info.json", Path.unlink),
        ("dataset_dict.json", cut),
        ("dataset_dict.json", lambda file: file.write_text('{"splits": ["train", "test"]}')),
    ],
)
def test_a_damaged_folder_of_datasets(name: str, damage: Callable[[Path], Any], read: Callable[[str], Any], tmp_path: Path) -> None:
    rows = Dataset.from_list([{"question": "Which?", "context": "a tree", "answer": "tree"}] * 50)
    DatasetDict({"train": rows}).save_to_disk(str(tmp_path / "saved"))
    damage(tmp_path / "saved" / name)
    with pytest.raises(DataError, match="saved' is damaged; write it again with save_to_disk"):
        read(str(tmp_path / "saved"))
