"""The reference reader: its recipes and packed groups, a run that resumes, a checkpoint without guides."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertForQuestionAnswering, PreTrainedTokenizerBase

from hf_longattn.data.qa_features import QAFormat
from hf_longattn.data.qa_schemas import save_qa
from hf_longattn.errors import OptionError
from hf_longattn.training.args import build_arguments, parse_arguments
from hf_longattn.training.checkpoints import newest_checkpoint
from scripts.dev.studies.qa_finetune import READER, ReaderCollator, add_waves, deepen, describe_training, finetune_qa
from scripts.dev.studies.qa_packing import encode_packed
from scripts.dev.studies.variable_tracking import DocumentShape, Filler, make_document

FAST: dict[str, Any] = {"bf16": False, "disable_tqdm": True, "logging_steps": 1, "threads": 1, "warmup_steps": 1}


@pytest.fixture
def given(tmp_path: Path, tiny_model: BertForQuestionAnswering, tokenizer: PreTrainedTokenizerBase, filler: Filler) -> dict[str, Any]:
    tiny_model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    records = [r for seed in range(4) for r in make_document(filler, 300, DocumentShape(), random.Random(seed), tokenizer)]
    save_qa([{**record, "id": str(i)} for i, record in enumerate(records)], tmp_path / "data.jsonl")
    return {"model": str(tmp_path / "model"), "data": [str(tmp_path / "data.jsonl")], "tokens_per_step": 1024, "pack": 3}


def losses(log: dict[str, Any]) -> list[float]:
    return [entry["loss"] for entry in log["history"] if "loss" in entry]


@pytest.mark.parametrize("recipe", ["qa_reference_512", "qa_reference_wrapped", "qa_long_8192"])
def test_the_recipes_are_valid(recipe: str, repository: Path) -> None:
    path = str(repository / "scripts" / "dev" / "studies" / "configs" / f"{recipe}.yaml")
    model_args, _, args = parse_arguments(READER, ["--config", path, "--model", "m", "--output", "o"], "")
    assert (model_args.model, args.output_dir) == ("m", "o")
    assert args.learning_rate < 1e-2
    assert args.max_minutes is not None


def test_a_resumed_run_ends_like_an_uninterrupted_one(given: dict[str, Any], tmp_path: Path) -> None:
    def run(name: str, **extra: Any) -> dict[str, Any]:
        values = {"max_steps": 4, "random_positions": True, "windows": [0, 16], "guide_weight": 0.3, **FAST, **extra}
        return finetune_qa(*build_arguments(READER, output_dir=str(tmp_path / name), **given, **values))

    whole = run("whole")
    run("parts", save_steps=2)
    newest = newest_checkpoint(tmp_path / "parts")
    assert newest is not None
    shutil.rmtree(newest)
    assert losses(run("parts", save_steps=2, resume=True)) == pytest.approx(losses(whole), abs=1e-4)
    saved = BertForQuestionAnswering.from_pretrained(tmp_path / "parts")
    assert set(saved.state_dict()) == set(BertForQuestionAnswering.from_pretrained(given["model"]).state_dict())
    assert "Answers found" in describe_training(whole)


def test_held_out_questions_are_measured_by_the_usual_format(given: dict[str, Any], tmp_path: Path) -> None:
    output = {"output_dir": str(tmp_path / "out"), "validation": given["data"][0], "max_length": 480}
    log = finetune_qa(*build_arguments(READER, **given, **output, max_steps=2, **FAST))
    assert log["held_out_loss"]["after"] > 0


def test_a_deeper_model_has_copies_of_the_layers(tiny_model: BertForQuestionAnswering) -> None:
    deeper = deepen(tiny_model, [0, 1, 0])
    assert deeper.config.num_hidden_layers == 3
    own, other = tiny_model.bert.encoder.layer[0].state_dict(), deeper.bert.encoder.layer[2].state_dict()
    assert all(torch.equal(own[name], other[name]) for name in own)
    assert torch.equal(deeper.qa_outputs.weight, tiny_model.qa_outputs.weight)
    with pytest.raises(OptionError, match="layers takes numbers from 0 to"):
        deepen(tiny_model, [0, 99])


def test_waves_continue_across_the_seam(tiny_model: BertForQuestionAnswering) -> None:
    wide = deepen(tiny_model, [0])
    wide.config.hidden_size = 64
    wide = type(wide)(wide.config)
    table = wide.bert.embeddings.position_embeddings.weight
    before = table.detach().clone()
    add_waves(wide, 0.3)
    waves = table.detach() - before
    steps = (waves - waves.roll(1, 0)).norm(dim=1)
    assert torch.allclose(steps, steps[:1], rtol=1e-3)
    assert torch.allclose(waves.norm(dim=1), torch.tensor(0.3 * 13**0.5), rtol=1e-3)


def test_held_out_answers_are_logged(given: dict[str, Any], tmp_path: Path) -> None:
    extra = {"held_out": given["data"], "held_out_steps": 2, "layers": [0, 1, 1]}
    log = finetune_qa(*build_arguments(READER, output_dir=str(tmp_path / "out"), **given, **extra, max_steps=2, **FAST))
    assert [entry["held_out_data"] for entry in log["history"] if "held_out_data" in entry] == [pytest.approx(0.5, abs=0.5)]


def test_groups_are_padded_with_their_questions(filler: Filler, tokenizer: PreTrainedTokenizerBase) -> None:
    records = make_document(filler, 300, DocumentShape(), random.Random(1), tokenizer)
    group = [encode_packed(records[2:5], tokenizer, QAFormat(1024)), encode_packed(records[5:6], tokenizer, QAFormat(1024))]
    batch = ReaderCollator(tokenizer)([group])
    assert batch["starts"].shape == (2, 3)
    assert batch["starts"][1, 1:].tolist() == [-1, -1]
    assert set(batch["guides"][:, 0].tolist()) == {0, 1}
    assert batch["guides"].shape[1] == batch["places"].shape[1] == 4
    assert torch.equal(batch["attention_mask"].sum(1), torch.tensor([len(feature) for feature in group]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lookup_lengths": [100]}, "lookup_lengths takes two numbers"),
        ({"code_lengths": [200, 100]}, "code_lengths takes two numbers"),
        ({"shares": [0.5, 0.5]}, "one each"),
        ({"num_train_epochs": 1.0}, "endless"),
        ({"data": []}, "no data given"),
    ],
)
def test_contradictions_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        build_arguments(READER, **{"model": "m", "output_dir": "o", "data": ["d.json"], **settings})
