"""FSDP 2 on Long models in real processes: loss and gradients of one process; saved and loaded."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import hf_longattn
from hf_longattn.errors import InputError
from tests.grids import quickly
from tests.ranks import Ranks

SETTINGS: dict[str, Any] = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 256,
    "attention_probs_dropout_prob": 0.0,
    "hidden_dropout_prob": 0.0,
}
MEMORY = {"mechanism": "recurrent_memory", "segment_length": 64, "num_memory_tokens": 2}
CASES: list[dict[str, Any]] = [
    {"mechanism": "longformer", "window": 32, "separate_global": True},
    {"mechanism": "hybrid", "window": 16},
    {"mechanism": "adaptive_span", "max_span": 40},
    {"mechanism": "linformer", "rank": 16},
    MEMORY,
]
TOLERANCE = 1e-8


def models(attention: dict[str, Any]) -> tuple[Any, Any]:
    """A model, its copy with a share of the weights in each process, and the processes."""
    torch.set_default_dtype(torch.float64)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    torch.manual_seed(5)
    config = hf_longattn.LongBertConfig(**SETTINGS, long_attention=attention)
    sharded: Any = hf_longattn.LongBertForMaskedLM(config).train()
    plain = copy.deepcopy(sharded)
    for layer in sharded.base_model.encoder.layer:
        fully_shard(layer, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    return plain, sharded


def compare(attention: dict[str, Any], folder: str) -> None:
    plain, sharded = models(attention)
    ids = torch.randint(5, 99, (2, 203))
    batch = {"input_ids": ids, "labels": ids.masked_fill(torch.rand(ids.shape) < 0.5, -100)}
    expected = plain(**batch)
    expected.loss.backward()
    gradients = {name: parameter.grad for name, parameter in plain.named_parameters() if parameter.grad is not None}

    def check(loss: torch.Tensor) -> None:
        loss.backward()
        assert abs(loss.item() - expected.loss.item()) < TOLERANCE
        for name, parameter in sharded.named_parameters():
            if name in gradients:
                assert (parameter.grad.full_tensor() - gradients[name]).abs().max() < TOLERANCE, name
        sharded.zero_grad()

    check(sharded(**batch).loss)
    state = get_model_state_dict(sharded, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if dist.get_rank() == 0:
        plain.save_pretrained(folder, state_dict=state)
        again = type(plain).from_pretrained(folder, dtype=torch.float64).train()
        assert abs(again(**batch).loss.item() - expected.loss.item()) < TOLERANCE


def pass_different_lengths() -> None:
    _, sharded = models(MEMORY)
    ids = torch.randint(5, 99, (2, 203))
    with pytest.raises(InputError, match="through 1 segments in one process and through 4 in another"):
        sharded(input_ids=ids[:, : 50 if dist.get_rank() else 203])


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    with Ranks() as processes:
        yield processes


@pytest.mark.parametrize("attention", quickly(CASES, CASES[::2]), ids=lambda attention: attention["mechanism"])
def test_fully_sharded_models_have_the_loss_and_gradients_of_one_process(attention: dict[str, Any], ranks: Ranks, tmp_path: Path) -> None:
    ranks.run(compare, attention, str(tmp_path / "saved"))


def test_memory_tokens_need_as_many_segments_in_every_process(ranks: Ranks) -> None:
    ranks.run(pass_different_lengths)
