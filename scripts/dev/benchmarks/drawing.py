"""Pictures as SVG: equal results give equal bytes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hf_longattn.errors import LongAttentionError

from .report import BenchmarkResult


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


def draw_result(result: BenchmarkResult, path: Path) -> Path:
    """Draw time, and memory where it was measured, over length on logarithmic axes.

    Raises:
        LongAttentionError: when matplotlib is not installed.
    """
    series = {"milliseconds per pass": [(t.implementation, t.length, t.median) for t in result.timings]}
    if result.memory:
        series["MiB on top of the inputs"] = [(m.implementation, m.length, m.extra) for m in result.memory]
    with svg(path, len(series)) as (figure, panels):
        from matplotlib.ticker import FuncFormatter, NullFormatter

        for panel, (label, points) in zip(panels, series.items(), strict=True):
            for name in dict.fromkeys(name for name, _, _ in points):
                line = [(length, value) for other, length, value in points if other == name]
                panel.plot(*zip(*line, strict=True), marker="o", linewidth=2.2 if name.startswith("longattn") else 1.3, label=name)
            lengths = sorted({length for _, length, _ in points})
            scale = "log" if any(value > 0 for _, _, value in points) else "linear"  # so little memory that none was measured
            panel.set(xscale="log", yscale=scale, xlabel="tokens", ylabel=label, xticks=lengths)
            panel.xaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n / 1024:g}K" if n >= 1024 else f"{n:g}"))
            panel.xaxis.set_minor_formatter(NullFormatter())
            panel.grid(alpha=0.3)
            panel.legend(frameon=False)
        about = f"{result.kind}, {result.case.mechanism}, {result.case.dtype}"
        about += ", forward and backward" if result.case.backward else ", forward"
        figure.suptitle(f"{about} · {result.machine.get('gpu') or result.machine['processor']}", fontsize=10)
    return path
