"""A save that ends early, by kill -9 or a full disk: the run resumes from the last complete checkpoint with the losses of a whole one."""

from __future__ import annotations

import json
import multiprocessing
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerBase

from hf_longattn.conversion import convert_checkpoint
from hf_longattn.data.qa_schemas import save_qa
from hf_longattn.errors import CheckpointError
from tests.training.conftest import FAST, checkpoint, start_task
from tests.training.kills import POINTS, Ending, run
from tests.training.test_classification import rows, table

LINE = """--no-bf16 --disable-tqdm True --warmup-steps 1 --gradient-accumulation-steps 1 --logging-steps 1 --max-steps 8
    --save-steps 2 --save-total-limit 2 --learning-rate 1e-3 --batch-size 2 --max-length 64"""


@pytest.fixture
def model(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> str:
    short = checkpoint("mlm", tmp_path / "short", tokenizer)
    convert_checkpoint(short, tmp_path / "long", mechanism="window", max_length=128, window=32, verify=False)
    return str(tmp_path / "long")


def losses(folder: Path) -> list[float]:
    return [entry["loss"] for entry in json.loads((folder / "training_log.json").read_text())["history"] if "loss" in entry]


def same(one: Path, two: Path) -> None:
    """The losses and the weights, bit for bit."""
    assert losses(one) == losses(two)
    weights = [load_file(folder / "model.safetensors") for folder in (one, two)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


@pytest.fixture
def data(tmp_path: Path, texts: str) -> dict[str, list[str]]:
    """The data of each task, as on the command line."""
    records = [
        {"id": str(n), "question": "which?", "context": "for " * n + "tree", "answers": {"text": ["tree"], "answer_start": [4 * n]}}
        for n in range(10, 30)
    ]
    save_qa(records, tmp_path / "qa.jsonl")
    labelled = table(tmp_path, rows())
    return {
        "mlm": ["--data", texts],
        "qa": ["--data", str(tmp_path / "qa.jsonl"), "--stride", "8"],
        "multitask": ["--tasks", f"topic=classify:{labelled}", f"ask=qa:{tmp_path / 'qa.jsonl'}"],
    }


@pytest.mark.slow
@pytest.mark.parametrize("task", ["mlm", "qa", "multitask"])
def test_run_killed_anywhere_in_a_save_resumes_to_equal_results(task: str, model: str, data: dict[str, list[str]], tmp_path: Path) -> None:
    """Real processes; each resumes where the one before it was killed."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["tests.training.kills"])

    def train(output: str, *more: str, point: str = "", count: int = 1) -> int:
        arguments = [*LINE.split(), *data[task], "--model", model, "--output", str(tmp_path / output), *more]
        process = processes.Process(target=run, args=(task, arguments, point, count))
        process.start()
        process.join(1200)
        assert process.exitcode is not None
        return process.exitcode

    assert train("whole") == 0
    killed = -signal.SIGKILL
    assert train("killed", point=POINTS[0], count=2) == killed  # the first checkpoint is complete, the second is not
    for point in POINTS[1:]:
        assert train("killed", "--resume", point=point) == killed, point
    assert train("killed", "--resume", point="half model") == killed  # the last checkpoint
    assert train("killed", "--resume", point="half model", count=2) == killed  # the model itself, after the last checkpoint
    assert train("killed", "--resume") == 0
    same(tmp_path / "whole", tmp_path / "killed")


class Ended(BaseException):
    """Nothing of a training catches it."""


@pytest.mark.parametrize(("point", "count"), [("half state", 1), ("half model", 2)])
def test_checkpoint_whose_save_ended_early_is_not_resumed(point: str, count: int, model: str, texts: str, tmp_path: Path) -> None:
    held = str(tmp_path / "held.txt")  # short, as two evaluations read it
    Path(held).write_text("def held(out):\n    return out\n" * 20)

    def end() -> None:
        raise Ended

    def train(output: str, **more: Any) -> None:
        given = {"model": model, "data": [texts], "max_steps": 4, "save_steps": 2, "validation": held, **FAST, "overwrite": False, **more}
        start_task("mlm", output_dir=str(tmp_path / output), **given)

    train("whole")
    with pytest.raises(Ended), Ending(point, count, end):
        train("ended")
    if count == 1:  # of the first checkpoint: nothing is complete
        with pytest.raises(CheckpointError, match=r"There is no complete checkpoint in .* to resume from"):
            train("ended", resume=True)
        train("ended", overwrite=True)
    else:
        train("ended", resume=True)
    same(tmp_path / "whole", tmp_path / "ended")
