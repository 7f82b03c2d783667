"""The study of states of one size: questions have their answers in the text, states have the bytes, and the page has the stored figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from scripts.dev import RESULTS
from scripts.dev.studies import linear_state
from scripts.dev.studies.linear_state import DELTA, NO_START, ROWS, TASKS, TEACHER, UNTRAINED, WINDOW, Words, main, page, starts

WORDS = Words(torch.arange(400) % 7 + 100, torch.arange(10, 26), torch.arange(30, 46), torch.arange(200, 456).view(16, 16))


@pytest.mark.parametrize("task", TASKS)
def test_every_question_has_its_answer_in_a_fact(task: str) -> None:
    ids, labels = WORDS.batch(task, 4, 128, torch.Generator().manual_seed(0))
    assert ids.shape == labels.shape == (4, 128)
    assert ((labels >= 0).sum(1) == TASKS[task]).all()
    for row, wanted in zip(ids.tolist(), labels.tolist(), strict=True):
        facts = dict(divmod(token - 200, 16) for token in row if token >= 200)
        assert len(facts) == TASKS[task]
        assert all(facts[row[at] - 10] == answer - 30 for at, answer in enumerate(wanted) if answer >= 0)


def test_facts_may_be_asked_for_again() -> None:
    ids, labels = WORDS.haystack(100, 3, torch.Generator().manual_seed(0), asked=5)
    assert int((labels >= 0).sum()) == 15
    assert int((ids >= 200).sum()) == 3
    assert int((ids >= 100).sum()) == 70


def test_tokens_until_a_loss_are_counted_in_each_stage() -> None:
    def logs(*losses: float) -> list[dict[str, float]]:
        return [{"step": 5 * number, "loss": loss} for number, loss in enumerate(losses, 1)]

    found = starts({NO_START: {"stage1": logs(4, 3, 2), "stage2": logs(2, 1)}, DELTA: {"stage1": logs(3, 2, 1), "stage2": logs(3, 2)}})
    assert found["stage1"] == {"loss": 2, NO_START: 15 * 2048, DELTA: 10 * 2048}
    assert found["stage2"] == {"loss": 1, NO_START: 10 * 2048, DELTA: None}


@pytest.mark.slow
def test_a_quick_run_measures_every_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_state, "LENGTHS", (128, 160))
    monkeypatch.setattr(linear_state, "ROWS", {name: ROWS[name] for name in (TEACHER, WINDOW, NO_START, DELTA)})
    assert main(["--quick", "--work", str(tmp_path / "work"), "--output", str(tmp_path / "found")]) == 0
    record = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert [*record["rows"]] == [TEACHER, WINDOW, NO_START, DELTA]
    assert all(set(row["after"]) == {"loss", *TASKS} for name, row in record["rows"].items() if name != TEACHER)
    assert (tmp_path / "found.md").read_text(encoding="utf-8") == page(record)


def test_states_have_as_many_bytes_as_the_window() -> None:
    rows = json.loads((RESULTS / "linear_state.json").read_text(encoding="utf-8"))["rows"]
    of_window = rows[WINDOW]["bytes"]
    bounded = {name: row["bytes"] / of_window for name, row in rows.items() if name not in {*UNTRAINED, "linear", "nsa"}}
    assert all(0.8 <= share <= 1 for share in bounded.values()), bounded


def test_the_page_is_that_of_the_numbers() -> None:
    record = json.loads((RESULTS / "linear_state.json").read_text(encoding="utf-8"))
    assert (RESULTS / "linear_state.md").read_text(encoding="utf-8") == page(record)
