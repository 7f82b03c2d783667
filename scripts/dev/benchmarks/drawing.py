"""Images as SVG: equal results give equal bytes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hf_longattn.errors import LongAttentionError


@contextmanager
def svg(path: Path, panels: int = 1, width: float = 5.2, height: float = 3.8, **subplots: Any) -> Iterator[tuple[Any, list[Any]]]:
    """A figure and its panels side by side; written into ``path`` when the block ends.

    Raises:
        LongAttentionError: when matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise LongAttentionError("Drawing needs matplotlib, which is not installed; type: pip install matplotlib") from error
    with matplotlib.rc_context({"svg.hashsalt": "hf_longattn", "svg.fonttype": "none", "font.size": 10}):
        figure = Figure(figsize=(width * panels, height))  # without pyplot, whose backend is the caller's
        axes = figure.subplots(1, panels, squeeze=False, **subplots)
        yield figure, list(axes[0])
        figure.tight_layout()
        figure.savefig(path, format="svg", metadata={"Date": None})
