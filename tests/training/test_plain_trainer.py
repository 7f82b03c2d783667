"""The page on training shows a task by transformers' Trainer alone: its losses are those of the command."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase, TrainingArguments

from hf_longattn.cli.train import train
from hf_longattn.conversion import convert_checkpoint
from tests.training.conftest import checkpoint
from tests.training.test_classification import rows

STEPS: dict[str, Any] = {"max_steps": 6, "logging_steps": 1, "use_cpu": True, "report_to": [], "save_strategy": "no", "disable_tqdm": True}
LINE = """--no-bf16 --disable-tqdm True --packing false --train-sampling-strategy random --no-eval-on-start --warmup-steps 0 --max-steps 6
    --logging-steps 1 --save-strategy no --validation reviews.csv"""


def test_plain_trainer_of_the_page_has_the_losses_of_the_command(
    repository: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    convert_checkpoint(checkpoint("mlm", tmp_path / "short", tokenizer), "bert-4096", mechanism="window", max_length=128, verify=False)
    with open("reviews.csv", "w", newline="") as file:
        table = csv.DictWriter(file, ["text", "label"])
        table.writeheader()
        table.writerows(rows())
    assert train("classify", ["--model", "bert-4096", "--data", "reviews.csv", "--output", "out", *LINE.split()]) == 0
    page = (repository / "docs" / "how-to" / "train.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page.partition("## Without our command line")[2].partition("\n## ")[0], re.DOTALL)
    assert len(code.splitlines()) <= 25
    monkeypatch.setattr("transformers.TrainingArguments", lambda *given, **more: TrainingArguments(*given, **{**more, **STEPS}))
    names: dict[str, Any] = {}
    exec(code.replace("max_length=4096", "max_length=128"), names)
    losses = [
        [entry["loss"] for entry in history if "loss" in entry]
        for history in (names["trainer"].state.log_history, json.loads(Path("out/training_log.json").read_text())["history"])
    ]
    assert len(losses[0]) == 6
    assert losses[0] == losses[1]
