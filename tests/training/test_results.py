"""What a run writes: a card with model-index metadata, and a sentence where the disk is full."""

from __future__ import annotations

import errno
import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import PreTrainedTokenizerBase

from hf_longattn.conversion import convert_checkpoint
from hf_longattn.data.lengths import input_length
from hf_longattn.errors import CheckpointError, OptionError
from hf_longattn.training.run import newest_checkpoint
from hf_longattn.training.saving import describe
from tests.grids import grid
from tests.training.conftest import FAST, checkpoint, start_task
from tests.training.test_classification import rows, table


@pytest.fixture
def given(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    convert_checkpoint(
        checkpoint("mlm", tmp_path / "short", tokenizer), tmp_path / "long", mechanism="window", max_length=128, window=32, verify=False
    )
    return {"model": str(tmp_path / "long"), "output_dir": str(tmp_path / "out"), "data": [table(tmp_path, rows())], "max_steps": 6, **FAST}


def test_card_of_a_training_is_filled_from_the_run(given: dict[str, Any]) -> None:
    log = start_task("classify", **given, eval_strategy="steps", eval_steps=3)
    card = ModelCard.load(Path(given["output_dir"]) / "README.md")
    found = {(row.task_type, row.metric_type): row.metric_value for row in card.data.eval_results}
    assert found["text-classification", "accuracy"] == log["metrics"]["after"]["accuracy"]
    assert ("text-classification", "macro_f1") in found
    assert re.search(r"6 steps on data.jsonl.*\. [Hh]eld out \(4 rows\): accuracy .* before, .* after; macro F1", card.text)


def test_scores_on_training_data_are_not_called_held_out(given: dict[str, Any], tmp_path: Path) -> None:
    data = Path(given["data"][0])
    copy, mixed = tmp_path / "copy.jsonl", tmp_path / "mixed.jsonl"
    lines = data.read_text().splitlines(keepends=True)
    copy.write_text("".join(lines))
    mixed.write_text("".join([*lines[:4], '{"text": "another text", "label": "files"}\n']))
    cases = [
        (str(data), "on the training data (40 rows): accuracy ", "data.jsonl"),
        (str(copy), "on the training data (40 rows): accuracy ", "copy.jsonl"),
        (str(mixed), "held out (5 rows, 4 of them also trained on): accuracy ", "mixed.jsonl"),
        ("", "held out (4 rows): accuracy ", "data.jsonl (held out)"),
    ]
    for validation, words, dataset in cases:
        log = start_task("classify", **{**given, "max_steps": 1, "validation": validation})
        card = ModelCard.load(Path(given["output_dir"]) / "README.md")
        assert describe(log).startswith(words)
        assert words in card.text.replace("On the", "on the").replace("Held", "held")
        assert card.data.eval_results[0].dataset_name.startswith(dataset)


def one_of_each(where: str, kind: str) -> bool:
    return (where == "end") == (kind == "errno")


@pytest.mark.thorough
@pytest.mark.parametrize(("where", "kind"), grid(itertools.product(["checkpoint", "end"], ["errno", "torch"]), one_of_each))
def test_full_disk_in_training_is_a_sentence_and_the_run_resumes(
    where: str, kind: str, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, save, calls = Path(given["output_dir"]), torch.save, []

    def full(*args: Any, **kwargs: Any) -> None:
        calls.append(args)
        if folder.joinpath("checkpoint-4").exists():
            if kind == "errno":
                raise OSError(errno.ENOSPC, "No space left on device")
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0") from RuntimeError(
                "basic_ios::clear: iostream error"
            )
        save(*args, **kwargs)

    if where == "checkpoint":
        monkeypatch.setattr(torch, "save", full)
    else:
        monkeypatch.setattr("hf_longattn.training.saving.write_model_card", full)
    with pytest.raises(CheckpointError, match=r"is full; free space, and run again with --resume, from .*checkpoint-\d"):
        start_task("classify", **given, save_steps=2)
    monkeypatch.undo()
    newest = newest_checkpoint(folder)
    assert newest is not None
    assert newest.name == ("checkpoint-2" if where == "checkpoint" else "checkpoint-6")
    log = start_task("classify", **{**given, "max_steps": 8}, save_steps=2, resume=True)
    assert max(entry["step"] for entry in log["history"]) == 8


def test_model_without_a_length_needs_max_length(tokenizer: PreTrainedTokenizerBase) -> None:
    class Endless(torch.nn.Module):
        config: Any = None
        base_model = torch.nn.Module()

    tokenizer.model_max_length, usual = int(1e30), tokenizer.model_max_length
    try:
        with pytest.raises(OptionError, match="give --max-length"):
            input_length(Endless(), tokenizer, None)  # type: ignore[arg-type]
        assert input_length(Endless(), tokenizer, 300) == 300  # type: ignore[arg-type]
    finally:
        tokenizer.model_max_length = usual
