"""GPT-Neo: attention modules that are not on transformers' interface, with windows in every other layer."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_longattn.errors import MaskError, OptionError
from hf_longattn.families import FAMILIES
from scripts.dev.tools.small_models import language_model
from tests.cells import every_cell
from tests.reference.small_models import checkpoint_activations, head_inputs, long_model, padding, pair, tokens

FULL = {"mechanism": "full"}
HEADS = [*FAMILIES["gpt_neo"].model_classes]
WINDOW = {"mechanism": "window", "window": 8}


def close(a: Tensor, b: Tensor) -> None:
    """Up to rounding: the base calls another kernel, and GPT-Neo's scores are not scaled, so that they are large."""
    torch.testing.assert_close(a, b, atol=5e-5 * max(1.0, float(a.abs().max())), rtol=0)


@every_cell("head", HEADS)
def test_every_head_with_full_attention_is_the_base(head: str) -> None:
    plain, longer = pair("gpt_neo", head, FULL)
    made = type(longer)
    assert issubclass(made, type(plain))
    assert made.can_generate() == plain.can_generate()
    assert pickle.loads(pickle.dumps(made)) is made
    inputs = head_inputs(head)
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        expected, found = (model(**inputs, output_hidden_states=True).hidden_states for model in (plain, longer))
        longer.use_base_attention()
        again = longer(**inputs, output_hidden_states=True).hidden_states
    for a, b, c in zip(expected, found, again, strict=True):
        close(a[real], b[real])
        assert torch.equal(a[real], c[real])


def test_the_pattern_is_that_of_a_mask() -> None:
    """Against transformers' own model with the window as a mask (B, 1, N, N), on the left-padded text as well."""
    plain, longer = pair("gpt_neo", None, WINDOW | {"layers": {1: {"window": 8}}})
    mask = padding(3, 60, left=True)
    position = torch.arange(60)
    seen = (position[:, None] - position >= 0) & (position[:, None] - position < 8) & mask.bool()[:, None, None, :]
    seen |= torch.eye(60, dtype=torch.bool)
    places = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        additive = torch.zeros(3, 1, 60, 60).masked_fill(~seen, torch.finfo(torch.float32).min)
        expected = plain(tokens(3, 60), attention_mask=additive, position_ids=places).last_hidden_state
        found = longer(tokens(3, 60), attention_mask=mask, position_ids=places).last_hidden_state
    close(expected[mask.bool()], found[mask.bool()])


@pytest.mark.thorough
@every_cell("how", [{}, {"num_beams": 2}, {"use_cache": False}], ids=str)
@every_cell("attention", [WINDOW, FULL], ids=lambda one: one["mechanism"])
def test_generate(attention: dict[str, Any], how: dict[str, Any]) -> None:
    model = long_model("gpt_neo", language_model("gpt_neo"), attention)
    ids, mask = tokens(2, 50), padding(2, 50, left=True)
    arguments = {"max_new_tokens": 10, "min_new_tokens": 10, "do_sample": False, "pad_token_id": 1}
    written = model.generate(ids, attention_mask=mask, **arguments, **how)
    assert torch.equal(written, model.generate(ids, attention_mask=mask, **arguments, **{**how, "use_cache": False}))
    assert written.shape == (2, 60)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradients_are_the_base_s_with_checkpointing_too(reentrant: bool) -> None:
    gradients = []
    for checkpointing, model in enumerate(pair("gpt_neo", language_model("gpt_neo"), FULL)):
        model.train()
        if checkpointing:
            checkpoint_activations(model, use_reentrant=reentrant)
            model.enable_input_require_grads()
        model(tokens(2, 50), labels=tokens(2, 50)).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-4 * max(1.0, float(gradient.abs().max())), rtol=1e-3, msg=name)


@pytest.mark.slow
def test_saved_copied_and_compiled(tmp_path: Path) -> None:
    model = long_model("gpt_neo", language_model("gpt_neo"), WINDOW)
    model.save_pretrained(tmp_path / "first")
    read = type(model).from_pretrained(tmp_path / "first")
    read.save_pretrained(tmp_path / "second")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    with torch.no_grad():
        expected = model(tokens(2, 70)).logits
        for twin in (read.eval(), copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(twin(tokens(2, 70)).logits, expected)
        close(expected, torch.compile(model, fullgraph=True, backend="eager")(tokens(2, 70), use_cache=False).logits)


def test_attentions() -> None:
    with torch.no_grad():
        out = long_model("gpt_neo", None, WINDOW)(tokens(2, 30), output_attentions=True)
    assert [weights.shape for weights in out.attentions] == [(2, 4, 30, 30)] * 3
    assert out.attentions[0][0, 0, 29, :22].max() == 0


def test_global_tokens_are_refused() -> None:
    with pytest.raises(OptionError, match="cannot pass global tokens to its attention, which mechanism 'longformer' needs"):
        long_model("gpt_neo", None, {"mechanism": "longformer"})
    with pytest.raises(MaskError, match="cannot pass a global_attention_mask to its attention; leave it out"):
        long_model("gpt_neo", None, WINDOW)(tokens(2, 30), global_attention_mask=torch.eye(2, 30))


def mechanisms(model: Any) -> list[Any]:
    return [module.long_attention for module in model.modules() if hasattr(module, "long_attention")]


def test_local_layers_keep_their_window_unless_they_are_named() -> None:
    for attention in (None, FULL):
        found = mechanisms(long_model("gpt_neo", None, attention))
        assert [(one.name, getattr(one.options, "window", None)) for one in found] == [("full", None), ("window", 32), ("full", None)]
    found = mechanisms(long_model("gpt_neo", None, {"mechanism": "window", "window": 8, "layers": {1: {"window": 16}}}))
    assert [one.options.window for one in found] == [8, 16, 8]


def test_no_mask_of_all_pairs_is_made_before_the_base_s_attention_runs() -> None:
    model = long_model("gpt_neo", "GPTNeoForCausalLM", FULL, max_position_embeddings=100_000)
    masks = [value for name, value in model.named_buffers() if name.endswith("attention.bias")]
    assert [mask.numel() for mask in masks] == [1, 1, 1]
    ids = tokens(2, 60)
    with torch.no_grad():
        expected = model(ids).logits
        model.use_base_attention()
        torch.testing.assert_close(model(ids).logits, expected, atol=1e-3, rtol=0)
    masks = [value for name, value in model.named_buffers() if name.endswith("attention.bias")]
    assert {mask.shape for mask in masks} == {(1, 1, 60, 60)}
