"""Verification finds what is wrong with the written files, and a failed one leaves no destination."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from hf_longattn.checks import Check
from hf_longattn.conversion import convert_checkpoint, folders, model_loading, plan_conversion, verify_outputs, writing
from hf_longattn.conversion.report import POSITIONS, decision
from hf_longattn.conversion.verify import labelled
from hf_longattn.conversion.verify_loss import LOSS
from hf_longattn.conversion.verify_outputs import choose_lengths
from hf_longattn.errors import CheckpointError
from hf_longattn.inputs.text import text_sizes
from hf_longattn.mechanisms import register_mechanism
from hf_longattn.mechanisms.window import Window

from .conftest import LENGTH, damaged

pytestmark = pytest.mark.usefixtures("own_registry")

Built = Callable[[str], Path]
Checkpoint = Callable[..., Path]


def refused(source: Path, folder: Path, sentence: str, **arguments: Any) -> None:
    with pytest.raises(CheckpointError, match=sentence):
        convert_checkpoint(source, folder / "long", max_length=200, **{"mechanism": "window", "window": 16, **arguments})
    assert os.listdir(folder) == []


def test_a_damaged_value_is_found(built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "write_weights", damaged(writing.write_weights))
    refused(built("BertModel"), tmp_path, "differs from the source's values")


def test_lost_rows_are_found_although_the_rule_that_lost_them_agrees_with_itself(
    built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reverse(weight: torch.Tensor, rows: int, **arguments: Any) -> torch.Tensor:
        return weight.flip(0).repeat(4, 1)[:rows]

    monkeypatch.setattr(writing, "extend_table", reverse)
    refused(built("BertModel"), tmp_path, "lost its first 64 rows")


def broken(name: str, **methods: Any) -> str:
    """Register a window mechanism with something wrong in it."""
    register_mechanism(name)(type(name, (Window,), methods))
    return name


def test_a_mechanism_that_claims_to_be_exact_and_is_not_is_found(built: Built, tmp_path: Path) -> None:
    name = broken("boastful", covers=lambda self, length, causal=False: True)
    refused(built("BertForMaskedLM"), tmp_path, "but they must be equal", mechanism=name)


def test_a_mechanism_that_looks_at_padding_is_found(built: Built, tmp_path: Path) -> None:
    def forward(self: Window, q: Any, k: Any, v: Any, call: Any) -> Any:
        return Window.forward(self, q, k, v, call.with_mask(None))

    refused(built("BertModel"), tmp_path, "padded to 200", mechanism=broken("careless", forward=forward))


def test_numbers_that_are_not_finite_are_found(built: Built, tmp_path: Path) -> None:
    def forward(self: Window, q: Any, k: Any, v: Any, call: Any) -> Any:
        out = Window.forward(self, q, k, v, call)
        return out / 0 if k.shape[2] > LENGTH else out

    refused(built("BertModel"), tmp_path, "are not finite", mechanism=broken("infinite", forward=forward))


@pytest.mark.thorough
@pytest.mark.parametrize(("side", "end"), [("left", 0), ("right", -1)])
def test_a_model_that_padding_on_one_side_changes_is_found(
    side: str, end: int, built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = verify_outputs.outputs

    def changed(model: Any, ids: torch.Tensor, **arguments: Any) -> dict[str, torch.Tensor]:
        found = run(model, ids, **arguments)
        mask = arguments.get("attention_mask", torch.ones_like(ids))
        return {name: state + (mask[:, end] == 0).float()[:, None, None] for name, state in found.items()}

    report = convert_checkpoint(built("BertForMaskedLM"), tmp_path / "long", mechanism="window", window=16, max_length=256)
    values = next(check.values for check in report.checks if check.name == "padding changes nothing")
    assert {"left", "right"} <= values.keys()
    monkeypatch.setattr(verify_outputs, "outputs", changed)
    message = r"padded to 256 on the right and on the left: largest difference .* of the largest value .*, but they must be equal"
    with pytest.raises(CheckpointError, match=message):
        convert_checkpoint(built("BertForMaskedLM"), tmp_path / "wrong", mechanism="window", window=16, max_length=256)
    assert not (tmp_path / "wrong").exists()


def test_a_base_without_hidden_states_runs(built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = verify_outputs.outputs

    def pooled(model: Any, ids: torch.Tensor, **arguments: Any) -> dict[str, torch.Tensor]:
        returned = run(model, ids, **arguments)
        return {name: value for name, value in returned.items() if not name.endswith("last_hidden_state")}

    monkeypatch.setattr(verify_outputs, "outputs", pooled)
    report = convert_checkpoint(built("BertModel"), tmp_path / "long", mechanism="window", window=16, max_length=256)
    checks = {check.name: check for check in report.checks}
    assert (checks["finite at the new length"].status, checks["padding changes nothing"].status) == ("passed", "skipped")
    assert checks["padding changes nothing"].detail == "the base returns no hidden states, but pooler_output"
    assert not verify_outputs.all_finite({})


def test_a_wrong_tokenizer_limit_is_found(checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = checkpoint("BertForMaskedLM", tokenizer="bert")
    add = folders.add_source_files
    monkeypatch.setattr(
        folders, "add_source_files", lambda source, result, folder, length, *rest: add(source, result, folder, LENGTH, *rest)
    )
    (tmp_path / "results").mkdir()
    refused(source, tmp_path / "results", "model_max_length 64")


@pytest.mark.thorough
@pytest.mark.parametrize("in_memory", [model_loading.IN_MEMORY, 0])
def test_the_loss_is_measured_by_position_against_the_source_on_chunks(
    in_memory: float, checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_loading, "IN_MEMORY", in_memory)
    source = checkpoint("GPT2LMHeadModel", tokenizer="gpt2")
    report = convert_checkpoint(source, tmp_path / "long", mechanism="full", max_length=4 * LENGTH)
    check = next(check for check in report.checks if check.name == LOSS)
    buckets = check.values["buckets"]
    assert [(bucket["from"], bucket["to"]) for bucket in buckets] == [(0, 64), (64, 128), (128, 256)]
    assert buckets[0]["result"] == pytest.approx(buckets[0]["source_on_chunks"], rel=1e-5)


@pytest.mark.thorough
@pytest.mark.parametrize(("dtype", "loaded"), [(None, ["source", "result"]), ("bfloat16", ["source", "source", "result"])])
def test_models_are_loaded_once_for_outputs_and_losses(
    dtype: str | None, loaded: list[str], checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A source whose outputs are compared in the result's dtype is loaded again, since its losses are those of its own weights."""
    names: list[str] = []
    for name in ("source", "result"):
        load = getattr(verify_outputs, f"load_{name}")
        monkeypatch.setattr(
            verify_outputs, f"load_{name}", partial(lambda name, load, *a, **b: names.append(name) or load(*a, **b), name, load)
        )
    report = convert_checkpoint(
        checkpoint("GPT2LMHeadModel", tokenizer="gpt2"), tmp_path / "long", mechanism="full", max_length=4 * LENGTH, dtype=dtype
    )
    assert next(check for check in report.checks if check.name == LOSS).values["buckets"]
    assert names == loaded


def test_a_loss_that_is_not_measured_says_why(built: Built, tmp_path: Path) -> None:
    report = convert_checkpoint(built("GPT2LMHeadModel"), tmp_path / "long", mechanism="full", max_length=128)
    check = next(check for check in report.checks if check.name == LOSS)
    assert (check.status, check.detail) == ("skipped", "the source has no tokenizer, and a loss needs real text")


def test_a_text_of_the_users_own_is_used(checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("Much ado about nothing. " * 50)
    source = checkpoint("BertForMaskedLM", tokenizer="bert")
    report = convert_checkpoint(source, tmp_path / "long", max_length=128, verify_text=tmp_path / "mine.txt")
    assert report.text == "mine.txt"


def test_a_loss_is_measured_on_a_text_that_does_not_repeat(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """In whole chunks of the source's length, though the result reads more than the text has."""
    source = checkpoint("GPT2LMHeadModel", tokenizer="gpt2")
    tokenizer, words = AutoTokenizer.from_pretrained(source), "Much ado about nothing."
    while len(tokenizer(words)["input_ids"]) < 2 * LENGTH + 9:
        words += " Much ado about nothing."
    (tmp_path / "mine.txt").write_text(words)
    report = convert_checkpoint(source, tmp_path / "long", mechanism="full", max_length=4 * LENGTH, verify_text=tmp_path / "mine.txt")
    assert next(check for check in report.checks if check.name == LOSS).values["tokens"] == 2 * LENGTH


def test_head_weights_that_the_source_lacks_are_not_compared(checkpoint: Checkpoint, tmp_path: Path) -> None:
    source = checkpoint("BertModel")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "architectures": ["BertForQuestionAnswering"]}))
    report = convert_checkpoint(source, tmp_path / "long", mechanism="full", max_length=128)
    assert report.passed
    assert any("hidden states (the source has no weights for its head)" in check.detail for check in report.checks)


def test_a_model_that_does_not_fit_into_memory_is_not_run_and_that_is_said(
    built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Little:
        available = 1000

    monkeypatch.setattr(model_loading, "_free", lambda: Little.available)
    report = convert_checkpoint(built("BertModel"), tmp_path / "long", mechanism="full", max_length=128)
    skipped = [check.detail for check in report.checks if check.status == "skipped"]
    assert any("the models were not run" in detail for detail in skipped)


def test_lengths_are_what_the_mechanism_covers_and_what_can_be_afforded(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_conversion(built("BertModel"), mechanism="window", window=16, max_length=4096)
    found = choose_lengths(plan)
    assert (found.covered, found.old, found.new) == (9, LENGTH, 4096)
    monkeypatch.setattr(verify_outputs, "FLOPS_AT_NEW_LENGTH", 1e8)
    assert LENGTH <= choose_lengths(plan).new < 4096


def test_lengths_are_shorter_where_logits_are_large_beside_weights_in_files(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_conversion(built("BertForMaskedLM"), mechanism="full", max_length=4096)
    monkeypatch.setattr(verify_outputs, "FLOPS_AT_OLD_LENGTH", 1e15)
    plan = dataclasses.replace(plan, inputs=text_sizes(1024, 4096))
    assert choose_lengths(plan).old == 1024
    assert choose_lengths(plan, from_files=True).old == int(verify_outputs.LOGITS_FROM_FILES / 4 / plan.config.vocab_size)


@pytest.mark.parametrize(
    ("window", "change", "expected"),
    [
        (16, None, {"at the old length": "needs training"}),
        (16, False, {"at the old length": "measured"}),
        (16, True, {"at the old length": "needs training"}),
        (128, None, {POSITIONS: "needs training"}),
        (128, False, {POSITIONS: "measured"}),
        (128, True, {POSITIONS: "needs training"}),
    ],
)
def test_labels_follow_the_loss_where_it_was_measured(window: int, change: bool | None, expected: dict[str, str], built: Built) -> None:
    """A window that sees a position twice is labelled, though it is exact at the old length; a narrow one only if it is worse."""
    plan = plan_conversion(built("BertForMaskedLM"), mechanism="window", window=window, max_length=256)
    checks = [Check("tensors", "passed", ""), *([Check("at the old length", "needs training", "")] if window == 16 else [])]
    if change is not None:
        checks.append(decision(LOSS, not change, "", {}))
    found = {check.name: check for check in labelled(plan, checks)}
    assert {name: found[name].status for name in expected} == expected
    assert found["tensors"].status == "passed"
    assert (POSITIONS in found) == (window == 128)
    if window == 128:
        assert ("the result is ready to use" in found[POSITIONS].detail) == (change is False)
