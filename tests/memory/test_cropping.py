"""Tokens that are taken back leave no trace: every kind of cache goes on as if they had never come, or refuses and is as it was."""

from __future__ import annotations

import copy
import pickle
import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache, StaticCache

from hf_longattn import LongAttentionConfig, attend, build_mechanism, list_mechanisms
from hf_longattn.backend import CACHE_LAYER, longattn_attention_forward
from hf_longattn.errors import LengthError
from hf_longattn.mechanisms.common.registry import mechanism_class
from hf_longattn.memory import FULL, STATE_LAYER, SUMMARY_LAYER, AttentionCacheLayer, decode_layer_types
from hf_longattn.memory.kept_cache import SLACK
from tests.cells import every_cell
from tests.grids import ONLY_QUICK
from tests.reference.small_models import long_config, long_model, tokens

HEADS, KEY_HEADS, WIDTH, ROWS, LONGEST = 2, 1, 4, 3, 400
STARTS = torch.tensor([0, 3, 11])
"""Padding before the first token of each row."""
KINDS: dict[str, dict[str, Any]] = {
    **{name: {"mechanism": name, **mechanism_class(name).sample} for name in list_mechanisms(causal=True, grid=False)},
    "window of one": {"mechanism": "window", "window": 1},
    "sinks": {"mechanism": "window", "window": 9, "num_sinks": 2},
    "segment and memory": {"mechanism": "transformer_xl", "segment_length": 12, "memory_length": 7},
}


def layer_type(attention: dict[str, Any]) -> str:
    return (decode_layer_types(LongAttentionConfig.from_dict(attention), 1) or [FULL])[0]


class Decoder:
    """One attention layer with its cache, and the same layer over the whole text in one call."""

    def __init__(self, attention: dict[str, Any], seed: int) -> None:
        options = {name: value for name, value in attention.items() if name != "mechanism"}
        shape = {"num_heads": HEADS, "head_dim": WIDTH, **({} if "max_length" in options else {"max_length": LONGEST})}
        torch.manual_seed(seed)
        self.module = nn.Module()
        self.mechanism = build_mechanism(attention["mechanism"], **shape, **options).double().eval()
        self.module.long_attention, self.module.is_causal = self.mechanism, True
        self.cache = DynamicCache(config=long_config("llama", attention, num_hidden_layers=1))
        self.text = torch.zeros(ROWS, 0, HEADS + 2 * KEY_HEADS, WIDTH, dtype=torch.float64)

    def parts(self, text: Tensor) -> tuple[Tensor, ...]:
        return text.transpose(1, 2).split((HEADS, KEY_HEADS, KEY_HEADS), 1)

    def append(self, count: int) -> None:
        """New tokens give what they give at the end of the whole text."""
        new = torch.randn(ROWS, count, *self.text.shape[2:], dtype=torch.float64)
        self.text = torch.cat([self.text, new], 1)
        mask = torch.arange(self.text.shape[1]) >= STARTS[:, None]
        layer = self.cache.layers[0]
        q, k, v = self.parts(new)
        keys, values = layer.update(k, v)
        more = {CACHE_LAYER: layer} if isinstance(layer, AttentionCacheLayer) else {}
        with torch.no_grad():
            out, _ = longattn_attention_forward(self.module, q, keys, values, None if mask.all() else mask, **more)
            expected = attend(*self.parts(self.text), self.mechanism, causal=True, padding_mask=mask)
        real = mask[:, -count:, None, None]
        torch.testing.assert_close(out * real, expected.transpose(1, 2)[:, -count:] * real, atol=1e-8, rtol=0)
        assert layer.get_seq_length() == self.text.shape[1]

    def crop(self, count: int) -> bool:
        """Whether the last tokens were taken back."""
        try:
            self.cache.crop(-count)
        except LengthError:
            return False
        self.text = self.text[:, : max(0, self.text.shape[1] - count)]
        return True


def test_there_is_every_kind_of_cache() -> None:
    types = set(map(layer_type, KINDS.values()))
    assert {FULL, STATE_LAYER, SUMMARY_LAYER} < types
    assert any(name.startswith("longattn_window_") for name in types)
    assert any(name.startswith("longattn_shifted_groups_") for name in types)


@every_cell("recording", [False, True], ids=["as-it-is", "recording"])
@every_cell("kind", KINDS)
def test_what_follows_is_right_or_taking_back_is_refused(kind: str, recording: bool) -> None:
    for seed in [([*KINDS].index(kind) + recording) % 3] if ONLY_QUICK else range(3):
        decoder, chance, since = Decoder(KINDS[kind], seed), random.Random(seed), 0
        if recording:
            decoder.cache.activate_past_recording()
        while decoder.text.shape[1] < 260 and chance.random() < 0.97:
            count = chance.choice((1, 1, 2, 5, 30, 75))
            decoder.append(count)
            since += count
            if chance.random() < 0.5:
                length = decoder.text.shape[1]
                removed = chance.choice((0, 1, chance.randint(0, count), chance.randint(0, length), length, length + 3))
                done = decoder.crop(removed)
                assert done or (removed > 0 and (not recording or removed > min(since, SLACK)))
                since = 0 if done else since
        decoder.append(3)


@pytest.mark.thorough
@every_cell("kind", KINDS)
def test_several_steps_back_one_after_the_other(kind: str) -> None:
    """Each is as far as the cache may go back; together they are further."""
    decoder = Decoder(KINDS[kind], 0)
    decoder.cache.activate_past_recording()
    for count in (150, 40, 40):
        decoder.append(count)
    for removed in (SLACK - 4, SLACK - 4, 30):
        decoder.crop(removed)
    decoder.append(2)
    for twin in (copy.deepcopy(decoder.cache), pickle.loads(pickle.dumps(decoder.cache))):
        other = copy.copy(decoder)
        other.cache = twin
        other.crop(SLACK + 20)
        other.append(2)


@pytest.mark.thorough
@every_cell("kind", KINDS)
def test_a_positive_number_is_refused(kind: str) -> None:
    decoder = Decoder(KINDS[kind], 0)
    decoder.append(20)
    with pytest.raises(ValueError, match=r"crop.*5.* (not understood|not supported)"):
        decoder.cache.crop(5)
    decoder.append(2)


@every_cell("kind", [kind for kind in KINDS if layer_type(KINDS[kind]) != FULL])
def test_a_static_cache_does_not_go_back(kind: str) -> None:
    config = long_config("llama", KINDS[kind], num_hidden_layers=1)
    cache = StaticCache(config=config, max_cache_len=40)
    new = torch.randn(1, 2, 20, 16)
    cache.update(new, new, 0)
    with pytest.raises(LengthError, match="removed"):
        cache.crop(-3)


@every_cell("how", [{"prompt_lookup_num_tokens": 4}, {"assistant_model": None}], ids=["prompt-lookup", "assistant"])
@every_cell("kind", ["full", "window", "sinks", "linear", "top_k"])
def test_assisted_decoding_gives_what_greedy_decoding_gives(kind: str, how: dict[str, Any]) -> None:
    longer, assistant = (long_model("llama", "LlamaForCausalLM", KINDS[name], num_hidden_layers=1) for name in (kind, "window of one"))
    how = {"assistant_model": assistant} if "assistant_model" in how else how
    arguments = {"do_sample": False, "eos_token_id": None, "max_new_tokens": 16}
    ids = tokens(1, 40).repeat(1, 2)
    assert torch.equal(longer.generate(ids, **arguments, **how), longer.generate(ids, use_cache=False, **arguments))
