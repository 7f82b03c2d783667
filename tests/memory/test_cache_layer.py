"""How much memory a cache holds, and that attention reads what a cache layer of ours stores."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

from hf_longattn import LongGPT2Config, LongGPT2Model
from hf_longattn.errors import BackendError
from hf_longattn.mechanisms.common.registry import mechanism_class
from hf_longattn.memory import cache_bytes
from hf_longattn.modeling.attach import attachment
from tests.reference.small_models import long_like, plain_model, tokens


def test_cache_bytes_count_shared_memory_once() -> None:
    cache, keys = DynamicCache(), torch.zeros(1, 2, 8, 4)
    cache.update(keys, keys, 0)
    held = keys.untyped_storage().nbytes()
    assert cache_bytes(cache) == 2 * held
    assert cache_bytes([keys, keys[:, :1], {"again": keys}]) == held


@pytest.mark.parametrize("mechanism", ["window", "hybrid"])
def test_a_cache_of_the_last_tokens_does_not_hold_the_whole_prompt(mechanism: str) -> None:
    config = LongGPT2Config(n_embd=8, n_head=2, n_layer=1, n_positions=1024, long_attention={"mechanism": mechanism, "window": 8})
    sizes = []
    for length in (64, 1024):
        cache = LongGPT2Model(config).eval()(torch.zeros(1, length, dtype=torch.long), use_cache=True).past_key_values
        sizes.append(cache_bytes(cache))
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize(
    ("mechanism", "cache"),
    [
        ("linear", "dynamic"),
        ("linear", "static"),
        ("taylor", "dynamic"),
        ("window", "static"),
        ("longformer", "static"),
        ("top_k", "static"),
    ],
)
def test_decoding_refuses_a_cache_layer_that_attention_never_reads(mechanism: str, cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where transformers passes the cache in a way that this package does not know."""
    plain = plain_model("llama", "LlamaForCausalLM", num_hidden_layers=1)
    model = long_like(plain, "llama", {"mechanism": mechanism, **mechanism_class(mechanism).sample}, num_hidden_layers=1)
    settings = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "cache_implementation": cache, "disable_compile": True}
    expected = model.generate(tokens(2, 30), **{**settings, "use_cache": False, "cache_implementation": None})
    assert torch.equal(expected, model.generate(tokens(2, 30), **settings))
    monkeypatch.setattr(attachment, "find_cache", lambda values: None)
    with pytest.raises(BackendError, match=r"that its attention never read; pass use_cache=False, or install transformers"):
        model.generate(tokens(2, 30), **settings)


def test_a_model_takes_a_cache_by_either_name_of_the_argument() -> None:
    model = long_like(plain_model("llama", "LlamaForCausalLM", num_hidden_layers=1), "llama", {"mechanism": "linear"}, num_hidden_layers=1)
    ids, logits = tokens(2, 30), []
    for name in ("cache", "past_key_values"):
        cache = DynamicCache(config=model.config)
        with torch.no_grad():
            logits.append(torch.cat([model(part, **{name: cache}).logits for part in ids.split([20, 10], 1)], 1))
        assert cache.get_seq_length() == 30
    assert torch.equal(*logits)
    assert (logits[0] - model(ids).logits).abs().max() < 1e-4
