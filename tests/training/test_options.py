"""Every task with every option that all tasks share, and with bad input: it works or is refused in a sentence.

The list of tasks is that of `longattn train`, so that a new task is tried on arrival; it needs a row in :data:`DATA`.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import TrainerCallback

from hf_longattn.cli.train import train
from hf_longattn.conversion import convert_checkpoint
from hf_longattn.engines.cpu.onednn import cpu_computes_bf16
from hf_longattn.files import read_json
from hf_longattn.training.arguments import DataArguments, LongTrainingArguments, ModelArguments
from hf_longattn.training.tasks import load_task, task_names
from tests.training.conftest import checkpoint, write_rows
from tests.training.speech import sentences, speech_checkpoint, spoken
from tests.training.test_seq2seq import bart

WORDS = ("tree", "file", "node", "path")
TEXT = [{"text": f"the {WORDS[number % 4]} is here " * (11 + number % 4)} for number in range(20)]
CLASSES = [
    {"text": f"the {WORDS[number % 2]} is here " * (1 + number % 5), "label": WORDS[number % 2]}
    for number in range(20)
]
DATA: dict[str, list[dict[str, Any]]] = {
    "qa": [
        {
            "id": str(n),
            "question": "which?",
            "context": "for " * n + "tree",
            "answers": {"text": ["tree"], "answer_start": [4 * n]},
        }
        for n in range(4, 34)
    ],
    "classify": CLASSES,
    "tokens": [
        {"tokens": ["a", WORDS[n % 4], "is", "here"] * (3 + n // 4), "ner_tags": ["O", "B-X", "O", "O"] * (3 + n // 4)}
        for n in range(20)
    ],
    "mlm": TEXT,
    "clm": TEXT,
    "seq2seq": [
        {"document": f"the {WORDS[n % 4]} is here " * (2 + n // 4), "summary": WORDS[n % 4]} for n in range(20)
    ],
    "embed": [{"anchor": f"{WORDS[n % 4]} {n}", "positive": f"the {WORDS[n % 4]} number {n} " * 4} for n in range(24)],
    "multitask": CLASSES,
    "linearise": TEXT,
    "distill": TEXT,
    "ctc": [{"audio": f"{number:02}.wav", "text": text} for number, text in enumerate(sentences(20))],
}
"""Rows to learn from, by the titles of tasks."""
FITTING = {"qa": ["--stride", "4"], "seq2seq": ["--max-target-length", "4"]}
"""What a task needs beside for so small a model."""
NO_LENGTH = ("ctc",)
"""Tasks whose inputs are kept whole."""
LINE = """--no-bf16 --disable-tqdm True --warmup-steps 1 --gradient-accumulation-steps 1 --logging-steps 1
    --batch-size 2 --max-length 64
    --save-strategy no --max-steps 2 --learning-rate 1e-3"""
PRECISION = "bf16" if cpu_computes_bf16() else "no"
BUDGET = 320


@dataclass
class Run:
    """What was seen of a run."""

    task: str
    folder: Path
    said: str
    batches: list[dict[str, Any]] = field(default_factory=list)
    trainers: list[Any] = field(default_factory=list)
    trainable: list[int] = field(default_factory=list)
    pushed: dict[str, bytes] = field(default_factory=dict)

    @property
    def log(self) -> dict[str, Any]:
        found: dict[str, Any] = read_json(self.folder / "training_log.json")
        return found

    @property
    def history(self) -> list[dict[str, Any]]:
        """Trainer's log entries."""
        return [entry for trainer in self.trainers for entry in trainer.state.log_history]

    @property
    def losses(self) -> list[float]:
        return [entry["loss"] for entry in self.history if "loss" in entry]

    @property
    def evaluations(self) -> set[int]:
        return {entry["step"] for entry in self.history if any(name.startswith("eval_") for name in entry)}

    @property
    def checkpoints(self) -> list[Path]:
        return sorted(self.folder.rglob("checkpoint-*"))

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        return load_file(self.folder / "model.safetensors")


Runner = Callable[..., tuple[int, Run]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A long checkpoint for each task, and the short encoder it was made from as "short"."""
    from tests.byte_tokenizer import train_tokenizer
    from tests.training.conftest import SOURCES

    folder, tokenizer = tmp_path_factory.mktemp("models"), train_tokenizer(SOURCES, vocab_size=300)
    short = {kind: checkpoint(kind, folder / kind, tokenizer) for kind in ("mlm", "clm")}
    long = {}
    for kind, mechanism, options in (
        ("mlm", "window", {"window": 16}),
        ("clm", "window", {"window": 16}),
        ("mlm", "hedgehog", {}),
    ):
        long[kind, mechanism] = str(folder / f"{kind}-{mechanism}")
        convert_checkpoint(
            short[kind], long[kind, mechanism], mechanism=mechanism, max_length=128, verify=False, **options
        )
    return {
        **dict.fromkeys(DATA, long["mlm", "window"]),
        "clm": long["clm", "window"],
        "seq2seq": bart(folder, tokenizer),
        "ctc": speech_checkpoint(folder / "ctc"),
        "linearise": long["mlm", "hedgehog"],
        "short": short["mlm"],
    }


@pytest.fixture
def runner(
    models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Runner:
    """``runner(task, line, output)``: its exit code, and what was seen of the run."""
    current: list[Run] = []
    step, begin = transformers.Trainer.training_step, transformers.Trainer.train

    def training_step(self: Any, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        current[-1].batches.append({name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)})
        if len(current[-1].batches) == 1:
            current[-1].trainable.append(
                sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
            )
        return step(self, model, inputs, *args, **kwargs)

    def begin_training(self: Any, *args: Any, **kwargs: Any) -> Any:
        current[-1].trainers.append(self)
        return begin(self, *args, **kwargs)

    monkeypatch.setattr(transformers.Trainer, "training_step", training_step)
    monkeypatch.setattr(transformers.Trainer, "train", begin_training)

    def run(
        task: str, line: str = "", output: str = "out", rows: Any = None, more: Sequence[str] = ()
    ) -> tuple[int, Run]:
        assert task in DATA, f"give {task!r} a row of DATA"
        if task == "embed":
            pytest.importorskip("sentence_transformers")
        path = tmp_path / "data.jsonl"
        write_rows(rows or DATA[task], path)
        if task == "ctc":
            spoken(tmp_path, len(DATA[task]))
        known = {each.name for kind in load_task(task).ARGUMENTS for each in dataclasses.fields(kind)}
        flag = "tasks" if "tasks" in known else "data"
        source = [f"one=classify:{path}", f"two=classify:{path}"] if flag == "tasks" else [str(path)]
        typed = ["--model", models[task], f"--{flag}", *source, "--output", str(tmp_path / output), *LINE.split()]
        if task in NO_LENGTH:
            del typed[(place := typed.index("--max-length")) : place + 2]
        typed += FITTING.get(task, [])
        typed += ["--method", "logits", "--teacher", models["short"]] if task == "distill" else []
        if "--packing" in (words := line.split()) and "packing" not in known:
            del words[(place := words.index("--packing")) : place + 2]
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


def best_is_written(run: Run, plain: Run) -> None:
    del plain
    state = run.trainers[-1].state
    best = load_file(run.folder / f"checkpoint-{state.best_global_step}" / "model.safetensors")
    assert state.best_metric is not None
    assert all(torch.equal(run.weights[name], tensor) for name, tensor in best.items() if name in run.weights)


def updates_are_merged(run: Run, plain: Run) -> None:
    assert run.trainable[-1] < plain.trainable[-1]
    assert not [name for name in run.weights if "lora" in name or "base_layer" in name]
    assert set(run.weights) == set(plain.weights)


def longest(run: Run) -> int:
    """The tokens of the longest row that was trained on."""
    return max(ids.shape[-1] for batch in run.batches for name, ids in batch.items() if name.endswith("input_ids"))


def is_public(run: Run, plain: Run) -> None:
    del plain
    assert {"README.md", "config.json"} <= set(run.pushed)
    assert not [
        name
        for name in run.pushed
        if name.endswith((".bin", ".pt", "predictions.json", "predictions.txt", "null_odds.json"))
    ]


def has_budget(run: Run, plain: Run) -> None:
    del plain
    sizes = [
        (batch["input_ids" if "input_ids" in batch else "input_values"], len(next(iter(batch.values()))))
        for batch in run.batches
    ]
    assert all(cells.numel() <= BUDGET or rows == 1 or cells.dtype.is_floating_point for cells, rows in sizes)
    assert any(rows > 1 for _, rows in sizes)


def samples(run: Run) -> int:
    return len(run.trainers[-1].train_dataset)


def rates(run: Run) -> list[float]:
    return [entry["learning_rate"] for entry in run.history if "learning_rate" in entry]


Seen = Callable[[Run, Run], object]
EFFECTS: dict[str, Seen] = {
    "--eval-strategy steps --eval-steps 1": lambda run, plain: (
        run.evaluations >= {0, 1, 2} and plain.evaluations == {0, 2}
    ),
    (
        "--load-best-model-at-end --eval-strategy steps --eval-steps 1 --save-strategy steps --save-steps 1"
    ): best_is_written,
    "--save-strategy steps --save-steps 1": lambda run, plain: (
        [path.name for path in run.checkpoints] == ["checkpoint-1", "checkpoint-2"]
    ),
    "--push-to-hub --hub-model-id writer/tuned": is_public,
    "--max-eval-samples 1": lambda run, plain: samples(run) == samples(plain) and "nan" not in run.said,
    "--save-strategy epoch --epochs 1 --max-steps -1 --max-train-samples 10": lambda run, plain: (
        len(run.checkpoints) == 1 and run.history[-1]["step"] > 2 and samples(run) < samples(plain)
    ),
    "--bf16 True": lambda run, plain: run.trainers[-1].accelerator.mixed_precision == PRECISION,
    "--no-eval-on-start": lambda run, plain: not run.log["metrics"]["before"] and plain.log["metrics"]["before"],
    "--max-minutes 5": lambda run, plain: run.trainers[-1].minutes.limit == 5 and len(run.losses) == 2,
    "--dataloader-num-workers 2": lambda run, plain: run.losses == plain.losses,
    "--gradient-checkpointing": lambda run, plain: run.losses == pytest.approx(plain.losses, abs=0.05),
    "--lora-rank 2": updates_are_merged,
    "--max-length 20 --packing false": lambda run, plain: run.task in NO_LENGTH or longest(run) <= 20 < longest(plain),
    f"--tokens-per-batch {BUDGET} --packing false": has_budget,
    "--overwrite": lambda run, plain: run.losses == plain.losses and min(rates(run)) > 0,
}
"""What is typed -> whether a run has its effect, compared with a run without it."""
REFUSED = {
    "--max-minutes 0": "--max-minutes must be above 0",
    "--resume": "There is no complete checkpoint in .* to resume from",
    "--columns nothing=text": "--columns takes (ROLE=NAME, with a role of|NAME.ROLE=COLUMN)",
    "--hub-strategy checkpoint": "--hub-strategy must be end",
}
"""What is typed -> the sentence in which every task refuses it."""
OWN_WAY: dict[str, dict[str, str]] = {
    "linearise": {"--lora-rank": "There is no option --lora-rank"},
    "multitask": {"--tokens-per-batch": "--tokens-per-batch does not apply"},
    "embed": {"--tokens-per-batch": "--tokens-per-batch requires rows of known length; give --batch-size instead"},
}
"""Task -> option -> the sentence in which it refuses an option that the others take."""


def pairs() -> Iterator[Any]:
    """Every task with every option; the quick tests have each option once and each task at least once."""
    for number, task in enumerate(task_names()):
        for place, line in enumerate(EFFECTS):
            quick = place % len(task_names()) == number
            yield pytest.param(task, line, id=f"{task} {line.split()[0]}", marks=() if quick else pytest.mark.slow)


@pytest.fixture(scope="module")
def plain_runs() -> dict[str, Run]:
    """Runs without an option, by task."""
    return {}


@pytest.mark.parametrize(("task", "line"), [*pairs()])
def test_each_option_of_each_task_has_its_effect(
    task: str, line: str, runner: Runner, plain_runs: dict[str, Run], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    sentence = next((words for option, words in OWN_WAY.get(task, {}).items() if option in line), None)
    hub = request.getfixturevalue("server") if "--push-to-hub" in line else None
    if task not in plain_runs:
        code, plain_runs[task] = runner(task, output="plain")
        assert code == 0, plain_runs[task].said
        plain_runs[task].folder = Path(
            shutil.copytree(tmp_path / "plain", request.getfixturevalue("tmp_path_factory").mktemp("plain") / "p")
        )
    code, run = runner(task, line)
    if sentence is not None:
        assert code in (1, 2), run.said
        is_one_sentence(run.said, sentence)
        return
    assert code == 0, run.said
    if hub is not None:
        run.pushed = dict(hub.repos["writer/tuned"].branches["main"])
    assert EFFECTS[line](run, plain_runs[task]) is not False


@pytest.mark.parametrize("task", task_names())
def test_every_task_refuses_options_that_do_not_fit_in_a_sentence(task: str, runner: Runner) -> None:
    for line, words in REFUSED.items():
        code, run = runner(task, line)
        assert code == 1, run.said
        is_one_sentence(run.said, words)
        assert not run.folder.exists() or not any(run.folder.iterdir())


@pytest.mark.parametrize(
    "task",
    [
        pytest.param(task, marks=() if number % 4 == 0 else pytest.mark.slow)
        for number, task in enumerate(task_names())
    ],
)
def test_every_task_resumes_its_run_to_the_same_weights(task: str, runner: Runner) -> None:
    for line in ("", "--lora-rank 2"):
        # its trainers load no checkpoints with updates
        if line and (task == "embed" or "--lora-rank" in OWN_WAY.get(task, {})):
            continue
        line = f"{line} --save-strategy steps --save-steps 1 --max-steps 3 --overwrite"
        code, run = runner(task, line)
        assert code == 0, run.said
        weights, losses = run.weights, run.losses
        shutil.rmtree(run.folder / "checkpoint-3")
        code, run = runner(task, f"{line} --resume")
        assert code == 0, run.said
        assert len(run.batches) == 1
        assert run.losses == losses
        torch.testing.assert_close(run.weights, weights, rtol=0, atol=0)
        code, run = runner(task, f"{line} --resume")  # a finished run takes no further step
        assert (code, run.batches) == (0, []), run.said
        torch.testing.assert_close(run.weights, weights, rtol=0, atol=0)


@pytest.mark.parametrize(
    "task",
    [
        pytest.param(task, marks=() if number % 4 == 1 else pytest.mark.slow)
        for number, task in enumerate(task_names())
    ],
)
def test_evaluate_gives_the_scores_of_the_end_of_training(
    task: str, runner: Runner, models: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, typed = str(tmp_path / "data.jsonl"), ["--teacher", models["short"]] if task == "distill" else []
    validation = [f"one={data}", f"two={data}"] if task == "multitask" else [data]
    code, run = runner(task, more=["--validation", *validation])
    assert code == 0, run.said
    typed += ["--tasks", f"one=classify:{data}", f"two=classify:{data}"] if task == "multitask" else ["--data", data]
    typed += f"--model {run.folder} --no-bf16 --disable-tqdm True --batch-size 2".split() + FITTING.get(task, [])
    typed += [] if task in NO_LENGTH else ["--max-length", "64"]
    before = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    scored = tmp_path / "scored"
    assert train(task, [*typed, "--output", str(scored)], "evaluate") == 0, capsys.readouterr().err
    assert capsys.readouterr().err.splitlines()[-1] == f"written to {scored / 'scores.json'}"
    scores = read_json(scored / "scores.json")["metrics"]
    assert scores["before"] == {}
    assert scores["after"] == pytest.approx(run.log["metrics"]["after"], rel=1e-4)
    assert not [path for path in scored.rglob("*") if path.suffix in (".safetensors", ".bin", ".md")]
    assert before == {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    assert train(task, [*typed, "--output", str(scored)], "evaluate") == 1
    is_one_sentence(capsys.readouterr().err, "holds scores already; give another --output, or add --overwrite")


@pytest.mark.slow
@pytest.mark.parametrize("task", [task for task in task_names() if load_task(task).ARGUMENTS[1].roles])
def test_every_task_takes_the_names_of_its_columns(task: str, runner: Runner) -> None:
    roles = load_task(task).ARGUMENTS[1].roles
    columns = {role: next((name for name in names if name in DATA[task][0]), None) for role, names in roles.items()}
    named = {role: column for role, column in columns.items() if column}
    assert named
    rows = [
        {f"my {name}" if name in named.values() else name: value for name, value in row.items()} for row in DATA[task]
    ]
    code, run = runner(task, rows=rows, more=["--columns", *(f"{role}=my {column}" for role, column in named.items())])
    assert code == 0, run.said
    code, run = runner(task, "--overwrite", rows=rows)
    assert code == 1
    is_one_sentence(run.said, f"my {next(iter(named.values()))}")


def test_trainings_report_to_a_tracker_that_is_installed(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    reported: list[dict[str, Any]] = []

    class Reported(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            reported.append(dict(logs))

    monkeypatch.setitem(transformers.integrations.INTEGRATION_TO_CALLBACK, "tensorboard", Reported)
    code, run = runner("mlm", "--report-to tensorboard")
    assert code == 0, run.said
    assert any("loss" in logs for logs in reported)
    code, run = runner("mlm", "--report-to tensorbord", output="other")
    assert code == 1
    is_one_sentence(run.said, "tensorbord is not supported, only .*tensorboard.* are supported")


def test_every_shared_option_has_a_row() -> None:
    elsewhere = {
        "model",
        "data",
        "split",
        "validation",
        "roles",
        "choices",
        "output_dir",
        "num_train_epochs",
        "per_device_train_batch_size",
        "per_device_eval_batch_size",
        "do_train",
        "logging_steps",
        "warmup_steps",
        "weight_decay",
        "save_total_limit",
    }
    ours = {
        name
        for kind in (ModelArguments, DataArguments, LongTrainingArguments)
        for name in kind.__annotations__
        if name[0] != "_"
    }
    lines = " ".join((*EFFECTS, *REFUSED)).replace("-", "_")
    assert not [name for name in ours - elsewhere if name not in lines]


ROWS = {task: rows[0] for task, rows in DATA.items()}
"""A good row of each task's data."""
LEFT_OUT = {
    **dict.fromkeys(("mlm", "clm", "linearise", "distill", "ctc"), "text"),
    **dict.fromkeys(("classify", "multitask"), "label"),
    "qa": "context",
    "tokens": "ner_tags",
    "seq2seq": "summary",
    "embed": "positive",
}
"""A column without which it cannot be learnt."""
WRONG: dict[str, list[tuple[dict[str, Any], str]]] = {
    "qa": [
        ({"answers": {"text": ["house"], "answer_start": [0]}}, "not at character 0; correct"),
        ({"context": 5}, "context|text"),
    ],
    "classify": [({"label": None}, "has no label in the column"), ({"text": 5}, "no text")],
    "tokens": [({"ner_tags": ["O"]}, "a tag for every word"), ({"tokens": "a tree"}, "no list of texts")],
    **{task: [({"text": 5}, "no text")] for task in ("mlm", "clm", "linearise", "distill")},
    "seq2seq": [({"summary": 5}, "no text"), ({"summary": ""}, "no document and summary")],
    "embed": [({"positive": ""}, "no anchor and positive"), ({"score": "high"}, "no number")],
    "multitask": [({"label": None}, "has no label in the column")],
    "ctc": [({"text": 5}, "no text"), ({"text": ""}, "no text"), ({"audio": "none.wav"}, "none.wav does not exist")],
}
"""Values that a column must not hold, and a part of the sentence."""


def refusal(task: str, line: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The sentence in which a task refuses a command line, and nothing else: no heading, no traceback, no model."""
    capsys.readouterr()
    assert train(task, [*line, "--output", str(folder / "out"), "--no-bf16"]) == 1, capsys.readouterr().err
    lines = capsys.readouterr().err.splitlines()
    errors = [text for text in lines if text.startswith("Error: ")]
    assert len(errors) == 1
    assert not [text for text in lines if text.startswith("hf_longattn ")], "no heading comes before a refusal"
    assert not (folder / "out" / "config.json").exists()
    return errors[0]


@pytest.fixture
def sentence(tmp_path: Path, models: dict[str, str], capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What a task says about data, which it must refuse."""

    def run(name: str, source: str | list[dict[str, Any]], *more: str) -> str:
        flag = "--tasks" if name == "multitask" else "--data"
        if name == "ctc":
            spoken(tmp_path, 1)
        needed = ["--method", "logits", "--teacher", models[name]] if name == "distill" else []
        file = source if isinstance(source, str) else write_rows(source, tmp_path / "data.jsonl")
        sources = [f"one=classify:{file}", f"two=classify:{file}"] if name == "multitask" else [file]
        return refusal(name, ["--model", models[name], flag, *sources, *needed, *more], tmp_path, capsys)

    return run


@pytest.mark.parametrize("task", task_names())
def test_every_task_refuses_missing_broken_and_wrong_data_in_a_sentence(
    task: str, sentence: Callable[..., str], tmp_path: Path
) -> None:
    if task == "embed":
        pytest.importorskip("sentence_transformers")
    assert {task} <= LEFT_OUT.keys() & WRONG.keys(), f"give {task!r} a row of LEFT_OUT and WRONG"
    good, left_out = ROWS[task], LEFT_OUT[task]
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "header.csv").write_text(",".join(good) + "\n")
    (tmp_path / "broken.jsonl").write_text('{"a": 1\n')
    for file, words in (
        ("none.jsonl", "does not exist"),
        ("empty.jsonl", "is empty|has no rows|contains no questions"),
        ("header.csv", "has no rows|no text|no questions|no pairs|there are|no row|no words|nothing to learn"),
        ("broken.jsonl", "cannot be read|not valid JSON"),
    ):
        assert re.search(words, sentence(task, str(tmp_path / file))), file
    said = sentence(task, [{name: value for name, value in {**good, "other": 1}.items() if name != left_out}] * 4)
    assert "other" in said, said
    for changes, words in WRONG[task]:
        said = sentence(task, [{**good, **changes}] * 4)
        assert re.search(words, said), said
    column = next((name for name, value in good.items() if isinstance(value, str) and name != "id"), next(iter(good)))
    said = sentence(task, [good, {**good, column: 5}, good, {**good, column: [1]}])
    assert re.search(rf"{column}|JSON|different types|must be|not text", said), said
    assert len(said) < 700, said


def test_missing_validation_data_are_noticed_before_anything_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """There is no model either: loading it would be another sentence."""
    data = write_rows([ROWS["classify"]] * 4, tmp_path / "data.jsonl")
    failing = {}
    for task in task_names():
        flag = "--tasks" if task == "multitask" else "--data"
        sources = [f"one=classify:{data}", f"two=classify:{data}"] if task == "multitask" else [data]
        needed = ["--method", "logits", "--teacher", "none"] if task == "distill" else []
        validation = f"{'two=' * (task == 'multitask')}{tmp_path / 'none.jsonl'}"
        line = ["--model", str(tmp_path / "no model"), flag, *sources, *needed, "--validation", validation]
        said = refusal(task, line, tmp_path, capsys)
        if "none.jsonl' does not exist" not in said:
            failing[task] = said
    assert not failing


WITHOUT_TOKENS: dict[str, dict[str, Any]] = {
    **{task: {"text": "[SEP][CLS]"} for task in ("mlm", "clm", "linearise", "distill")},
    "tokens": {"tokens": ["", ""], "ner_tags": ["O", "B-X"]},
}
"""Rows that the tokenizer turns into special tokens alone, of the tasks that have then nothing to predict."""


@pytest.mark.parametrize("task", WITHOUT_TOKENS)
def test_data_without_a_token_to_predict_are_refused_before_training(
    task: str, sentence: Callable[..., str], tmp_path: Path
) -> None:
    rows = [WITHOUT_TOKENS[task]] * 4
    other = tmp_path / "other"
    other.mkdir()
    bad, good = write_rows(rows, other / "data.jsonl"), [ROWS[task]] * 4
    assert f"No row of {bad} is left to evaluate on" in sentence(task, good, "--validation", bad, "--no-eval-on-start")
    said = sentence(task, bad, "--validation", write_rows(good, tmp_path / "data.jsonl"))
    assert re.search(r"No row of .*data.jsonl is left to train on: the tokenizer makes only special tokens", said), (
        said
    )
    for segments in ([], ["--segments", "8"])[: 1 + (task == "clm")]:
        assert "(held out) is left to evaluate on" in sentence(task, rows, *segments)


@pytest.mark.parametrize("task", task_names())
def test_tasks_that_read_text_refuse_a_model_of_images(
    task: str, sentence: Callable[..., str], tmp_path: Path
) -> None:
    if task == "embed":
        pytest.importorskip("sentence_transformers")
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=8, patch_size=4
    )
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    transformers.ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(tmp_path / "vit")
    rows = [{**ROWS[task], **({"id": str(number)} if task == "qa" else {})} for number in range(8)]
    said = sentence(task, rows, "--model", str(tmp_path / "vit"))
    refusals = (
        r"is not a converted text model|\(vit\) has no (head|tokenizer|language-modelling head)|reads "
        r"pixel_values|has a ViTConfig"
    )
    assert re.search(f"{refusals}|cannot be loaded|not 'image' or 'file_name'; name one", said), said
    assert not (tmp_path / "out").exists()
