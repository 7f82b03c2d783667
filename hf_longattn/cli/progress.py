"""A progress bar on stderr, drawn only where someone sees it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

__all__ = ["conversion_progress"]


@contextlib.contextmanager
def conversion_progress() -> Iterator[Callable[[str, int, int], None]]:
    """Yields the `progress` argument of `convert_checkpoint`."""
    console = Console(stderr=True)
    if not console.is_terminal:  # rich before 15 ends even a disabled bar with an empty line
        yield lambda stage, done, total: None
        return
    columns = (TextColumn("{task.description:<10}"), BarColumn(), TextColumn("{task.fields[count]}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def advance(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task({"write": "Writing", "verify": "Verifying"}[stage], total=total, count="")
            count = f"{done / 1e6:,.0f} of {total / 1e6:,.0f} MB" if stage == "write" else f"{done} of {total} checks"
            bars.update(tasks[stage], completed=done, count=count)

        yield advance
