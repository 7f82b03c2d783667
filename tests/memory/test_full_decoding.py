"""The option ``full_decoding``: a prompt is read by window and sinks, and decoding steps see all keys."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, GenerationMixin, StaticCache

from hf_longattn import attend, build_mechanism, enable_long_attention, reference_attend
from hf_longattn.configuration import LongAttentionConfig
from hf_longattn.errors import InputError, OptionError
from hf_longattn.memory.decode_cache import CACHE, decode_layer_types
from hf_longattn.modeling.costs import ModelShape, decode_states, layer_mechanisms
from hf_longattn.modeling.family.rotary import plan_rotary
from tests.cases import every_case
from tests.reference.definitions.windows import seen_in_pieces
from tests.reference.small_models import (
    LANGUAGE_MODELS,
    in_pieces,
    long_like,
    long_model,
    padding,
    plain_model,
    positions_of,
    singly,
    tokens,
)

LENGTH, WINDOW, SINKS = 60, 9, 3
OPTIONS: dict[str, Any] = {"mechanism": "window", "window": WINDOW, "full_decoding": True}
OWN_WINDOW = 16
PIECES: dict[str, list[tuple[int, int]]] = {
    "prompt": [(0, 45), *singly(45, LENGTH)],
    "first token alone": [(0, 1), (1, 45), *singly(45, LENGTH)],
    "prompt in pieces, then a further turn": [(0, 30), (30, 40), *singly(40, 48), (48, 55), *singly(55, LENGTH)],
}
CASES = [
    ("llama", "prompt", 0, "static"),
    ("llama", "first token alone", SINKS, "dynamic"),
    ("llama", "prompt in pieces, then a further turn", 0, "static"),
    ("gemma3_text", "prompt", 0, "dynamic"),
    ("gemma3_text", "prompt in pieces, then a further turn", 0, "static"),
    ("gpt2", "prompt in pieces, then a further turn", SINKS, "dynamic"),
]


def models(base: str, sinks: int) -> tuple[Any, Any]:
    """The stock model with sdpa attention, which stays in float64, and the Long model. The first layer of Gemma 3 has
    the base's own window."""
    own: dict[str, Any] = {}
    attention = {**OPTIONS, "num_sinks": sinks}
    if base == "gemma3_text":
        own = {"sliding_window": OWN_WINDOW, "layer_types": ["sliding_attention", "full_attention", "full_attention"]}
        attention["layers"] = {0: {"mechanism": "window", "window": OWN_WINDOW}}
    plain = plain_model(base, LANGUAGE_MODELS[base], **own)
    return plain.double(), long_like(plain, base, attention, **own).double()


def defined(plain: Any, ids: Tensor, mask: Tensor, pieces: list[tuple[int, int]], sinks: int) -> Tensor:
    """Logits by a mask over pairs, in one pass of the stock model."""

    def of_pairs(pieces: list[tuple[int, int]], window: int, sinks: int) -> Tensor:
        # a row of zeros would be NaN
        return (seen_in_pieces(pieces, mask, window, sinks) | torch.diag_embed(mask == 0))[:, None]

    pairs: Any = of_pairs(pieces, WINDOW, sinks)
    if plain.config.model_type == "gemma3_text":
        pairs = {"full_attention": pairs, "sliding_attention": of_pairs([(0, LENGTH)], OWN_WINDOW, 0)}
    with torch.no_grad():
        return plain(ids, attention_mask=pairs, position_ids=positions_of(mask), use_cache=False).logits


@every_case(("base", "order", "sinks", "kind"), CASES)
def test_a_prompt_and_steps_equal_the_definition(base: str, order: str, sinks: int, kind: str) -> None:
    """In float64, with left padding and grouped keys."""
    plain, longer = models(base, sinks)
    ids, mask = tokens(3, LENGTH), padding(3, LENGTH, left=True)
    cache = (
        DynamicCache(config=longer.config)
        if kind == "dynamic"
        else StaticCache(config=longer.config, max_cache_len=LENGTH + 7)
    )
    found = in_pieces(longer, cache, ids, mask, PIECES[order])
    error = (found - defined(plain, ids, mask, PIECES[order], sinks))[mask.bool()].abs().max()
    assert error < 1e-9
    windows_only = defined(plain, ids, mask, [(0, LENGTH)], sinks)
    assert (found - windows_only)[:, -1].abs().max() > 1e-3


@every_case("base", ["llama", "gpt2"])
def test_steps_after_a_prompt_with_sinks_are_those_of_full_attention(base: str) -> None:
    """Keys are at their positions in the text, also those of sinks."""
    plain = plain_model(base, LANGUAGE_MODELS[base])
    windowed, full = (
        long_like(plain, base, attention) for attention in ({**OPTIONS, "num_sinks": SINKS}, {"mechanism": "full"})
    )
    ids, mask, prompt = tokens(2, LENGTH), padding(2, LENGTH, left=True), [(0, 50)]
    caches = DynamicCache(config=windowed.config), DynamicCache()
    in_pieces(windowed, caches[0], ids, mask, prompt)
    in_pieces(windowed, caches[1], ids, mask, prompt)
    steps = (
        in_pieces(model, cache, ids, mask, singly(50, LENGTH))
        for model, cache in zip((windowed, full), caches, strict=True)
    )
    assert torch.equal(*steps)


def test_beams_and_attentions_are_those_of_the_definition() -> None:
    plain, longer = models("llama", 0)
    ids = tokens(2, 40)
    settings: dict[str, Any] = {"do_sample": False, "num_beams": 3, "max_new_tokens": 6, "eos_token_id": None}
    results = [
        longer.generate(ids, **settings, **how)
        for how in ({}, {"cache_implementation": "static"}, {"prefill_chunk_size": 16})
    ]
    assert torch.equal(results[0], results[1])
    texts, pieces = results[0], [(0, 40), *singly(40, 46)]
    cache = DynamicCache(config=longer.config)
    in_pieces(longer, cache, texts, torch.ones_like(texts), pieces[:-1])
    with torch.no_grad():
        found = longer(texts[:, 45:], past_key_values=cache, output_attentions=True).attentions
        seen = seen_in_pieces(pieces, torch.ones_like(texts), WINDOW, 0)
        pairs = torch.zeros(seen.shape, dtype=torch.float64).masked_fill(~seen, -1e30)[:, None]
        plain.set_attn_implementation("eager")  # its softmax is in fp32
        expected = plain(texts, attention_mask=pairs, output_attentions=True, use_cache=False).attentions
    for weights, of_definition in zip(found, expected, strict=True):
        torch.testing.assert_close(weights, of_definition[:, :, -1:], atol=1e-6, rtol=0, check_dtype=False)
        assert (weights > 0).all()


HOW: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 2},
    "static": {"cache_implementation": "static", "disable_compile": True},
}
SETTINGS: dict[str, Any] = {
    "do_sample": False,
    "max_new_tokens": 4,
    "eos_token_id": None,
    "pad_token_id": 0,
    "output_scores": True,
    "return_dict_in_generate": True,
}


def assert_pieces_change_nothing(model: Any, ids: Tensor, sizes: tuple[int, ...], **arguments: Any) -> None:
    """``generate`` after a prompt in pieces of each size, as after the prompt in one pass."""
    expected = model.generate(ids, **copy.deepcopy(arguments), **SETTINGS)
    for size in sizes:
        found = model.generate(ids, prefill_chunk_size=size, **copy.deepcopy(arguments), **SETTINGS)
        assert torch.equal(found.sequences, expected.sequences), size
        torch.testing.assert_close(found.scores, expected.scores, atol=1e-6, rtol=0)


@every_case(
    ("base", "how", "sinks", "left"),
    [
        ("llama", "greedy", 0, True),
        ("llama", "beams", SINKS, False),
        ("llama", "static", SINKS, True),
        ("gpt2", "greedy", SINKS, False),
        ("gemma3_text", "static", 0, True),
    ],
)
def test_pieces_of_a_prompt_are_no_decoding_steps(base: str, how: str, sinks: int, left: bool) -> None:
    """Pieces of 25, 5 and 1 tokens of a prompt of 26 end with a piece of one token."""
    _, longer = models(base, sinks)
    mask = padding(2, 26, left=True) if left else torch.ones(2, 26, dtype=torch.long)
    assert_pieces_change_nothing(longer, tokens(2, 26), (25, 5, 1), attention_mask=mask, **HOW[how])


@pytest.mark.parametrize("copied", [False, True])
def test_pieces_of_a_prompt_are_no_decoding_steps_of_a_model_without_a_long_class(copied: bool) -> None:
    model = enable_long_attention(plain_model("llama", "LlamaForCausalLM").double(), OPTIONS)
    model = copy.deepcopy(model) if copied else model
    assert_pieces_change_nothing(model, tokens(2, 26), (25, 1))
    if copied:
        assert model._prefill.args == (model,)


def test_a_second_turn_in_pieces_and_a_continuation_are_those_of_one_call() -> None:
    _, longer = models("llama", SINKS)
    ids, settings = tokens(1, 46), {**SETTINGS, "return_dict_in_generate": False, "output_scores": False}
    cache = DynamicCache(config=longer.config)
    longer.generate(ids[:, :30], **{CACHE: cache}, **settings)

    if "prefill_ids" in inspect.getsource(GenerationMixin._prefill):
        assert_pieces_change_nothing(longer, ids, (12, 6, 1), **{CACHE: cache})
    else:  # transformers 5.20 gives the model the whole text again, at positions from 0
        with pytest.raises(InputError, match="with a cache nothing keeps them apart"):
            longer.generate(ids, prefill_chunk_size=12, **{CACHE: copy.deepcopy(cache)}, **settings)

    whole = longer.generate(ids[:, :30], **{**settings, "max_new_tokens": 8})
    cache = DynamicCache(config=longer.config)
    first = longer.generate(ids[:, :30], **{CACHE: cache}, **settings)
    assert torch.equal(longer.generate(first, **{CACHE: cache}, **settings), whole)


def test_pieces_of_a_prompt_are_refused_without_a_cache() -> None:
    longer = long_model("llama", "LlamaForCausalLM", {"mechanism": "recurrent_memory", "segment_length": 40})
    with pytest.raises(InputError, match="leave prefill_chunk_size out"):
        longer.generate(tokens(1, 30), max_new_tokens=3, prefill_chunk_size=8)


def test_attend_sees_all_keys_of_a_document_with_one_query() -> None:
    q, k, v = (torch.randn(2, heads, 40, 16, dtype=torch.float64) for heads in (4, 2, 2))
    documents = (torch.arange(40) >= 15).long().expand(2, -1)
    given: dict[str, Any] = {"window": 5, "full_decoding": True, "causal": True}
    for arguments in ({}, {"documents": documents}):
        full = attend(q[:, :, -1:], k, v, "full", causal=True, **arguments)
        for run in (attend, reference_attend):
            torch.testing.assert_close(
                run(q[:, :, -1:], k, v, "window", **given, **arguments), full, atol=1e-12, rtol=0
            )
        windowed = attend(q, k, v, "window", window=5, causal=True, **arguments)
        torch.testing.assert_close(attend(q, k, v, "window", **given, **arguments), windowed, atol=0, rtol=0)


def test_caches_and_positions_are_those_of_unbounded_distances() -> None:
    longer = long_model("llama", "LlamaForCausalLM", {**OPTIONS, "num_sinks": SINKS})
    attentions, shape = (
        (longer.config.long_attention, LongAttentionConfig("full")),
        ModelShape.of(longer.config, causal=True),
    )
    assert decode_layer_types(attentions[0], 3) is None
    state = decode_states(layer_mechanisms(attentions[0], shape, 1000), shape, 1000)[0]
    assert (state.bytes, state.per_token) == (1000 * shape.token_bytes, shape.token_bytes)
    plans = [plan_rotary(longer.config, attention, "auto", 512, 4096, causal=True) for attention in attentions]
    assert plans[0] == plans[1]
    assert plans[0].scaling != "none"


def test_options_and_places_without_decoding_refuse_full_decoding() -> None:
    for changes, message in (
        ({"relative": "alibi"}, "leave one of them out"),
        ({"exact_length": 64}, "leave exact_length out"),
    ):
        with pytest.raises(OptionError, match=message):
            build_mechanism("window", num_heads=4, head_dim=16, full_decoding=True, **changes)
    with pytest.raises(
        OptionError, match="exists only with causal=True with these options, but layer 0 needs causal=False"
    ):
        long_model("bert", None, OPTIONS)
    with pytest.raises(OptionError, match="a member of mechanism 'union' has full_decoding=True"):
        build_mechanism("union", num_heads=4, head_dim=16, of=[OPTIONS])


@every_case("how", [{"use_cache": False}, {"prompt_lookup_num_tokens": 3}])
def test_generate_refuses_calls_for_new_tokens_with_several_queries(how: dict[str, Any]) -> None:
    longer = long_model("llama", "LlamaForCausalLM", OPTIONS)
    with pytest.raises(InputError, match="full_decoding needs a cache and steps of one token"):
        longer.generate(tokens(1, 30), max_new_tokens=3, **how)
