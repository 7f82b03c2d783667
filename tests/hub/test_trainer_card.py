"""transformers' own ways to the Hub: `model.push_to_hub` and `Trainer.push_to_hub` leave our card there, not an empty one."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from transformers import AutoModelForMaskedLM, Trainer, TrainingArguments

from hf_longattn.cli.train import train
from hf_longattn.errors import HubError
from hf_longattn.hub import write_model_card
from hf_longattn.hub.push import push_loaded
from hf_longattn.training.trainer import LongTrainer

from ..hub_state import Hub
from ..training.conftest import start_task
from .conftest import TEXT

REPO = "writer/tuned"
METADATA = {"license": "apache-2.0", "language": "en", "datasets": ["bookcorpus"], "base_model": "someone/small-bert"}


@pytest.fixture
def folder(converted: Callable[[str], Path], tmp_path: Path) -> Path:
    shutil.copytree(converted("bert"), tmp_path / "long-bert")
    write_model_card(tmp_path / "long-bert", **METADATA, tags=["biology"])
    return tmp_path / "long-bert"


def pushed_card(server: Hub, tmp_path: Path) -> ModelCard:
    (tmp_path / "pushed.md").write_bytes(server.repos[REPO].branches["main"]["README.md"])
    return ModelCard.load(tmp_path / "pushed.md", ignore_metadata_errors=False)


def test_push_to_hub_of_a_model_sends_its_card(server: Hub, folder: Path, tmp_path: Path) -> None:
    model = AutoModelForMaskedLM.from_pretrained(folder)
    model.push_to_hub(REPO)
    card = pushed_card(server, tmp_path)
    assert {name: card.data.to_dict().get(name) for name in METADATA} == METADATA
    assert set(card.data.tags) == {"biology", "hf_longattn", "long-context"}
    assert f'from_pretrained("{REPO}")' in card.text
    there = server.repos[REPO].branches["main"]
    there["README.md"] = there["README.md"].replace(b"## Limits", b"## What it cannot do")
    model.push_to_hub(REPO)
    assert "## What it cannot do" in pushed_card(server, tmp_path).text, "a card that is there stays"


def test_saving_with_a_push_sends_the_changed_files_as_longattn_push_does(server: Hub, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "notes.txt").write_text("mine")
    model = AutoModelForMaskedLM.from_pretrained(folder)
    model.save_pretrained(tmp_path / "saved", push_to_hub=True, repo_id=REPO, commit_message="First")
    sent = server.repos[REPO].branches["main"]
    assert {"config.json", "model.safetensors", "README.md"} == set(sent)
    assert f'from_pretrained("{REPO}")' in sent["README.md"].decode()
    assert server.repos[REPO].messages == ["First"]
    assert model.push_to_hub(REPO).startswith(f"{server.endpoint}/{REPO}/commit/")
    with pytest.raises(HubError, match="is public, but it was to be private"):
        model.push_to_hub(REPO, private=True)
    with pytest.raises(HubError, match="Repo id must be in the form"):
        push_loaded(folder, "a/b/c", str(folder))


@pytest.mark.parametrize("trainer", [Trainer, LongTrainer])
def test_plain_trainer_keeps_the_tags_of_the_card(trainer: type[Trainer], server: Hub, folder: Path, tmp_path: Path) -> None:
    model = AutoModelForMaskedLM.from_pretrained(folder)
    arguments = TrainingArguments(output_dir=str(tmp_path / "run"), report_to=[], hub_model_id=REPO, use_cpu=True)
    trainer(model, arguments).push_to_hub()
    assert {"hf_longattn", "long-context"} <= set(pushed_card(server, tmp_path).data.tags)
    commit = trainer(model, arguments).push_to_hub(blocking=False)
    assert isinstance(commit, Future)
    commit.result()


def test_longattn_training_pushes_its_card(server: Hub, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    for number in range(4):
        (tmp_path / "texts" / f"{number}.txt").write_text(TEXT * (number + 1))
    given = {"model": str(folder), "output_dir": str(tmp_path / "run"), "data": [str(tmp_path / "texts")], "max_length": 64, "bf16": False}
    start_task("mlm", **given, max_steps=1, push_to_hub=True, hub_model_id=REPO)
    card = pushed_card(server, tmp_path)
    assert {name: card.data.to_dict().get(name) for name in METADATA} == METADATA
    assert "Fine-tuned from `long-bert`: 1 step on texts (input length 64). " in card.text
    assert f'from_pretrained("{REPO}")' in card.text
    there = server.repos[REPO].branches["main"]
    assert {"model.safetensors", "tokenizer.json"} <= set(there)
    assert "training_args.bin" not in there


def test_repository_of_others_and_scores_are_not_pushed(
    server: Hub, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.txt").write_text(TEXT)
    line = ["--model", str(folder), "--data", str(tmp_path / "one.txt"), "--validation", str(tmp_path / "two.txt"), "--max-length", "64"]
    line += ["--output", str(tmp_path / "run"), "--no-bf16", "--push-to-hub", "--hub-model-id", "stranger/tuned"]
    assert train("mlm", line) == 1
    assert re.search(r"'stranger/tuned' cannot be uploaded: .*403 Forbidden.*\.$", capsys.readouterr().err.strip())
    assert train("mlm", [*line, "--no-do-train"]) == 1
    assert "nothing is trained here" in capsys.readouterr().err
    assert not server.repos


def test_public_repository_is_refused_before_a_private_training(
    server: Hub, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.add(REPO)
    for name in ("one", "two"):
        (tmp_path / f"{name}.txt").write_text(TEXT)
    texts = ["--data", str(tmp_path / "one.txt"), "--validation", str(tmp_path / "two.txt")]
    line = ["--model", str(folder), *texts, "--output", str(tmp_path / "run"), "--no-bf16"]
    assert train("mlm", [*line, "--push-to-hub", "--hub-model-id", REPO, "--hub-private-repo", "True"]) == 1
    assert "'writer/tuned' is public, but it was to be private" in capsys.readouterr().err
    assert not (tmp_path / "run" / "model.safetensors").exists()
