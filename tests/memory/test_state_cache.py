"""The cache layer of stateful mechanisms, in a model that also has a window."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from hf_longattn import attend
from hf_longattn.engines.call import AttentionCall
from hf_longattn.errors import InputError, OptionError
from hf_longattn.mechanisms.common import registry
from tests.reference.small_models import DECODERS, LANGUAGE_MODELS, in_one_pass, in_pieces, long_like, padding, plain_model, singly, tokens


def model(base: str) -> Any:
    return long_like(
        plain_model(base, LANGUAGE_MODELS[base]), base, {"mechanism": "linear", "layers": {1: {"mechanism": "window", "window": 9}}}
    )


@pytest.mark.parametrize("base", DECODERS)
def test_decoding_from_a_state_equals_the_full_forward_pass(base: str) -> None:
    longer, length = model(base), 60
    ids, mask = tokens(3, length), padding(3, length, left=True)
    cache = DynamicCache(config=longer.config)
    steps = in_pieces(longer, cache, ids, mask, [(0, 5), (5, 30), *singly(30, length)])
    assert (steps - in_one_pass(longer, ids, mask))[mask.bool()].abs().max() < 1e-4
    assert cache.layers[0].state_bytes() == sum(x.nbytes for x in cache.layers[0].state.values())


def test_a_cached_state_is_copied_and_moved_but_not_cropped() -> None:
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
    with pytest.raises(InputError, match="Tokens of this cache cannot be removed"):
        layer.crop(-3)


def test_a_cached_state_refuses_attentions_masks_and_score_terms() -> None:
    longer, ids = model("gpt2"), tokens(2, 20)
    cache = DynamicCache(config=longer.config)
    longer(ids, past_key_values=cache)
    with pytest.raises(InputError, match="keeps a state in place of the earlier keys"):
        longer(ids[:, :1], past_key_values=cache, output_attentions=True)
    with pytest.raises(InputError, match="four-dimensional"):
        longer(ids, attention_mask=torch.ones(2, 1, 20, 20, dtype=torch.bool))
    with pytest.raises(InputError, match="four-dimensional"):
        longer(ids, attention_mask=torch.ones(2, 1, 20, 20, dtype=torch.bool), use_cache=False)
    q = torch.randn(1, 2, 5, 4)
    with pytest.raises(OptionError, match="no scores"):
        attend(q, q, q, "linear", causal=True, score_mod=lambda score, b, h, i, j: score)
    full, capped = (
        registry.build_mechanism("full", num_heads=2, head_dim=4),
        AttentionCall(score_mod=lambda score, b, h, i, j: score.tanh()),
    )
    with pytest.raises(OptionError, match="not from a state"):
        full.advance(q, q, q, None, AttentionCall.of())
    with pytest.raises(InputError, match=r"a cap on the scores \(softcap\) was given together with a cache"):
        cache.layers[0].attend(full, q, q, q, capped, False)
