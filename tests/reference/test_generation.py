"""`generate` of LongGPT2 and LongLlama: step by step equals the full forward pass, with memory no larger than the
window."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
from transformers import DynamicCache, GenerationMixin

from hf_longattn.errors import InputError
from tests.cases import every_case
from tests.grids import grid, pairwise
from tests.reference.small_models import (
    CAUSAL,
    DECODERS,
    LANGUAGE_MODELS,
    in_one_pass,
    in_pieces,
    long_like,
    padding,
    pair,
    plain_model,
    singly,
    tokens,
)
from tests.shared_code import code_of_family

WINDOW = 16
MECHANISMS: dict[str, dict[str, Any]] = {
    "full": {"mechanism": "full"},
    "window": {"mechanism": "window", "window": WINDOW},
    "window of one": {"mechanism": "window", "window": 1},
    "windows by layer": {"mechanism": "window", "window": WINDOW, "layers": {0: {"window": 4}, 2: {"window": 30}}},
    "window and full": {"mechanism": "window", "window": WINDOW, "layers": {1: {"mechanism": "full"}}},
    "full first": {"mechanism": "window", "window": WINDOW, "layers": {0: {"mechanism": "full"}}},
    "longformer": {"mechanism": "longformer", "window": WINDOW},
}
STEPS = [(base, name) for base in DECODERS for name in MECHANISMS] + [
    (base, "windows by layer") for base in CAUSAL if base not in DECODERS
]
GREEDY = {"do_sample": False, "eos_token_id": None, "max_new_tokens": 20}
STATIC_REFUSED_BY_TRANSFORMERS = "assisted generate is not supported with Static cache classes"
"""In 5.20, of every model."""
STATIC_REFUSED = (
    STATIC_REFUSED_BY_TRANSFORMERS
    if STATIC_REFUSED_BY_TRANSFORMERS in inspect.getsource(GenerationMixin._assisted_decoding)
    else "leave cache_implementation='static' out"
)


def model(base: str, mechanism: str) -> Any:
    return long_like(plain_model(base, LANGUAGE_MODELS[base]), base, MECHANISMS[mechanism])


@every_case(
    ("base", "mechanism", "left"),
    grid(
        [(*step, left) for step in STEPS for left in (False, True)],
        lambda base, mechanism, left: left or base in DECODERS,
    ),
    of=9,
    code=lambda base, mechanism, left: base if base in DECODERS else code_of_family(base),
)
def test_decoding_every_decoder_step_by_step_equals_the_full_forward_pass(
    base: str, mechanism: str, left: bool
) -> None:
    longer, ids = model(base, mechanism), tokens(3, 90)
    mask = padding(3, 90, left=True) if left else torch.ones(3, 90, dtype=torch.long)
    steps = in_pieces(longer, DynamicCache(config=longer.config), ids, mask, [(0, 50), (50, 57), *singly(57, 90)])
    assert (steps - in_one_pass(longer, ids, mask))[mask.bool()].abs().max() < 1e-4


@pytest.mark.thorough
@every_case("left", [False, True], ids=["no-padding", "left-padded"])
@every_case("pad", [1, 0, 4])
def test_a_generating_roberta_counts_from_its_padding_token(pad: int, left: bool) -> None:
    """transformers' ``generate`` counts from 0, also where the model itself does not."""
    decoder = {"is_decoder": True, "pad_token_id": pad}
    longer = long_like(
        plain_model("roberta", "RobertaForCausalLM", **decoder), "roberta", MECHANISMS["window"], **decoder
    )
    mask = padding(3, 40, left=True) if left else torch.ones(3, 40, dtype=torch.long)
    ids = torch.where(mask.bool(), tokens(3, 40).clamp(min=5), pad)
    with torch.no_grad():
        written = longer.generate(ids, attention_mask=mask, **{**GREEDY, "suppress_tokens": [pad]})
        full = longer(written, attention_mask=torch.cat([mask, mask.new_ones(3, 20)], 1), use_cache=False).logits
    full[..., pad] = -torch.inf
    assert torch.equal(full[:, 39:-1].argmax(-1), written[:, 40:])


@pytest.mark.thorough
@pytest.mark.parametrize("base", DECODERS)
def test_a_windowed_decoder_makes_its_cache_itself(base: str) -> None:
    longer = model(base, "window and full")
    out = longer.generate(tokens(2, 40), return_dict_in_generate=True, **GREEDY)
    assert [layer.keys.shape[2] for layer in out.past_key_values.layers] == [WINDOW - 1, 59, WINDOW - 1]
    with torch.no_grad():
        made = longer(tokens(2, 40), use_cache=True).past_key_values
    assert [layer.keys.shape[2] for layer in made.layers] == [WINDOW - 1, 40, WINDOW - 1]


@pytest.mark.thorough
@pytest.mark.parametrize("base", DECODERS)
def test_a_left_padded_batch_generates_what_its_rows_generate_alone(base: str) -> None:
    longer, ids, mask = model(base, "window"), tokens(3, 40), padding(3, 40, left=True)
    batch = longer.generate(ids, attention_mask=mask, **GREEDY)[:, 40:]
    for row in range(3):
        alone = ids[row : row + 1, 40 - int(mask[row].sum()) :]
        assert torch.equal(
            longer.generate(alone, attention_mask=torch.ones_like(alone), **GREEDY)[0, alone.shape[1] :], batch[row]
        )


@pytest.mark.thorough
@pytest.mark.parametrize("base", DECODERS)
def test_generation_with_global_tokens_is_the_same_with_and_without_a_cache(base: str) -> None:
    longer, ids, mask = model(base, "longformer"), tokens(2, 60), padding(2, 60, left=True)
    is_global = torch.zeros(2, 60, dtype=torch.long)
    is_global[:, [20, 25]] = 1
    with torch.no_grad():
        whole, without = (
            longer(ids, attention_mask=mask, global_attention_mask=chosen).logits for chosen in (is_global, None)
        )
    assert (whole - without)[:, 50:].abs().max() > 1e-2
    texts = [
        longer.generate(
            ids,
            attention_mask=mask,
            global_attention_mask=is_global,
            use_cache=use_cache,
            **GREEDY | {"num_beams": beams},
        )
        for beams in (1, 2)
        for use_cache in (True, False)
    ]
    assert torch.equal(texts[0], texts[1])
    assert torch.equal(texts[2], texts[3])


ASSISTED: dict[str, dict[str, Any]] = {
    "windows by layer": MECHANISMS["windows by layer"],
    "sinks": {"mechanism": "window", "window": 9, "num_sinks": 3},
    "linear": {"mechanism": "linear"},
    "hybrid": {"mechanism": "hybrid", "window": 8},
    "sinks beside a state": {
        "mechanism": "window",
        "window": 9,
        "num_sinks": 3,
        "layers": {1: {"mechanism": "linear"}},
    },
    "memory": {"mechanism": "transformer_xl", "segment_length": 12, "memory_length": 7},
    "top_k": {"mechanism": "top_k", "num_keys": 8},
}


@pytest.mark.thorough
@every_case(("name", "base", "how"), pairwise([*ASSISTED], DECODERS, ["lookup", "assistant", "left-padded"]))
def test_assisted_generation_writes_what_greedy_decoding_writes(name: str, base: str, how: str) -> None:
    longer = long_like(plain_model(base, LANGUAGE_MODELS[base]), base, ASSISTED[name])
    ids = tokens(1, 40).repeat(1, 2)  # so that the look-up finds something
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **GREEDY, "max_new_tokens": 24}
    if how == "left-padded":
        inputs["attention_mask"][:, :13] = 0
    helps: dict[str, Any] = {"prompt_lookup_num_tokens": 4}
    if how == "assistant":
        helper = copy.deepcopy(longer)
        with torch.no_grad():
            next(helper.parameters()).add_(0.02 * torch.randn_like(next(helper.parameters())))
        helps = {"assistant_model": helper}
    assert torch.equal(longer.generate(**inputs, **helps), longer.generate(**inputs))


@every_case(
    ("attention", "changes", "message"),
    [
        (ASSISTED["windows by layer"], {"cache_implementation": "static"}, STATIC_REFUSED),
        (ASSISTED["linear"], {"cache_implementation": "static"}, STATIC_REFUSED),
        ({"mechanism": "recurrent_memory"}, {}, "a model with memory tokens generates without one; leave assistant_"),
    ],
)
def test_assisted_generation_is_refused_where_tokens_cannot_be_removed(
    attention: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    longer = long_like(plain_model("gpt2", "GPT2LMHeadModel"), "gpt2", attention)
    with pytest.raises(ValueError if message == STATIC_REFUSED_BY_TRANSFORMERS else InputError, match=message):
        longer.generate(tokens(1, 40), prompt_lookup_num_tokens=3, **changes, **GREEDY)


@pytest.mark.thorough
def test_bert_and_roberta_as_decoders_generate_the_same_with_a_cache() -> None:
    for base, head in (("bert", "BertLMHeadModel"), ("roberta", "RobertaForCausalLM")):
        _, longer = pair(base, head, MECHANISMS["window"], is_decoder=True)
        ids = tokens(2, 40)
        texts = [longer.generate(ids, use_cache=use_cache, **GREEDY) for use_cache in (True, False)]
        assert torch.equal(*texts)


def test_cross_attention_of_windowed_decoders_is_full_attention() -> None:
    for base, head in (("bert", "BertLMHeadModel"), ("roberta", "RobertaForCausalLM"), ("gpt2", "GPT2LMHeadModel")):
        extra = {"add_cross_attention": True} | ({} if base == "gpt2" else {"is_decoder": True})
        plain, longer = pair(base, head, {"mechanism": "full"}, **extra)
        _, windowed = pair(base, head, MECHANISMS["window"], **extra)
        ids, encoded = tokens(2, 30), torch.randn(2, 77, 64)
        inputs = {"encoder_hidden_states": encoded, "encoder_attention_mask": padding(2, 77)}
        with torch.no_grad():
            expected, found = plain(ids, **inputs), longer(ids, **inputs, output_attentions=True)
            whole = windowed(ids, **inputs, use_cache=False, global_attention_mask=None).logits
            cached = windowed(ids[:, :20], **inputs, use_cache=True)
            rest = windowed(ids[:, 20:], **inputs, past_key_values=cached.past_key_values).logits
        assert (expected.logits - found.logits).abs().max() < 1e-5
        assert [w.shape for w in found.cross_attentions] == [(2, 4, 30, 77)] * 3
        assert [w.shape for w in found.attentions] == [(2, 4, 30, 30)] * 3
        assert (rest - whole[:, 20:]).abs().max() < 1e-4
