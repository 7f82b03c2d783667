"""The trained checkpoints of model_cards/ convert, verify, and read on beyond their old length."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
from transformers import AutoModel, AutoTokenizer

from hf_longattn.conversion import ConversionReport, convert_checkpoint
from tests.grids import quickly

CHECKPOINTS = Path(__file__).resolve().parents[2] / "model_cards"


@pytest.mark.thorough
@pytest.mark.parametrize("name", quickly(["bert-python-512", "bert-python-512-qa"], ["bert-python-512-qa"]))
def test_a_trained_checkpoint_becomes_long(name: str, tmp_path: Path) -> None:
    if not (CHECKPOINTS / name / "config.json").is_file():
        pytest.skip(f"model_cards/{name} has not been trained here yet")
    report = convert_checkpoint(CHECKPOINTS / name, tmp_path / "long", mechanism="longformer", window=256, max_length=1024)
    assert report.passed
    found = {check.name: check for check in report.checks}
    assert found["tokenizer"].status == "passed"
    assert found["equal at the old length with full attention"].status == "passed"
    assert AutoTokenizer.from_pretrained(tmp_path / "long").model_max_length == 1024
    assert AutoModel.from_pretrained(tmp_path / "long").config.max_position_embeddings == 1024


@pytest.mark.thorough
def test_tiling_keeps_the_loss_of_a_trained_model_beyond_its_old_length(tmp_path: Path) -> None:
    """Tiled positions with a window read 1,024 tokens about as well as the source reads chunks of 512; random ones do not."""
    if not (CHECKPOINTS / "bert-python-512" / "config.json").is_file():
        pytest.skip("model_cards/bert-python-512 has not been trained here yet")
    losses, reports = {}, {}
    for positions in ("tile", "random"):
        reports[positions] = convert_checkpoint(
            CHECKPOINTS / "bert-python-512",
            tmp_path / positions,
            mechanism="window",
            window=256,
            max_length=1024,
            positions=positions,
            verify_text=argparse.__file__,
        )
        check = next(check for check in reports[positions].checks if check.name.startswith("language-model loss"))
        losses[positions] = check.values["buckets"][-1]
    assert losses["tile"]["result"] < losses["tile"]["source_on_chunks"] * 1.1
    assert losses["random"]["result"] > losses["tile"]["result"] + 0.2
    assert_labelled(reports["tile"], needs_training=False)


@pytest.mark.thorough
@pytest.mark.parametrize(("window", "needs_training"), [pytest.param(512, False, marks=pytest.mark.slow), (1024, True)])
def test_a_report_is_labelled_by_the_loss_at_the_new_length(window: int, needs_training: bool, tmp_path: Path) -> None:
    """A window in which two keys have the same position is exact up to the old length, and much worse beyond it."""
    if not (CHECKPOINTS / "bert-python-512" / "config.json").is_file():
        pytest.skip("model_cards/bert-python-512 has not been trained here yet")
    report = convert_checkpoint(CHECKPOINTS / "bert-python-512", tmp_path / "long", mechanism="window", window=window, max_length=1024)
    assert_labelled(report, needs_training)


def assert_labelled(report: ConversionReport, needs_training: bool) -> None:
    assert report.passed
    assert report.needs_training == needs_training
    assert bool(report.train_command) == needs_training
    change = next(check.values["change"] for check in report.checks if "change" in check.values)
    assert (change["change"] > 1.0) == needs_training
