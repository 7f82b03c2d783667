"""Decoding with a cache equals the full forward pass, for every causal mechanism in a whole model, also with relative
positions."""

from __future__ import annotations

import copy
import itertools
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from hf_longattn import list_mechanisms
from hf_longattn.engines.call import AttentionCall
from hf_longattn.errors import OptionError
from hf_longattn.mechanisms.common.base import Mechanism
from hf_longattn.mechanisms.common.capabilities import Stateful
from hf_longattn.mechanisms.common.masked import Columns
from hf_longattn.mechanisms.common.registry import build_mechanism, mechanism_class
from tests.cases import every_case
from tests.grids import grid
from tests.reference.small_models import (
    DECODERS,
    LANGUAGE_MODELS,
    in_one_pass,
    in_pieces,
    long_model,
    padding,
    singly,
    tokens,
)
from tests.samples import sample_of
from tests.shared_code import code_of_form, engine_of_form

NAMES = [name for name in list_mechanisms(causal=True, grid=False) if name != "recurrent_memory"]
"""Without the mechanism whose models read the whole text at every step."""
STATEFUL = [name for name in NAMES if issubclass(mechanism_class(name), Stateful)]
CASES = [(base, name) for name in NAMES for base in DECODERS]


def model(base: str, name: str) -> Any:
    return long_model(base, LANGUAGE_MODELS[base], sample_of(name), num_hidden_layers=2)


FLOAT32 = ("window", "fixed", "top_k", "linear", "full")
"""Mechanisms with a window's cache, with a state, and with every key."""
PRECISIONS = grid(
    [(base, name, dtype) for base, name in CASES for dtype in (torch.float32, torch.float64)],
    lambda base, name, dtype: (
        name in FLOAT32 or (dtype == torch.float64 and base == DECODERS[NAMES.index(name) % len(DECODERS)])
    ),
)
"""Mechanisms of one kind of cache on the bases in turn; slow tests have every mechanism on each, in both
precisions."""


@every_case(("base", "name", "dtype"), PRECISIONS, of=9, code=lambda base, name, dtype: engine_of_form(name), ids=str)
def test_decoding_every_mechanism_in_pieces_equals_the_full_forward_pass(
    base: str, name: str, dtype: torch.dtype
) -> None:
    """A layer that keeps scattered keys drops those that nobody sees any more after 134 tokens."""
    length, longer = 150, model(base, name)
    longer = longer if dtype == torch.float32 else longer.double()
    ids, mask = tokens(3, length), padding(3, length, left=True)
    cache = DynamicCache(config=longer.config)
    first = in_pieces(longer, cache, ids, mask, [(0, 70), (70, 77), *singly(77, 84)])
    cache = pickle.loads(pickle.dumps(copy.deepcopy(cache)))
    steps = torch.cat([first, in_pieces(longer, cache, ids, mask, [(84, 134), *singly(134, length)])], 1)
    assert (steps - in_one_pass(longer, ids, mask))[mask.bool()].abs().max() < (
        1e-4 if dtype == torch.float32 else 1e-8
    )
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


WITH_TERMS = [
    name
    for name in list_mechanisms(causal=True, grid=False)
    if mechanism_class(name).capabilities.takes_score_mod and name != "recurrent_memory"
]
FORMS: dict[str, dict[str, Any]] = {name: sample_of(name) for name in WITH_TERMS} | {
    "window, sinks": {"mechanism": "window", "window": 9, "num_sinks": 3},
    "window, dilated": {"mechanism": "window", "window": 5, "dilation": [1, 2, 3, 1], "num_sinks": 2},
    "lsh, counted": {
        "mechanism": "lsh",
        "num_hashes": 3,
        "bucket_size": 8,
        "num_buckets": 8,
        "count_duplicates": True,
    },
    "lsh, shared": {"mechanism": "lsh", "num_hashes": 3, "bucket_size": 8, "num_buckets": 64, "shared_qk": True},
    "routing, learned": {"mechanism": "routing", "num_clusters": 6, "window_per_cluster": 10, "router": "learned"},
    "union, kept": {"mechanism": "union", "of": "window:window=9+fixed:block_size=10,num_summary=2"},
}
LENGTH = 100


def model_with_terms(base: str, form: str, kind: str) -> Any:
    """With terms that matter: their parameters are initialised to zeros. Two layers, since positions are asked of a
    cache to whose first layer the new tokens have been added."""
    built = long_model(base, LANGUAGE_MODELS[base], {**FORMS[form], "relative": kind}, num_hidden_layers=2)
    for module in built.modules():
        if isinstance(module, Mechanism) and module.relative is not None:
            for parameter in module.relative.parameters():
                torch.nn.init.normal_(parameter, std=0.3)
    return built.double()


KINDS = ["alibi", "t5_buckets", "shaw", "transformer_xl"]


def quick(form: str, kind: str, base: str) -> bool:
    """Every kind with `window` on one base; with other forms every second kind, the bases in turn."""
    of_form, of_kind = [*FORMS].index(form), KINDS.index(kind)
    if form == "window":
        return base == DECODERS[0]
    return (of_form + of_kind) % 2 == 0 and base == DECODERS[(of_form + of_kind // 2) % len(DECODERS)]


DRAWN = [*itertools.product(FORMS, KINDS, DECODERS)]
TERM_CASES = [*grid(DRAWN, quick), ("full", "self_extend:window=12,group=5", "llama")]


@every_case(
    ("form", "kind", "base"),
    TERM_CASES,
    of=9,
    code=lambda form, kind, base: kind if form == "window" else code_of_form(FORMS[form]["mechanism"]),
)
def test_decoding_with_relative_positions_equals_the_full_forward_pass(form: str, kind: str, base: str) -> None:
    """Left padding, a prompt, several tokens at once, single ones, and sequences that change places."""
    longer = model_with_terms(base, form, kind)
    ids, mask = tokens(3, LENGTH), padding(3, LENGTH, left=True)
    cache, order = DynamicCache(config=longer.config), torch.tensor([2, 0, 0])

    def step(text: torch.Tensor, begin: int, end: int) -> torch.Tensor:
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, begin:end]
        return longer(
            text[:, begin:end], attention_mask=mask[:, :end], position_ids=positions, past_key_values=cache
        ).logits

    with torch.no_grad():
        step(ids, 0, 70)
        step(ids, 70, 77)
        step(ids, 77, 78)
        cache.reorder_cache(order)
        ids, mask = ids[order], mask[order]
        found = torch.cat(
            [step(ids, begin, end) for begin, end in ((78, 79), (79, 80), (80, 86), (86, 87), (87, LENGTH))], 1
        )
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        expected = longer(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits[:, 78:]
    assert (found - expected).abs().max() < 1e-4


def test_members_of_a_union_have_no_relative_positions() -> None:
    """So that there is one term for a layer, which the cache of a union meets as that of any other mechanism."""
    with pytest.raises(OptionError, match="a member of mechanism 'union' has relative='alibi'"):
        build_mechanism("union", num_heads=4, head_dim=16, of=[{"mechanism": "window", "relative": "alibi"}])


def test_columns_of_a_decoding_step_are_found_once_for_all_layers() -> None:
    """Once for the mask, and once for the distances."""
    found: list[int] = []

    def find() -> tuple[Tensor, Tensor]:
        found.append(1)
        return torch.arange(19, 20), torch.arange(20)

    layers = [build_mechanism("window", num_heads=2, head_dim=8, window=5, relative="alibi") for _ in range(3)]
    call = AttentionCall.of(causal=True, padding_mask=torch.arange(20).expand(2, -1) >= 3)
    q, k = torch.randn(2, 2, 1, 8), torch.randn(2, 2, 20, 8)
    for layer in layers:
        layer.attend_rows(q, k, k, call, Columns(("all", 20), find))
    assert len(found) == 2
