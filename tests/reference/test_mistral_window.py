"""The causal `window` is Mistral's sliding window: LongLlama against MistralForCausalLM with the same weights."""

from __future__ import annotations

import pytest
import torch
from transformers import MistralForCausalLM

import hf_longattn.families as families
from tests.reference.small_models import long_config, padding, plain_model, tokens

WINDOW = 24


@pytest.fixture(scope="module")
def models() -> tuple[MistralForCausalLM, torch.nn.Module]:
    mistral = plain_model("mistral", "MistralForCausalLM", sliding_window=WINDOW)
    llama = families.LongLlamaForCausalLM(
        long_config("llama", {"mechanism": "window", "window": WINDOW}, rope_parameters=mistral.config.rope_parameters)
    ).eval()
    llama.load_state_dict(mistral.state_dict())
    return mistral, llama


@pytest.mark.parametrize("left", [False, True], ids=["right-padded", "left-padded"])
def test_a_windowed_llama_has_the_logits_of_mistral(models: tuple, left: bool) -> None:
    ids, mask = tokens(3, 200), padding(3, 200, left=left)
    with torch.no_grad():
        expected, found = (model(ids, attention_mask=mask).logits for model in models)
    assert (expected - found)[mask.bool()].abs().max() < 1e-4


def test_a_windowed_llama_has_the_gradients_of_mistral(models: tuple) -> None:
    ids = tokens(2, 150)
    losses = [model(ids, labels=ids).loss for model in models]
    assert torch.allclose(losses[0], losses[1], atol=1e-5)
    gradients = [torch.autograd.grad(loss, list(model.parameters())) for loss, model in zip(losses, models, strict=True)]
    for a, b in zip(*gradients, strict=True):
        assert (a - b).abs().max() < 1e-4


@pytest.mark.thorough
def test_a_windowed_llama_generates_the_text_of_mistral(models: tuple) -> None:
    ids, mask = tokens(3, 40), padding(3, 40, left=True)
    texts = [model.generate(ids, attention_mask=mask, max_new_tokens=40, do_sample=False, eos_token_id=None) for model in models]
    assert torch.equal(*texts)
