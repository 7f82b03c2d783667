"""Cache layers whose state comes in and goes out as tensors: they decode what the caches of eager decoding decode."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Cache, DynamicCache

from hf_longattn.errors import ExportError
from hf_longattn.mechanisms import Mechanism
from hf_longattn.memory import graph_cache
from hf_longattn.memory.graph_cache import StateTensor, graph_layer, graph_state
from tests.cells import every_cell
from tests.reference.small_models import long_model, tokens

PIECES = (5, 1, 30, 1, 1, 20, 1)
"""New tokens of each step."""
CHOSEN: dict[str, dict[str, Any]] = {
    "full": {"mechanism": "full"},
    "window": {"mechanism": "window", "window": 16},
    "sinks": {"mechanism": "window", "window": 16, "num_sinks": 3},
    "dilated": {"mechanism": "window", "window": 8, "dilation": 2},
    "alibi": {"mechanism": "window", "window": 16, "relative": "alibi"},
    "union": {"mechanism": "union", "of": "window:window=2+window:window=1"},
    "transformer_xl": {"mechanism": "transformer_xl", "segment_length": 8, "memory_length": 12},
    "linear": {"mechanism": "linear"},
    "cosformer": {"mechanism": "cosformer", "max_length": 128},
    "performer": {"mechanism": "performer"},
    "delta": {"mechanism": "delta"},
    "hybrid": {"mechanism": "hybrid", "window": 8},
    "infini": {"mechanism": "infini", "segment_length": 12},
}


def state_of(model: Any) -> tuple[list[Mechanism], list[tuple[StateTensor, ...]]]:
    """The mechanisms of a LongLlama, and the tensors that each layer keeps."""
    cache = DynamicCache(config=model.config)
    model(tokens(1, 1), past_key_values=cache, use_cache=True)
    mechanisms = [layer.self_attn.long_attention for layer in model.model.layers]
    return mechanisms, [graph_state(one, held, True) for one, held in zip(mechanisms, cache.layers, strict=True)]


def loop(step: Any, state: list[Tensor], inputs: list[Tensor]) -> tuple[list[Tensor], Tensor]:
    """The definition of a scan, where PyTorch's would be compiled."""
    outs = []
    for entries in zip(*inputs, strict=True):
        state, out = step(state, list(entries))
        outs.append(out)
    return state, torch.stack(outs)


@torch.no_grad()
@every_cell("attention", CHOSEN.values(), ids=CHOSEN)
def test_rows_that_start_at_different_times_decode_as_with_the_eager_cache(
    attention: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph_cache, "scan_in_graph", loop)
    model = long_model("llama", "LlamaForCausalLM", attention, num_hidden_layers=1, max_position_embeddings=128)
    (mechanism,), (kept,) = state_of(model)
    ids, mask = tokens(3, sum(PIECES)), torch.ones(3, sum(PIECES), dtype=torch.long)
    mask[1, :33], mask[2, :3] = 0, 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    state = {tensor.name: tensor.zeros(3) for tensor in kept}
    eager, at = DynamicCache(config=model.config), 0
    for count in PIECES:
        here, at = slice(at, at + count), at + count
        given = {"input_ids": ids[:, here], "attention_mask": mask[:, :at], "position_ids": positions[:, here], "use_cache": True}
        layer = graph_layer(kept, mechanism, state, at - count)
        found = model(**given, past_key_values=Cache(layers=[layer])).logits
        wanted = model(**given, past_key_values=eager).logits
        real = mask[:, here].bool()
        assert (found - wanted)[real].abs().max() < 2e-4 if real.any() else True
        state = layer.state
        for tensor in kept:
            assert state[tensor.name].dtype == tensor.dtype
            sizes = zip(state[tensor.name].shape[1:], tensor.shape, strict=True)
            assert all(size == named or named == 0 for size, named in sizes)
            assert tensor.most is None or state[tensor.name].shape[2] == min(at, tensor.most)


def test_what_tensors_cannot_express_is_one_sentence() -> None:
    model = long_model("llama", "LlamaForCausalLM", {"mechanism": "nsa"}, num_hidden_layers=1)
    with pytest.raises(ExportError, match=r"Mechanism 'nsa' with these options keeps or chooses past keys .*for example window or linear"):
        state_of(model)
