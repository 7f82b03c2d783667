"""lm-evaluation-harness runs on a converted decoder: a local task, whose log-likelihoods are the model's."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

import hf_longattn
from scripts.dev.tools.small_models import Shape, small_config

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
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = small_config("llama", Shape(tokens=512, vocabulary=260), **ends, initializer_range=0.3)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    symbols = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    of_bytes = Tokenizer(models.BPE({one: number for number, one in enumerate(symbols)}, []))
    of_bytes.pre_tokenizer, of_bytes.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    of_bytes.post_processor = processors.ByteLevel()  # nothing is added, as GPT-2's and most decoders' do
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=of_bytes, pad_token="[PAD]", bos_token="[CLS]", eos_token="[SEP]"
    )
    tokenizer.save_pretrained(folder)
    return folder


def passkey(number: int) -> dict[str, Any]:
    """A number in some 1,200 bytes of noise, and other numbers to choose from."""
    rng = random.Random(number)
    keys = rng.sample(range(10_000, 100_000), 5)
    noise = ["The grass is green. The sky is blue. The sun is yellow."] * 20
    noise.insert(rng.randrange(20), f"The pass key is {keys[0]}. Remember it.")
    return {
        "prompt": f"{' '.join(noise)} What is the pass key? The pass key is",
        "choices": [f" {key}." for key in keys],
        "label": 0,
    }


@torch.no_grad()
def log_likelihood(model: Any, tokenizer: Any, prompt: str, candidate: str) -> float:
    ids = tokenizer(prompt + candidate, return_tensors="pt")["input_ids"]
    first = len(tokenizer(prompt)["input_ids"])
    scores = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
    return float(scores.gather(1, ids[0, 1:, None])[first - 1 :].sum())


@pytest.mark.slow
@pytest.mark.parametrize("trusted", [False, True], ids=["imported", "trusted"])
@pytest.mark.parametrize(
    "settings", [{"mechanism": "full", "positions": "rope:none"}, {"mechanism": "window", "options": {"window": 128}}]
)
def test_lm_eval_computes_the_log_likelihoods_of_the_model(
    settings: dict[str, Any], trusted: bool, short: Path, tmp_path: Path
) -> None:
    long = tmp_path / "long"
    hf_longattn.convert_checkpoint(short, long, max_length=2048, verify=False, remote_code=trusted, **settings)
    tokenizer = transformers.AutoTokenizer.from_pretrained(long)
    told = [passkey(number) for number in range(3)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(one) + "\n" for one in told))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "local_passkey.yaml").write_text(TASK.format(data=tmp_path / "data.jsonl"))
    command = ["-m", "lm_eval"] if trusted else ["-c", RUN]
    line = f"""run --model hf --model_args pretrained={long},dtype=float32 --device cpu --tasks local_passkey
        --include_path {tmp_path / "tasks"} --batch-size 2 --output_path {tmp_path / "out"} --log_samples"""
    typed = [sys.executable, *command, *line.split(), *(["--trust_remote_code"] if trusted else [])]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run(typed, capture_output=True, text=True, env=environment, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (written,) = (tmp_path / "out").rglob("samples_local_passkey_*.jsonl")
    lines = sorted((json.loads(line) for line in written.read_text().splitlines()), key=lambda line: line["doc_id"])
    model = transformers.AutoModelForCausalLM.from_pretrained(long).eval()
    assert type(model).__name__ == "LongLlamaForCausalLM"
    for line, one in zip(lines, told, strict=True):
        theirs = [float(answer[0][0]) for answer in line["resps"]]
        ours = [log_likelihood(model, tokenizer, one["prompt"], choice) for choice in one["choices"]]
        assert theirs == pytest.approx(ours, abs=1e-4)
    (results,) = (tmp_path / "out").rglob("results_*.json")
    assert "acc,none" in json.loads(results.read_text())["results"]["local_passkey"]
