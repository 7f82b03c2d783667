"""DeepSpeed's ZeRO-2 and 3 on two processes without GPUs, started as the how-to says, where DeepSpeed is installed."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from hf_longattn import LongBertForMaskedLM
from hf_longattn.conversion import convert_checkpoint
from hf_longattn.training.recipes import CONFIGS
from tests.training.conftest import checkpoint

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed: pip install deepspeed")
@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_zero_trains_packed_texts_in_2_ranks(stage: int, tmp_path: Path, texts: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """The processes' batches hold different numbers of documents, and the loss is measured before training."""
    short = checkpoint("mlm", tmp_path / "short", tokenizer)
    convert_checkpoint(short, tmp_path / "long", mechanism="window", max_length=256, window=32, verify=False)
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / "accelerate" / f"zero{stage}.yaml")),
        *("--num_processes", "2", "--mixed_precision", "no", "-m", "hf_longattn", "train", "mlm", "--model", str(tmp_path / "long")),
        *("--data", texts, "--output-dir", str(tmp_path / "out"), "--max-steps", "6", "--learning-rate", "3e-3"),
        *("--warmup-steps", "1", "--gradient-accumulation-steps", "1"),
    ]
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    log = json.loads((tmp_path / "out" / "training_log.json").read_text())
    assert log["metrics"]["after"]["loss"] < log["metrics"]["before"]["loss"]
    assert LongBertForMaskedLM.from_pretrained(tmp_path / "out").config.max_position_embeddings == 256
