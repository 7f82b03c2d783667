"""A process of a training dies or fails: the others end with a sentence within a minute, and the run resumes."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from tests.ranks import free_port
from tests.training.conftest import checkpoint
from tests.training.kills import run_rank

ROOT = Path(__file__).resolve().parents[2]
LINE = """--no-bf16 --disable-tqdm True --threads 1 --warmup-steps 1 --gradient-accumulation-steps 1 --logging-steps 1 --max-steps 6
    --save-steps 2 --batch-size 2 --use-cpu True --packing false"""


@pytest.fixture
def arguments(tmp_path: Path, texts: str, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    (tmp_path / "held.txt").write_text("def held(out):\n    return out\n" * 20)
    model = checkpoint("mlm", tmp_path / "short", tokenizer)
    return [*LINE.split(), "--model", model, "--text", texts, "--validation", str(tmp_path / "held.txt")]


class Ranks:
    """Processes of one training, started together without a launcher."""

    def __init__(self, folder: Path, arguments: list[str], count: int, victim: int = -1, how: str = "", task: str = "mlm") -> None:
        context, port = multiprocessing.get_context("forkserver"), free_port()
        context.set_forkserver_preload(["tests.training.kills"])
        self.said = [folder.parent / f"{folder.name}-{how}-{rank}.txt" for rank in range(count)]
        self.processes: list[Any] = [
            context.Process(
                target=run_rank,
                args=(task, [*arguments, "--output", str(folder)], (rank, count, port), str(said), how if rank == victim else ""),
            )
            for rank, said in enumerate(self.said)
        ]
        for process in self.processes:
            process.start()

    def end(self, seconds: float = 1200.0) -> list[int | None]:
        """Wait for all; exit codes, ``None`` for one that runs on."""
        until = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.0, until - time.monotonic()))
        return [process.exitcode for process in self.processes]

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()


def gone(process: int) -> bool:
    """Whether a process has ended."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"  # a zombie
    except FileNotFoundError:
        return True


def losses(folder: Path) -> list[float]:
    return [entry["loss"] for entry in json.loads((folder / "training_log.json").read_text())["history"] if "loss" in entry]


@pytest.mark.slow
@pytest.mark.parametrize(("how", "count"), [("kill", 2), ("raise", 2), ("kill", 4)])
def test_processes_end_with_a_sentence_when_another_one_dies_and_resume(how: str, count: int, arguments: list[str], tmp_path: Path) -> None:
    ranks = Ranks(tmp_path / "out", arguments, count, victim=1, how=how)
    try:
        while not (tmp_path / "out" / "checkpoint-2" / "trainer_state.json").exists():
            assert any(process.is_alive() for process in ranks.processes), ranks.said[0].read_text()[-3000:]
            time.sleep(0.2)
        victim, others = ranks.processes[1], [process for rank, process in enumerate(ranks.processes) if rank != 1]
        while not gone(victim.pid):
            time.sleep(0.1)
        lost = time.monotonic()
        for process in others:
            process.join(300)
        seconds = time.monotonic() - lost
        codes = [process.exitcode for process in others]
        texts = [said.read_text() for said in ranks.said]
    finally:
        ranks.kill()
    assert codes == [1] * (count - 1), texts[0][-3000:]
    for rank, text in enumerate(texts):
        last = text.strip().splitlines()[-1]
        if rank != 1:
            assert last.startswith("Error: "), text[-3000:]
            assert "the latest complete checkpoint is" in last, text[-3000:]
            assert last.endswith("checkpoint-2; run again with --resume."), text[-3000:]
            assert "Traceback" not in text
        elif how == "raise":
            assert last == "Error: row 7 of train.jsonl cannot be read"
    print(f"{how}, {count} processes: the others ended {seconds:.1f} s later: {texts[0].strip().splitlines()[-1]}")
    assert seconds < 60
    if count == 4:
        return
    for output, more in (("out", ["--resume"]), ("whole", [])):
        ranks = Ranks(tmp_path / output, [*arguments, *more], count)
        try:
            assert ranks.end() == [0] * count, ranks.said[0].read_text()[-3000:]
        finally:
            ranks.kill()
    assert len(losses(tmp_path / "whole")) == 6
    assert losses(tmp_path / "out") == losses(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_launched_processes_end_with_a_sentence_when_another_one_is_killed(launcher: str, arguments: list[str], tmp_path: Path) -> None:
    count = {"torchrun": 2, "accelerate": 4}[launcher]
    how = {
        "torchrun": ["-m", "torch.distributed.run", "--nproc_per_node", str(count), "--master_port", str(free_port())],
        "accelerate": [
            "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(count), "--num_machines", "1", "--mixed_precision",
            "no", "--dynamo_backend", "no", "--main_process_port", str(free_port()),
        ],
    }[launcher]  # fmt: skip
    command = [sys.executable, *how, str(ROOT / "tests" / "training" / "kills.py"), "kill", "1", "mlm", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [*command, "--output", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        env=environment,
        timeout=1800,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode, done.stderr[-3000:]
    sentences = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert sentences, done.stderr[-3000:]
    found = re.compile(r"(checkpoint-2; run again with --resume|no checkpoint had been written, so run again from the beginning, .*)\.$")
    assert all(map(found.search, sentences)), sentences
