"""The cache that keeps what a pattern reaches: a mechanism with a window, sinks and every fifth column, defined here."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import StaticLayer

from hf_longattn.engines.common.call import GatherTile, MaskMod, rows_of
from hf_longattn.mechanisms.common import registry
from hf_longattn.mechanisms.common.masked import GatheredMechanism
from hf_longattn.memory.kept_cache import SLACK
from hf_longattn.options import Options, option
from tests.cells import every_cell
from tests.grids import alternately, grid
from tests.reference.small_models import DECODERS, in_one_pass, in_pieces, long_like, padding, plain_model, singly, tokens

HEAD = {"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM"}
NAME = "scattered_for_tests"


@dataclasses.dataclass(frozen=True)
class ScatteredOptions(Options):
    window: int = option(7, "last keys", "tokens")


class Scattered(GatheredMechanism):
    options_type = ScatteredOptions
    options: ScatteredOptions

    def mask_mod(self, causal: bool, global_mask: Tensor | None) -> MaskMod:
        return lambda b, h, i, j: (i - j < self.options.window) | (j < 2) | (j % 5 == 4)

    def parts(self, length: int, causal: bool, device: torch.device) -> tuple[GatherTile, ...]:
        places = torch.arange(length, device=device)
        seen = self.mask_mod(causal, None)(0, 0, places[:, None], places)
        return (GatherTile(rows_of(length, length, device), rows_of(length, length, device), causal=causal, bias=seen[None, None, None]),)

    def kept(self, positions: Tensor, upcoming: Tensor) -> Tensor:
        return (positions > upcoming - self.options.window) | (positions < 2) | (positions % 5 == 4)


@pytest.fixture(autouse=True)
def scattered() -> Iterator[None]:
    registry.mechanism_class("full")
    registry.register_mechanism(NAME)(Scattered)
    yield
    registry._REGISTRY.pop(NAME)


def model(base: str) -> Any:
    attention = {"mechanism": NAME, "layers": {1: {"mechanism": "window", "window": 9}}}
    return long_like(plain_model(base, HEAD[base], num_hidden_layers=2), base, attention, num_hidden_layers=2)


@every_cell(("base", "left"), alternately(DECODERS))
def test_step_by_step_equals_the_full_forward_pass(base: str, left: bool) -> None:
    length = 190
    longer, ids = model(base), tokens(3, length)
    mask = padding(3, length, left=True) if left else torch.ones(3, length, dtype=torch.long)
    cache, cuts = DynamicCache(config=longer.config), [(0, 60), (60, 67), *singly(67, 150), (150, 155), *singly(155, length)]
    steps = in_pieces(longer, cache, ids, mask, cuts)
    assert (steps - in_one_pass(longer, ids, mask))[mask.bool()].abs().max() < 1e-4
    assert cache.layers[0].pruned
    assert cache.get_seq_length() == length


def test_memory_follows_what_is_reachable() -> None:
    cache, sizes = DynamicCache(config=model("gpt2").config), []
    for _ in range(500):
        new = torch.randn(2, 4, 1, 16)
        cache.update(new, new, 0)
        cache.layers[0].note_padding(None)
        sizes.append(cache.layers[0].keys.shape[2])
    assert max(sizes) <= 2 + 500 // 5 + 7 + SLACK
    assert cache.layers[0].get_mask_sizes(1) == (501, 0)


WAYS: list[dict[str, Any]] = [{}, {"num_beams": 3}, {"do_sample": True, "top_k": 20}]


@pytest.mark.thorough
@every_cell(
    ("base", "how"), grid(itertools.product(DECODERS, WAYS), lambda base, how: (WAYS.index(how) + DECODERS.index(base)) % 2 == 0), ids=str
)
def test_generate_with_and_without_the_cache(base: str, how: dict[str, Any]) -> None:
    """Keys are dropped in the middle, 64 tokens after the first were."""
    longer, ids = model(base), tokens(2, 110)
    arguments = {"do_sample": False, "eos_token_id": None, "max_new_tokens": 40, **how}
    found = []
    for use_cache in (True, False):
        torch.manual_seed(0)
        found.append(longer.generate(ids, use_cache=use_cache, **arguments))
    assert torch.equal(*found)


@pytest.mark.parametrize("base", DECODERS)
def test_a_static_cache_keeps_everything_and_gives_the_same(base: str) -> None:
    longer, ids = model(base), tokens(2, 40)
    arguments = {"do_sample": False, "eos_token_id": None, "max_new_tokens": 100}
    assert torch.equal(longer.generate(ids, cache_implementation="static", **arguments), longer.generate(ids, **arguments))
    assert isinstance(StaticCache(config=longer.config, max_cache_len=8).layers[0], StaticLayer)


def test_attentions_stand_at_their_columns() -> None:
    longer, ids = model("gpt2"), tokens(2, 150)
    cache = DynamicCache(config=longer.config)
    with torch.no_grad():
        longer(ids[:, :100], past_key_values=cache)
        for i in range(100, 149):
            longer(ids[:, i : i + 1], past_key_values=cache)
        step = longer(ids[:, 149:], past_key_values=cache, output_attentions=True).attentions[0]
        whole = longer(ids, output_attentions=True, use_cache=False).attentions[0]
    torch.testing.assert_close(step, whole[:, :, -1:], atol=1e-5, rtol=0)


def test_a_cache_is_copied_and_pickled() -> None:
    cache = DynamicCache(config=model("gpt2").config)
    for _ in range(4):
        new = torch.randn(1, 4, 50, 16)
        cache.update(new, new, 0)
        cache.layers[0].note_padding(None)
    for twin in (copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))):
        assert torch.equal(twin.layers[0].keys, cache.layers[0].keys)
