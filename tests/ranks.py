"""Two real processes that meet over gloo, started afresh: a copy (fork) of a test process would inherit its threads' locks and may hang."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BEGIN = """
import sys
sys.path.insert(0, {root!r})
import torch
import torch.distributed as dist

rank = int(sys.argv[1])
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method="file://" + {meeting!r}, rank=rank, world_size=2)
"""
END = """
dist.destroy_process_group()
"""


def run_two_ranks(program: str, root: Path, folder: Path) -> list[str]:
    """What `program` prints in each of two processes; it finds `rank`, `torch` and `dist`, and `folder` is its working directory."""
    script = folder / "rank.py"
    script.write_text(BEGIN.format(root=str(root), meeting=str(folder / "meeting")) + program + END)
    command = [sys.executable, str(script)]
    ranks = [
        subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder) for rank in range(2)
    ]
    try:
        said = []
        for process in ranks:
            out, errors = process.communicate(timeout=240)
            assert process.returncode == 0, errors[-2000:]
            said.append(out.strip())
        return said
    finally:
        for process in ranks:
            process.kill()
