"""A training in two processes: where one fails or is killed, the other ends, too, and the run resumes."""

from __future__ import annotations

import json
import multiprocessing
import time
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from tests.ranks import free_port
from tests.training.conftest import checkpoint
from tests.training.kills import run_rank

ROOT = Path(__file__).resolve().parents[2]
LINE = """--no-bf16 --disable-tqdm True --warmup-steps 1 --gradient-accumulation-steps 1 --logging-steps 1 --max-steps 6
    --save-steps 2 --batch-size 2 --use-cpu True --packing false"""


@pytest.fixture
def arguments(tmp_path: Path, texts: str, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    (tmp_path / "held.txt").write_text("def held(out):\n    return out\n" * 20)
    model = checkpoint("mlm", tmp_path / "short", tokenizer)
    return [*LINE.split(), "--model", model, "--data", texts, "--validation", str(tmp_path / "held.txt")]


class Ranks:
    """Two processes of one training, started together without a launcher. The second one ends as ``how`` says."""

    def __init__(self, folder: Path, arguments: list[str], how: str = "") -> None:
        context, port = multiprocessing.get_context("forkserver"), free_port()
        context.set_forkserver_preload(["tests.training.kills"])
        self.said = [folder.parent / f"{folder.name}-{how}-{rank}.txt" for rank in range(2)]
        line = [*arguments, "--output", str(folder)]
        self.processes: list[Any] = [
            context.Process(target=run_rank, args=("mlm", line, (rank, 2, port), str(said), how * rank))
            for rank, said in enumerate(self.said)
        ]
        for process in self.processes:
            process.start()

    def end(self, seconds: float) -> list[int | None]:
        """Wait for all; exit codes, ``None`` for one that ran on and was killed."""
        until = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.0, until - time.monotonic()))
        codes = [process.exitcode for process in self.processes]
        for process in self.processes:
            process.kill()
            process.join()
        return codes


def losses(folder: Path) -> list[float]:
    return [entry["loss"] for entry in json.loads((folder / "training_log.json").read_text())["history"] if "loss" in entry]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["kill", "raise"])
def test_two_processes_end_when_one_of_them_does_and_resume(how: str, arguments: list[str], tmp_path: Path) -> None:
    ranks = Ranks(tmp_path / "out", arguments, how)
    codes = ranks.end(300)
    assert None not in codes, ranks.said[0].read_text()[-3000:]
    assert all(codes)
    if how == "raise":
        assert ranks.said[1].read_text().strip().splitlines()[-1] == "Error: row 7 of train.jsonl cannot be read"
    for output, more in (("out", ["--resume"]), ("whole", [])):
        ranks = Ranks(tmp_path / output, [*arguments, *more])
        assert ranks.end(1200) == [0, 0], ranks.said[0].read_text()[-3000:]
    assert len(losses(tmp_path / "whole")) == 6
    assert losses(tmp_path / "out") == losses(tmp_path / "whole")
