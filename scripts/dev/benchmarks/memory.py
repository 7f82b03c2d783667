"""Peak memory of one pass, each in a fresh process, and the exponent with which it grows."""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from hf_longattn.errors import LongAttentionError
from scripts.dev import ROOT

from .case import Case
from .implementations import build_implementation
from .inputs import build_inputs

MiB = 2**20


@dataclasses.dataclass(frozen=True)
class Memory:
    """MiB that one pass needed on top of its inputs (which the process already held)."""

    implementation: str
    length: int
    inputs: float
    extra: float


def measure_memory(kind: str, implementation: str, case: Case) -> Memory:
    """Run one pass of ``implementation`` in a new Python process and read the peak of its resident set (on CUDA, of the allocator)."""
    request = json.dumps({"kind": kind, "implementation": implementation, "case": dataclasses.asdict(case)})
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**16)}  # freed tensors go back to the system at once
    command = [sys.executable, "-m", __name__, request, str(torch.get_num_threads())]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise LongAttentionError(f"Measuring the memory of {implementation} at {case.length} tokens failed: {last}")
    return Memory(**json.loads(done.stdout.splitlines()[-1]))


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
        raise LongAttentionError("The peak memory of a process is read from /proc/self/status, which this system does not have.")
    return int(match.group(1)) * 1024


def growth(call: Callable[[], object]) -> float:
    """MiB by which this process grows at most during a call."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = _resident("VmRSS")
    call()
    return (_resident("VmHWM") - before) / MiB


def _child(request: str, threads: int) -> Memory:
    torch.set_num_threads(threads)
    task = json.loads(request)
    case = Case(**task["case"])
    implementation = build_implementation(task["kind"], task["implementation"], build_inputs(task["kind"], case))
    implementation.warm_up(case.backward)  # compiling, lazy imports and thread pools are not what is measured
    implementation.gradients = ()
    gc.collect()
    if case.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        implementation.run(case.backward)
        return Memory(implementation.name, case.length, before / MiB, (torch.cuda.max_memory_allocated() - before) / MiB)
    held = _resident("VmRSS") / MiB
    return Memory(implementation.name, case.length, held, growth(lambda: implementation.run(case.backward)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Measure one implementation in a process of its own, for measure_memory.")
    parser.add_argument("request", help="kind, implementation and case, as JSON")
    parser.add_argument("threads", type=int)
    print(json.dumps(dataclasses.asdict(_child(**vars(parser.parse_args())))))
