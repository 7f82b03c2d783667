"""lm-evaluation-harness runs on a converted decoder: a local task, and the log-likelihoods of `candidate_log_likelihoods`."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers import processors

import hf_longattn
from hf_longattn.evaluation.probes import candidate_log_likelihoods, probe_task

from .small import byte_tokenizer, small_decoder

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed; pip install lm-eval==0.4.13")

TASK = """\
task: local_passkey
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{prompt}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{label}}}}"
target_delimiter: ""
metric_list:
  - metric: acc
"""
RUN = "import hf_longattn; from lm_eval.__main__ import cli_evaluate; cli_evaluate()"
"""As docs/how-to/lm_eval.md says."""


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 512 positions."""
    folder = tmp_path_factory.mktemp("harness") / "short"
    model = small_decoder()
    model.config.max_position_embeddings = 512
    model.save_pretrained(folder)
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel()  # nothing is added, as GPT-2's and most decoders' do
    tokenizer.bos_token, tokenizer.eos_token = "[CLS]", "[SEP]"
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("trusted", [False, True], ids=["imported", "trusted"])
@pytest.mark.parametrize("settings", [{"mechanism": "full", "positions": "rope:none"}, {"mechanism": "window", "options": {"window": 128}}])
def test_the_harness_computes_our_likelihoods(settings: dict[str, Any], trusted: bool, short: Path, tmp_path: Path) -> None:
    long = tmp_path / "long"
    hf_longattn.convert_checkpoint(short, long, max_length=2048, verify=False, remote_code=trusted, **settings)
    tokenizer = transformers.AutoTokenizer.from_pretrained(long)
    task: Any = probe_task("passkey")
    samples = [task.sample(1200, random.Random(number), lambda text: len(text)) for number in range(3)]
    told = [{"prompt": one.prompt, "choices": one.continuations(4)[0], "label": 0} for one in samples]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(one) + "\n" for one in told))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "local_passkey.yaml").write_text(TASK.format(data=tmp_path / "data.jsonl"))
    command = ["-m", "lm_eval"] if trusted else ["-c", RUN]
    typed = [sys.executable, *command, "run", "--model", "hf", "--model_args", f"pretrained={long},dtype=float32", "--device", "cpu"]
    typed += ["--tasks", "local_passkey", "--include_path", str(tmp_path / "tasks"), "--batch-size", "2"]
    typed += ["--output_path", str(tmp_path / "out"), "--log_samples", *(["--trust_remote_code"] if trusted else [])]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run(typed, capture_output=True, text=True, env=environment, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (written,) = (tmp_path / "out").rglob("samples_local_passkey_*.jsonl")
    lines = sorted((json.loads(line) for line in written.read_text().splitlines()), key=lambda line: line["doc_id"])
    model = transformers.AutoModelForCausalLM.from_pretrained(long).eval()
    assert type(model).__name__ == "LongLlamaForCausalLM"
    for line, one in zip(lines, told, strict=True):
        theirs = [float(answer[0][0]) for answer in line["resps"]]
        assert theirs == pytest.approx(candidate_log_likelihoods(model, tokenizer, one["prompt"], one["choices"]), abs=1e-4)
    (results,) = (tmp_path / "out").rglob("results_*.json")
    assert "acc,none" in json.loads(results.read_text())["results"]["local_passkey"]
