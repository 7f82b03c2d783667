"""Verifying a conversion takes the largest tensor and what is computed, not two models."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

CONVERT = """
import json, sys
from hf_longattn.conversion import convert_checkpoint
from hf_longattn.conversion.running import memory

def peak():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))

def note(stage, done, total):
    peaks.append(peak())

peaks = []
memory.IN_MEMORY = 0
report = convert_checkpoint(sys.argv[1], sys.argv[2], mechanism="window", window=64, max_length=128, progress=note)
print(json.dumps({"grown": peak() - peaks[0], "checks": {check.name: check.status for check in report.checks}}))
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the peak of a process is read from /proc")
def test_models_larger_than_the_memory_taken_are_run(tmp_path: Path) -> None:
    sizes = {"hidden_size": 512, "intermediate_size": 1408, "num_attention_heads": 8, "num_hidden_layers": 16, "vocab_size": 8000}
    model = LlamaForCausalLM(LlamaConfig(**sizes, max_position_embeddings=64)).to(torch.bfloat16)
    in_fp32 = 4 * sum(parameter.numel() for parameter in model.parameters())
    largest = 4 * max(parameter.numel() for parameter in model.parameters())
    model.save_pretrained(tmp_path / "source")
    command = [sys.executable, "-c", CONVERT, str(tmp_path / "source"), str(tmp_path / "long")]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    found = json.loads(done.stdout)
    assert found["checks"]["equal where the mechanism covers the input"] == "passed"
    assert found["grown"] < 2 * largest + 100e6 < in_fp32
