"""`longattn card MODEL` writes the card and refuses what it cannot read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from hf_longattn.cli import main


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(["card", *map(str, arguments)])
    return int(stopped.value.code or 0)


def test_card_command_writes_results_and_keeps_the_licence(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "architectures": ["BertForMaskedLM"]}))
    results = tmp_path / "results.json"
    results.write_text(json.dumps([{"dataset": "held-out modules", "metric": "loss", "value": 2.5, "unit": "nats", "task": "fill-mask"}]))
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    assert run(tmp_path, "--results", results) == 0
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.license == "apache-2.0"
    assert card.data.eval_results[0].metric_value == 2.5
    assert "2.5 nats" in card.text


def test_card_command_refuses_a_missing_folder_and_broken_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "nowhere") == 1
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "results.json").write_text("not json")
    assert run(tmp_path, "--results", tmp_path / "results.json") == 1
    assert "is not valid JSON" in capsys.readouterr().err
