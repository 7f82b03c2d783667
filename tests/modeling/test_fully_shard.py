"""FSDP 2 on Long models in real processes: loss and gradients of one process, with whole and with cut sequences; saved and loaded."""

from __future__ import annotations

from pathlib import Path

from tests.ranks import run_ranks

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import copy
import hf_longattn
import pytest
from hf_longattn.errors import MemoryMismatchError
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

torch.set_default_dtype(torch.float64)
ranks = dist.get_world_size()
mesh = init_device_mesh("cpu", (ranks,))
SHAPE = dict(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, max_position_embeddings=256)
NONE = dict(attention_probs_dropout_prob=0.0, hidden_dropout_prob=0.0)
CASES = [
    ("LongBertForMaskedLM", {**SHAPE, **NONE}, {"mechanism": "longformer", "window": 32, "separate_global": True}),
    ("LongBertForMaskedLM", {**SHAPE, **NONE}, {"mechanism": "hybrid", "window": 16}),
    ("LongBertForMaskedLM", {**SHAPE, **NONE}, {"mechanism": "adaptive_span", "max_span": 40}),
    ("LongBertForMaskedLM", {**SHAPE, **NONE}, {"mechanism": "linformer", "rank": 16}),
    ("LongBertForMaskedLM", {**SHAPE, **NONE}, {"mechanism": "recurrent_memory", "segment_length": 64, "num_memory_tokens": 2}),
]
for name, settings, attention in CASES:
    torch.manual_seed(5)
    Model = getattr(hf_longattn, name)
    model = Model(Model.config_class(**settings, long_attention=attention)).train()
    whole = copy.deepcopy(model)
    for layer in model.base_model.encoder.layer:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    ids = torch.randint(5, 99, (2, 203))
    labels = ids.masked_fill(torch.rand(ids.shape) < 0.5, -100)
    expected = whole(input_ids=ids, labels=labels)
    expected.loss.backward()
    gradients = {n: p.grad for n, p in whole.named_parameters() if p.grad is not None}

    def check(what, loss):
        assert abs(loss.item() - expected.loss.item()) < 1e-8, (name, attention, what)
        for n, p in model.named_parameters():
            if n in gradients:
                off = (p.grad.full_tensor() - gradients[n]).abs().max().item()
                assert off < 1e-8, (name, attention, what, n, off)
        model.zero_grad()

    out = model(input_ids=ids, labels=labels)
    out.loss.backward()
    check("whole sequences", out.loss)
    if attention["mechanism"] != "recurrent_memory":
        with hf_longattn.sequence_parallel(model, mesh):
            out = model(input_ids=ids, labels=labels)
            out.loss.backward()
        check("cut sequences", out.loss)
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if rank == 0:
        folder = f"saved-{attention['mechanism']}"
        whole.save_pretrained(folder, state_dict=state)
        again = Model.from_pretrained(folder, dtype=torch.float64).train()
        assert abs(again(input_ids=ids, labels=labels).loss.item() - expected.loss.item()) < 1e-8

with pytest.raises(MemoryMismatchError, match="through 1 segments in one process and through 4 in another"):
    model(input_ids=ids[:, : 50 if rank else 203])  # of memory tokens
"""


def test_shares_of_the_weights(tmp_path: Path) -> None:
    assert len(run_ranks(PROGRAM, ROOT, tmp_path, 2)) == 2
