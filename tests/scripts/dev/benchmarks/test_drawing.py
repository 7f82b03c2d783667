"""Drawing leaves the caller's matplotlib as it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.dev.benchmarks.drawing import svg
from scripts.dev.studies.qa_run import ScoredAnswer
from scripts.dev.studies.qa_table import draw, tabulate

matplotlib = pytest.importorskip("matplotlib", reason="drawing needs the plot extra")


def test_a_notebook_keeps_its_backend_and_its_figures(tmp_path: Path) -> None:
    before = matplotlib.get_backend()
    matplotlib.use("pdf")
    from matplotlib import pyplot

    mine = pyplot.figure()
    try:
        with svg(tmp_path / "a.svg", panels=2) as (figure, panels):
            panels[1].plot([1, 2])
            figure.suptitle("two")
        answers = [ScoredAnswer("row", None, "data", str(n), length, "", 1.0, 1.0, 0.1) for n, length in enumerate((300, 900))]
        draw(tabulate(answers), tmp_path / "b.png")
        assert matplotlib.get_backend().lower() == "pdf"
        assert pyplot.get_fignums() == [mine.number]
    finally:
        pyplot.close(mine)
        matplotlib.use(before)
    assert (tmp_path / "a.svg").read_text().startswith("<?xml")
    assert (tmp_path / "b.png").stat().st_size > 1000


def test_equal_drawings_are_equal_bytes(tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg"):
        with svg(tmp_path / name) as (_, panels):
            panels[0].plot([1, 3, 2], label="line")
            panels[0].legend()
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
