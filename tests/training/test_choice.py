"""Multiple choice: RACE, SWAG and plain data, a short run, and bad input."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from hf_longattn.conversion import convert_checkpoint
from hf_longattn.data.choices import read_choices, to_choices
from hf_longattn.data.sources import DataError
from hf_longattn.training.parsing import build_arguments
from hf_longattn.training.tasks.choice import CHOICE, finetune_choice
from tests.training.conftest import FAST, checkpoint


def write(rows: list[dict[str, Any]], path: Path) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_schemas(tmp_path: Path) -> None:
    plain = {"context": "c", "question": "q", "choices": ["x", "y"], "label": 1}
    forms = {
        "plain": plain,
        "race": {"article": "c", "question": "q", "options": ["x", "y"], "answer": "B"},
        "swag": {"sent1": "c", "sent2": "q", "ending0": "x", "ending1": "y", "label": "1"},
        "text": {**plain, "label": "y"},
    }
    for name, row in forms.items():
        assert read_choices(write([row], tmp_path / f"{name}.jsonl"), "train").to_list() == [plain], name


def test_labels_are_read_in_one_way_for_all_rows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """HellaSwag's labels are texts that count from 0, also where choices are numbers themselves; RACE's are letters."""
    keyed = {"text": ["1", "2", "0"], "label": ["1", "2", "3"]}
    cases = [
        ("1031", [["three", "four", "five", "six"], "3124", "1203", "3210"], "1031"),
        ([1, 0], ["10", "01"], "10"),  # integers are numbers
        ("20", ["012", "201"], None),  # all are texts, too
        ("23", ["123", "345"], "10"),  # 3 is no number of a choice
        ("21", ["012", "012"], "21"),  # both say the same
        ("31", [keyed, keyed], "20"),
        ("DB", ["wxyz", "CABD"], "31"),
        ("db", [["a cat", "d"], ["b", "a dog"]], "10"),
        (["ox", "1"], [["ox", "1"], ["2", "1"]], "01"),
    ]
    for number, (labels, choices, expected) in enumerate(cases):
        rows = [
            {"context": "c", "choices": each if isinstance(each, dict) else list(each), "label": label}
            for label, each in zip(labels, choices, strict=True)
        ]
        source = write(rows, tmp_path / f"{number}.jsonl")
        if expected is None:
            with pytest.raises(DataError, match=r"numbers or texts: in row 2, '0' names two different choices; store .* integers from 0"):
                read_choices(source, "train", varied=True)
        else:
            assert list(read_choices(source, "train", varied=True)["label"]) == [int(digit) for digit in expected], (labels, choices)
    assert not caplog.records
    source = write([{"context": "c", "choices": ["C", "A", "B", "D"], "label": "B"}], tmp_path / "letters.jsonl")
    assert list(read_choices(source, "train")["label"]) == [1]
    assert "in row 1, 'B' names two different choices. They are read as letters" in caplog.text


@pytest.mark.thorough
def test_a_converted_model_learns_to_choose(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    choose = random.Random(0)
    rows = [
        {"context": "for " * choose.randint(5, 90), "question": "which?", "choices": pair, "label": pair.index("tree")}
        for _ in range(40)
        for pair in [choose.sample(["tree", choose.choice(["file", "node"])], 2)]
    ]
    short = checkpoint("mlm", tmp_path / "short", tokenizer)
    convert_checkpoint(short, tmp_path / "long", mechanism="longformer", max_length=128, window=16, verify=False)
    given = {"model": str(tmp_path / "long"), "output_dir": str(tmp_path / "out"), "data": [write(rows, tmp_path / "rows.jsonl")]}
    settings = {**FAST, "max_steps": 60, "learning_rate": 5e-3, "per_device_train_batch_size": 4}
    log = finetune_choice(*build_arguments(CHOICE, **given, **settings))
    assert log["held_out"]["after"]["accuracy"] == 100.0
    assert log["questions"] == 36
    cut = to_choices(read_choices(given["data"][0], "train"), tokenizer, 32)
    assert all(len(ids) <= 32 for row in cut["input_ids"] for ids in row)


def test_bad_input_is_a_sentence(tmp_path: Path) -> None:
    row = {"context": "c", "question": "q", "choices": ["x", "y"], "label": 1}
    cases = [
        ("no column for label .* its columns are", [{name: row[name] for name in ("context", "question", "choices")}]),
        ("no column for choices", [{"context": "c", "label": 0}]),
        ("Row 2 .* label 5 is none of its 2 choices", [row, {**row, "label": 5}]),
        ("label 'wolf' is none", [{**row, "label": "wolf"}]),
        ("Row 1 .* label '²' is none", [{**row, "label": "²"}]),
        ("of several kinds; give all rows a number", [{**row, "label": "x"}, {**row, "label": "1"}]),
        ("at least two texts", [{**row, "choices": ["x"]}]),
        ("different numbers of choices", [row, {**row, "choices": ["x", "y", "z"]}]),
    ]
    for number, (words, rows) in enumerate(cases):
        with pytest.raises(DataError, match=words):
            read_choices(write(rows, tmp_path / f"{number}.jsonl"), "train")
