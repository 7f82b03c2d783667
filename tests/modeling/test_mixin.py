"""What every Long class does beyond its base."""

from __future__ import annotations

import copy
import inspect
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

import hf_longattn.families as families
from hf_longattn.errors import InputError
from hf_longattn.mechanisms.common.base import Mechanism
from hf_longattn.mechanisms.common.registry import mechanism_class
from scripts.dev.tools.small_models import predicts_tokens
from tests.cases import every_case
from tests.grids import alternately, grid
from tests.reference import small_models
from tests.reference.small_models import (
    BASES,
    HEADS,
    LANGUAGE_MODELS,
    base_class,
    checkpoint_activations,
    head_inputs,
    is_quick_head,
    long_like,
    pair,
    plain_model,
    tokens,
)
from tests.shared_code import kind_of_family

LONGFORMER = {"mechanism": "longformer", "window": 16}


def long_model(base: str, head: str | None = None, long_attention: Any = None, **changes: Any) -> Any:
    return small_models.long_model(base, head, long_attention or LONGFORMER, **changes)


@every_case(("base", "head"), grid(HEADS, is_quick_head), of=9, code=kind_of_family, ids=[head for _, head in HEADS])
class TestEveryHead:
    def test_the_signature_shows_the_added_arguments(self, base: str, head: str) -> None:
        plain, longer = base_class(base, head), families.FAMILIES[base].model_class(head)
        added = [name for name in inspect.signature(longer.forward).parameters if name not in inspect.signature(plain.forward).parameters]
        assert added == ["global_attention_mask", "documents", "memory", "memory_reset"]

    @pytest.mark.thorough
    def test_global_attention_mask_reaches_the_mechanism(self, base: str, head: str) -> None:
        model, inputs = long_model(base, head), head_inputs(head)
        is_global = torch.zeros_like(inputs["input_ids"])
        is_global[..., 40] = 1
        with torch.no_grad():
            without = model(**inputs, output_hidden_states=True).hidden_states[-1]
            found = model(**inputs, output_hidden_states=True, global_attention_mask=is_global).hidden_states[-1]
        assert (found - without).abs().max() > 1e-3

    def test_the_base_model_inside_is_a_long_class(self, base: str, head: str) -> None:
        model = long_model(base, head)
        inner = getattr(model, model.base_model_prefix, model)
        assert type(inner) is families.FAMILIES[base].long_class_of(base_class(base))
        assert sum(isinstance(m, Mechanism) for m in model.modules()) == 3


@every_case("base", BASES, of=9, code=kind_of_family)
class TestEveryBase:
    def test_attentions_are_those_of_the_mechanism(self, base: str) -> None:
        model = long_model(base, long_attention={"mechanism": "window", "window": 8})
        with torch.no_grad():
            out = model(tokens(2, 30), output_attentions=True)
            again = model(tokens(2, 30))
        assert [w.shape for w in out.attentions] == [(2, 4, 30, 30)] * 3
        for weights in out.attentions:
            assert torch.allclose(weights.sum(-1), torch.ones(()))
            assert weights[0, 0, 29, :20].max() == 0
        assert again.attentions is None
        assert torch.equal(out.last_hidden_state, again.last_hidden_state)

    def test_a_global_mask_of_the_wrong_shape_is_refused(self, base: str) -> None:
        with pytest.raises(InputError, match=r"global_attention_mask has shape \(2, 29\), but must be .* \(2, 30\)"):
            long_model(base)(tokens(2, 30), global_attention_mask=torch.zeros(2, 29))

    @pytest.mark.thorough
    def test_a_copied_and_a_pickled_model_give_the_same(self, base: str) -> None:
        model = long_model(base)
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert type(twin) is type(model)
            with torch.no_grad():
                assert torch.equal(twin(tokens()).last_hidden_state, model(tokens()).last_hidden_state)

    @pytest.mark.thorough
    def test_a_model_that_was_read_is_saved_as_the_same_bytes_with_tied_words(self, base: str, tmp_path: Path) -> None:
        model = long_model(base, LANGUAGE_MODELS[base], tie_word_embeddings=True)
        predicts = predicts_tokens(base)
        assert not predicts or model.get_output_embeddings().weight is model.get_input_embeddings().weight
        model.save_pretrained(tmp_path / "once")
        read = type(model).from_pretrained(tmp_path / "once")
        assert not predicts or read.get_output_embeddings().weight is read.get_input_embeddings().weight
        read.save_pretrained(tmp_path / "twice")
        for name in ("model.safetensors", "config.json"):
            assert (tmp_path / "once" / name).read_bytes() == (tmp_path / "twice" / name).read_bytes()


@every_case(("base", "reentrant"), alternately(BASES), of=9, code=kind_of_family)
def test_gradient_checkpointing_changes_no_gradient(base: str, reentrant: bool) -> None:
    if not base_class(base).supports_gradient_checkpointing:
        with pytest.raises(ValueError, match="does not support"):
            checkpoint_activations(long_model(base))
        return
    gradients = []
    for checkpointing in (False, True):
        model = long_model(
            base, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
        ).train()
        if checkpointing:
            checkpoint_activations(model, use_reentrant=reentrant)
            model.enable_input_require_grads()
        is_global = torch.zeros(2, 40)
        is_global[:, 3] = 1
        model(tokens(2, 40), global_attention_mask=is_global).last_hidden_state.square().mean().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for a, b in zip(*gradients, strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_two_models_with_different_mechanisms_do_not_disturb_each_other() -> None:
    plain = plain_model("bert")
    full, narrow = (long_like(plain, "bert", chosen) for chosen in ({"mechanism": "full"}, {"mechanism": "window", "window": 4}))
    with torch.no_grad():
        expected = [model(tokens()).last_hidden_state for model in (plain, narrow)]
        found = [model(tokens()).last_hidden_state for model in (full, narrow)]
    assert torch.equal(expected[0], found[0])
    assert torch.equal(expected[1], found[1])
    assert (expected[0] - expected[1]).abs().max() > 1e-2


def test_embeddings_as_inputs_give_what_their_tokens_give() -> None:
    model = pair("bert", None, LONGFORMER)[1]
    with torch.no_grad():
        expected = model(tokens()).last_hidden_state
        assert torch.equal(model(inputs_embeds=model.get_input_embeddings()(tokens())).last_hidden_state, expected)


@every_case("name", ["bigbird", "hybrid", "longformer", "nystrom", "window", "full"])
def test_positions_of_an_encoder_begin_after_left_padding(name: str) -> None:
    """Of one that never computes its source's attention. Full attention keeps the source's positions, which count padding."""
    model = long_model("bert", None, {"mechanism": name, **mechanism_class(name).about.sample}).eval()
    ids, mask = tokens(2, 60), torch.ones(2, 60, dtype=torch.long)
    mask[0, :23] = 0
    with torch.no_grad():
        alone, padded = model(ids[:1, 23:]).last_hidden_state[0], model(ids, attention_mask=mask).last_hidden_state
        if name == "full":
            model.use_base_attention()
            torch.testing.assert_close(padded[1], model(ids, attention_mask=mask).last_hidden_state[1], atol=1e-5, rtol=1e-5)
    assert torch.allclose(padded[0, 23:], alone, atol=1e-5) == (name != "full")


def test_an_encoder_with_base_attention_has_the_positions_of_its_source() -> None:
    model, ids, mask = long_model("bert", None, {"mechanism": "window", "window": 8}).eval(), tokens(1, 40), torch.ones(1, 40)
    mask[0, :9] = 0
    plain = plain_model("bert").eval()
    plain.load_state_dict(model.state_dict(), strict=False)
    model.use_base_attention()
    with torch.no_grad():
        found, expected = (one(ids, attention_mask=mask).last_hidden_state[:, 9:] for one in (model, plain))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
