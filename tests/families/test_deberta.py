"""LongDebertaV2's disentangled attention on a band: by the fused kernel, equal to transformers' scores and to the plain form."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import hf_longattn.families as families
from hf_longattn.engines.common.dense import dense_attention
from hf_longattn.engines.dispatch import PathChoice, observe
from tests.reference.small_models import padding, tokens
from tests.reference.test_hf_score_terms import values_of

LENGTH = 300
FORMS: list[dict[str, Any]] = [
    {},
    {"share_att_key": False},
    {"pos_att_type": "c2p"},
    {"pos_att_type": "p2c"},
    {"position_buckets": -1, "max_relative_positions": 60},
]


def model_of(window: int, **changes: Any) -> Any:
    torch.manual_seed(0)
    values = {**values_of("deberta-v2"), "max_position_embeddings": 512, **changes}
    attention = {"mechanism": "window", "window": window}
    return families.LongDebertaV2Model(families.LongDebertaV2Config(**values, long_attention=attention)).eval().double()


@pytest.mark.parametrize("changes", FORMS, ids=["both", "own projections", "c2p", "p2c", "without buckets"])
def test_a_window_is_fused_and_equal_to_the_definition_with_gradients(changes: dict[str, Any]) -> None:
    """The definition: the N×N scores of the plain form under the window's mask."""
    model = model_of(64, **changes)
    definition = copy.deepcopy(model)
    for module in definition.modules():
        if hasattr(module, "long_attention"):
            mechanism = module.long_attention
            mechanism.forward = lambda q, k, v, call, of=mechanism: dense_attention(q, k, v, call, mask_mod=of.mask_mod(call.causal, None))
    ids, mask = tokens(2, LENGTH), padding(2, LENGTH)
    choices: list[PathChoice] = []
    with observe(lambda _, choice: choices.append(choice)):
        out = model(ids, attention_mask=mask).last_hidden_state
    assert {choice.path for choice in choices if "cpu" in choice.path or "wise" in choice.path} == {"cpu-distances"}
    expected = definition(ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(out[mask.bool()], expected[mask.bool()], atol=1e-10, rtol=0)
    weight = torch.randn_like(out) * mask[..., None]
    for states in (out, expected):
        (states * weight).sum().backward()
    for (name, fused), (_, dense) in zip(model.named_parameters(), definition.named_parameters(), strict=True):
        assert (fused.grad is None) == (dense.grad is None), name
        if fused.grad is not None:
            torch.testing.assert_close(fused.grad, dense.grad, atol=1e-8, rtol=1e-8, msg=name)
