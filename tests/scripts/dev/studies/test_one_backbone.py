"""The study of one backbone for three kinds of input: its passages, its shares, and the stored page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts.dev import RESULTS
from scripts.dev.studies.one_backbone import CHANCE, KINDS, WORDS_OF_PASSAGE, accuracy, page, passages, shares


def test_passages_are_of_the_longest_articles_without_headings(tmp_path: Path) -> None:
    lines = [line for number in range(9) for line in (f" = Title {number} = ", " = = Part = = ", f"word{number} " * 70 * (number + 1))]
    (tmp_path / "text.txt").write_text("\n".join(lines))
    rows = list(passages([str(tmp_path / "text.txt")]))
    assert {label for _, label in rows} == {f"article {number}" for number in range(8)}
    assert {len(text.split()) for text, _ in rows} == {WORDS_OF_PASSAGE}
    assert all(set(text.split()) == {text.split()[0]} for text, _ in rows)
    assert not any("word0" in text for text, _ in rows)  # of the shortest


def test_shares_follow_the_temperature() -> None:
    assert shares({"large": 400, "small": 100}) == pytest.approx({"large": 2 / 3, "small": 1 / 3})


def test_the_stored_page_says_what_the_results_say_and_every_task_is_learned() -> None:
    stored = json.loads((RESULTS / "one_backbone.json").read_text(encoding="utf-8"))
    assert (RESULTS / "one_backbone.md").read_text(encoding="utf-8") == page(stored)
    for task in KINDS:
        _, mean, error = accuracy(stored, "together", task)
        assert mean - 3 * error > CHANCE[task], task
