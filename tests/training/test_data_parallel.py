"""Trainer in several real processes takes the steps of one: also mechanisms that learn per call, with lengths that differ by process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from transformers import TrainingArguments

import hf_longattn
from hf_longattn.training.trainer import LongTrainer
from tests.ranks import Ranks, announce

SHAPE = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 256,
}
ROUTING = {"mechanism": "routing", "num_clusters": 4, "window_per_cluster": 48, "decay": 0.9}


def collate(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    ids = [row["input_ids"] for row in rows]
    longest = max(map(len, ids))

    def padded(tensors: list[Tensor], value: int) -> Tensor:
        return torch.stack([torch.nn.functional.pad(x, (0, longest - len(x)), value=value) for x in tensors])

    return {"input_ids": padded(ids, 0), "labels": padded(ids, -100), "attention_mask": padded([torch.ones_like(x) for x in ids], 0)}


def trainer_for(attention: dict[str, Any], epochs: int, rate: float) -> LongTrainer:
    torch.manual_seed(0)
    model = hf_longattn.LongLlamaForCausalLM(hf_longattn.LongLlamaConfig(**SHAPE, long_attention=attention, use_cache=False))
    # 24 examples: accelerate fills a last batch that is short with the first examples
    data = [{"input_ids": torch.randint(5, 99, (int(torch.randint(90, 200, (1,))),))} for _ in range(24)]
    arguments = TrainingArguments(
        output_dir="out", per_device_train_batch_size=8 // dist.get_world_size(), num_train_epochs=epochs, logging_steps=1, report_to=[],
        use_cpu=True, save_strategy="no", disable_tqdm=True, learning_rate=rate, seed=1, average_tokens_across_devices=True,
        train_sampling_strategy="sequential",
    )  # fmt: skip
    return LongTrainer(model=model, args=arguments, train_dataset=data, data_collator=collate)


def losses_and_norms(attention: dict[str, Any], epochs: int, rate: float) -> list[float]:
    announce()
    trainer = trainer_for(attention, epochs, rate)
    trainer.train()
    return [entry[key] for entry in trainer.state.log_history if "loss" in entry for key in ("loss", "grad_norm")]


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize(
    "attention",
    [
        {"mechanism": "window", "window": 32},
        ROUTING,
        {"mechanism": "adaptive_span", "max_span": 64},
        {"mechanism": "recurrent_memory", "segment_length": 64, "num_memory_tokens": 2},
    ],
    ids=lambda attention: attention["mechanism"],
)
def test_several_processes_take_the_steps_of_one(tmp_path: Path, attention: dict[str, Any], ranks: int) -> None:
    # Centroids that part do so slowly; at a high learning rate, rounding alone moves a token to another cluster within 20 steps.
    epochs, rate = (10, 5e-4) if attention is ROUTING else (2, 1e-2)
    steps = []
    for count in (1, ranks):
        with Ranks(count, tmp_path) as processes:
            steps.append(processes.run(losses_and_norms, attention, epochs, rate)[0])
    assert steps[1] == pytest.approx(steps[0], abs=1e-4)
