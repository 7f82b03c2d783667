"""Arguments: every option of TrainingArguments, recipes, one sentence for what is wrong, and a task in a file of one's
own."""

from __future__ import annotations

import dataclasses
import re
import runpy
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase, Seq2SeqTrainingArguments, TrainingArguments

import hf_longattn.training.tasks
from hf_longattn.cli.train import train
from hf_longattn.errors import OptionError, UsageError, flag
from hf_longattn.files import read_json
from hf_longattn.training.arguments import DataArguments, LongTrainingArguments, ModelArguments, changed
from hf_longattn.training.tasks import load_task, parse_task, task_names, task_summary
from tests.cases import every_case
from tests.training.conftest import checkpoint, write_rows
from tests.training.test_options import LINE as OPTIONS_OF_ALL_TASKS

MOST_OPTIONS = 35
"""A ceiling that only falls: a new option takes the place of another one."""
LINE = ["--model", "m", "--output", "o", "--data", "d"]


def parsed(*line: str, task: str = "mlm") -> tuple[Any, Any, Any]:
    return parse_task(load_task(task), [*LINE, *line], f"longattn train {task}")


def test_help_lists_every_option_in_groups(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        train("mlm", ["--help"])
    page = capsys.readouterr().out
    assert not [
        field.name for field in dataclasses.fields(TrainingArguments) if field.init and flag(field.name) not in page
    ]
    places = [page.index(f"\n{group}:") for group in ("model", "data", "training")]
    assert places == sorted(places)
    assert (
        places[1] < page.index("--columns") < page.index("--mlm-probability") < places[2] < page.index("--max-minutes")
    )


def test_tasks_have_few_options_beside_those_of_transformers() -> None:
    kinds = [kind for task in task_names() for kind in load_task(task).ARGUMENTS]
    ours = {field.name for kind in kinds for field in dataclasses.fields(kind) if field.init}
    assert len(ours - {field.name for field in dataclasses.fields(Seq2SeqTrainingArguments)}) <= MOST_OPTIONS


def test_options_are_read_with_hyphens_underscores_and_short_names() -> None:
    for line in ("--num-train-epochs 2 --max-steps 7 --no-bf16", "--epochs 2 --max_steps=7 --bf16 false"):
        _, _, args = parsed(
            *line.split(), "--eval-strategy", "steps", "--lr-scheduler-type", "cosine", "--batch-size", "3"
        )
        assert (args.output_dir, args.num_train_epochs, args.max_steps, args.bf16) == ("o", 2.0, 7, False)
        assert (args.eval_strategy, args.lr_scheduler_type) == ("steps", "cosine")
        assert (args.per_device_train_batch_size, args.per_device_eval_batch_size) == (3, 3)


def test_columns_are_named_by_their_roles() -> None:
    assert parsed("--columns", "text=body")[1].named == {"text": "body"}
    for wrong in ("text", "text=", "body=text"):
        with pytest.raises(OptionError, match=rf"--columns takes ROLE=NAME, with a role of text, not '{wrong}'"):
            parsed("--columns", wrong)


def test_max_minutes_without_steps_has_no_end_of_steps() -> None:
    assert LongTrainingArguments("o", max_minutes=60.0).max_steps == 1_000_000
    assert LongTrainingArguments("o", max_minutes=60.0, max_steps=5).max_steps == 5
    args = LongTrainingArguments("o")
    assert (args.max_steps, args.num_train_epochs) == (-1, 3.0)


def test_settings_hold_the_options_given_without_secrets(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("max_steps: 7\nbf16: true\n")
    model_args, data_args, args = parsed("--config", str(tmp_path / "r.yaml"), "--no-bf16", "--hub-token", "secret")
    settings = {**changed(model_args), **changed(data_args), **args.settings}
    assert settings.items() >= {"model": "m", "output_dir": "o", "data": ["d"], "max_steps": 7, "bf16": False}.items()
    assert "secret" not in str(settings)


@every_case(
    ("kind", "changes", "message"),
    [
        (ModelArguments, {"model": "m", "lora_rank": -1}, "--lora-rank must be at least 0"),
        (DataArguments, {"data": ["d"], "max_length": 1}, "--max-length must be at least 2"),
        (DataArguments, {"data": ["d"], "max_train_samples": 0}, "--max-train-samples must be at least 1"),
        (LongTrainingArguments, {}, "No output folder"),
        (LongTrainingArguments, {"max_minutes": 0.0}, "--max-minutes must be above 0, not 0; --max-steps 1"),
        (LongTrainingArguments, {"max_minutes": 1.0, "lr_scheduler_type": "cosine"}, "requires a linear schedule"),
        (LongTrainingArguments, {"hub_strategy": "every_save"}, "--hub-strategy must be end"),
        (
            LongTrainingArguments,
            {"load_best_model_at_end": True},
            "load_best_model_at_end requires the save and eval strategy to match",
        ),
        (LongTrainingArguments, {"learning_rate": -1.0}, "--learning-rate must be at least 0"),
        (
            LongTrainingArguments,
            {"gradient_accumulation_steps": 0},
            "--gradient-accumulation-steps must be at least 1",
        ),
    ],
)
def test_contradicting_options_are_refused(kind: type[Any], changes: dict[str, Any], message: str) -> None:
    output = {"output_dir": "o"} if kind is LongTrainingArguments and changes else {}
    with pytest.raises(OptionError, match=message):
        kind(**output, **changes)


@pytest.mark.parametrize(
    ("task", "option"),
    [
        ("qa", "--stride -1"),
        ("tokens", "--stride -1"),
        ("seq2seq", "--max-target-length 0"),
        ("embed", "--mini-batch-size 0"),
        ("clm", "--seed -1"),
        ("clm", "--dataloader-num-workers -1"),
    ],
)
def test_numbers_below_the_minimum_of_an_option_are_refused(task: str, option: str) -> None:
    name, _, value = option.partition(" ")
    with pytest.raises(OptionError, match=rf"^{name} must be at least [01], not {value}\.$"):
        parse_task(load_task(task), [*LINE, name, value], f"longattn train {task}")


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("--lr 1", "There is no option --lr; longattn train mlm --help lists all."),
        ("--modl x", "There is no option --modl; longattn train mlm --help lists all. Did you mean '--model'?"),
        ("--epochs many", "--epochs: invalid float value: 'many'."),
        ("--max-steps 2.5", "--max-steps: invalid int value: '2.5'."),
        ("--lr-scheduler-type linaer", "--lr-scheduler-type: invalid choice: 'linaer' (choose from linear"),
        ("many", "Unexpected argument 'many'; values follow their option, as in --model MODEL."),
    ],
)
def test_wrong_usage_is_one_sentence_with_exit_code_2(
    line: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("mlm", [*line.split(), *LINE] if line == "many" else [*LINE, *line.split()]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.replace("'linear'", "linear").startswith(f"Error: {sentence}")


def test_command_line_wins_over_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        "model: a\noutput: 2026-01-01\ndata: [5, y]\nlearning-rate: 1e-4\neval_strategy: no\nbf16: no\nmax_steps: "
        "3\nmax_length:\nlr_scheduler_kwargs: {power: 2.0}\nlr_scheduler_type: polynomial\nreport_to: none\n"
    )
    line = ["--config", str(tmp_path / "r.yaml"), "--model", "c", "--max-steps", "7"]
    model_args, data_args, args = parse_task(load_task("mlm"), line, "longattn train mlm")
    assert (model_args.model, args.output_dir, data_args.data, args.max_steps) == ("c", "2026-01-01", ["5", "y"], 7)
    assert (args.learning_rate, args.lr_scheduler_kwargs, args.eval_strategy, args.bf16) == (
        1e-4,
        {"power": 2.0},
        "no",
        False,
    )
    assert (data_args.max_length, args.report_to) == (None, [])


def test_unknown_name_in_a_recipe_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("learning_rat: 1\n")
    with pytest.raises(
        UsageError,
        match=re.escape("There is no option --learning-rat; longattn train mlm --help lists all. Did you mean"),
    ):
        parsed("--config", str(tmp_path / "r.yaml"))


ROOT = Path(__file__).resolve().parents[2]
LINE_OF_TASK = (
    "--max-steps 2 --no-bf16 --save-steps 1 --disable-tqdm True --learning-rate 1e-3 --gradient-accumulation-steps 1"
)


@pytest.mark.thorough
def test_task_file_dropped_in_place_is_a_command_that_trains_and_resumes(
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerBase,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copy(ROOT / "examples" / "extend" / "score.py", tmp_path)
    monkeypatch.setattr(hf_longattn.training.tasks, "__path__", [*hf_longattn.training.tasks.__path__, str(tmp_path)])
    assert "score" in task_names()
    assert task_summary("score") == "Fine-tune to predict a number for each document."
    with pytest.raises(SystemExit, match="0"):
        train("score", ["--help"])
    page = capsys.readouterr().out
    assert "--columns" in page
    data, out = tmp_path / "data.jsonl", tmp_path / "out"
    write_rows([{"text": f"text {number}", "grade": number / 20} for number in range(20)], data)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"model: {checkpoint('mlm', tmp_path / 'short', tokenizer)}\noutput: {out}\ndata: {data}\n")
    line = ["--config", str(recipe), *LINE_OF_TASK.split()]
    assert train("score", line) == 1
    assert "not 'number' or 'score'; name one with --columns number=NAME" in capsys.readouterr().err
    line += ["--columns", "number=grade"]
    assert train("score", line) == 0
    assert "held out" in capsys.readouterr().err
    assert "data.jsonl" in (out / "README.md").read_text(encoding="utf-8")
    assert read_json(out / "config.json")["problem_type"] == "regression"
    assert train("score", [*line, "--max-steps", "3", "--resume"]) == 0
    assert read_json(out / "training_log.json")["history"][-1]["step"] == 3
    line += [*OPTIONS_OF_ALL_TASKS.split(), "--output", str(tmp_path / "options")]
    assert train("score", line) == 0
    assert read_json(tmp_path / "options" / "training_log.json")["settings"]["per_device_train_batch_size"] == 2


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
