"""Peak memory of passes over doublings of the length, each in a fresh process, and the exponent with which it
grows."""

from __future__ import annotations

import dataclasses
import gc
import math
import multiprocessing
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from hf_longattn.errors import LongAttentionError, OptionError
from hf_longattn.mechanisms.common.options import read_choice

from .attention import LeftOut
from .case import Case
from .report import machine, markdown_table
from .run import implementations

MiB = 2**20
COUNTED_PACKAGES = ("transformers", "hf_longattn")
"""Packages whose objects :func:`cache_bytes` searches for tensors."""


def cache_bytes(cache: Any, counted: set[int] | None = None) -> int:
    """Bytes of the storages of all tensors in a cache. A view counts with its complete storage; a shared storage
    counts once.

    counted: addresses of storages that have been counted.
    """
    counted = set() if counted is None else counted
    if isinstance(cache, Tensor):
        storage = cache.untyped_storage()
        is_new = storage.data_ptr() not in counted
        counted.add(storage.data_ptr())
        return storage.nbytes() if is_new else 0
    if isinstance(cache, dict):
        return sum(cache_bytes(item, counted) for item in cache.values())
    if isinstance(cache, list | tuple):
        return sum(cache_bytes(item, counted) for item in cache)
    inside = getattr(cache, "__dict__", None)
    return cache_bytes(inside, counted) if inside and type(cache).__module__.startswith(COUNTED_PACKAGES) else 0


@dataclasses.dataclass(frozen=True)
class Memory:
    """MiB that one pass needed on top of its inputs (which the process already held)."""

    implementation: str
    length: int
    extra: float


def measure_memory(kind: str, implementation: str, case: Case) -> Memory | None:
    """Run one pass in a new process and read the peak of its resident set. ``None`` if it is left out.

    Raises:
        LongAttentionError: it failed.
    """
    # freed tensors, at once, to the system
    gives_back = mock.patch.dict(os.environ, MALLOC_MMAP_THRESHOLD_=str(2**16))
    settings: dict[str, Any] = {
        "mp_context": multiprocessing.get_context("spawn"),
        "initializer": torch.set_num_threads,
    }
    try:
        with gives_back, ProcessPoolExecutor(1, **settings, initargs=(torch.get_num_threads(),)) as process:
            return process.submit(_measured, kind, implementation, case).result()
    except (RuntimeError, MemoryError) as error:
        raise LongAttentionError(
            f"Measuring the memory of {implementation} at {case.length} tokens failed: {error}"
        ) from error


def exponent(measured: Sequence[Memory]) -> float | None:
    """The p in extra ~ lengthᵖ, fitted by least squares on the logarithms; ``None`` with fewer than two lengths."""
    points = [(math.log(memory.length), math.log(memory.extra)) for memory in measured if memory.extra > 0]
    if len(points) < 2:
        return None
    mean_x, mean_y = (sum(axis) / len(points) for axis in zip(*points, strict=True))
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)


def _resident(field: str) -> int:
    """Bytes of VmRSS or VmHWM of this process."""
    match = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if match is None:
        raise LongAttentionError(
            "The peak memory of a process is read from /proc/self/status, which this system does not have."
        )
    return int(match.group(1)) * 1024


def growth(call: Callable[[], object]) -> float:
    """MiB by which this process grows at most during a call."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = _resident("VmRSS")
    call()
    return (_resident("VmHWM") - before) / MiB


def _measured(kind: str, implementation: str, case: Case) -> Memory | None:
    """The memory of a pass, measured in this process."""
    inputs_class, known, _ = implementations(kind)
    try:
        candidate = known[implementation](inputs_class(case))
    except LeftOut:
        return None
    candidate.run(case.backward)  # compiling, lazy imports and thread pools are not what is measured
    candidate.gradients = ()
    gc.collect()
    return Memory(candidate.name, case.length, growth(lambda: candidate.run(case.backward)))


STOCK = "stock"
"""The line of transformers' own model."""


def run_footprint(
    mechanisms: Sequence[str],
    lengths: Sequence[int],
    case: Case,
    *,
    kind: str = "attention",
    log: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Measure each mechanism (``window:window=512``) at every length.

    Args:
        case: shapes, dtype and whether the backward pass runs; mechanism, options and length are replaced.
        kind: ``attention``; or ``model``, a whole model of the case's base, and the stock one as far as it is run.
    Returns:
        The record that is stored: machine, case, and for each mechanism MiB on top of the inputs and the exponent of
            their growth.
    Raises:
        OptionError: no mechanism or fewer than two lengths; an unknown mechanism or option.
    """
    if not mechanisms or len(lengths) < 2:
        raise OptionError(
            "Growth of memory needs a mechanism and two lengths or more; for example --mechanism window --lengths "
            "4K,16K."
        )
    results = []
    for line in (*mechanisms, STOCK) if kind == "model" else mechanisms:
        chosen = {"mechanism": "full"} if line == STOCK else read_choice(line)
        mechanism_case = case.at(mechanism=chosen.pop("mechanism"), options=chosen)
        measured: list[Memory] = []
        for length in lengths:
            memory = measure_memory(kind, "sdpa" if line == STOCK else "longattn", mechanism_case.at(length=length))
            if memory is not None:
                measured.append(memory)
                log(f"{length:>7} {line:<40} {memory.extra:10.1f} MiB on top of the inputs")
        growth = exponent(measured)
        results.append(
            {"mechanism": line, "mebibytes": [round(memory.extra, 1) for memory in measured], "exponent": growth}
        )
    about = {
        key: value for key, value in dataclasses.asdict(case).items() if key not in ("mechanism", "options", "length")
    }
    return {
        "machine": machine(),
        "kind": "memory",
        "of": kind,
        "case": about,
        "lengths": list(lengths),
        "results": results,
    }


def footprint_table(record: dict[str, Any]) -> str:
    """Mechanisms × lengths in MiB, and the exponent."""
    rows = []
    for result in record["results"]:
        growth = "–" if result["exponent"] is None else f"{result['exponent']:.2f}"
        sizes = [f"{size:,.0f}" for size in result["mebibytes"]]
        rows.append([f"`{result['mechanism']}`", *sizes, *["–"] * (len(record["lengths"]) - len(sizes)), growth])
    return markdown_table(["MiB", *(f"{length:,}" for length in record["lengths"]), "exponent"], rows)
