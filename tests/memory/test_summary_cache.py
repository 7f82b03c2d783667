"""Decoding with summaries of the cached keys: the same logits as the whole forward pass, whatever happens to the cache between steps."""

from __future__ import annotations

import copy
import itertools
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from hf_longattn import build_mechanism
from hf_longattn.engines.common.call import AttentionCall
from hf_longattn.mechanisms.common.summaries import SummarisedMechanism
from hf_longattn.memory import SUMMARY_LAYER, SummaryLayer, decode_layer_types
from tests.cells import every_cell
from tests.grids import grid, pairwise, quickly
from tests.reference.small_models import (
    DECODERS,
    in_one_pass,
    in_pieces,
    long_config,
    long_like,
    padding,
    plain_model,
    singly,
    tokens,
)

HEAD = {"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM"}
LSH = {"mechanism": "lsh", "num_hashes": 3, "bucket_size": 8, "num_buckets": 8}
ROUTING = {"mechanism": "routing", "num_clusters": 6, "window_per_cluster": 10}
SUMMARISED: dict[str, dict[str, Any]] = {
    "best keys": {"mechanism": "top_k", "num_keys": 9},
    "blocks": {"mechanism": "block_top_k", "block_size": 16, "num_blocks": 3},
    "own block": {"mechanism": "block_top_k", "block_size": 16, "num_blocks": 1},
    "hashes": LSH,
    "counted hashes": {**LSH, "count_duplicates": True},
    "shared vectors": {**LSH, "num_buckets": 64, "shared_qk": True},
    "shared, counted": {**LSH, "num_buckets": 64, "shared_qk": True, "count_duplicates": True},
    "clusters": ROUTING,
    "clusters and window": {**ROUTING, "window": 7},
    "learned clusters": {**ROUTING, "window": 7, "router": "learned"},
    "means": {"mechanism": "segmented", "block_size": 12, "integration": "pooled"},
    "weighed": {"mechanism": "segmented", "block_size": 12, "integration": "attention"},
}
DIFFERENT = ("best keys", "own block", "shared, counted", "clusters and window", "means", "weighed")
"""One or two of every mechanism: in the quick tests, what happens to the cache between steps happens to these."""


def model(base: str, attention: dict[str, Any]) -> Any:
    """With two layers, since positions are asked of a cache to whose first layer the new tokens have been added."""
    return long_like(plain_model(base, HEAD[base], num_hidden_layers=2), base, attention, num_hidden_layers=2)


def inputs(length: int, left: bool) -> tuple[Tensor, Tensor]:
    """Ids and mask of three sequences."""
    mask = padding(3, length, left=True) if left else torch.ones(3, length, dtype=torch.long)
    return tokens(3, length), mask


@every_cell(("name", "base", "left"), pairwise([*SUMMARISED], DECODERS, [False, True]), of=9, alike=lambda name, *rest: name)
def test_step_by_step_equals_the_whole_forward_pass(name: str, base: str, left: bool) -> None:
    length, longer = 90, model(base, SUMMARISED[name])
    given = inputs(length, left)
    cache = DynamicCache(config=longer.config)
    cuts = [(0, 10), (10, 45), (45, 52), *singly(52, 70), (70, 75), *singly(75, length)]
    steps = in_pieces(longer, cache, *given, cuts)
    assert (steps - in_one_pass(longer, *given))[given[1].bool()].abs().max() < 1e-4
    assert all(isinstance(layer, SummaryLayer) and layer.summarised == length for layer in cache.layers)


def test_attention_needs_only_the_keys_that_update_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers moves the keys of an offloaded layer away after ``update``, before the layer attends."""
    update, length, longer = SummaryLayer.update, 70, model("gpt2", SUMMARISED["blocks"])
    away: dict[int, tuple[Tensor, Tensor]] = {}

    def offloaded(layer: SummaryLayer, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        layer.keys, layer.values = away.pop(id(layer), (layer.keys, layer.values))
        keys, values = update(layer, *args, **kwargs)
        away[id(layer)] = keys, values
        layer.keys, layer.values = torch.full_like(keys, torch.nan), torch.full_like(values, torch.nan)
        return keys, values

    monkeypatch.setattr(SummaryLayer, "update", offloaded)
    given = inputs(length, True)
    steps = in_pieces(longer, DynamicCache(config=longer.config), *given, [(0, 50), *singly(50, length)])
    assert (steps - in_one_pass(longer, *given))[given[1].bool()].abs().max() < 1e-4


@pytest.mark.thorough
@every_cell(("name", "left"), grid(itertools.product(SUMMARISED, (False, True)), lambda name, left: name in DIFFERENT[left::2]))
def test_tokens_taken_back_leave_no_trace(name: str, left: bool) -> None:
    length, longer = 85, model("gpt2", SUMMARISED[name])
    ids, mask = inputs(length, left)
    other = torch.where(torch.arange(length) < 60, ids, (ids + 7) % 190 + 5)
    cache = DynamicCache(config=longer.config)
    in_pieces(longer, cache, other, mask, [(0, 50), *singly(50, 80)])
    cache.crop(-20)
    assert cache.get_seq_length() == 60
    steps = in_pieces(longer, cache, ids, mask, [(60, 64), *singly(64, length)])
    assert (steps - in_one_pass(longer, ids, mask)[:, 60:]).abs().max() < 1e-4


@pytest.mark.thorough
@every_cell("name", quickly(SUMMARISED, DIFFERENT))
def test_sequences_change_places_and_multiply(name: str) -> None:
    length, longer = 90, model("llama", SUMMARISED[name])
    given = inputs(length, True)
    cache = DynamicCache(config=longer.config)
    in_pieces(longer, cache, *given, [(0, 60), *singly(60, 66)])
    order = torch.tensor([2, 0, 0, 1])
    cache.batch_select_indices(order)
    in_pieces(longer, cache, *(x[order] for x in given), singly(66, 70))
    cache.batch_repeat_interleave(2)
    cache.reorder_cache(torch.tensor([7, 1, 4, 3]))
    order = order.repeat_interleave(2)[[7, 1, 4, 3]]
    cache = pickle.loads(pickle.dumps(copy.deepcopy(cache)))
    moved = tuple(x[order] for x in given)
    steps = in_pieces(longer, cache, *moved, singly(70, length))
    assert (steps - in_one_pass(longer, *moved)[:, 70:]).abs().max() < 1e-4


GENERATED = ("blocks", "hashes", "clusters and window", "means")
WAYS: dict[str, dict[str, Any]] = {
    "beam": {"num_beams": 3},
    "sample": {"do_sample": True, "top_k": 20},
    "lookup": {"prompt_lookup_num_tokens": 4},
    "static": {"cache_implementation": "static"},
}


@pytest.mark.thorough
@every_cell(
    ("name", "way"),
    grid(itertools.product(GENERATED, WAYS), lambda name, way: (GENERATED.index(name) + [*WAYS].index(way)) % 2 == 0),
)
def test_generate_with_and_without_the_cache(name: str, way: str) -> None:
    how = WAYS[way]
    longer, ids = model("gpt2", SUMMARISED[name]), tokens(1 if "prompt_lookup_num_tokens" in how else 2, 60)
    arguments = {"do_sample": False, "eos_token_id": None, "max_new_tokens": 14, **how}
    found = []
    for use_cache in (True, False):
        torch.manual_seed(0)
        left_out = () if use_cache else ("prompt_lookup_num_tokens", "cache_implementation")
        found.append(longer.generate(ids, use_cache=use_cache, **{key: value for key, value in arguments.items() if key not in left_out}))
    assert torch.equal(*found)


@pytest.mark.thorough
def test_assisted_decoding() -> None:
    longer, ids = model("gpt2", SUMMARISED["blocks"]), tokens(1, 60)
    assistant = model("gpt2", SUMMARISED["hashes"])
    arguments = {"do_sample": False, "eos_token_id": None, "max_new_tokens": 25}
    assert torch.equal(longer.generate(ids, assistant_model=assistant, **arguments), longer.generate(ids, use_cache=False, **arguments))


@pytest.mark.thorough
@every_cell("name", SUMMARISED)
def test_tables_are_those_of_all_keys_at_once(name: str) -> None:
    """Made unit by unit, with another start for every sequence, they hold what one call over each whole sequence makes."""
    torch.manual_seed(0)
    options = dict(SUMMARISED[name])
    mechanism = build_mechanism(options.pop("mechanism"), num_heads=4, head_dim=16, **options)
    assert isinstance(mechanism, SummarisedMechanism)
    unit, mask = mechanism.summary_unit, padding(3, 75, left=True).bool()
    assert unit is not None
    k, v, q = torch.randn(3, 2, 75, 16), torch.randn(3, 2, 75, 16), torch.randn(3, 4, 75, 16)
    layer, done = SummaryLayer(), 0
    for upto in (20, 40, *range(41, 76)):
        with torch.no_grad():
            keys, values = layer.update(k[:, :, done:upto], v[:, :, done:upto])
            layer.note_padding(mask[:, :upto])
            call = AttentionCall.of(causal=True, padding_mask=mask[:, :upto])
            if layer.computes_attention(mechanism, q[:, :, done:upto], call):
                layer.attend(mechanism, q[:, :, done:upto], keys, values, call, False)
        done = upto
    assert layer.summarised == 75
    for item in range(3):
        own = int(mask[item].sum())
        lengthened = [torch.nn.functional.pad(x[item : item + 1, :, 75 - own :], (0, 0, 0, -own % unit)) for x in (k, v)]
        real = torch.arange(own + -own % unit).view(1, -1, unit) < own
        expected = mechanism.summarise_units(*(x.unflatten(2, (-1, unit)) for x in lengthened), real, AttentionCall())
        for table, entries in expected.items():
            torch.testing.assert_close(layer.tables[table][item : item + 1, :, : entries.shape[2]], entries)


def test_a_step_neither_copies_the_keys_nor_keeps_spare_room_in_copies() -> None:
    layer, new = SummaryLayer(), torch.randn(2, 3, 1, 8)
    with torch.no_grad():
        layer.update(*[torch.randn(2, 3, 500, 8)] * 2)
        layer.update(new, new)
        place = layer.keys.data_ptr()
        for _ in range(40):
            layer.update(new, new)
        assert layer.keys.data_ptr() == place
        assert layer.keys.shape[2] == 541
        twin = copy.deepcopy(layer)
        for each in (layer, twin):
            each.update(new, -new)
        assert torch.equal(twin.keys, layer.keys)
        assert twin.keys.data_ptr() != layer.keys.data_ptr()
    layer.reset()
    assert layer.get_seq_length() == 0
    assert not layer.tables


@pytest.mark.thorough
def test_a_shallow_copy_goes_its_own_way() -> None:
    longer = model("gpt2", SUMMARISED["best keys"])
    given, other = inputs(70, True), inputs(70, True)
    other = (torch.where(torch.arange(70) < 45, other[0], (other[0] + 7) % 190 + 5), *other[1:])
    cache = DynamicCache(config=longer.config)
    in_pieces(longer, cache, *given, [(0, 40), *singly(40, 50)])
    twin = copy.copy(cache)
    twin.layers = [copy.copy(layer) for layer in cache.layers]
    cache.crop(-5)
    found = in_pieces(longer, cache, *other, singly(45, 70)), in_pieces(longer, twin, *given, singly(50, 70))
    assert (found[0] - in_one_pass(longer, *other)[:, 45:]).abs().max() < 1e-4
    assert (found[1] - in_one_pass(longer, *given)[:, 50:]).abs().max() < 1e-4


def test_a_sequence_begins_anew() -> None:
    """Hidden by the mask, what a row has seen before counts no more, neither in its blocks nor in their means."""
    longer, (ids, mask) = model("gpt2", SUMMARISED["blocks"]), inputs(100, False)
    cache = DynamicCache(config=longer.config)
    in_pieces(longer, cache, ids, mask, [(0, 20), *singly(20, 25)])
    mask[1, :25] = 0
    for layer in cache.layers:
        layer.restart(torch.tensor([False, True, False]))
    steps = in_pieces(longer, cache, ids, mask, singly(25, 100))
    assert (steps - in_one_pass(longer, ids, mask)[:, 25:]).abs().max() < 1e-4


def test_gradients_flow_through_a_cache() -> None:
    longer, ids = model("gpt2", SUMMARISED["means"]).train(False), tokens(2, 50)
    cache = DynamicCache(config=longer.config)
    longer(ids[:, :49], past_key_values=cache)
    loss = longer(ids[:, 49:], past_key_values=cache).logits[..., 0].sum()
    stepped = torch.autograd.grad(loss, longer.transformer.wte.weight)[0]
    at_once = torch.autograd.grad(longer(ids, use_cache=False).logits[:, 49:, 0].sum(), longer.transformer.wte.weight)[0]
    torch.testing.assert_close(stepped, at_once, atol=1e-3, rtol=1e-3)


def test_attentions_are_those_of_the_whole() -> None:
    longer, ids = model("gpt2", SUMMARISED["blocks"]), tokens(2, 90)
    cache = DynamicCache(config=longer.config)
    with torch.no_grad():
        longer(ids[:, :89], past_key_values=cache)
        step = longer(ids[:, 89:], past_key_values=cache, output_attentions=True).attentions[0]
        at_once = longer(ids, output_attentions=True, use_cache=False).attentions[0]
    torch.testing.assert_close(step, at_once[:, :, -1:], atol=1e-5, rtol=0)


def test_a_mask_of_single_pairs_goes_through_forward() -> None:
    longer, ids = model("gpt2", SUMMARISED["hashes"]), tokens(2, 60)
    cache = DynamicCache(config=longer.config)
    with torch.no_grad():
        longer(ids[:, :59], past_key_values=cache)
        pairs = torch.ones(2, 1, 1, 60, dtype=torch.bool)
        step = longer(ids[:, 59:], attention_mask=pairs, past_key_values=cache).logits
        at_once = longer(ids, use_cache=False).logits
    assert cache.layers[0].summarised == 0
    torch.testing.assert_close(step, at_once[:, -1:], atol=1e-4, rtol=0)


def test_only_what_needs_summaries_has_them() -> None:
    config = long_config("gpt2", {"mechanism": "segmented", "block_size": 12}).long_attention
    assert SUMMARY_LAYER not in (decode_layer_types(config, 2) or [])
