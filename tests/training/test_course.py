"""How every fine-tuning runs: it resumes from a whole checkpoint, says its losses, and all of its processes stop together."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForQuestionAnswering, PreTrainedTokenizerBase

from hf_longattn.errors import CheckpointError, OptionError
from hf_longattn.training import course
from hf_longattn.training.qa_data import save_qa
from hf_longattn.training.settings import ENDLESS, parse_settings, training_arguments
from hf_longattn.training.timed import Clock, timed_schedule
from research.qa_finetune import finetune_qa
from research.qa_settings import QASettings
from research.variable_tracking import Filler, LookupShape, make_document
from tests.ranks import run_two_ranks

FAST: dict[str, Any] = {"bf16": False, "progress": False, "threads": 1, "tokens_per_step": 512}
SHAPE = {"vocab_size": 1024, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture
def model(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> str:
    torch.manual_seed(0)
    config = BertConfig(**SHAPE, max_position_embeddings=256, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
    BertForQuestionAnswering(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def data(tmp_path: Path, filler: Filler, tokenizer: PreTrainedTokenizerBase) -> str:
    import random

    records = [r for seed in range(3) for r in make_document(filler, 200, LookupShape(), random.Random(seed), tokenizer)]
    save_qa([{**record, "id": str(i)} for i, record in enumerate(records)], tmp_path / "data.jsonl")
    return str(tmp_path / "data.jsonl")


def losses(log: dict[str, Any]) -> list[float]:
    return [entry["loss"] for entry in log["history"] if "loss" in entry]


@pytest.mark.parametrize("duration", [{"max_steps": 6}, {"epochs": 2.0}])
def test_a_resumed_run_has_the_losses_of_an_uninterrupted_one(model: str, data: str, tmp_path: Path, duration: dict[str, Any]) -> None:
    """With dropout, random positions and windows: everything that is drawn belongs to its step."""

    def run(name: str, **more: Any) -> dict[str, Any]:
        extra = {"random_positions": True, "windows": [0, 16], "logging_steps": 1, "gradient_accumulation": 2, **duration, **FAST, **more}
        return finetune_qa(QASettings(model, str(tmp_path / name), [data], **extra))

    whole = run("whole")
    run("parts", save_steps=2)
    newest = course.newest_checkpoint(tmp_path / "parts" / "checkpoints")
    assert newest is not None
    shutil.rmtree(newest)
    resumed = run("parts", save_steps=2, resume=True)
    assert losses(resumed) == losses(whole)
    assert len(losses(whole)) >= 6


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES = {
    "empty": lambda folder: [path.unlink() for path in folder.iterdir()],
    "without weights": lambda folder: (folder / "model.safetensors").unlink(),
    **{
        f"half of {name}": (lambda folder, name=name: cut(folder / name))
        for name in ("model.safetensors", "optimizer.pt", "trainer_state.json")
    },
    "half of a memory": lambda folder: (folder / "segment_memory_0.safetensors").write_bytes(b"half"),
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


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_newest_whole_checkpoint_is_taken(damage: str, checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(course.logger, "warning", said.append)
    folder = shutil.copytree(checkpoints, tmp_path / "checkpoints")
    assert course.newest_checkpoint(folder) == str(folder / "checkpoint-4")
    assert not said
    DAMAGES[damage](folder / "checkpoint-4")
    assert course.newest_checkpoint(folder) == str(folder / "checkpoint-2")
    assert "checkpoint-4 has" in said[0]
    DAMAGES[damage](folder / "checkpoint-2")
    with pytest.raises(CheckpointError, match=r"is whole: checkpoint-4 has .*; checkpoint-2 has .*; leave --resume out"):
        course.newest_checkpoint(folder)


def test_no_checkpoint_is_no_error(tmp_path: Path) -> None:
    assert course.newest_checkpoint(tmp_path / "nowhere") is None


def test_a_short_run_says_its_losses(model: str, data: str, tmp_path: Path) -> None:
    log = finetune_qa(QASettings(model, str(tmp_path / "out"), [data], max_steps=3, **FAST))
    assert len(losses(log)) == 3


def test_the_warm_up_is_a_share_of_the_run() -> None:
    clock = Clock(None)
    for steps in (14, 1000):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        scale = timed_schedule(optimizer, clock, steps, 0.1).lr_lambdas[0]
        risen = [scale(step) for step in range(steps)]
        assert risen.index(max(risen)) <= steps // 10 + 1
        assert max(risen) > 0.85


def test_minutes_alone_are_not_ended_by_steps() -> None:
    settings = QASettings("m", "o", ["d"], max_minutes=60.0, bf16=False)
    assert training_arguments(settings).max_steps == ENDLESS
    settings.max_minutes = None
    assert training_arguments(settings).max_steps == 1000


def test_the_defaults_are_the_field_s() -> None:
    settings = QASettings("m", "o", ["d"])
    assert (settings.learning_rate, settings.adam_beta2, settings.random_positions, settings.pack) == (3e-5, 0.999, False, 1)
    with pytest.raises(OptionError, match="no data given"):
        QASettings("m", "o").check()


def test_the_help_of_a_switch_off_says_off(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_settings(QASettings, ["--help"], "")
    assert "Turn --bf16 off" in " ".join(capsys.readouterr().out.split())


PROGRAM = """
import json, time
import torch.nn as nn
from transformers import TrainerCallback, TrainingArguments
from hf_longattn.training import timed
from hf_longattn.training.timed_trainer import TimedTrainer

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 1)
    def forward(self, x):
        time.sleep(0.05 + 0.1 * rank)
        return {"loss": self.layer(x).pow(2).mean()}

clock = time.monotonic
timed.time = type("Time", (), {"monotonic": staticmethod(lambda: clock() * (1 + rank))})  # the second process's clock runs fast
os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), MASTER_ADDR="localhost", MASTER_PORT="29555")
torch.manual_seed(0)
rates = []

class Note(TrainerCallback):
    def on_step_end(self, args, state, control, lr_scheduler=None, **_):
        rates.append(lr_scheduler.get_last_lr()[0])

arguments = TrainingArguments("out", max_steps=1000, report_to=[], use_cpu=True, disable_tqdm=True, warmup_steps=0.1, learning_rate=0.1)
data = [{"x": torch.randn(4)} for _ in range(64)]
trainer = TimedTrainer(Model(), arguments, train_dataset=data, max_minutes=0.03, callbacks=[Note()])
trainer.train()
weights = [value.tolist() for value in trainer.model.state_dict().values()]
print(json.dumps([trainer.state.global_step, rates, weights]))
"""


def test_all_processes_stop_at_the_first_one_s_time_with_equal_rates(repository: Path, tmp_path: Path) -> None:
    first, second = (json.loads(said.splitlines()[-1]) for said in run_two_ranks(PROGRAM, repository, tmp_path))
    assert first == second
    assert 0 < first[0] < 1000
    assert first[1][-1] < 0.5 * max(first[1])
