"""--init-from-text: learned projections begin from what the source computes on a text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM

from hf_longattn import convert_checkpoint
from hf_longattn.cli.app import main
from hf_longattn.errors import CheckpointError, OptionError

TEXT = "The keeper writes down the wind, the height of the tide and the names of the ships that pass. " * 60


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    return tmp_path / "text.txt"


@pytest.mark.parametrize("sharing", ["headwise", "layerwise"])
def test_projections_come_nearer_to_full_attention(
    sharing: str, checkpoint: Callable[..., Path], text: Path, tmp_path: Path
) -> None:  # fmt: skip
    source = checkpoint("BertForMaskedLM", tokenizer="bert")
    report = convert_checkpoint(source, tmp_path / "long", mechanism="linformer", rank=16, sharing=sharing, init_from_text=text)
    assert report.passed
    check = report.checks[0]
    assert (check.name, check.status) == ("initialised from text", "measured")
    assert len(check.values["random"]) == len(check.values["from_text"]) == 2
    assert sum(check.values["from_text"]) < 0.8 * sum(check.values["random"])
    assert "text.txt" in check.detail
    convert_checkpoint(source, tmp_path / "random", mechanism="linformer", rank=16, sharing=sharing, verify=False)
    begun, random = (load_file(tmp_path / name / "model.safetensors") for name in ("long", "random"))
    changed = {name for name in begun if not torch.equal(begun[name], random[name])}
    assert changed == {name for name in begun if "long_attention" in name}
    AutoModelForMaskedLM.from_pretrained(tmp_path / "long")


def test_by_command(checkpoint: Callable[..., Path], text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = checkpoint("BertForMaskedLM", tokenizer="bert")
    arguments = ["--mechanism", "linformer", "--option", "rank=8", "--init-from-text", str(text), "--no-verify", "--json"]
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["convert", str(source), str(tmp_path / "long"), *arguments])
    assert json.loads(capsys.readouterr().out)["checks"][0]["name"] == "initialised from text"


def test_what_cannot_begin_is_refused(checkpoint: Callable[..., Path], text: Path, tmp_path: Path) -> None:
    source = checkpoint("BertForMaskedLM", tokenizer="bert")
    with pytest.raises(OptionError, match=r"'window' has no parameters to initialise from text; leave .*--init-from-text.* out"):
        convert_checkpoint(source, tmp_path / "long", mechanism="window", init_from_text=text)
    text.write_text("Too short.", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"'text.txt' has \d+ tokens, but init_from_text needs at least \d+; give a longer text"):
        convert_checkpoint(source, tmp_path / "long", mechanism="linformer", rank=8, init_from_text=text)
    text.unlink()
    with pytest.raises(CheckpointError, match=r"Cannot read the text .*text.txt"):
        convert_checkpoint(source, tmp_path / "long", mechanism="linformer", rank=8, init_from_text=text)
    text.write_text(TEXT, encoding="utf-8")
    (source / "tokenizer.json").unlink()
    (source / "tokenizer_config.json").unlink()
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        convert_checkpoint(source, tmp_path / "long", mechanism="linformer", rank=8, init_from_text=text)
    assert not (tmp_path / "long").exists()
