"""Relative positions equal the code of transformers' own models: T5's buckets, BLOOM's and MPT's ALiBi, Llama's rotations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import T5Config
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor
from transformers.models.t5.modeling_t5 import T5Attention

from hf_longattn import attend, build_mechanism
from hf_longattn.positions.relative import Alibi, T5Buckets, buckets, build_relative
from tests.cases import every_case
from tests.reference.small_models import long_like, plain_model, tokens


def distances(length: int) -> torch.Tensor:
    return torch.arange(length)[:, None] - torch.arange(length)


@pytest.mark.parametrize("causal", [False, True])
def test_every_distance_has_the_bucket_that_t5_gives_it(causal: bool) -> None:
    distance = torch.arange(-3000, 3001)
    for count, furthest in ((32, 128), (16, 1000), (64, 4096)):
        found = T5Attention._relative_position_bucket(-distance, bidirectional=not causal, num_buckets=count, max_distance=furthest)
        assert torch.equal(buckets(distance, causal, count, furthest), found)


@pytest.mark.parametrize("causal", [False, True])
def test_t5_buckets_equal_the_bias_and_attention_of_t5(causal: bool) -> None:
    config = T5Config(d_model=32, d_kv=8, num_heads=4, is_decoder=causal, use_cache=False)
    theirs = T5Attention(config, has_relative_attention_bias=True, layer_idx=0).eval()
    torch.nn.init.normal_(theirs.relative_attention_bias.weight)
    ours = build_relative("t5_buckets", 4, 8, 32)
    assert isinstance(ours, T5Buckets)
    ours.table.data.copy_(theirs.relative_attention_bias.weight)
    assert torch.equal(ours.bias(distances(200), causal)[None], theirs.compute_bias(200, 200))
    hidden = torch.randn(2, 200, 32)
    mask = torch.full((200, 200), torch.finfo(torch.float32).min).triu(1)[None, None] if causal else None
    expected = theirs(hidden, mask=mask, position_bias=None if mask is None else theirs.compute_bias(200, 200) + mask)[0]
    full = build_mechanism("full", num_heads=4, head_dim=8, relative="t5_buckets")
    full.relative = ours
    q, k, v = (part(hidden).view(2, 200, 4, 8).transpose(1, 2) for part in (theirs.q, theirs.k, theirs.v))
    found = theirs.o(attend(q, k, v, full, causal=causal, scaling=1.0).transpose(1, 2).flatten(2))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@every_case("heads", [1, 2, 3, 6, 8, 12, 16, 20, 25, 32, 71])
def test_alibi_equals_the_slopes_and_attention_of_bloom(heads: int) -> None:
    mask = torch.ones(1, 60, dtype=torch.long)
    theirs = build_alibi_tensor(mask, heads, torch.float32).view(1, heads, 1, 60)
    alibi = build_relative("alibi", heads, 8, 8 * heads)
    assert isinstance(alibi, Alibi)
    ours = alibi.bias(distances(60), True).tril()
    # BLOOM adds slope · key position: per query row the same up to a constant, which a softmax does not see.
    torch.testing.assert_close(ours, (theirs - theirs.transpose(2, 3))[0].tril(), atol=1e-5, rtol=0)
    q, k, v = (torch.randn(1, heads, 60, 8) for _ in range(3))
    hidden = torch.full((60, 60), float("-inf")).triu(1)
    expected = ((q @ k.transpose(-1, -2)) * 8**-0.5 + theirs + hidden).softmax(-1) @ v
    torch.testing.assert_close(attend(q, k, v, "full", causal=True, relative="alibi"), expected, atol=1e-5, rtol=0)


@every_case("heads", [1, 2, 4, 8, 12, 20, 32])
def test_alibi_equals_the_penalty_of_mpt(heads: int) -> None:
    theirs = build_mpt_alibi_tensor(heads, 50)  # (heads, 1, 50): of the last query
    alibi = build_relative("alibi", heads, 8, 8 * heads)
    found = alibi.bias(49 - torch.arange(50), True)
    # MPT orders the slopes of a head count that is no power of two differently: the same ones, the even ones last.
    torch.testing.assert_close(found.sort(0).values, theirs[:, 0].sort(0).values, atol=1e-6, rtol=0)
    if heads & (heads - 1) == 0:
        torch.testing.assert_close(found, theirs[:, 0], atol=1e-6, rtol=0)


def test_parameters_of_relative_positions_are_saved_and_loaded(tmp_path: Any) -> None:
    model = long_like(plain_model("bert"), "bert", {"mechanism": "window", "window": 8, "relative": "t5_buckets"})
    names = [name for name, _ in model.named_parameters() if name.endswith("long_attention.relative.table")]
    assert len(names) == 3
    assert all((model.get_parameter(name) == 0).all() for name in names)
    for name in names:
        torch.nn.init.normal_(model.get_parameter(name))
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    ids = tokens(2, 100)
    assert torch.equal(again(ids).last_hidden_state, model(ids).last_hidden_state)
    assert again.config.long_attention.options["relative"] == "t5_buckets"
