"""Every option of every task works or is refused in a sentence: the table of tasks by the table of options.

A task is a row of :data:`DATA`, an option a row of :data:`OPTIONS`, which says what must be seen of a run that was not refused, and which
tasks refuse it. A task or an option of our own that has no row fails. The quick tests train once with each row of :data:`TOGETHER`, and see
every option of it; the slow ones train with one option at a time.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback, TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from hf_longattn.cli.train import evaluate, train
from hf_longattn.conversion import convert_checkpoint
from hf_longattn.engines.cpu.onednn import cpu_computes_bf16
from hf_longattn.files import PREDICTIONS
from hf_longattn.training import training_args as training_args_module
from hf_longattn.training import training_loop
from hf_longattn.training.args import DataArguments, ModelArguments
from hf_longattn.training.old_trainer import LongTrainer
from hf_longattn.training.task import Task, evaluated_tasks, load_task, task_names
from hf_longattn.training.training_args import LongTrainingArguments
from tests.grids import grid, quickly
from tests.training.conftest import checkpoint
from tests.training.speech import SAMPLES_PER_FRAME, sentences, speech_checkpoint, spoken
from tests.training.test_seq2seq import bart

WORDS = ("tree", "file", "node", "path")
TEXT = [{"text": f"the {WORDS[number % 4]} is here " * (11 + number % 4)} for number in range(20)]
CLASSES = [{"text": f"the {WORDS[number % 2]} is here " * (1 + number % 5), "label": WORDS[number % 2]} for number in range(20)]
DATA: dict[str, list[dict[str, Any]]] = {
    "qa": [
        {"id": str(n), "question": "which?", "context": "for " * n + "tree", "answers": {"text": ["tree"], "answer_start": [4 * n]}}
        for n in range(4, 34)
    ],
    "classify": CLASSES,
    "tokens": [
        {"tokens": ["a", WORDS[n % 4], "is", "here"] * (3 + n // 4), "ner_tags": ["O", "B-X", "O", "O"] * (3 + n // 4)} for n in range(20)
    ],
    "mlm": TEXT,
    "clm": TEXT,
    "seq2seq": [{"document": f"the {WORDS[n % 4]} is here " * (2 + n // 4), "summary": WORDS[n % 4]} for n in range(20)],
    "embed": [{"anchor": f"{WORDS[n % 4]} {n}", "positive": f"the {WORDS[n % 4]} number {n} " * 4} for n in range(24)],
    "multitask": CLASSES,
    "linearise": TEXT,
    "distill": TEXT,
    "ctc": [{"audio": f"{number:02}.wav", "text": text} for number, text in enumerate(sentences(20))],
}  # fmt: skip
"""Rows to learn from, by the titles of tasks."""

FITTING = {"qa": ["--stride", "4", "--max-question-tokens", "4"], "seq2seq": ["--max-summary-length", "4"]}
"""What a task needs beside for so small a model."""
PRECISION = "bf16" if cpu_computes_bf16() else "no"
EVALUATION = "--no-bf16 --disable-tqdm True --threads 1"
LINE = """--no-bf16 --disable-tqdm True --threads 1 --warmup-steps 1 --gradient-accumulation-steps 1 --logging-steps 1 --batch-size 2
    --max-length 64 --save-strategy no"""


@dataclass
class Run:
    """What was seen of a run."""

    task: str
    folder: Path
    said: str
    batches: list[dict[str, Any]] = field(default_factory=list)
    trainers: list[Any] = field(default_factory=list)
    trainable: list[int] = field(default_factory=list)
    reported: list[dict[str, Any]] = field(default_factory=list)
    pushed: dict[str, bytes] = field(default_factory=dict)

    @property
    def log(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / training_loop.LOG_NAME).read_text(encoding="utf-8"))
        return found

    @property
    def card(self) -> str:
        return (self.folder / "README.md").read_text(encoding="utf-8")

    @property
    def history(self) -> list[dict[str, Any]]:
        """Trainer's log entries."""
        return [entry for trainer in self.trainers for entry in trainer.state.log_history]

    @property
    def losses(self) -> list[float]:
        return [entry["loss"] for entry in self.history if "loss" in entry]

    @property
    def checkpoints(self) -> list[Path]:
        return sorted(self.folder.rglob("checkpoint-*"))


@dataclass(frozen=True)
class Option:
    """An option, or several that belong together.

    line: what is typed.
    seen: fails where the run does not have the option's effect; it is also given a run without the option.
    refused: the titles of tasks that refuse it, each with a part of the sentence; "" = all tasks.
    names: of the fields that it covers.
    shared: one place handles it for all tasks, so where it is in no row of :data:`TOGETHER`, the quick tests try one task in so many.
    """

    line: str
    seen: Callable[[Run, Run], object] = lambda run, plain: None
    refused: dict[str, str] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    shared: int = 1

    @property
    def covered(self) -> tuple[str, ...]:
        return (
            *self.names,
            *(word.removeprefix("--").removeprefix("no-").replace("-", "_") for word in self.line.split() if word.startswith("--")),
        )


def holds(condition: object) -> None:
    assert condition


def evaluations(run: Run) -> list[int]:
    return [entry["step"] for entry in run.history if any(name.startswith("eval_") for name in entry)]


def before(log: dict[str, Any]) -> Any:
    return (log.get("held_out") or log.get("held_out_loss") or log["held_out_distance"])["before"]


def held_out_count(log: dict[str, Any]) -> int:
    """The number of rows that a log's scores are of; of several tasks, the greatest."""
    after = log["held_out"]["after"] if "held_out" in log else log.get("held_out_loss") or log["held_out_distance"]
    return max([after["n"]] if "n" in after else [part["n"] for part in after.values()])


def best_is_written(run: Run, _: Run) -> None:
    state = run.trainers[-1].state
    best = load_file(run.folder / f"checkpoint-{state.best_global_step}" / "model.safetensors")
    written = load_file(run.folder / "model.safetensors")
    assert state.best_metric is not None
    assert all(torch.equal(written[name], tensor) for name, tensor in best.items() if name in written)


def updates_are_merged(run: Run, plain: Run) -> None:
    assert run.trainable[-1] < plain.trainable[-1]
    written = load_file(run.folder / "model.safetensors")
    assert not [name for name in written if "lora" in name or "base_layer" in name]
    assert set(written) == set(load_file(plain.folder / "model.safetensors"))


def cells_of(batch: dict[str, Any]) -> int:
    """The tokens or frames of a batch, with padding."""
    return batch["input_ids"].numel() if "input_ids" in batch else batch["input_values"].numel() // SAMPLES_PER_FRAME


def longest(run: Run) -> int:
    """The tokens of the longest row that was trained on."""
    return max(ids.shape[-1] for batch in run.batches for name, ids in batch.items() if name.endswith("input_ids"))


def budgeted(run: Run, _: Run) -> None:
    sizes = [(cells_of(batch), len(next(iter(batch.values())))) for batch in run.batches]
    assert sizes
    assert all(cells <= BUDGET or rows == 1 for cells, rows in sizes), sizes
    assert any(rows > 1 for _, rows in sizes), sizes


BUDGET = 320
OPTIONS = {
    "eval_strategy": Option(
        "--eval-strategy steps --eval-steps 1", lambda run, plain: holds(set(evaluations(run)) >= {1, 2})
    ),
    "eval_strategy epoch": Option(
        "--eval-strategy epoch --epochs 1 --max-steps -1 --max-train-samples 10", lambda run, plain: holds(max(evaluations(run)) > 2),
    ),
    "eval_on_start": Option(
        "--no-eval-on-start", lambda run, plain: holds(before(run.log) is None is not before(plain.log))
    ),
    "checkpoints by default": Option("--save-strategy steps", lambda run, plain: holds(run.checkpoints[-1].name == "checkpoint-2")),
    "save_steps": Option("--save-strategy steps --save-steps 1", lambda run, plain: holds(len(run.checkpoints) >= 2)),
    "save_minutes": Option(
        "--save-strategy steps --save-steps 0 --save-minutes 1e-9", lambda run, plain: holds(len(run.checkpoints) >= 2), shared=3
    ),
    "save_strategy epoch": Option(
        "--save-strategy epoch --epochs 1 --max-steps -1", lambda run, plain: holds(len(run.checkpoints) == 1)
    ),
    "load_best_model_at_end": Option(
        "--load-best-model-at-end --eval-strategy steps --eval-steps 1 --save-strategy steps --learning-rate 1e-2", best_is_written,
    ),
    "early_stopping_patience": Option(
        "--early-stopping-patience 1 --load-best-model-at-end --eval-strategy steps --eval-steps 1 --save-strategy steps", best_is_written,
    ),
    "push_to_hub": Option("--push-to-hub --hub-model-id writer/tuned", lambda run, plain: holds(
        {"README.md", "config.json"} <= set(run.pushed)
        and not [name for name in run.pushed if name.endswith((".bin", ".pt")) or any(fnmatch(name, pattern) for pattern in PREDICTIONS)]
    )),
    "report_to": Option("--report-to tensorboard", lambda run, plain: holds(any("loss" in logs for logs in run.reported))),
    "dataloader_num_workers": Option("--dataloader-num-workers 2", lambda run, plain: holds(run.losses == plain.losses), shared=6),
    "tokens_per_batch": Option(
        f"--tokens-per-batch {BUDGET} --packing false", budgeted,
        refused=dict.fromkeys(("embed", "multitask"), "--tokens-per-batch does not apply"), shared=3,
    ),
    "bf16": Option("--bf16 True", lambda run, plain: holds(run.trainers[-1].accelerator.mixed_precision == PRECISION)),
    "fp16": Option("--fp16", refused={"": "--fp16 needs an accelerator"}),
    "neftune": Option(
        "--neftune-noise-alpha 5", lambda run, plain: holds(run.losses != plain.losses),
        refused=dict.fromkeys(("embed", "linearise", "seq2seq", "ctc"), "--neftune-noise-alpha has no effect"), shared=3,
    ),
    "label_smoothing": Option(
        "--label-smoothing-factor 0.5", lambda run, plain: holds(run.losses != plain.losses),
        refused=dict.fromkeys(("qa", "embed", "multitask", "linearise", "distill", "ctc"), "--label-smoothing-factor has no effect"),
        shared=3,
    ),
    "gradient_checkpointing": Option(
        "--gradient-checkpointing", lambda run, plain: holds(run.losses == pytest.approx(plain.losses, abs=0.05)), shared=3,
    ),
    "fsdp": Option("--fsdp full_shard", refused={"": "--fsdp splits the weights over several processes"}),
    "max_minutes 0": Option("--max-minutes 0", refused={"": "max-minutes"}),
    "max_minutes": Option(
        "--max-minutes 5", lambda run, plain: holds(run.trainers[-1].clock.minutes == 5), shared=3
    ),
    "resume into nothing": Option("--resume", refused={"": "There is no checkpoint in .* to resume from"}),
    "max_train_samples": Option(
        "--max-train-samples 10", lambda run, plain: holds(len(run.trainers[-1].train_dataset) < len(plain.trainers[-1].train_dataset))
    ),
    "max_eval_samples": Option(
        "--max-eval-samples 1",
        lambda run, plain: holds(held_out_count(run.log) < held_out_count(plain.log) and not re.search(r"\bnan\b", run.card + run.said)),
    ),
    "use_peft": Option("--use-peft --lora-rank 2 --lora-alpha 4", updates_are_merged, refused={"linearise": "no option --use-peft"}),
    "use_peft, from a checkpoint": Option(
        "--use-peft --save-strategy steps --save-steps 1", lambda run, plain: holds(len(run.checkpoints) >= 2),
        refused={
            "embed": "do not load checkpoints with LoRA updates, so that none are written; leave --use-peft or --save-steps out",
            "linearise": "no option --use-peft",
        },
    ),
    "dtype": Option("--dtype bfloat16", lambda run, plain: holds(
        {tensor.dtype for tensor in load_file(run.folder / "model.safetensors").values()} == {torch.bfloat16}
    ), shared=3),
    "max_length": Option(
        "--max-length 20 --packing false", lambda run, plain: holds(longest(run) <= 20 < longest(plain)),
        refused={"ctc": "--max-length has no effect"},
    ),
    "total_batch_size": Option("--total-batch-size 4", lambda run, plain: holds(len(run.batches) == 2 * len(plain.batches)), shared=3),
    "overwrite": Option("--overwrite", shared=3),
    "model": Option(
        "", lambda run, plain: holds(run.losses and all(entry["learning_rate"] > 0 for entry in run.history if "learning_rate" in entry)),
        names=("model", "output_dir", "threads"),
    ),
}  # fmt: skip

TOGETHER = (
    ("eval_strategy", "save_steps", "early_stopping_patience", "load_best_model_at_end", "push_to_hub", "report_to", "max_eval_samples"),
    ("eval_strategy epoch", "save_strategy epoch", "bf16"),
    ("eval_on_start", "checkpoints by default", "max_train_samples", "max_minutes", "dtype", "overwrite"),
    ("use_peft", "use_peft, from a checkpoint", "max_length", "total_batch_size"),
)
"""Options whose effects can be seen in one run."""


def old_task_names() -> list[str]:
    """The tasks that have not moved to the new core."""
    return [name for name in task_names() if isinstance(load_task(name), Task)]


def one_line(names: Iterable[str]) -> str:
    """What is typed for all these options at once; they agree on what several of them give."""
    values: dict[str, str] = {}
    for name in names:
        for words in OPTIONS[name].line.split("--")[1:]:
            flag, _, value = words.strip().partition(" ")
            assert values.setdefault(flag, value) == value, (name, flag)
    return " ".join(f"--{flag} {value}" for flag, value in values.items())


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A long checkpoint for each task, and the short encoder it was made from as "short"."""
    from tests.byte_tokenizer import train_tokenizer
    from tests.training.conftest import SOURCES

    folder, tokenizer = tmp_path_factory.mktemp("models"), train_tokenizer(SOURCES, vocab_size=300)
    short = {kind: checkpoint(kind, folder / kind, tokenizer) for kind in ("mlm", "clm")}
    long = {}
    for kind, mechanism, options in (("mlm", "window", {"window": 16}), ("clm", "window", {"window": 16}), ("mlm", "hedgehog", {})):
        long[kind, mechanism] = str(folder / f"{kind}-{mechanism}")
        convert_checkpoint(short[kind], long[kind, mechanism], mechanism=mechanism, max_length=128, verify=False, **options)
    encoder = dict.fromkeys(DATA, long["mlm", "window"])
    return {
        **encoder,
        "clm": long["clm", "window"],
        "seq2seq": bart(folder, tokenizer),
        "ctc": speech_checkpoint(folder / "ctc"),
        "linearise": long["mlm", "hedgehog"],
        "short": short["mlm"],
    }


@pytest.fixture(scope="module")
def runs() -> dict[str, Run]:
    """Runs without an option, by task."""
    return {}


Runner = Callable[..., tuple[int, Run]]


@pytest.fixture
def runner(models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Runner:
    """``runner(task, line, output)``: its exit code, and what was seen of the run."""
    current: list[Run] = []
    step, begin = LongTrainer.training_step, LongTrainer.train

    def training_step(self: Any, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        current[-1].batches.append({name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)})
        if len(current[-1].batches) == 1 or current[-1].trainers[-1] is not self:
            current[-1].trainable.append(sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad))
        return step(self, model, inputs, *args, **kwargs)

    def begin_training(self: Any, *args: Any, **kwargs: Any) -> Any:
        current[-1].trainers.append(self)
        found = begin(self, *args, **kwargs)
        return found

    monkeypatch.setattr(LongTrainer, "training_step", training_step)
    monkeypatch.setattr(LongTrainer, "train", begin_training)

    class Reported(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            current[-1].reported.append(dict(logs))

    monkeypatch.setitem(INTEGRATION_TO_CALLBACK, "tensorboard", Reported)
    monkeypatch.setattr(training_args_module, "get_available_reporting_integrations", lambda: ["tensorboard"])

    def run(task: str, line: str = "", output: str = "out", rows: Any = None, more: Sequence[str] = ()) -> tuple[int, Run]:
        assert task in DATA, f"give {task!r} a row of DATA"
        path = tmp_path / "data.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows or DATA[task]))
        words = line.split()
        source = {"text": [str(path)], "tasks": [f"one=classify:{path}", f"two=classify:{path}"], "data": [str(path)]}
        data_args = load_task(task).ARGUMENTS[1]
        flag = next(name for name in source if name in {each.name for each in dataclasses.fields(data_args)})
        typed = ["--model", models[task], f"--{flag}", *source[flag], "--output", str(tmp_path / output), *LINE.split()]
        if task == "ctc":  # recordings are kept whole
            spoken(tmp_path, len(DATA[task]))
            del typed[(place := typed.index("--max-length")) : place + 2]
        if "--total-batch-size" in words:  # in place of this
            del typed[(place := typed.index("--gradient-accumulation-steps")) : place + 2]
        typed += ["--max-steps", "2", "--learning-rate", "1e-3", *FITTING.get(task, [])]
        typed += ["--method", "logits", "--teacher", models["short"]] if task == "distill" else []
        known = {each.name for kind in load_task(task).ARGUMENTS for each in dataclasses.fields(kind)}
        if "--packing" in words and "packing" not in known:
            place = words.index("--packing")
            del words[place : place + 2]
        current.append(Run(task, tmp_path / output, ""))
        capsys.readouterr()
        code = train(task, [*typed, *words, *more])
        current[-1].said = capsys.readouterr().err
        return code, current[-1]

    return run


def is_one_sentence(said: str, words: str) -> None:
    lines = [line for line in said.splitlines() if "Error" in line or "Traceback" in line]
    assert len(lines) == 1, said
    assert lines[0].startswith("Error: "), lines
    assert re.search(words, lines[0]), lines


def refusal(task: str, option: str) -> str | None:
    """A part of the sentence in which a task refuses an option, or None where it takes it."""
    return OPTIONS[option].refused.get(task, OPTIONS[option].refused.get(""))


def cells() -> Iterator[Any]:
    """Every task with every option; the quick tests have half of them, in turn; of those in :data:`TOGETHER` none."""
    seen_together = {name for names in TOGETHER for name in names}
    for number, task in enumerate(old_task_names()):
        for place, (name, option) in enumerate(OPTIONS.items()):
            waits = name in seen_together or (number + place) % (2 * option.shared)
            slow = waits if refusal(task, name) is None else (number + place) % 2
            yield pytest.param(task, name, id=f"{task}-{name}", marks=pytest.mark.slow if slow else ())


PlainRun = Callable[[str], Run]


@pytest.fixture
def plain_run(runner: Runner, runs: dict[str, Run]) -> PlainRun:
    """``plain_run(task)``: what was seen of a run without an option, trained once."""

    def plain(task: str) -> Run:
        if task not in runs:
            code, runs[task] = runner(task, output="plain")
            assert code == 0, runs[task].said
        return runs[task]

    return plain


def trained_with(options: Sequence[str], task: str, runner: Runner, request: pytest.FixtureRequest) -> Run:
    """What was seen of a training with these options."""
    hub = request.getfixturevalue("server") if "push_to_hub" in options else None
    code, run = runner(task, one_line(options))
    assert code == 0, run.said
    if hub is not None:
        run.pushed = dict(hub.repos["writer/tuned"].branches["main"])
    return run


@pytest.mark.parametrize(("task", "option"), list(cells()))
def test_each_option_of_each_task_works_or_is_refused(
    task: str, option: str, runner: Runner, plain_run: PlainRun, request: pytest.FixtureRequest
) -> None:
    if "sentence" in getattr(load_task(task), "EXTRAS", ()):
        pytest.importorskip("sentence_transformers")
    if (words := refusal(task, option)) is not None:
        code, run = runner(task, OPTIONS[option].line)
        assert code in (1, 2), run.said
        is_one_sentence(run.said, words)
        assert not (run.folder / "config.json").exists()
        return
    plain = plain_run(task)
    OPTIONS[option].seen(trained_with([option], task, runner, request) if OPTIONS[option].line else plain, plain)


def lines_with_tasks() -> Iterator[Any]:
    """Every other task with one of the lines, in turn."""
    for number, task in enumerate(old_task_names()):
        for place, options in enumerate(TOGETHER):
            yield pytest.param(
                task,
                options,
                id=f"{task}-{options[0]}",
                marks=pytest.mark.slow if not number % 2 or (number // 2 + place) % len(TOGETHER) else (),
            )


@pytest.mark.thorough
@pytest.mark.parametrize(("task", "options"), [*lines_with_tasks()])
def test_options_of_one_run_all_have_their_effect(
    task: str, options: Sequence[str], runner: Runner, plain_run: PlainRun, request: pytest.FixtureRequest
) -> None:
    if "sentence" in getattr(load_task(task), "EXTRAS", ()):
        pytest.importorskip("sentence_transformers")
    accepted = [name for name in options if refusal(task, name) is None]
    if not accepted:
        return  # the test before says in which sentences
    plain = plain_run(task)
    run = trained_with(accepted, task, runner, request)
    for name in accepted:
        try:
            OPTIONS[name].seen(run, plain)
        except AssertionError as error:
            raise AssertionError(f"{name} has not its effect") from error


@pytest.mark.parametrize("task", quickly(old_task_names(), old_task_names()[::4]))
def test_every_task_resumes_its_run_and_refuses_that_of_another_model(
    task: str, runner: Runner, models: dict[str, str], tmp_path: Path
) -> None:
    if "sentence" in getattr(load_task(task), "EXTRAS", ()):
        pytest.importorskip("sentence_transformers")
    assert runner(task, "--save-strategy steps --save-steps 1")[0] == 0
    card = (tmp_path / "out" / "README.md").read_text()
    further = "--max-steps 3"
    other = shutil.copytree(models[task], tmp_path / "other")
    code, run = runner(task, f"--save-strategy steps --resume {further} --model {other}")
    assert code == 1
    is_one_sentence(run.said, "continues a training of '.*', not of '.*other'; give --model")
    assert (tmp_path / "out" / "README.md").read_text() == card
    code, run = runner(task, f"--save-strategy steps --resume {further}")
    assert code == 0, run.said
    assert len(run.batches) == 1
    assert run.history[-1]["step"] == 3
    for folder in {path.parent for path in run.checkpoints}:
        for path in folder.glob("checkpoint-*"):
            (path / "trainer_state.json").unlink()
    code, run = runner(task, f"--resume {further}")
    assert code == 1
    is_one_sentence(run.said, r"No checkpoint in .* is complete: .*; to start again, give --overwrite without --resume")


@pytest.mark.thorough
@pytest.mark.parametrize(
    "task", grid([(task,) for task in evaluated_tasks() if task in old_task_names()], lambda task: [*task_names()].index(task) % 4 == 1)
)
def test_evaluate_gives_scores_of_end_of_training(task: str, runner: Runner, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if "sentence" in getattr(load_task(task), "EXTRAS", ()):
        pytest.importorskip("sentence_transformers")
    data = tmp_path / "data.jsonl"
    source = {"multitask": ["--tasks", f"one=classify:{data}", f"two=classify:{data}"], "mlm": ["--text", data], "clm": ["--text", data]}
    validation = f"one={data} two={data}" if task == "multitask" else data
    code, first = runner(task, f"--validation {validation}")
    assert code == 0, first.said
    trained = shutil.copytree(tmp_path / "out", tmp_path / "trained")
    files = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    length = [] if task in ("ctc", "embed") else ["--max-length", "64"]
    typed = ["--model", trained, *source.get(task, ["--data", data]), *length, *FITTING.get(task, []), *EVALUATION.split()]

    def said(*more: object, code: int = 0) -> str:
        capsys.readouterr()
        assert evaluate(task, [str(word) for word in (*typed, *more)]) == code
        return capsys.readouterr().err

    scored = tmp_path / "scored"
    report = said("--output", scored)
    assert f"scoring {trained}\n" in report
    assert report.splitlines()[-1] == f"written to {scored / 'scores.json'}"
    scores = json.loads((scored / "scores.json").read_text())
    assert not [path for path in scored.rglob("*") if path.suffix in (".safetensors", ".bin", ".md")]
    assert files == {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    assert before(scores) is None
    assert held_out_count(scores) >= 10
    assert numbers_of(scores) == pytest.approx(numbers_of(json.loads((trained / "training_log.json").read_text())), rel=1e-4)
    is_one_sentence(said("--output", scored, code=1), "holds scores already; give another --output, or add --overwrite")
    if task == "classify":  # one function decides it for all tasks
        said("--output", scored, "--overwrite")
    is_one_sentence(said("--output", tmp_path / "out", code=1), "holds a model; give another --output for the scores")


def numbers_of(log: dict[str, Any]) -> dict[str, float]:
    """What was measured after a run, by names."""
    found: dict[str, float] = {}

    def collect(value: Any, name: str) -> None:
        if isinstance(value, dict):
            for key, part in value.items():
                collect(part, f"{name}.{key}")
        elif isinstance(value, (int, float)):
            found[name] = value

    for key in ("held_out", "held_out_loss"):
        collect({name: part for name, part in (log.get(key) or {}).items() if name != "before"}, key)
    return found


@pytest.mark.parametrize(
    "task",
    [
        pytest.param(task, id=task, marks=[pytest.mark.slow] if number % 4 else [])
        for number, task in enumerate(old_task_names())
        if task not in OPTIONS["use_peft, from a checkpoint"].refused
    ],
)
def test_lora_updates_resume_from_a_checkpoint_to_the_same_weights(task: str, runner: Runner) -> None:
    line = "--use-peft --save-strategy steps --save-steps 1 --max-steps 3"
    code, run = runner(task, line)
    assert code == 0, run.said
    whole = load_file(run.folder / "model.safetensors")
    shutil.rmtree(run.checkpoints[-1])
    code, run = runner(task, f"{line} --resume")
    assert code == 0, run.said
    assert len(run.batches) == 1
    torch.testing.assert_close(load_file(run.folder / "model.safetensors"), whole, rtol=0, atol=0)


@pytest.mark.parametrize("launched", ["FSDP", "DEEPSPEED"])
@pytest.mark.parametrize("task", [task for task in old_task_names() if not getattr(load_task(task).ARGUMENTS[2], "shards", True)])
def test_unsplittable_tasks_refuse_fsdp_and_deepspeed(task: str, launched: str, runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `accelerate launch` says it."""
    monkeypatch.setenv(f"ACCELERATE_USE_{launched}", "true")
    code, run = runner(task)
    assert code == 1
    is_one_sentence(run.said, "does not run under FSDP or DeepSpeed; start whole copies of the model")


COLUMNS = {"qa": "has schemas of its own", "multitask": "has the columns of its kinds of tasks"}
"""Tasks whose columns cannot be named, and why."""


@pytest.mark.thorough
@pytest.mark.parametrize("task", old_task_names())
def test_every_task_takes_the_names_of_its_columns(task: str, runner: Runner) -> None:
    fields = [each for each in dataclasses.fields(load_task(task).ARGUMENTS[1]) if each.name.endswith("column")]
    assert bool(fields) != (task in COLUMNS)
    if not fields:
        return
    if "sentence" in getattr(load_task(task), "EXTRAS", ()):
        pytest.importorskip("sentence_transformers")
    usual = {each.name: str(each.default or "") or each.name.removesuffix("_column") for each in fields if isinstance(each.default, str)}
    usual |= {each.name: each.name.removesuffix("_column") for each in fields if each.name not in usual}
    named = {name: column for name, column in usual.items() if column in DATA[task][0]}
    assert named
    rows = [{f"my {name}" if name in named.values() else name: value for name, value in row.items()} for row in DATA[task]]
    more = [word for name, column in named.items() for word in (f"--{name}", f"my {column}")]
    code, run = runner(task, "", rows=rows, more=more)
    assert code == 0, run.said
    code, run = runner(task, "--overwrite", rows=rows)
    assert code == 1
    is_one_sentence(run.said, f"my {next(iter(named.values()))}")


def test_every_shared_option_has_a_row_in_the_table_of_options() -> None:
    elsewhere = {"resume": "test_every_task_resumes_its_run_and_refuses_that_of_another_model", "num_train_epochs": "epochs"}
    inherited = {each.name for each in dataclasses.fields(TrainingArguments)}
    ours = {
        each.name
        for kind in (ModelArguments, DataArguments, LongTrainingArguments)
        for each in dataclasses.fields(kind)
        if each.name not in inherited
    }
    covered = {name for option in OPTIONS.values() for name in option.covered} | set(elsewhere)
    assert ours <= covered
