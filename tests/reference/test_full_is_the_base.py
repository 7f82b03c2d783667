"""With the mechanism `full`, a Long model is its base model bit for bit: the same call of scaled_dot_product_attention, or up to
rounding where the base makes another one."""

from __future__ import annotations

import pytest
import torch

from tests.cases import every_case
from tests.reference.small_models import BASES, HEADS, IMPLEMENTATIONS, head_inputs, pair, plain_config, same
from tests.shared_code import code_of_family, kind_of_family

FULL = {"mechanism": "full"}
PADDING_IS_POOLED = ("siglip_text_model", "siglip2_text_model")
"""Bases that pool the last position, even of padding. Trained without masks, they are the same without them; with a mask, where packed
texts have no padding, the Long model pools the last token."""


@every_case(
    ("base", "head"),
    HEADS,
    of=9,
    code=code_of_family,
    ids=[head for _, head in HEADS],
    by="base",
)
def test_full_attention_gives_every_head_the_bits_of_its_base(base: str, head: str) -> None:
    extra = {"is_decoder": True} if head in ("BertLMHeadModel", "RobertaForCausalLM", "BigBirdForCausalLM") else {}
    plain, longer = pair(base, head, FULL, **extra)
    inputs = head_inputs(head, pad_token=plain_config(base).pad_token_id)
    with torch.no_grad():
        expected, found = plain(**inputs, output_hidden_states=True), longer(**inputs, output_hidden_states=True)
    real = inputs["attention_mask"].bool()
    for layer, (a, b) in enumerate(zip(expected.hidden_states, found.hidden_states, strict=True)):
        real_rows = real.flatten(0, -2) if a.dim() == 3 and real.dim() == 3 else real
        assert same(base, a[real_rows], b[real_rows]), f"hidden states of layer {layer}"
    compared = 0
    for name in expected:
        a, b = expected[name], found[name]
        if not isinstance(a, torch.Tensor):
            continue
        if name == "pooler_output" and base in PADDING_IS_POOLED:
            with torch.no_grad():
                a = plain.head(expected.last_hidden_state[torch.arange(len(real)), real.sum(-1) - 1])
        rows = real if a.shape[: real.dim()] == real.shape else ...
        assert same(base, a[rows], b[rows]), name
        compared += 1
    assert compared


@pytest.mark.parametrize("base", PADDING_IS_POOLED)
def test_siglip_texts_without_a_mask_are_pooled_as_by_the_base(base: str) -> None:
    plain, longer = pair(base, None, FULL)
    ids = head_inputs("", pad_token=plain_config(base).pad_token_id)["input_ids"]
    with torch.no_grad():
        assert same(base, plain(ids).pooler_output, longer(ids).pooler_output)


@every_case("base", BASES, of=9, code=code_of_family)
def test_full_attention_gives_the_gradients_of_the_base_bit_for_bit(base: str) -> None:
    plain, longer = pair(base, None, FULL)
    inputs = {"input_ids": head_inputs("")["input_ids"]}
    for model in (plain, longer):
        model(**inputs).last_hidden_state.square().mean().backward()
    expected = {name: p.grad for name, p in plain.named_parameters()}
    found = {name: p.grad for name, p in longer.named_parameters()}
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        assert (gradient is None) == (found[name] is None), name
        assert gradient is None or same(base, gradient, found[name]), name


@pytest.mark.thorough
@every_case(
    ("base", "implementation"),
    [(base, one) for base, possible in IMPLEMENTATIONS.items() for one in possible],
    of=9,
    code=kind_of_family,
)
def test_use_base_attention_gives_the_plain_base(base: str, implementation: str) -> None:
    plain, longer = pair(base, None, {"mechanism": "window", "window": 8})
    plain.set_attn_implementation(implementation)
    longer.use_base_attention(implementation)
    ids = head_inputs("")["input_ids"]
    with torch.no_grad():
        assert same(base, plain(ids).last_hidden_state, longer(ids).last_hidden_state)
