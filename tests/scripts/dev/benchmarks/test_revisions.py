"""A comparison with another revision of the project."""

from __future__ import annotations

import pytest

from scripts.dev.benchmarks import revisions


def test_a_revision_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert revisions.main(["no-such-revision"]) == 2
    assert "There is no revision 'no-such-revision' here" in capsys.readouterr().err


def test_slower_cases_are_marked_and_failures_told() -> None:
    record = {
        "before": "abc",
        "machine": dict.fromkeys(("processor", "torch", "transformers", "date"), "?"),
        "milliseconds": {"quick": [[2.0, 1.0]], "slow": [[1.0, 2.0], [1.0, 1.5], [1.0, 1.0]], "broken": "before: OptionError: no"},
    }
    page = revisions.markdown(record)
    assert "3 cases, 1 slower by more than 3 %" in page
    assert "| slow | 1.0 | 1.5 | **1.50** |" in page
    assert "| quick | 2.0 | 1.0 | 0.50 |" in page
    assert "before: OptionError: no" in page


@pytest.mark.slow
def test_this_revision_against_itself(capsys: pytest.CaptureFixture[str]) -> None:
    revisions.main(["HEAD", "--only", "linear, 4,096"])
    assert "1 cases" in capsys.readouterr().out
