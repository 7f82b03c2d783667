"""The image of README.md: equal records give equal bytes, and the caller's matplotlib stays as it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.dev.tools import first_look
from scripts.dev.tools.update_docs import stored

matplotlib = pytest.importorskip("matplotlib", reason="drawing needs the plot extra")


def test_image_of_the_readme_is_the_same_bytes_and_leaves_figures_alone(tmp_path: Path) -> None:
    before = matplotlib.get_backend()
    matplotlib.use("pdf")
    from matplotlib import pyplot

    mine = pyplot.figure()
    try:
        for name in ("a.svg", "b.svg"):
            first_look.draw(stored(first_look.RESULT), tmp_path / name)
        assert matplotlib.get_backend().lower() == "pdf"
        assert pyplot.get_fignums() == [mine.number]
    finally:
        pyplot.close(mine)
        matplotlib.use(before)
    assert (tmp_path / "a.svg").read_text().startswith("<?xml")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
