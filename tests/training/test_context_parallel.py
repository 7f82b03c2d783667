"""Trainer with accelerate's ``ParallelismConfig(cp_size=2)`` in two real processes takes the steps of one process."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.ranks import run_ranks

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import os
os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(dist.get_world_size()), "MASTER_ADDR": "127.0.0.1",
               "MASTER_PORT": "0"}
import hf_longattn
from accelerate import ParallelismConfig
from transformers import TrainingArguments
from hf_longattn.training.trainer import TimedTrainer

ParallelismConfig._validate_accelerator = lambda self, accelerator: None  # which wants accelerators; here are CPUs
ranks = dist.get_world_size()
torch.manual_seed(0)
Model = getattr(hf_longattn, MODEL)
shape = dict(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, max_position_embeddings=256)
model = Model(Model.config_class(**shape, long_attention={"mechanism": "window", "window": 32}))
for module in model.modules():
    if isinstance(module, torch.nn.Dropout):
        module.p = 0.0
data = [{"input_ids": torch.randint(5, 99, (200,))} for _ in range(16)]
for one in data:
    one["labels"] = one["input_ids"].clone()
    one["labels"][: torch.randint(20, 150, (1,))] = -100
cut = {"parallelism_config": ParallelismConfig(cp_size=ranks)} if ranks > 1 else {}
arguments = TrainingArguments(
    "out", per_device_train_batch_size=2, gradient_accumulation_steps=2, max_steps=4, logging_steps=1, report_to=[], save_strategy="no",
    use_cpu=True, disable_tqdm=True, learning_rate=1e-2, seed=1, **cut)
trainer = TimedTrainer(model=model, args=arguments, train_dataset=data)
trainer.train()
print([[entry["loss"], entry["grad_norm"]] for entry in trainer.state.log_history if "loss" in entry])
"""


@pytest.mark.parametrize("model", ["LongLlamaForCausalLM", "LongBertForMaskedLM"])
def test_the_steps_are_those_of_one_process(tmp_path: Path, model: str) -> None:
    found = []
    for ranks in (1, 2):
        folder = tmp_path / str(ranks)
        folder.mkdir()
        said = run_ranks(PROGRAM.replace("MODEL", repr(model)), ROOT, folder, ranks)
        found.append([value for entry in ast.literal_eval(said[0].splitlines()[-1]) for value in entry])
    assert found[1] == pytest.approx(found[0], abs=1e-5)
