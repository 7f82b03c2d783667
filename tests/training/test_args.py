"""Arguments: every option of TrainingArguments, defaults of the field, recipes, and one sentence for what is wrong."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from transformers import Seq2SeqTrainingArguments, TrainingArguments

from hf_longattn.cli.train import train as run_task
from hf_longattn.errors import OptionError, flag
from hf_longattn.training.old_lm import LM
from hf_longattn.training.parsing import build_arguments, parse_arguments
from hf_longattn.training.task import load_task, task_names
from hf_longattn.training.tasks.classify import CLASSIFICATION
from hf_longattn.training.tasks.qa import QA, QATrainingArguments
from hf_longattn.training.training_args import ENDLESS, TaskArguments
from hf_longattn.training.training_loop import prepare_run
from tests.cases import every_case

TASKS = (QA, CLASSIFICATION, LM)
GIVEN: dict[str, Any] = {"model": "m", "output_dir": "o", "data": ["d.json"]}


def test_help_lists_every_training_argument_of_transformers_in_groups(capsys: pytest.CaptureFixture[str]) -> None:
    for kind in TASKS:
        with pytest.raises(SystemExit):
            parse_arguments(kind, ["--help"], "")
        page = capsys.readouterr().out
        missing = {field.name for field in dataclasses.fields(TrainingArguments) if field.init and flag(field.name) not in page}
        assert missing <= set(kind[2].without_effect)
        places = [page.index(f"{group} arguments:") for group in ("model", "data", "training")]
        assert places == sorted(places)
        assert page.index("--model") < page.index("--weight-decay")
        assert page.index("training arguments:") < page.index("--tokens-per-batch") < page.index("--weight-decay")


def test_tasks_have_at_most_85_options_beside_those_of_transformers() -> None:
    """A ceiling that only falls: a new option takes the place of another one."""
    kinds = [kind for task in task_names() for kind in load_task(task).ARGUMENTS]
    own = {field.name for kind in kinds for field in dataclasses.fields(kind) if field.init}
    assert len(own - {field.name for field in dataclasses.fields(Seq2SeqTrainingArguments)}) <= 85


def test_typed_options_reach_the_training_arguments(tmp_path: Path) -> None:
    line = "--model m --output o --data d --epochs 2 --report-to all --eval-strategy steps --save-steps 100 --lr-scheduler-type cosine"
    _, _, args = parse_arguments(QA, [*line.split(), "--load-best-model-at-end", "--early-stopping-patience", "3"], "")
    assert (args.output_dir, args.num_train_epochs, args.report_to, args.save_strategy) == ("o", 2.0, [], "steps")
    assert (args.load_best_model_at_end, args.early_stopping_patience, args.lr_scheduler_type) == (True, 3, "cosine")


def test_max_minutes_without_steps_or_epochs_has_no_end_of_steps() -> None:
    assert QATrainingArguments("o", max_minutes=60.0).max_steps == ENDLESS
    args = QATrainingArguments("o")
    assert (args.max_steps, args.num_train_epochs) == (-1, 3.0)
    assert QATrainingArguments("o", max_minutes=1.0, num_train_epochs=2.0).max_steps == -1


@pytest.mark.parametrize(
    ("changes", "strategy", "steps"),
    [
        ({"save_steps": 0}, "steps", ENDLESS),
        ({"save_steps": 0, "save_minutes": 0}, "no", 0),
        ({"save_strategy": "no"}, "no", 500),
        ({"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 30}, "steps", 30),
        ({"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 30, "save_steps": 60}, "steps", 60),
        ({"load_best_model_at_end": True, "eval_strategy": "epoch"}, "epoch", 500),
    ],
)
def test_save_strategy_follows_the_evaluations_that_choose_the_best_model(changes: dict[str, Any], strategy: str, steps: int) -> None:
    args = QATrainingArguments("o", **changes)
    assert (args.save_strategy, args.save_steps) == (strategy, steps)


def test_run_settings_hold_the_options_given_without_secrets() -> None:
    run = TaskArguments(*build_arguments(QA, **GIVEN, max_steps=7, hub_token="secret"))
    assert run.settings == {"model": "m", "output_dir": "o", "data": ["d.json"], "max_steps": 7}


@every_case(
    ("changes", "message"),
    [
        ({"model": ""}, "No model given"),
        ({"output_dir": None}, "No output folder"),
        ({"data": []}, "No data given"),
        ({"dtype": "half"}, "float32, float16, bfloat16"),
        ({"max_length": 1}, "--max-length must be at least 2"),
        ({"max_train_samples": 0}, "--max-train-samples must be at least 1"),
        ({"max_minutes": 0.0}, "--max-minutes must be above 0, not 0; --max-steps 1"),
        ({"max_steps": 0}, "--max-steps 0 trains nothing; to score a model, type: longattn evaluate TASK"),
        ({"save_minutes": -1.0}, "--save-minutes must be at least 0"),
        ({"report_to": "tensorboard"}, "--report-to tensorboard needs the package 'tensorboard', which is not installed; type pip install"),
        ({"use_liger_kernel": True}, "needs the package liger-kernel, which is not installed; type pip install liger-kernel"),
        ({"debug": "underflow_overflow"}, "--debug underflow_overflow cannot read masks"),
        ({"prediction_loss_only": True}, "--prediction-loss-only leaves nothing to score"),
        ({"fp16": True}, "--fp16 needs an accelerator; leave --fp16 out"),
        ({"fsdp": "full_shard"}, "--fsdp splits the weights over several processes, and this is one"),
        ({"lora_rank": 4}, "--lora-rank requires --use-peft; add it, or leave --lora-rank out"),
        ({"use_peft": True, "lora_rank": 0}, "--lora-rank must be at least 1"),
        ({"hub_strategy": "every_save"}, "--hub-strategy must be end"),
        ({"load_best_model_at_end": True}, "--load-best-model-at-end requires evaluations to compare; add --eval-strategy steps"),
        ({"gradient_accumulation_steps": 0}, "--gradient-accumulation-steps must be at least 1"),
        ({"max_minutes": 1.0, "lr_scheduler_type": "cosine"}, "requires a linear schedule"),
        ({"early_stopping_patience": 2}, "requires evaluations"),
        ({"load_best_model_at_end": True, "eval_strategy": "steps", "save_strategy": "epoch"}, "strategy"),
    ],
)
def test_contradicting_training_options_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        build_arguments(QA, **{**GIVEN, **changes})


def test_output_that_is_a_file_or_the_model_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for output, message in (("file", "is a file"), ("", "would be overwritten")):
        with pytest.raises(OptionError, match=message):
            prepare_run(*build_arguments(QA, model=str(tmp_path), output_dir=str(tmp_path / output), data=["d"]))


@every_case(
    ("line", "message"),
    [
        ("learning_rate: fast", "'learning_rate' to 'fast'; it must be a number"),
        ("max_steps: 2.5", "'max_steps' to 2.5; it must be a whole number"),
        ("bf16: perhaps", "'bf16' to 'perhaps'; it must be true or false"),
        ("validation: yes", "'validation' to True; it must be a string"),
        ("model: {a: 1}", "'model' to .* a string"),
        ("epochs: 1\nnum_train_epochs: 2", "'num_train_epochs' twice"),
        ("lr_scheduler_type: linaer", "'lr_scheduler_type' to 'linaer'; it must be one of linear, "),
    ],
)
def test_recipe_value_of_the_wrong_type_is_refused(line: str, message: str, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(line + "\n")
    with pytest.raises(OptionError, match=message):
        parse_arguments(QA, ["--config", str(recipe), "--model", "a", "--output", "b", "--data", "d"], "")


def test_recipe_values_have_the_types_and_names_of_the_command_line(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "model: 5\noutput: 2026-01-01\ndata: 7\nlearning_rate: 3e-5\nmax_length:\nlr_scheduler_kwargs: {power: 2.0}\n"
        "eval_strategy: no\nsave_strategy: no\nbf16: no\nreport_to: [none]\nlabel_names: labels\nepochs: 2\nbatch-size: 3\n"
    )
    model_args, data_args, args = parse_arguments(QA, ["--config", str(recipe)], "")
    assert (model_args.model, args.output_dir, data_args.data, args.learning_rate) == ("5", "2026-01-01", ["7"], 3e-5)
    assert (data_args.max_length, args.lr_scheduler_kwargs) == (None, {"power": 2.0})
    assert (args.eval_strategy, args.save_strategy, args.bf16) == ("no", "no", False)
    assert (args.report_to, args.label_names) == ([], ["labels"])
    assert (args.num_train_epochs, args.per_device_train_batch_size) == (2, 3)


def test_run_settings_hold_the_values_of_a_recipe_and_of_switches_turned_off(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("max_steps: 7\nbf16: true\n")
    line = ["--config", str(tmp_path / "r.yaml"), "--model", "m", "--output", "o", "--data", "d", "--no-bf16"]
    run = TaskArguments(*parse_arguments(QA, line, ""))
    assert run.settings == {"model": "m", "output_dir": "o", "data": ["d"], "max_steps": 7, "bf16": False}


def test_command_line_wins_over_the_recipe(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("model: a\noutput_dir: b\ndata: [d]\nlearning_rate: 1.0e-4\nwindows: [0, 64]\nrandom_positions: false\n")
    model_args, _, args = parse_arguments(QA, ["--config", str(recipe), "--model", "c", "--max-steps", "7"], "")
    assert (model_args.model, args.output_dir, args.max_steps) == ("c", "b", 7)
    assert (args.learning_rate, args.windows, args.random_positions) == (1e-4, [0, 64], False)


@pytest.mark.parametrize(("processes", "passes"), [("1", 16), ("4", 4)])
def test_total_batch_size_does_not_depend_on_the_number_of_processes(processes: str, passes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    args = QATrainingArguments(output_dir="o", total_batch_size=32, per_device_train_batch_size=2, use_cpu=True)
    assert args.gradient_accumulation_steps == 16
    monkeypatch.setenv("WORLD_SIZE", processes)  # as launchers do
    assert args._accumulation_steps() == passes


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"per_device_train_batch_size": 3}, "--total-batch-size 32 is not a multiple of the 3 rows"),
        ({"gradient_accumulation_steps": 2}, "--total-batch-size contradicts --gradient-accumulation-steps"),
        ({"tokens_per_batch": 100}, "--total-batch-size contradicts --tokens-per-batch"),
        ({"total_batch_size": -1}, "must be at least 0"),
    ],
)
def test_impossible_total_batch_size_is_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(OptionError, match=sentence):
        QATrainingArguments(**{"output_dir": "o", "total_batch_size": 32, "use_cpu": True, **changes})


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (["--lr", "1"], "Error: There is no option --lr; longattn train mlm --help lists all."),
        (["--modl", "x"], "Error: There is no option --modl; longattn train mlm --help lists all. Did you mean '--model'?"),
        (["--epochs", "many"], "Error: --epochs: invalid float value: 'many'."),
        (["many"], "Error: Unexpected argument 'many'; values follow their option, as in --model MODEL."),
    ],
)
def test_wrong_usage_of_a_training_command_is_one_sentence(line: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_task("mlm", ["--text", "t", "--output", "o", "--model", "m", *line]) == 2
    assert capsys.readouterr().err.splitlines() == [sentence]


@pytest.mark.parametrize(("words", "warns"), [("", False), ("--no-bf16", False), ("--bf16 false", False), ("--bf16", True)])
def test_bf16_typed_on_a_processor_without_bf16_warns(
    words: str, warns: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("hf_longattn.training.training_args.cpu_computes_bf16", lambda: False)
    line = f"--model m --data d --output {tmp_path / 'out'} --use-cpu {words}"
    assert not parse_arguments(QA, line.split(), "")[2].bf16
    assert ("--bf16 has no effect: this processor computes no bf16" in caplog.text) == warns


def test_options_are_read_with_hyphens_and_with_underscores() -> None:
    line = ["--model", "m", "--data", "d"]
    for spelled in ("--output-dir o --max-steps 7 --batch-size 2 --no-bf16", "--output_dir o --max_steps 7 --batch_size=2 --no_bf16"):
        _, _, args = parse_arguments(QA, [*line, *spelled.split()], "")
        assert (args.output_dir, args.max_steps, args.per_device_train_batch_size, args.bf16) == ("o", 7, 2, False)
