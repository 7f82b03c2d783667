"""The run of every task: what it refuses to write over, how it resumes also after a kill, and the model, log and card
that it leaves."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from huggingface_hub import ModelCard
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from hf_longattn.cli.train import train
from hf_longattn.errors import CheckpointError, LongAttentionError, OptionError
from hf_longattn.files import read_json, write_json
from hf_longattn.hub import write_model_card
from hf_longattn.training.run import LOG_NAME, describe, measured, newest_checkpoint, only_writer
from tests.cases import every_case
from tests.permissions import bound_by_permissions
from tests.trained import REAL_TEXT
from tests.training.conftest import checkpoint, converted, losses, quick, write_rows
from tests.training.kills import POINTS, Ending, run
from tests.training.test_classify import rows, table
from tests.training.test_options import DATA

Start = Callable[..., dict[str, Any]]


@pytest.fixture
def start(tmp_path: Path, texts: str, tokenizer: PreTrainedTokenizerBase) -> Start:
    """A training of four steps with a checkpoint after every second one, which does not write over anything."""
    held = tmp_path / "held.txt"
    held.write_text("def held(out):\n    return out\n" * 20)
    model = checkpoint("mlm", tmp_path / "short", tokenizer)

    def run(output: str = "out", **more: Any) -> dict[str, Any]:
        given = {"model": model, "data": texts, "validation": str(held), "max_steps": 4, "save_steps": 2}
        return quick("mlm", output=tmp_path / output, **{**given, "overwrite": False, **more})

    return run


def interrupt() -> None:
    raise KeyboardInterrupt


SHORT: dict[str, Any] = {"save_strategy": "no", "eval_on_start": False, "max_steps": 1}


def test_output_with_a_model_or_checkpoints_is_not_replaced_without_overwrite(start: Start, tmp_path: Path) -> None:
    first = start("first")
    elsewhere = str(tmp_path / "first" / "checkpoint-2")
    shutil.copytree(tmp_path / "first", tmp_path / "out")
    for left_out in (None, LOG_NAME, "checkpoint-*"):
        for path in () if left_out is None else list((tmp_path / "out").glob(left_out)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        with pytest.raises(OptionError, match="holds a model, or checkpoints of an earlier run; add --overwrite"):
            start()
        with pytest.raises(OptionError, match="holds a model, or checkpoints of an earlier run; add --overwrite"):
            start(resume_from_checkpoint=elsewhere)
    (tmp_path / "out" / "checkpoint-8").mkdir()
    log = start(overwrite=True, resume_from_checkpoint=elsewhere)
    assert losses(log) == losses(first)
    assert not (tmp_path / "out" / "checkpoint-8").exists()
    assert losses(start("first", resume_from_checkpoint=elsewhere)) == losses(first)
    with pytest.raises(CheckpointError, match="There is no complete checkpoint in 'nowhere' to resume from"):
        start(resume_from_checkpoint="nowhere")


def test_output_that_is_a_file_or_the_model_itself_is_refused(start: Start, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for output, message in (("file", "Cannot write in .*file': Not a directory"), ("short", "would be overwritten")):
        with pytest.raises(LongAttentionError, match=message):
            start(output)


def test_output_that_cannot_be_written_is_refused_before_the_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the data, which are not there."""
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    line = ["--model", "bert", "--data", str(tmp_path / "none.txt"), "--output", str(locked / "new" / "out")]
    with bound_by_permissions():
        assert train("mlm", line) == 1
    assert capsys.readouterr().err == f"Error: Cannot write in '{locked}': Permission denied; nothing was written.\n"
    assert list(locked.iterdir()) == []


@pytest.mark.thorough
@pytest.mark.parametrize("overwrite", [False, True])
def test_half_written_model_has_no_training_log(overwrite: bool, start: Start, tmp_path: Path) -> None:
    """Nor that of the model which it replaces; the run resumes from its last checkpoint."""
    if overwrite:
        start(**SHORT)
    with pytest.raises(KeyboardInterrupt), Ending("half model", 3, interrupt):
        start(overwrite=overwrite)
    assert (tmp_path / "out" / "model.safetensors").exists()
    assert not (tmp_path / "out" / LOG_NAME).exists()
    log = start(resume=True)
    assert read_json(tmp_path / "out" / LOG_NAME) == json.loads(json.dumps(log))


def test_overwriting_a_model_removes_the_files_of_the_old_one(start: Start, tmp_path: Path) -> None:
    other, out = shutil.copytree(tmp_path / "short", tmp_path / "other"), tmp_path / "out"
    (other / "chat_template.jinja").write_text("{{ messages }}")
    (other / "preprocessor_config.json").write_text("{}")
    (other / "LICENSE").write_text("of the other")
    start(model=str(other), **SHORT)
    inherited = {"chat_template.jinja", "preprocessor_config.json", "LICENSE"}
    assert inherited <= {path.name for path in out.iterdir()}
    (out / "notes.txt").write_text("kept")
    start(**SHORT, overwrite=True)
    assert not inherited & {path.name for path in out.iterdir()}
    assert (out / "notes.txt").read_text() == "kept"
    assert AutoTokenizer.from_pretrained(out).chat_template is None


def test_ctrl_c_in_training_says_how_to_resume(
    start: Start, texts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    del start  # made the model
    line = f"""--model {tmp_path / "short"} --data {texts} --output {tmp_path / "out"} --max-steps 4 --save-steps 2
        --no-eval-on-start --max-train-samples 8 --no-bf16 --disable-tqdm True""".split()
    with Ending("half model", 2, interrupt):
        assert train("mlm", line) == 130
    assert (
        capsys.readouterr().err.splitlines()[-1]
        == f"Stopped; run again with --resume, from {tmp_path}/out/checkpoint-2."
    )
    assert train("mlm", [*line, "--resume"]) == 0


def test_checkpoints_without_a_whole_state_are_skipped(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None
    for name in ("checkpoint-10", "checkpoint-9", "checkpoint-100", "checkpoint-best"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "trainer_state.json").write_text('{"global_step": 1}')
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-100"
    (tmp_path / "checkpoint-100" / "trainer_state.json").write_text('{"global_')
    (tmp_path / "checkpoint-10" / "trainer_state.json").unlink()
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-9"


@pytest.mark.parametrize(
    ("at", "advice"), [("checkpoint-2", "--overwrite, since no"), ("out", "--resume, from .*checkpoint-4")]
)
def test_full_disk_leaves_no_half_model_and_the_run_resumes(
    at: str, advice: str, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serialize = safetensors.torch.serialize_file

    def full(tensors: Any, path: Any, *args: Any, **kwargs: Any) -> None:
        if Path(path).parent.name == at:
            Path(path).write_bytes(b"half")
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        serialize(tensors, path, *args, **kwargs)

    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("kept")
    monkeypatch.setattr(safetensors.torch, "serialize_file", full)
    with pytest.raises(CheckpointError, match=f"is full; free space, and run again with {advice}"):
        start()
    assert (tmp_path / "out" / "notes.txt").read_text() == "kept"
    complete = [f"checkpoint-{step}" for step in (2, 4) if at == "out"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [*complete, "notes.txt"]
    monkeypatch.undo()
    assert start(resume=bool(complete), overwrite=True)["metrics"]["after"]


def hold(folder: Path, ready: Any) -> None:
    with only_writer(folder):
        ready.set()
        time.sleep(100)


def test_second_training_into_one_output_is_refused_until_the_first_ends(
    texts: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = checkpoint("mlm", tmp_path / "short", tokenizer)
    out, context = tmp_path / "new" / "out", multiprocessing.get_context("spawn")
    line = f"""--model {model} --data {texts} --max-steps 1 --per-device-train-batch-size 1 --disable-tqdm true
        --bf16 false --output {out}""".split()
    ready = context.Event()
    first = context.Process(target=hold, args=(out, ready))
    first.start()
    assert ready.wait(100)
    for words in ([], ["--overwrite"]):
        assert train("mlm", [*line, *words]) == 1
        assert (
            f"Another training is writing '{out}'; wait for it, or give another --output." in capsys.readouterr().err
        )
    assert first.pid is not None
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    assert train("mlm", line) == 0
    assert not (out / ".lock").exists()
    assert train("mlm", [*line[:-1], str(tmp_path / "none" / "out"), "--max-steps", "x"]) == 2
    assert not (tmp_path / "none").exists()


def test_unknown_metric_for_the_best_model_is_refused(start: Start) -> None:
    given = {"eval_strategy": "steps", "load_best_model_at_end": True, "eval_steps": 2}
    with pytest.raises(
        OptionError, match=r"'eval_acuracy', which is not found in the evaluation metrics. The available .*eval_loss"
    ):
        start(**given, metric_for_best_model="acuracy")


def test_saved_tokenizer_keeps_no_truncation_or_padding_of_the_training(start: Start, tmp_path: Path) -> None:
    """Programs that read tokenizer.json without transformers would cut every text there."""
    words = AutoTokenizer.from_pretrained(tmp_path / "short", model_max_length=64)
    words(["def tree"] * 2, truncation=True, padding="max_length", max_length=20)
    words.save_pretrained(tmp_path / "short")
    start(**SHORT)
    values = read_json(tmp_path / "out" / "tokenizer.json")
    assert (values["truncation"], values["padding"]) == (None, None)
    assert not (tmp_path / "out" / "training_args.bin").exists()


@pytest.mark.parametrize("use_cache", [True, False])
def test_saved_model_keeps_its_cache(use_cache: bool, start: Start, tmp_path: Path) -> None:
    """Trainer trains without a cache, and a decoder saved so would read its whole text again at every token."""
    config = AutoConfig.from_pretrained(tmp_path / "short", use_cache=use_cache)
    config.save_pretrained(tmp_path / "short")
    start(**SHORT)
    assert AutoConfig.from_pretrained(tmp_path / "out").use_cache == use_cache


def test_card_is_filled_from_the_run_and_from_the_model_before(start: Start, tmp_path: Path) -> None:
    write_model_card(
        tmp_path / "short", license="mit", language="de", base_model="someone/small-bert", tags=["letters"]
    )
    log = start(max_steps=2, save_strategy="no")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert (card.data.license, card.data.language, card.data.base_model) == ("mit", "de", "someone/small-bert")
    assert "letters" in card.data.tags
    (result,) = card.data.eval_results
    assert (result.task_type, result.metric_type, result.dataset_name) == ("fill-mask", "loss", "held.txt")
    assert result.metric_value == pytest.approx(log["metrics"]["after"]["loss"], rel=1e-4)
    assert f"## Training\n\nTrained for 2 steps on texts (input length 64); {describe(log)}." in card.text


def log_of(
    rows: dict[str, int], after: dict[str, Any], before: dict[str, Any] | None = None, **settings: Any
) -> dict[str, Any]:
    return {
        "settings": {"data": ["d"], **settings},
        "scored_rows": rows,
        "metrics": {"before": before or {}, "after": after},
    }


def test_scores_are_described_with_their_errors_and_the_part_of_the_data() -> None:
    accuracy = {"accuracy": 90.0, "accuracy_se": 10.0, "n": 10, "loss": 0.1}
    assert describe(log_of({}, accuracy)) == "scored (10 rows): accuracy 90.0 ± 10.0 %"
    assert describe(log_of({"n": 10, "trained": 0}, accuracy, {"accuracy": 50.0})) == (
        "held out (10 rows): accuracy 50.0 % before, 90.0 ± 10.0 % after"
    )
    few = log_of({"n": 3, "trained": 1}, {"loss": 2.9352, "n": 3}, {"loss": 3.0})
    assert describe(few) == "held out (3 rows, 1 of them also trained on): loss 3.000 before, 2.935 after"
    heads = log_of({"n": 3, "trained": 3}, {"topic_accuracy": 1.0, "names_f1": 2.0, "n": 3})
    assert describe(heads) == "on the training data (3 rows): topic accuracy 1.0 %; names F1 2.0 %"
    assert [(row["system"], row["metric"], row["dataset"]) for row in measured(heads)] == [
        ("head topic", "accuracy", "d (training data)"),
        ("head names", "F1", "d (training data)"),
    ]
    (row,) = measured(log_of({"n": 3, "trained": 0}, {"loss": 2.0}, validation="v"))
    assert (row["dataset"], row["metric"], row["unit"]) == ("v", "loss", "nats")


LINE = """--no-bf16 --disable-tqdm True --warmup-steps 1 --gradient-accumulation-steps 1 --logging-steps 1
    --max-steps 8
    --save-steps 2 --save-total-limit 2 --learning-rate 1e-3 --batch-size 2 --max-length 64"""


@pytest.fixture
def model(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> str:
    return converted("mlm", tmp_path, tokenizer, window=32)


def same(one: Path, two: Path) -> None:
    """The losses and the weights, bit for bit."""
    assert losses(one) == losses(two)
    weights = [load_file(folder / "model.safetensors") for folder in (one, two)]
    torch.testing.assert_close(*weights, rtol=0, atol=0)


@pytest.fixture
def data(tmp_path: Path, texts: str) -> dict[str, list[str]]:
    """The data of each task, as on the command line."""
    questions, labelled = write_rows(DATA["qa"][6:26], tmp_path / "qa.jsonl"), table(tmp_path, rows())
    return {
        "mlm": ["--data", texts],
        "qa": ["--data", questions, "--stride", "8"],
        "multitask": ["--tasks", f"topic=classify:{labelled}", f"ask=qa:{questions}"],
    }


@pytest.mark.slow
@pytest.mark.parametrize("task", ["mlm", "qa", "multitask"])
def test_run_killed_anywhere_in_a_save_resumes_to_equal_results(
    task: str, model: str, data: dict[str, list[str]], tmp_path: Path
) -> None:
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
    # the model itself, after the last checkpoint
    assert train("killed", "--resume", point="half model", count=2) == killed
    assert train("killed", "--resume") == 0
    same(tmp_path / "whole", tmp_path / "killed")


class Ended(BaseException):
    """Nothing of a training catches it."""


@pytest.mark.parametrize(("point", "count"), [("half state", 1), ("half model", 2)])
def test_checkpoint_whose_save_ended_early_is_not_resumed(
    point: str, count: int, model: str, texts: str, tmp_path: Path
) -> None:
    held = str(tmp_path / "held.txt")  # short, as two evaluations read it
    Path(held).write_text("def held(out):\n    return out\n" * 20)

    def end() -> None:
        raise Ended

    def train(output: str, **more: Any) -> None:
        given = {"max_steps": 4, "save_steps": 2, "validation": held, "overwrite": False, **more}
        quick("mlm", model, tmp_path / output, texts, **given)

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


OTHER_RUNS: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("texts corrected", {}, "was begun on other training rows; give what it was begun with, or type --overwrite"),
    ("fewer rows", {"max_train_samples": 3}, "with --max-train-samples None, not 3"),
    ("other columns", {"columns": ["text=body"], "validation": ""}, r"with --columns \(none\), not text=body"),
    ("other length", {"max_length": 32}, "with --max-length None, not 32"),
    ("other masks", {"mlm_probability": 0.3}, "with --mlm-probability 0.15, not 0.3"),
    ("other model", {"model": "copy"}, "with --model .*short, not .*copy"),
    ("other config", {}, "with a model of another config.json"),
    ("other seed", {"seed": 7, "validation": ""}, "on other training rows"),
)
"""What differs from the run that is resumed, its arguments, and the refusal."""


def files_below(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.thorough
@every_case("name, changed, words", OTHER_RUNS)
def test_a_run_with_other_data_model_or_options_is_not_resumed(
    name: str, changed: dict[str, Any], words: str, start: Start, tmp_path: Path
) -> None:
    base = tmp_path.parent  # of all cases
    out, source = base / "out", base / "short"
    shutil.rmtree(out, ignore_errors=True)
    rows = [{"text": f"{line} {line}", "body": line} for line in REAL_TEXT.splitlines() if len(line) > 40][:40]
    data = write_rows(rows, tmp_path / "rows.jsonl")
    config = (source / "config.json").read_text()
    start(data=[data], **({"validation": ""} if "validation" in changed else {}))
    checkpoint = files_below(out / "checkpoint-4")
    if name == "texts corrected":
        rows[5]["text"] = rows[5]["text"].upper()
        write_rows(rows, tmp_path / "rows.jsonl")
    if "model" in changed:
        changed = {"model": str(shutil.copytree(source, tmp_path / "copy"))}
    if name == "other config":
        write_json(source / "config.json", {**json.loads(config), "layer_norm_eps": 0.1})
    with pytest.raises(OptionError, match=words):
        start(**{"data": [data], **changed, "resume": True, "max_steps": 6})
    (source / "config.json").write_text(config)
    assert files_below(out / "checkpoint-4") == checkpoint


def test_a_run_is_resumed_with_moved_data_and_more_steps(start: Start, tmp_path: Path) -> None:
    rows = [{"text": f"{line} {line}"} for line in REAL_TEXT.splitlines() if len(line) > 40][:40]
    start(data=[write_rows(rows, tmp_path / "rows.jsonl")])
    (tmp_path / "moved").mkdir()
    moved = write_rows(rows, tmp_path / "moved" / "again.jsonl")
    log = start(data=[moved], resume=True, max_steps=6, save_steps=3, learning_rate=1e-3)
    assert max(entry["step"] for entry in log["history"]) == 6
    state = tmp_path / "out" / "checkpoint-6" / "trainer_state.json"
    values = read_json(state)
    del values["stateful_callbacks"]["RunRecord"]  # as transformers' Trainer writes it
    write_json(state, values)
    with pytest.raises(CheckpointError, match="was not written by longattn train"):
        start(data=[moved], resume=True, max_steps=7)
