"""The task examples/extend/score.py: one file, put in place, is a command with help and recipe, which trains and resumes."""

from __future__ import annotations

import json
import runpy
import shutil
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

import hf_longattn.training.tasks
from hf_longattn.cli.train import train
from hf_longattn.errors import UsageError
from hf_longattn.training.tasks import load_task, task_names, task_summary
from tests.training.conftest import checkpoint
from tests.training.test_options import LINE as OPTIONS_OF_ALL_TASKS

ROOT = Path(__file__).resolve().parents[2]
LINE = "--max-steps 2 --no-bf16 --save-steps 1 --disable-tqdm True --learning-rate 1e-3 --gradient-accumulation-steps 1"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose modules are tasks."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    monkeypatch.setattr(hf_longattn.training.tasks, "__path__", [*hf_longattn.training.tasks.__path__, str(folder)])
    return folder


def put_in_place(folder: Path) -> None:
    """Copy the example into the folder."""
    shutil.copy(ROOT / "examples" / "extend" / "score.py", folder)


@pytest.mark.thorough
def test_task_file_dropped_in_place_is_a_command_that_trains_and_resumes(
    folder: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerBase, capsys: pytest.CaptureFixture[str]
) -> None:
    put_in_place(folder)
    assert "score" in task_names()
    assert task_summary("score") == "Fine-tune to predict a number for each document."
    with pytest.raises(SystemExit, match="0"):
        train("score", ["--help"])
    page = capsys.readouterr().out
    assert "--columns" in page
    data, out = tmp_path / "data.jsonl", tmp_path / "out"
    data.write_text("".join(json.dumps({"text": f"text {number}", "grade": number / 20}) + "\n" for number in range(20)))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"model: {checkpoint('mlm', tmp_path / 'short', tokenizer)}\noutput: {out}\ndata: {data}\n")
    line = ["--config", str(recipe), *LINE.split()]
    assert train("score", line) == 1
    assert "not 'number' or 'score'; name one with --columns number=NAME" in capsys.readouterr().err
    line += ["--columns", "number=grade"]
    assert train("score", line) == 0
    assert "held out" in capsys.readouterr().err
    assert "data.jsonl" in (out / "README.md").read_text(encoding="utf-8")
    assert json.loads((out / "config.json").read_text())["problem_type"] == "regression"
    assert train("score", [*line, "--max-steps", "3", "--resume"]) == 0
    assert json.loads((out / "training_log.json").read_text())["history"][-1]["step"] == 3
    line += [*OPTIONS_OF_ALL_TASKS.split(), "--output", str(tmp_path / "options")]
    assert train("score", line) == 0
    assert json.loads((tmp_path / "options" / "training_log.json").read_text())["settings"]["per_device_train_batch_size"] == 2


def test_copies_of_tasks_run_with_the_lines_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    lines = page.partition("```text\n")[2].partition("```")[0]
    assert lines.startswith("if __name__")
    for task in task_names():
        copy = tmp_path / f"my_{task}.py"
        copy.write_text(Path(str(load_task(task).__file__)).read_text(encoding="utf-8") + lines, encoding="utf-8")
        monkeypatch.setattr("sys.argv", [copy.name, "--help"])
        with pytest.raises(SystemExit, match="0"):
            runpy.run_path(str(copy), run_name="__main__")
        assert task_summary(task)[:60] in " ".join(capsys.readouterr().out.split())


def test_unknown_task_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UsageError, match=r"There is no task 'clasify'; the tasks are .*Did you mean 'classify'"):
        load_task("clasify")
