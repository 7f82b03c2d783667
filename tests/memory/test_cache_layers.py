"""Cache layers: what each holds, returns and refuses, and how it is copied."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from hf_longattn import LongGPT2Config, LongGPT2Model, attend
from hf_longattn.configuration import LongAttentionConfig
from hf_longattn.engines.call import AttentionCall
from hf_longattn.errors import BackendError, InputError, OptionError
from hf_longattn.mechanisms.common import registry
from hf_longattn.memory.attention_cache import SLACK
from hf_longattn.memory.decode_cache import decode_layer_types
from hf_longattn.modeling.attach import attachment
from scripts.dev.benchmarks.memory import cache_bytes
from tests.cases import every_case
from tests.grids import alternately, grid
from tests.reference.small_models import (
    in_one_pass,
    in_pieces,
    long_config,
    long_model,
    padding,
    singly,
    tokens,
)
from tests.samples import sample_of


def test_cache_bytes_count_shared_memory_once() -> None:
    cache, keys = DynamicCache(), torch.zeros(1, 2, 8, 4)
    cache.update(keys, keys, 0)
    size = keys.untyped_storage().nbytes()
    assert cache_bytes(cache) == 2 * size
    assert cache_bytes([keys, keys[:, :1], {"again": keys}]) == size


@pytest.mark.parametrize("mechanism", ["window", "hybrid"])
def test_a_cache_of_the_last_tokens_does_not_hold_the_whole_prompt(mechanism: str) -> None:
    config = LongGPT2Config(
        n_embd=8, n_head=2, n_layer=1, n_positions=1024, long_attention={"mechanism": mechanism, "window": 8}
    )
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
def test_decoding_refuses_a_cache_layer_that_attention_never_reads(
    mechanism: str, cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where transformers passes the cache in a way that this package does not know."""
    model = long_model("llama", "LlamaForCausalLM", sample_of(mechanism), num_hidden_layers=1)
    settings = {
        "max_new_tokens": 4,
        "do_sample": False,
        "eos_token_id": None,
        "cache_implementation": cache,
        "disable_compile": True,
    }
    expected = model.generate(tokens(2, 30), **{**settings, "use_cache": False, "cache_implementation": None})
    assert torch.equal(expected, model.generate(tokens(2, 30), **settings))
    monkeypatch.setattr(attachment, "find_cache", lambda values: None)
    with pytest.raises(
        BackendError, match=r"that its attention never read; pass use_cache=False, or install transformers"
    ):
        model.generate(tokens(2, 30), **settings)


def test_a_model_takes_a_cache_by_either_name_of_the_argument() -> None:
    model = long_model("llama", "LlamaForCausalLM", {"mechanism": "linear"}, num_hidden_layers=1)
    ids, logits = tokens(2, 30), []
    for name in ("cache", "past_key_values"):
        cache = DynamicCache(config=model.config)
        with torch.no_grad():
            logits.append(torch.cat([model(part, **{name: cache}).logits for part in ids.split([20, 10], 1)], 1))
        assert cache.get_seq_length() == 30
    assert torch.equal(*logits)
    assert (logits[0] - model(ids).logits).abs().max() < 1e-4


def test_layers_of_windows_have_window_cache_types() -> None:
    layers = {1: {"mechanism": "full"}, 2: {"window": 8}, 3: {"mechanism": "longformer"}}
    types = decode_layer_types(LongAttentionConfig("window", window=64, layers=layers), 5)
    assert types == [
        "longattn_window_64",
        "full_attention",
        "longattn_window_8",
        "full_attention",
        "longattn_window_64",
    ]
    assert decode_layer_types(LongAttentionConfig("full"), 3) is None


def linear_and_window() -> Any:
    return long_model("gpt2", "GPT2LMHeadModel", STATES["linear beside a window"])


def test_a_cached_state_is_copied_and_moved_but_not_cropped_unless_recorded() -> None:
    longer, ids = linear_and_window(), tokens(2, 40)
    cache = DynamicCache(config=longer.config)
    with torch.no_grad():
        longer(ids, past_key_values=cache)
    layer = cache.layers[0]
    copied, before = copy.deepcopy(layer), dict(layer.state)
    layer.offload()  # which comes between update and attend
    assert all(layer.state[name] is tensor for name, tensor in before.items())
    layer.prefetch()
    layer.batch_repeat_interleave(2)
    layer.batch_select_indices(torch.tensor([0, 2]))
    assert layer.state is not None
    torch.testing.assert_close(layer.state, copied.state, rtol=0, atol=0)
    assert not cache.is_croppable
    with pytest.raises(InputError, match=r"crop\(-3\) .* remove its last 0 tokens at most .*activate_past_recording"):
        layer.crop(-3)
    layer.activate_past_recording()
    assert layer.is_croppable
    with pytest.raises(InputError, match=r"crop\(-1\)"):
        layer.crop(-1)  # of before


def test_a_cached_state_refuses_attentions_masks_and_score_terms() -> None:
    longer, ids = linear_and_window(), tokens(2, 20)
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
    with pytest.raises(InputError, match=r"a cap on the scores \(softcap\) was given together with a cache"):
        cache.layers[0].attend(full, q, q, q, capped, False)


PATTERNS: dict[str, tuple[dict[str, Any], int]] = {
    "sinks": ({"mechanism": "window", "window": 9, "num_sinks": 3}, 9 + 3),
    "segments with a memory": ({"mechanism": "transformer_xl", "segment_length": 12, "memory_length": 7}, 12 + 7),
    "dilated, with sinks": ({"mechanism": "window", "window": 5, "dilation": [1, 2, 3, 1], "num_sinks": 2}, 13 + 2),
}
ALL_KEPT: dict[str, dict[str, Any]] = {
    "summary columns": {"mechanism": "fixed", "block_size": 10, "num_summary": 2},
    "blocks": {"mechanism": "segmented", "block_size": 12, "integration": "none"},
    "relative columns": {"mechanism": "strided", "window": 9, "stride": 7},
    "summaries": {"mechanism": "segmented", "block_size": 12, "integration": "pooled"},
}


@every_case(("pattern", "left"), alternately([*PATTERNS, *ALL_KEPT]))
def test_decoding_static_patterns_equals_the_full_forward_pass(pattern: str, left: bool) -> None:
    length = 170
    attention = PATTERNS[pattern][0] if pattern in PATTERNS else ALL_KEPT[pattern]
    longer, ids = long_model("gpt2", "GPT2LMHeadModel", attention, num_hidden_layers=2), tokens(3, length)
    mask = padding(3, length, left=True) if left else torch.ones(3, length, dtype=torch.long)
    cache = DynamicCache(config=longer.config)
    steps = in_pieces(longer, cache, ids, mask, [(0, 60), (60, 67), *singly(67, 90), (90, 140), *singly(140, length)])
    assert (steps - in_one_pass(longer, ids, mask))[mask.bool()].abs().max() < 1e-4
    assert getattr(cache.layers[0], "computes_attention", False) == (pattern in PATTERNS)


@pytest.mark.thorough
@every_case("pattern", PATTERNS)
def test_a_cache_of_a_static_pattern_is_as_large_as_its_reach(pattern: str) -> None:
    attention, reachable = PATTERNS[pattern]
    cache = DynamicCache(config=long_model("gpt2", "GPT2LMHeadModel", attention).config)
    for _ in range(400):
        new = torch.randn(1, 4, 1, 16)
        cache.update(new, new, 0)
        cache.layers[0].note_padding(None)
        assert cache.layers[0].keys.shape[2] <= reachable + SLACK


STATES: dict[str, dict[str, Any]] = {
    "linear": {"mechanism": "linear"},
    "taylor": {"mechanism": "taylor"},
    "hybrid": {"mechanism": "hybrid", "window": 8},
    "linear beside a window": {"mechanism": "linear", "layers": {1: {"mechanism": "window", "window": 9}}},
    "sinks beside a state": {**PATTERNS["sinks"][0], "layers": {1: {"mechanism": "hybrid", "window": 8}}},
}
REMOVED: dict[str, list[tuple[int, int, list[int]]]] = {
    "a draft after the prompt": [(80, 5, [85]), *[(1, 0, [1])] * 5],
    "drafts of several tokens": [(70, 0, [70]), *[(2, 3, [5]), (4, 0, [4]), (1, 4, [5])] * 2],
    "drafts token by token": [(70, 1, [71]), (1, 9, [1] * 10), (3, 2, [1] * 5)],
    "a draft longer than the text": [(2, 100, [102]), (60, 0, [30, 30]), (1, 9, [10])],
}
"""Steps of ``(right tokens, wrong tokens that are removed, how many of both are read at a time)``."""


RECORDED = [*PATTERNS, *STATES]
IN_TURN = {(pattern, [*REMOVED][number % len(REMOVED)]) for number, pattern in enumerate(RECORDED)}


@every_case(
    ("pattern", "steps"),
    grid(itertools.product(RECORDED, REMOVED), lambda pattern, steps: (pattern, steps) in IN_TURN),
)
def test_a_recording_cache_continues_after_removed_tokens_as_if_they_had_never_been(pattern: str, steps: str) -> None:
    attention = STATES[pattern] if pattern in STATES else PATTERNS[pattern][0]
    longer = long_model("gpt2", "GPT2LMHeadModel", attention, num_hidden_layers=2)
    length = sum(right for right, _, _ in REMOVED[steps])
    ids, wrong_ids, mask = tokens(3, length), tokens(3, 200, seed=2), padding(3, length, left=True)
    cache, logits, end = DynamicCache(config=longer.config), [], 0
    cache.activate_past_recording()
    for right, wrong, counts in REMOVED[steps]:
        begin, end = end, end + right
        read = torch.cat([ids[:, :end], wrong_ids[:, :wrong]], 1)
        seen = torch.cat([mask[:, :end], mask.new_ones(3, wrong)], 1)
        cuts = [(begin + sum(counts[:number]), begin + sum(counts[: number + 1])) for number in range(len(counts))]
        logits.append(in_pieces(longer, cache, read, seen, cuts)[:, :right])
        cache.crop(-wrong)
        assert cache.get_seq_length() == end
    assert (torch.cat(logits, 1) - in_one_pass(longer, ids, mask))[mask.bool()].abs().max() < 1e-4


def test_a_recording_cache_of_sinks_drops_keys_once_tokens_can_no_longer_be_removed() -> None:
    cache = DynamicCache(config=long_config("gpt2", PATTERNS["sinks"][0]))
    cache.activate_past_recording()
    for _ in range(300):
        new = torch.randn(1, 4, 5, 16)
        cache.update(new, new, 0)
        cache.layers[0].note_padding(None)
        cache.layers[0].crop(-4)
        assert cache.layers[0].keys.shape[2] <= PATTERNS["sinks"][1] + SLACK
    with pytest.raises(InputError, match=r"crop\(-299\) .*activate_past_recording"):
        cache.layers[0].crop(-299)


def test_attentions_from_a_cache_of_retained_keys_stand_at_their_columns() -> None:
    longer, ids = long_model("gpt2", "GPT2LMHeadModel", PATTERNS["sinks"][0]), tokens(2, 150)
    cache = DynamicCache(config=longer.config)
    in_pieces(longer, cache, ids, torch.ones_like(ids), [(0, 100), *singly(100, 149)])
    with torch.no_grad():
        step = longer(ids[:, 149:], past_key_values=cache, output_attentions=True).attentions[0]
        whole = longer(ids, output_attentions=True, use_cache=False).attentions[0]
    torch.testing.assert_close(step, whole[:, :, -1:], atol=1e-5, rtol=0)
