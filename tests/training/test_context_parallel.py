"""Trainer with accelerate's ``ParallelismConfig(cp_size=2)`` in two real processes takes the steps of one process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from accelerate import ParallelismConfig
from transformers import TrainingArguments

import hf_longattn
from hf_longattn.training.trainer import LongTrainer
from tests.grids import quickly
from tests.ranks import Ranks, announce

SHAPE = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 256,
}


def losses_and_norms(name: str) -> list[float]:
    """Of four steps, in which all processes share every sequence."""
    ranks, model_class = dist.get_world_size() if dist.is_initialized() else 1, getattr(hf_longattn, name)
    if ranks > 1:
        announce()
        ParallelismConfig._validate_accelerator = lambda self, accelerator: None  # which wants accelerators; here are CPUs
    model = model_class(model_class.config_class(**SHAPE, long_attention={"mechanism": "window", "window": 32}))
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    data = [{"input_ids": torch.randint(5, 99, (200,))} for _ in range(16)]
    for row in data:
        row["labels"] = row["input_ids"].clone()
        row["labels"][: int(torch.randint(20, 150, (1,)))] = -100
    shared = {"parallelism_config": ParallelismConfig(cp_size=ranks)} if ranks > 1 else {}
    arguments = TrainingArguments(
        "out", per_device_train_batch_size=2, gradient_accumulation_steps=2, max_steps=4, logging_steps=1, report_to=[], save_strategy="no",
        use_cpu=True, disable_tqdm=True, learning_rate=1e-2, seed=1, **shared,
    )  # fmt: skip
    trainer = LongTrainer(model=model, args=arguments, train_dataset=data)
    trainer.train()
    return [entry[key] for entry in trainer.state.log_history if "loss" in entry for key in ("loss", "grad_norm")]


@pytest.mark.thorough
@pytest.mark.parametrize("model", quickly(("LongLlamaForCausalLM", "LongBertForMaskedLM"), ("LongLlamaForCausalLM",)))
def test_the_steps_are_those_of_one_process(tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    alone = losses_and_norms(model)
    assert len(alone) == 8
    with Ranks(2, tmp_path) as ranks:
        assert ranks.run(losses_and_norms, model)[0] == pytest.approx(alone, abs=1e-5)
