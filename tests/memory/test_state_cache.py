"""The cache layer of stateful mechanisms: the mean of all values so far, defined here, in a whole model."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from hf_longattn import attend
from hf_longattn.engines.common.call import AttentionCall, State
from hf_longattn.engines.common.dense import repeat_heads
from hf_longattn.errors import LengthError, MaskError, OptionError
from hf_longattn.mechanisms.common import registry
from hf_longattn.mechanisms.common.base import Mechanism
from hf_longattn.mechanisms.common.scores import visible_to_all
from hf_longattn.options import Options
from tests.cells import every_cell
from tests.memory.test_kept_cache import HEAD
from tests.reference.small_models import DECODERS, in_one_pass, in_pieces, long_like, padding, plain_model, singly, tokens

NAME = "running_mean_for_tests"


class RunningMean(Mechanism):
    """Every query sees the mean of the values so far."""

    options_type = Options
    causal = True
    traits = Mechanism.traits.but(stateful=True, takes_score_mod=False)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        return self.dense_weights(q, k, call) @ repeat_heads(v, q.shape[1])

    def dense_weights(self, q: Tensor, k: Tensor, call: AttentionCall) -> Tensor:
        seen = visible_to_all(q, k, call.replace(causal=True)).expand(*q.shape[:3], k.shape[2])
        return seen.to(q) / seen.sum(-1, keepdim=True).clamp(min=1)

    def advance(self, q: Tensor, k: Tensor, v: Tensor, state: State | None, call: AttentionCall) -> tuple[Tensor, State]:
        mask = call.key_mask
        real = torch.ones_like(v[:, 0, :, 0]) if mask is None else mask.to(v)
        total = (repeat_heads(v, q.shape[1]) * real[:, None, :, None]).cumsum(2)
        count = real.cumsum(1)
        if state is not None:
            total, count = total + state["total"][:, :, None], count + state["count"][:, None]
        return total / count.clamp(min=1)[:, None, :, None], {"total": total[:, :, -1], "count": count[:, -1]}


@pytest.fixture(autouse=True)
def running_mean() -> Iterator[None]:
    registry.mechanism_class("full")
    registry.register_mechanism(NAME)(RunningMean)
    yield
    registry._REGISTRY.pop(NAME)


def model(base: str) -> Any:
    return long_like(plain_model(base, HEAD[base]), base, {"mechanism": NAME, "layers": {1: {"mechanism": "window", "window": 9}}})


@pytest.mark.parametrize("base", DECODERS)
def test_step_by_step_equals_the_full_forward_pass(base: str) -> None:
    longer, length = model(base), 60
    ids, mask = tokens(3, length), padding(3, length, left=True)
    cache = DynamicCache(config=longer.config)
    steps = in_pieces(longer, cache, ids, mask, [(0, 5), (5, 30), *singly(30, length)])
    assert (steps - in_one_pass(longer, ids, mask))[mask.bool()].abs().max() < 1e-4
    assert cache.layers[0].state_bytes() == 3 * (4 * 16 + 1) * 4


@pytest.mark.thorough
@every_cell("how", [{}, {"num_beams": 3}, {"num_return_sequences": 2, "do_sample": True}], ids=["greedy", "beam", "sample"])
@every_cell("base", DECODERS)
def test_generate_with_and_without_the_cache(base: str, how: dict[str, Any]) -> None:
    longer, ids = model(base), tokens(2, 40)
    arguments = {"do_sample": False, "eos_token_id": None, "max_new_tokens": 20, **how}
    kinds = [{"use_cache": False}, {}, *([] if how else [{"cache_implementation": "static"}, {"cache_implementation": "offloaded"}])]
    kinds = kinds if torch.cuda.is_available() else kinds[:3]  # offloading needs a second device
    found = []
    for kind in kinds:
        torch.manual_seed(0)
        found.append(longer.generate(ids, **arguments, **kind))
    assert all(torch.equal(found[0], other) for other in found[1:])


def test_a_state_is_copied_and_moved_but_not_taken_back() -> None:
    longer, ids = model("gpt2"), tokens(2, 40)
    cache = DynamicCache(config=longer.config)
    with torch.no_grad():
        longer(ids, past_key_values=cache)
    layer = cache.layers[0]
    twin, held = copy.deepcopy(layer), dict(layer.state)
    layer.offload()  # which comes between update and attend
    assert all(layer.state[name] is tensor for name, tensor in held.items())
    layer.prefetch()
    layer.batch_repeat_interleave(2)
    layer.batch_select_indices(torch.tensor([0, 2]))
    assert layer.state is not None
    for name, tensor in layer.state.items():
        assert torch.equal(tensor, twin.state[name])
    assert not cache.is_croppable
    with pytest.raises(LengthError, match="Tokens of this cache cannot be removed"):
        layer.crop(-3)


def test_what_a_state_cannot_do_is_refused_with_a_sentence() -> None:
    longer, ids = model("gpt2"), tokens(2, 20)
    cache = DynamicCache(config=longer.config)
    longer(ids, past_key_values=cache)
    with pytest.raises(LengthError, match="keeps a state in place of the earlier keys"):
        longer(ids[:, :1], past_key_values=cache, output_attentions=True)
    with pytest.raises(MaskError, match="four-dimensional"):
        longer(ids, attention_mask=torch.ones(2, 1, 20, 20, dtype=torch.bool))
    with pytest.raises(MaskError, match="four-dimensional"):
        longer(ids, attention_mask=torch.ones(2, 1, 20, 20, dtype=torch.bool), use_cache=False)
    q = torch.randn(1, 2, 5, 4)
    with pytest.raises(OptionError, match="no scores"):
        attend(q, q, q, NAME, causal=True, score_mod=lambda score, b, h, i, j: score)
    full, capped = (
        registry.build_mechanism("full", num_heads=2, head_dim=4),
        AttentionCall(score_mod=lambda score, b, h, i, j: score.tanh()),
    )
    with pytest.raises(OptionError, match="not from a state"):
        full.advance(q, q, q, None, AttentionCall.of())
    with pytest.raises(MaskError, match=r"a cap on the scores \(softcap\) was given together with a cache"):
        cache.layers[0].attend(full, q, q, q, capped, False)
