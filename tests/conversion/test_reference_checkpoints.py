"""The trained checkpoints of assets/ convert, verify, and read on beyond their old length."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
from transformers import AutoModel, AutoTokenizer

from hf_longattn.conversion import convert_checkpoint

ASSETS = Path(__file__).resolve().parents[2] / "assets"


@pytest.mark.parametrize("name", ["bert-python-512", "bert-python-512-qa"])
def test_a_trained_checkpoint_becomes_long(name: str, tmp_path: Path) -> None:
    if not (ASSETS / name / "config.json").is_file():
        pytest.skip(f"assets/{name} has not been trained here yet")
    report = convert_checkpoint(ASSETS / name, tmp_path / "long", mechanism="longformer", window=256, max_length=2048)
    assert report.passed
    found = {check.name: check for check in report.checks}
    assert found["tokenizer"].status == "passed"
    assert found["equal at the old length with full attention"].status == "passed"
    assert AutoTokenizer.from_pretrained(tmp_path / "long").model_max_length == 2048
    assert AutoModel.from_pretrained(tmp_path / "long").config.max_position_embeddings == 2048


def test_tiling_keeps_the_loss_of_a_trained_model_beyond_its_old_length(tmp_path: Path) -> None:
    """Tiled positions with a window read 2,048 tokens about as well as the source reads chunks of 512; random ones do not."""
    if not (ASSETS / "bert-python-512" / "config.json").is_file():
        pytest.skip("assets/bert-python-512 has not been trained here yet")
    losses = {}
    for positions in ("tile", "random"):
        report = convert_checkpoint(
            ASSETS / "bert-python-512",
            tmp_path / positions,
            mechanism="window",
            window=256,
            max_length=2048,
            positions=positions,
            verify_text=argparse.__file__,
        )
        check = next(check for check in report.checks if check.name.startswith("language-model loss"))
        losses[positions] = check.values["buckets"][-1]
    assert losses["tile"]["result"] < losses["tile"]["source_on_chunks"] * 1.1
    assert losses["random"]["result"] > losses["tile"]["result"] + 0.2
