"""A run from settings to files: on anyone's SQuAD file, resumable, stopped in time, saved as a plain model."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForQuestionAnswering, BertForQuestionAnswering, PreTrainedTokenizerBase

from hf_longattn import convert_checkpoint
from hf_longattn.errors import CheckpointError, OptionError
from hf_longattn.training.course import LOG_NAME
from hf_longattn.training.qa_data import save_qa
from research.qa_finetune import describe_training, finetune_qa
from research.qa_settings import QASettings
from research.variable_tracking import Filler, LookupShape, make_document

FAST = {"bf16": False, "progress": False, "logging_steps": 1, "threads": 1, "warmup_steps": 1}


@pytest.fixture
def checkpoint(tmp_path: Path, tiny_model: BertForQuestionAnswering, tokenizer: PreTrainedTokenizerBase) -> str:
    tiny_model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def data(tmp_path: Path, filler: Filler, tokenizer: PreTrainedTokenizerBase) -> str:
    records = [r for seed in range(4) for r in make_document(filler, 600, LookupShape(), random.Random(seed), tokenizer)]
    save_qa([{**record, "id": str(i)} for i, record in enumerate(records)], tmp_path / "data.jsonl")
    return str(tmp_path / "data.jsonl")


def losses(log: dict) -> list[float]:
    return [entry["loss"] for entry in log["history"] if "loss" in entry]


def test_epochs_over_a_file(checkpoint: str, data: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    log = finetune_qa(
        QASettings(
            checkpoint,
            str(out),
            [data],
            epochs=2,
            learning_rate=1e-2,
            tokens_per_step=2048,
            gradient_accumulation=2,
            dtype="float16",
            **FAST,
        )
    )
    assert losses(log)[-1] < losses(log)[0]
    assert json.loads((out / LOG_NAME).read_text())["settings"]["epochs"] == 2
    saved = BertForQuestionAnswering.from_pretrained(out)
    assert saved.dtype == torch.float16
    assert set(saved.state_dict()) == set(BertForQuestionAnswering.from_pretrained(checkpoint).state_dict())


@pytest.mark.parametrize(("wanted", "carried"), [(None, True), (True, True), (False, False)])
def test_a_long_model_reads_as_it_was_trained(checkpoint: str, data: str, tmp_path: Path, wanted: bool | None, carried: bool) -> None:
    convert_checkpoint(checkpoint, tmp_path / "long", mechanism="longformer", window=16, max_length=700, verify=False)
    settings = QASettings(str(tmp_path / "long"), str(tmp_path / "out"), [data], max_steps=1, global_question=wanted, **FAST)
    finetune_qa(settings)
    saved = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "out")
    assert (saved.config.question_separator_id is not None) == carried


def test_a_model_without_global_tokens_trains(checkpoint: str, data: str, tmp_path: Path) -> None:
    convert_checkpoint(checkpoint, tmp_path / "long", mechanism="window", window=16, max_length=700, verify=False)
    settings = QASettings(str(tmp_path / "long"), str(tmp_path / "out"), [data], max_steps=1, **FAST)
    finetune_qa(settings)
    settings.global_question = True
    with pytest.raises(OptionError, match="takes global tokens; leave it out"):
        finetune_qa(settings)


def test_the_loss_on_held_out_questions_before_and_after(checkpoint: str, data: str, tmp_path: Path) -> None:
    settings = QASettings(checkpoint, str(tmp_path / "out"), [data], validation=data, max_steps=12, learning_rate=1e-2, **FAST)
    log = finetune_qa(settings)
    assert log["held_out_loss"]["after"] < log["held_out_loss"]["before"]
    assert "before" in describe_training(log)


def test_the_loss_of_a_step_is_the_mean_of_its_batches(checkpoint: str, data: str, tmp_path: Path) -> None:
    first = [
        losses(finetune_qa(QASettings(checkpoint, str(tmp_path / str(n)), [data], max_steps=1, gradient_accumulation=n, **FAST)))[0]
        for n in (1, 4)
    ]
    assert first[1] == pytest.approx(first[0], rel=0.3)


def test_resumed_run_ends_like_an_uninterrupted_one(checkpoint: str, data: str, tmp_path: Path) -> None:
    def run(name: str, **extra: object) -> dict:
        settings = {"max_steps": 4, "crop": [60, 120], "tokens_per_step": 1024, "random_positions": False, **FAST, **extra}
        return finetune_qa(QASettings(checkpoint, str(tmp_path / name), [data], **settings))  # type: ignore[arg-type]

    whole = run("whole")
    run("parts", save_steps=2)
    for folder in (tmp_path / "parts" / "checkpoints").glob("checkpoint-4"):
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    resumed = run("parts", save_steps=2, resume=True)
    assert losses(resumed) == pytest.approx(losses(whole), abs=1e-4)


def test_stops_in_time(checkpoint: str, data: str, tmp_path: Path) -> None:
    settings = QASettings(
        checkpoint, str(tmp_path / "o"), [data], max_steps=100_000, max_minutes=0.02, crop=[40, 60], tokens_per_step=256, **FAST
    )
    log = finetune_qa(settings)
    assert 0 < len(losses(log)) < 1000
    rates = [entry["learning_rate"] for entry in log["history"] if "learning_rate" in entry]
    assert rates[-1] < 0.2 * max(rates)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": ""}, "no model given"),
        ({"output": ""}, "no output folder"),
        ({"data": []}, "no data given"),
        ({"crop": [100]}, "crop takes two numbers"),
        ({"data": ["lookup"], "epochs": 1.0}, "endless"),
        ({"dtype": "half"}, "float32, float16 or bfloat16"),
    ],
)
def test_contradictions_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        QASettings(**{"model": "m", "output": "o", "data": ["d.json"], **settings}).check()


def test_missing_checkpoint_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot load"):
        finetune_qa(QASettings(str(tmp_path / "nowhere"), str(tmp_path / "o"), ["docstring"]))
