"""The latest complete checkpoint is found; damaged ones are skipped with a warning, and refused if there is no other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import BertConfig, BertForQuestionAnswering

from hf_longattn.errors import CheckpointError
from hf_longattn.training import checkpoints as checkpoints_module
from hf_longattn.training.args import ModelArguments
from hf_longattn.training.checkpoints import (
    check_checkpoint,
    check_same_data,
    check_same_model,
    damage,
    newest_checkpoint,
)
from hf_longattn.training.old_trainer import Processes
from hf_longattn.training.processes import how_to_resume
from hf_longattn.training.tasks.classify import ClassificationDataArguments
from hf_longattn.training.training_args import LongTrainingArguments, TaskArguments
from hf_longattn.training.training_loop import RunSettings
from tests.cases import every_case

SHAPE = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES = {
    "empty": lambda folder: [path.unlink() for path in folder.iterdir()],
    "half of the state": lambda folder: cut(folder / "trainer_state.json"),
    "without optimizer": lambda folder: (folder / "optimizer.pt").unlink(),
    "state of another step": lambda folder: (folder / "trainer_state.json").write_text('{"global_step": 1}'),
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints as Trainer writes them."""
    import datasets
    from transformers import Trainer, TrainingArguments

    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    rows = datasets.Dataset.from_dict({"input_ids": [[1, 2, 3]] * 8, "start_positions": [0] * 8, "end_positions": [1] * 8})
    arguments = TrainingArguments(str(folder), max_steps=4, save_steps=2, report_to=[], use_cpu=True, disable_tqdm=True)
    Trainer(BertForQuestionAnswering(BertConfig(**SHAPE)), arguments, train_dataset=rows).train()
    return folder


@every_case("how", DAMAGES)
def test_latest_complete_checkpoint_is_resumed_and_damaged_ones_are_named(
    how: str, checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(checkpoints_module.logger, "warning", said.append)
    folder = shutil.copytree(checkpoints, tmp_path / "checkpoints")
    assert newest_checkpoint(folder) == str(folder / "checkpoint-4")
    assert not said
    DAMAGES[how](folder / "checkpoint-4")
    assert newest_checkpoint(folder) == str(folder / "checkpoint-2")
    assert "checkpoint-4 has" in said[0]
    said.clear()
    assert how_to_resume(folder).endswith("checkpoint-2; run again with --resume")
    assert not said
    DAMAGES[how](folder / "checkpoint-2")
    with pytest.raises(CheckpointError, match=r"is complete: checkpoint-4 has .*; checkpoint-2 has .*; to start again, give --overwrite"):
        newest_checkpoint(folder)


def test_resume_with_another_learning_rate_or_weight_decay_is_refused(checkpoints: Path, tmp_path: Path) -> None:
    """Trainer would go on with those of the checkpoint."""
    folder = Path(shutil.copytree(checkpoints / "checkpoint-2", tmp_path / "checkpoint-2"))
    state = json.loads((folder / "trainer_state.json").read_text())
    state["stateful_callbacks"]["RunSettings"] = RunSettings({"model": "one", "learning_rate": 1e-4}).state()
    (folder / "trainer_state.json").write_text(json.dumps(state))
    for given in ({}, {"learning_rate": 1e-4}, {"num_train_epochs": 7.0}):
        check_same_model(folder, "one", LongTrainingArguments(str(tmp_path), bf16=False, **given))
    for given, words in (
        ({"learning_rate": 2e-4}, r"learning_rate=0\.0001, .* not 0\.0002"),
        ({"weight_decay": 0.5}, r"weight_decay=0\.0"),
    ):
        with pytest.raises(CheckpointError, match=rf"{words}.*; leave the option out, or start a new training with --model .*checkpoint-2"):
            check_same_model(folder, "one", LongTrainingArguments(str(tmp_path), bf16=False, **given))


def test_resume_with_another_model_is_refused(checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(shutil.copytree(checkpoints / "checkpoint-2", tmp_path / "checkpoint-2"))
    check_same_model(folder, "anything")  # Trainer's own does not say what it trains
    (tmp_path / "one").mkdir()
    state = json.loads((folder / "trainer_state.json").read_text())

    def trained(model: str) -> None:
        state["stateful_callbacks"]["RunSettings"] = RunSettings({"model": model}).state()
        (folder / "trainer_state.json").write_text(json.dumps(state))

    monkeypatch.chdir(tmp_path)
    trained("one")
    for same in (str(tmp_path / "one"), "one", "./one"):
        check_same_model(folder, same)
    with pytest.raises(
        CheckpointError, match=r"continues a training of '.*one', not of 'elsewhere/one'; give --model .*one, or --overwrite"
    ):
        check_same_model(folder, "elsewhere/one")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "one").rename(tmp_path / "elsewhere" / "one")
    check_same_model(folder, "elsewhere/one")  # was moved
    for other in ("elsewhere/two", "writer/one"):
        with pytest.raises(CheckpointError, match="continues a training of"):
            check_same_model(folder, other)
    trained("google-bert/bert-base-uncased")
    check_same_model(folder, "google-bert/bert-base-uncased")
    for other in ("someone-else/bert-base-uncased", "bert-base-uncased", "elsewhere/bert-base-uncased"):
        (tmp_path / "elsewhere" / "bert-base-uncased").mkdir(exist_ok=True)
        with pytest.raises(CheckpointError, match="continues a training of 'google-bert/bert-base-uncased', not of "):
            check_same_model(folder, other)


def test_resume_with_other_data_or_seed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other rows would be held out, and the first run trained on some of them."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.csv", "b.csv"):
        Path(name).touch()

    def run(data: tuple[str, ...] = ("a.csv",), seed: int = 42, steps: int = 3, **options: Any) -> TaskArguments:
        training = LongTrainingArguments("out", bf16=False, seed=seed, max_steps=steps, per_device_train_batch_size=steps)
        return TaskArguments(ModelArguments("one"), ClassificationDataArguments(data=list(data), **options), training)

    earlier = RunSettings(run(validation="b.csv").settings).settings
    check_same_data(earlier, run(validation="b.csv", steps=9), Path("checkpoint-2"))
    check_same_data(earlier, run((str(tmp_path / "a.csv"),), validation="./b.csv"), Path("checkpoint-2"))
    check_same_data({}, run(seed=1), Path("checkpoint-2"))  # a run that does not say
    for other, option in (
        (run(), "validation"),
        (run(("b.csv",), validation="b.csv"), "data"),
        (run(("a.csv", "b.csv"), validation="b.csv"), "data"),
        (run(validation="b.csv", seed=1), "seed"),
        (run(validation="b.csv", max_train_samples=8), "max-train-samples"),
        (run(validation="b.csv", split="test"), "split"),
        (run(validation="b.csv", text_column="title"), "text-column"),
    ):
        with pytest.raises(CheckpointError, match=rf"'checkpoint-2' continues a training with another --{option} \(.*; give its data"):
            check_same_data(earlier, other, Path("checkpoint-2"))
    (tmp_path / "moved").mkdir()
    Path("a.csv").rename("moved/a.csv")
    check_same_data(earlier, run(("moved/a.csv",), validation="b.csv"), Path("checkpoint-2"))


def test_checkpoint_that_lacks_the_random_state_of_a_process_is_incomplete(checkpoints: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoints / "checkpoint-2", tmp_path / "checkpoint-2"))
    state = json.loads((folder / "trainer_state.json").read_text())
    state["stateful_callbacks"]["Processes"] = Processes(2).state()
    (folder / "trainer_state.json").write_text(json.dumps(state))
    (folder / "rng_state.pth").rename(folder / "rng_state_0.pth")
    assert damage(folder) == "has no rng_state_1.pth"
    shutil.copy(folder / "rng_state_0.pth", folder / "rng_state_1.pth")
    assert damage(folder) is None


def test_named_checkpoint_that_does_not_exist_is_refused(checkpoints: Path) -> None:
    with pytest.raises(CheckpointError, match=r"There is no checkpoint '.*checkpoint-3'; give .*checkpoint-2, .*checkpoint-4\.$"):
        check_checkpoint(checkpoints / "checkpoint-3")
    assert check_checkpoint(checkpoints / "checkpoint-2").endswith("checkpoint-2")


def test_checkpoints_are_ordered_by_number(tmp_path: Path) -> None:
    for name in ("checkpoint-10", "checkpoint-9", "checkpoint-100", "checkpoint-best"):
        (tmp_path / name).mkdir()
    assert [path.name for path in checkpoints_module.checkpoints(tmp_path)] == ["checkpoint-9", "checkpoint-10", "checkpoint-100"]
