"""How much memory there is, and whether two models are run whole in it or from their files."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..report import MEASURED, SKIPPED, Check

__all__ = ["Running", "available_memory", "choose_running"]

IN_MEMORY = 1e9
"""Bytes in fp32 up to which a model is loaded whole (250 million parameters): a larger one costs little more time from its files."""
SHARE = 0.5
"""Of the free memory that a model loaded whole may take."""
LOADING = 1.2
"""Memory of a model loaded whole, beside its weights in fp32."""
WORK = 4e8
"""Bytes for activations and outputs when a model runs from its files; the lengths at which it is checked are chosen by it."""
UNKNOWN = 4 * 10**9
"""Bytes taken to be free where nothing says how many are."""
GROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Running:
    """How source and result are run, one after the other, in fp32.

    bytes: of each in fp32.
    largest: bytes of the largest tensor in fp32.
    from_files: the weights stay in their files, and each tensor is read when it is used.
    why_not: why they cannot be run at all; empty where they can.
    """

    bytes: int
    largest: int
    from_files: bool
    why_not: str = ""

    def check(self) -> Check:
        """The line of the report that says it."""
        values = {"fp32_bytes": self.bytes, "largest_tensor_bytes": self.largest, "from_files": self.from_files}
        if self.why_not:
            return Check("outputs", SKIPPED, f"the models were not run: {self.why_not}", values)
        each = f"source and result, {_size(self.bytes)} each in fp32, ran one after the other"
        how = f"with the weights in their files, one tensor in memory at a time, the largest {_size(self.largest)}"
        return Check("how the models were run", MEASURED, f"{each}, {how if self.from_files else 'whole in memory'}", values)

    @contextlib.contextmanager
    def scratch(self, folder: Path) -> Iterator[Path | None]:
        """A folder in `folder` for tensors that are computed from several of a file; `None` for models in memory."""
        if not self.from_files:
            yield None
            return
        with tempfile.TemporaryDirectory(prefix=".weights-", dir=folder) as made:
            yield Path(made)


def choose_running(parameters: int, largest: int, *, whole: bool = False) -> Running:
    """From their files, unless a model takes no more than `IN_MEMORY` bytes and half of the memory that is free; not at all where not
    even the largest tensor fits twice, beside activations and outputs.

    Args:
        parameters: of the larger of the two models.
        largest: how many numbers its largest tensor has.
        whole: it has to be loaded whole.
    """
    size, tensor, available = 4 * parameters, 4 * largest, available_memory()
    loaded = size * LOADING
    if whole or (size <= IN_MEMORY and loaded <= SHARE * available):
        why = f"a model takes {_size(loaded)} in fp32 and {_size(available)} are free" if loaded > available else ""
        return Running(size, tensor, False, why)
    needed = 2 * tensor + WORK
    why = f"the largest tensor of {_size(tensor)} in fp32 and what is computed take {_size(needed)} and {_size(available)} are free"
    return Running(size, tensor, True, why if needed > available else "")


def available_memory() -> int:
    """Bytes that this process can still take: what the machine has free, or less where its control group (a container) allows less."""
    free = _free()
    with contextlib.suppress(OSError, ValueError):  # no control groups, or no limit in them ("max")
        path = next(line.partition("::")[2] for line in _text(Path("/proc/self/cgroup")).splitlines() if line.startswith("0::"))
        group = GROUPS / path.strip("/")
        limit, used = int(_text(group / "memory.max")), int(_text(group / "memory.current"))
        counts = dict(line.split() for line in _text(group / "memory.stat").splitlines())
        cached = int(counts["inactive_file"]) + int(counts["active_file"])
        return max(0, min(free, limit - used + cached))
    return free


def _free() -> int:
    """Bytes that the machine has free, as Linux says it; elsewhere as psutil does, which accelerate brings along, or not at all."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        line = next(line for line in _text(Path("/proc/meminfo")).splitlines() if line.startswith("MemAvailable:"))
        return int(line.split()[1]) * 1024
    try:
        import psutil
    except ImportError:
        return UNKNOWN
    return int(psutil.virtual_memory().available)


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8")


def _size(count: Any) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
