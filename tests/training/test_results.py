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
from hf_longattn.training.checkpoints import newest_checkpoint
from hf_longattn.training.old_trainer import Throughput
from hf_longattn.training.parsing import build_arguments
from hf_longattn.training.results import held_out_in_words, loss_in_words, loss_name, measured, score_in_words
from hf_longattn.training.tasks.classify import CLASSIFICATION, describe_classification_result, finetune_classification
from tests.grids import grid
from tests.training.conftest import FAST, checkpoint
from tests.training.test_classification import rows, table


@pytest.fixture
def given(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    convert_checkpoint(
        checkpoint("mlm", tmp_path / "short", tokenizer), tmp_path / "long", mechanism="window", max_length=128, window=32, verify=False
    )
    return {"model": str(tmp_path / "long"), "output_dir": str(tmp_path / "out"), "data": [table(tmp_path, rows())], "max_steps": 6, **FAST}


def test_card_of_a_training_is_filled_from_the_run(given: dict[str, Any]) -> None:
    log = finetune_classification(*build_arguments(CLASSIFICATION, **given, eval_strategy="steps", eval_steps=3))
    folder = Path(given["output_dir"])
    card = ModelCard.load(folder / "README.md")
    found = {(row.task_type, row.metric_type): row.metric_value for row in card.data.eval_results}
    assert found["text-classification", "accuracy"] == log["held_out"]["after"]["accuracy"]
    assert ("text-classification", "macro_f1") in found
    assert re.search(r"Held out: accuracy .* macro F1", card.text), "a sentence keeps its capitals"


def said_of(given: dict[str, Any], **changes: Any) -> tuple[str, str, str]:
    """The result of a classification on the terminal, its card's text, and the name of the data in the card's metadata."""
    log = finetune_classification(*build_arguments(CLASSIFICATION, **{**given, "max_steps": 1, **changes}))
    card = ModelCard.load(Path(given["output_dir"]) / "README.md")
    return describe_classification_result(log), card.text, card.data.eval_results[0].dataset_name


def test_scores_on_training_data_are_not_called_held_out(given: dict[str, Any], tmp_path: Path) -> None:
    data = Path(given["data"][0])
    copy, mixed = tmp_path / "copy.jsonl", tmp_path / "mixed.jsonl"
    lines = data.read_text().splitlines(keepends=True)
    copy.write_text("".join(lines))
    mixed.write_text("".join([*lines[:4], '{"text": "another text", "label": "files"}\n']))
    for validation in (data, copy):
        said, card, dataset = said_of(given, validation=str(validation))
        assert said.startswith("on the training data: accuracy ")
        assert "On the training data: accuracy" in card
        assert "eld out" not in card
        assert dataset == f"{validation.name} (training data)"
    said, _, dataset = said_of(given, validation=str(mixed))
    assert said.startswith("held out but for 4 training rows: accuracy ")
    assert dataset == "mixed.jsonl (held out but for 4 training rows)"
    said, _, dataset = said_of(given)
    assert (said.startswith("held out: "), dataset) == (True, f"{data.name} (held out)")


def test_scores_of_few_rows_say_which_differences_they_can_tell() -> None:
    for count, note in ((1, "1 row, too few to tell scores less than 100 points apart"), (6, "less than 41 points"), (10, "(10 rows)")):
        log = {"scored_rows": {"n": count, "trained": 0}, "held_out": {"after": {"accuracy": 50.0, "n": count}}}
        assert note in held_out_in_words(log, lambda scores: "accuracy", "row")


def test_loss_names_say_whether_the_data_are_held_out() -> None:
    rows = {"training": {"n": 3, "trained": 3}, "held out": {"n": 3, "trained": 0}, "some": {"n": 3, "trained": 1}, "scored": {}}
    names = {name: loss_name({"scored_rows": counts}, "masked-token loss") for name, counts in rows.items()}
    assert names == {
        "training": "masked-token loss on the training data", "held out": "held-out masked-token loss",
        "some": "held-out masked-token loss but for 1 training row", "scored": "masked-token loss",
    }  # fmt: skip
    log = {"settings": {"text": ["d"]}, "scored_rows": rows["training"], "held_out_loss": {"after": 1.0}}
    assert (measured(log)[0].metric, measured(log)[0].dataset) == ("loss on the training data", "d (training data)")


def test_each_head_says_whether_its_data_are_held_out() -> None:
    settings = {"tasks": ["a=classify:a.csv", "b=classify:b.csv"], "validation": ["b=b.csv"]}
    scores = {name: {"accuracy": 50.0, "n": 20} for name in "ab"}
    rows = {"a": {"n": 20, "trained": 0}, "b": {"n": 20, "trained": 20}}
    log = {"settings": settings, "tasks": {"a": "classify", "b": "classify"}, "scored_rows": rows, "held_out": {"after": scores}}
    assert [row.dataset for row in measured(log)] == ["a.csv (held out)", "b.csv (training data)"]
    parts = [held_out_in_words(log, lambda scores: "accuracy", "row", task) for task in "ab"]
    assert parts == ["held out: accuracy (20 rows)", "on the training data: accuracy (20 rows)"]


def test_scores_without_a_standard_error_are_printed_without_one() -> None:
    assert score_in_words({"accuracy": 100.0, "n": 6}, "accuracy") == "accuracy 100.0 %"
    assert score_in_words({"accuracy": 90.0, "accuracy_se": 10.0, "n": 10}, "accuracy") == "accuracy 90.0 ± 10.0 %"
    assert loss_in_words({"before": None, "after": 2.9352, "standard_error": None, "n": 6}) == "2.935 (6 inputs)"


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
        monkeypatch.setattr("hf_longattn.training.training_loop.write_trained_card", full)
    with pytest.raises(CheckpointError, match=r"is full: the latest complete checkpoint is .*checkpoint-\d.*--resume"):
        finetune_classification(*build_arguments(CLASSIFICATION, **given, save_steps=2))
    monkeypatch.undo()
    newest = newest_checkpoint(folder)
    assert newest is not None
    assert newest.endswith("checkpoint-2" if where == "checkpoint" else "checkpoint-6")
    log = finetune_classification(*build_arguments(CLASSIFICATION, **{**given, "max_steps": 8}, save_steps=2, resume=True))
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


def test_throughput_counts_padding() -> None:
    speed = Throughput()
    speed.count({"input_ids": torch.ones(2, 4), "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0]])})
    found = speed.report(2)
    assert found["padding"] == pytest.approx(3 / 8, abs=1e-4)
    assert found["tokens_per_second"] > 0
    assert speed.report(1) == {}
