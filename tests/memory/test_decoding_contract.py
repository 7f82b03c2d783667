"""Decoding with a cache equals the full forward pass, for every causal mechanism of the registry in a whole model."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from hf_longattn import list_mechanisms
from hf_longattn.mechanisms.common.registry import mechanism_class
from tests.cases import every_case
from tests.grids import grid
from tests.reference.small_models import DECODERS, LANGUAGE_MODELS, in_one_pass, in_pieces, long_like, padding, plain_model, singly, tokens
from tests.shared_code import engine_of_form

NAMES = [name for name in list_mechanisms(causal=True, grid=False) if name != "recurrent_memory"]
"""Without the mechanism whose models read the whole text at every step."""
STATEFUL = [name for name in NAMES if mechanism_class(name).capabilities.stateful is True]
CASES = [(base, name) for name in NAMES for base in DECODERS]


def model(base: str, name: str) -> Any:
    plain = plain_model(base, LANGUAGE_MODELS[base], num_hidden_layers=2)
    return long_like(plain, base, {"mechanism": name, **mechanism_class(name).sample}, num_hidden_layers=2)


FLOAT32 = ("window", "fixed", "top_k", "linear", "full")
"""Mechanisms with a window's cache, with a state, and with every key."""
PRECISIONS = grid(
    [(base, name, dtype) for base, name in CASES for dtype in (torch.float32, torch.float64)],
    lambda base, name, dtype: name in FLOAT32 or (dtype == torch.float64 and base == DECODERS[NAMES.index(name) % len(DECODERS)]),
)
"""Mechanisms of one kind of cache on the bases in turn; slow tests have every mechanism on each, in both precisions."""


@every_case(("base", "name", "dtype"), PRECISIONS, of=9, code=lambda base, name, dtype: engine_of_form(name), ids=str)
def test_decoding_every_mechanism_in_pieces_equals_the_full_forward_pass(base: str, name: str, dtype: torch.dtype) -> None:
    """A layer that keeps scattered keys drops those that nobody sees any more after 134 tokens."""
    length, longer = 150, model(base, name)
    longer = longer if dtype == torch.float32 else longer.double()
    ids, mask = tokens(3, length), padding(3, length, left=True)
    cache = DynamicCache(config=longer.config)
    first = in_pieces(longer, cache, ids, mask, [(0, 70), (70, 77), *singly(77, 84)])
    cache = pickle.loads(pickle.dumps(copy.deepcopy(cache)))
    steps = torch.cat([first, in_pieces(longer, cache, ids, mask, [(84, 134), *singly(134, length)])], 1)
    assert (steps - in_one_pass(longer, ids, mask))[mask.bool()].abs().max() < (1e-4 if dtype == torch.float32 else 1e-8)
    assert cache.get_seq_length() == length


@pytest.mark.thorough
@every_case("name", NAMES, of=9, code=engine_of_form)
def test_beams_and_a_static_cache_of_every_mechanism_give_what_no_cache_gives(name: str) -> None:
    longer, ids = model("gpt2", name), tokens(2, 60)
    arguments = {"do_sample": False, "eos_token_id": None, "max_new_tokens": 7}
    for how in ({"num_beams": 3}, {"cache_implementation": "static"}):
        plain = {key: value for key, value in how.items() if key == "num_beams"}
        found = longer.generate(ids, **arguments, **how), longer.generate(ids, use_cache=False, **arguments, **plain)
        assert torch.equal(*found), how


def test_generation_with_a_hybrid_cache_begins_from_embeddings() -> None:
    longer, ids = model("llama", "hybrid"), tokens(2, 30)
    arguments = {"do_sample": False, "eos_token_id": None, "max_new_tokens": 5}
    found = longer.generate(inputs_embeds=longer.get_input_embeddings()(ids), **arguments)
    assert torch.equal(found, longer.generate(ids, **arguments)[:, 30:])
