import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from scripts.dev.benchmarks.app import app
from tests.cells import every_cell

CASE = {"mechanism": "window"}


def record(ours: list[float], sdpa: list[float] | None = None, **other: Any) -> dict[str, Any]:
    timings = [{"implementation": "longattn", "length": 1024, "rounds_ms": ours}]
    timings += [{"implementation": "sdpa", "length": 1024, "rounds_ms": sdpa}] if sdpa else []
    return {"kind": "attention", "case": CASE, "timings": timings} | other


@pytest.fixture
def compared(tmp_path: Path) -> Callable[[Any, Any], Any]:
    def run(before: Any, after: Any) -> Any:
        files = [tmp_path / "before.json", tmp_path / "after.json"]
        for file, content in zip(files, (before, after), strict=True):
            file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return CliRunner().invoke(app, ["compare", *map(str, files)])

    return run


NOISY = [10.0, 10.4, 9.8, 10.1, 10.2]


@every_cell(
    ("before", "after", "code"),
    [
        (record(NOISY), record(NOISY), 0),
        (record(NOISY), record([t * 1.02 for t in NOISY]), 0),  # below the tolerance
        (record(NOISY), record([t * 1.2 for t in NOISY]), 1),
        (record(NOISY), record([t / 2 for t in NOISY]), 0),
        (record([10, 20, 10, 20, 15]), record([12, 22, 11, 21, 16]), 0),  # slower, but by less than rounds differ
        (record(NOISY, NOISY), record([t * 2 for t in NOISY], [t * 2 for t in NOISY]), 0),  # the machine was half as fast
        (record(NOISY, NOISY), record([t * 2 for t in NOISY], [t * 1.5 for t in NOISY]), 1),
        (record(NOISY), record(NOISY, clock="processor time"), 2),
        (record(NOISY), {"kind": "grid"}, 2),
        (record(NOISY), "not json", 2),
    ],
)
def test_a_regression_has_an_exit_code(compared: Callable[[Any, Any], Any], before: Any, after: Any, code: int) -> None:
    done = compared(before, after)
    assert done.exit_code == code, done.output
    assert len(done.output.strip().splitlines()) == (1 if code == 2 else 3)
    assert ("slower |" in done.output.splitlines()[-1]) is (code == 1)
