"""Real processes that meet over gloo, started afresh: a copy (fork) of a test process would inherit its threads' locks and may hang."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

AROUND = """
import os
import sys
import traceback
sys.path.insert(0, {root!r})
import torch
import torch.distributed as dist

def program(rank):
{program}

torch.set_num_threads(1)
dist.init_process_group("gloo", init_method="file://" + {meeting!r}, rank=int(sys.argv[1]), world_size={ranks})
failed = 0
try:
    program(int(sys.argv[1]))
    dist.barrier()
except BaseException:
    traceback.print_exc()
    failed = 1
sys.stdout.flush()
sys.stderr.flush()
os._exit(failed)  # without taking the group down: freed beside DistributedDataParallel it deadlocks or aborts now and then (torch 2.13)
"""


def run_two_ranks(program: str, root: Path, folder: Path) -> list[str]:
    """What `program`, the body of a function of `rank`, prints in each of two processes whose working directory is `folder`."""
    return run_ranks(program, root, folder, 2)


def run_ranks(program: str, root: Path, folder: Path, count: int) -> list[str]:
    """As :func:`run_two_ranks`, in ``count`` processes."""
    script = folder / "rank.py"
    body = textwrap.indent(program, "    ")
    script.write_text(AROUND.format(root=str(root), program=body, meeting=str(folder / "meeting"), ranks=count))
    command = [sys.executable, str(script)]
    ranks = [
        subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder)
        for rank in range(count)
    ]
    try:
        said = []
        for process in ranks:
            out, errors = process.communicate(timeout=1800)
            assert process.returncode == 0, errors[-2000:]
            said.append(out.strip())
        return said
    finally:
        for process in ranks:
            process.kill()
