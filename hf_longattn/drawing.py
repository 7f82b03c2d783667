"""Drawings in files by matplotlib, which is imported when something is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .errors import LongAttentionError, check_extra, needs_extra
from .staging import check_new_file, staged_file

SVG = {"svg.hashsalt": "longattn", "svg.fonttype": "none"}
"""matplotlib's settings for SVG files that are equal for equal drawings, with text as text."""


def new_figure(width: float, height: float, **options: Any) -> Any:
    """An empty figure of matplotlib, in inches, which needs no display.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    with needs_extra("plot"):
        from matplotlib.figure import Figure
    return Figure(figsize=(width, height), **options)


def check_image(file: Path) -> None:
    """Refuse a file that cannot be drawn into, before what is drawn is computed.

    Raises:
        LongAttentionError: matplotlib is not installed or does not support the file's extension, the file exists, or its folder does not.
    """
    check_extra("plot")
    known = sorted(new_figure(1, 1).canvas.get_supported_filetypes())
    if file.suffix.lstrip(".").lower() not in known:
        raise LongAttentionError(f"Cannot draw into {str(file)!r}: give a name that ends in one of {', '.join(known)}.")
    check_new_file(file)


def save(figure: Any, file: Path) -> None:
    """Write a figure into a file.

    Raises:
        LongAttentionError: matplotlib does not support the file's extension.
        CheckpointError: the file cannot be written.
    """
    from matplotlib import rc_context

    try:
        with staged_file(file) as stage, rc_context(SVG):
            figure.savefig(stage, dpi=120, **({"metadata": {"Date": None}} if file.suffix.lower() == ".svg" else {}))
    except LongAttentionError:
        raise
    except ValueError as error:
        raise LongAttentionError(f"Cannot draw into {str(file)!r}: {error}.") from error
