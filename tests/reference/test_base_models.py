"""Long models against their base models: bit for bit with the mechanism 'full', and under a dense mask with longformer
and window."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.cases import every_case
from tests.reference.small_models import (
    BASES,
    ENCODERS,
    HEADS,
    IMPLEMENTATIONS,
    head_inputs,
    padding,
    pair,
    plain_config,
    same,
    tokens,
)
from tests.shared_code import code_of_family, kind_of_family

FULL = {"mechanism": "full"}
PADDING_IS_POOLED = ("siglip_text_model",)
"""Bases that pool the last position, even of padding. Trained without masks, they are the same without them; with a
mask, where packed texts have no padding, the Long model pools the last token."""


@every_case(("base", "head"), HEADS, of=9, code=code_of_family, ids=[head for _, head in HEADS], by="base")
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


LENGTH, WINDOW = 400, 64


def dense_mask(window: int, mask: Tensor, is_global: Tensor) -> Tensor:
    """(B, 1, N, N) additive: what Longformer's definition lets query i see of key j."""
    position = torch.arange(mask.shape[1])
    near = (position[:, None] - position[None]).abs() <= window // 2
    seen = (near[None] | is_global[:, :, None] | is_global[:, None, :]) & mask.bool()[:, None, :]
    return torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)[:, None]


@every_case("left", [False, True], ids=["right-padded", "left-padded"], pairs=True)
@every_case("globals_", ["some", "none"])
@every_case("base", ENCODERS)
def test_longformer_models_equal_their_base_under_the_dense_mask(base: str, globals_: str, left: bool) -> None:
    head = {"bert": "BertForTokenClassification", "roberta": "RobertaForTokenClassification"}[base]
    plain, longer = pair(base, head, {"mechanism": "longformer", "window": WINDOW, "global_tokens": ()}, num_labels=7)
    mask = padding(3, LENGTH, left=left)
    ids = torch.where(mask.bool(), tokens(3, LENGTH), plain_config(base).pad_token_id)
    is_global = torch.zeros(3, LENGTH, dtype=torch.bool)
    if globals_ == "some":
        for row, chosen in enumerate(([0, 1, 250], [0], [5, 77, 78, 265])):
            is_global[row, [LENGTH - 1 - c for c in chosen] if left else chosen] = True
    positions = (mask.cumsum(1) - 1).clamp(min=0) if base == "bert" else None
    labels = torch.where(mask.bool(), tokens(3, LENGTH) % 7, -100)

    expected = plain(ids, attention_mask=dense_mask(WINDOW, mask, is_global), position_ids=positions, labels=labels)
    found = longer(
        ids, attention_mask=mask, global_attention_mask=is_global.long(), position_ids=positions, labels=labels
    )
    real = mask.bool()
    assert (expected.logits - found.logits)[real].abs().max() < 1e-4
    expected.loss.backward()
    found.loss.backward()
    gradients = dict(longer.named_parameters())
    for name, parameter in plain.named_parameters():
        assert (parameter.grad - gradients[name].grad).abs().max() < 1e-4, name


def test_layers_with_windows_of_different_widths_equal_their_dense_masks() -> None:
    windows = [16, 64, 200]
    layers = {layer: {"window": window} for layer, window in enumerate(windows)}
    plain, longer = pair("bert", None, {"mechanism": "window", "window": 2, "layers": layers})
    mask, ids = padding(2, LENGTH), tokens(2, LENGTH)
    none = torch.zeros(2, LENGTH, dtype=torch.bool)
    with torch.no_grad():
        hidden = plain.embeddings(ids)
        for window, layer in zip(windows, plain.encoder.layer, strict=True):
            hidden = layer(hidden, dense_mask(window, mask, none))
        found = longer(ids, attention_mask=mask).last_hidden_state
    assert (hidden - found)[mask.bool()].abs().max() < 1e-4
