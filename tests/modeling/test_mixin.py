"""What every Long class does beyond its base."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import hf_longattn.families as families
from hf_longattn.errors import MaskError
from hf_longattn.mechanisms.common import registry
from hf_longattn.mechanisms.common.base import Mechanism
from hf_longattn.mechanisms.common.registry import mechanism_class
from hf_longattn.modeling.family.sliding_window import own_windows
from scripts.dev.tools.small_models import predicts_tokens
from tests.alike import kind_of_family
from tests.cells import every_cell
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

LONGFORMER = {"mechanism": "longformer", "window": 16}


def long_model(base: str, head: str | None = None, long_attention: Any = None, **changes: Any) -> Any:
    return small_models.long_model(base, head, long_attention or LONGFORMER, **changes)


@every_cell(("base", "head"), grid(HEADS, is_quick_head), of=9, alike=kind_of_family, ids=[head for _, head in HEADS])
class TestEveryHead:
    def test_the_signature_shows_what_was_added(self, base: str, head: str) -> None:
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

    def test_the_model_inside_is_ours(self, base: str, head: str) -> None:
        model = long_model(base, head)
        inner = getattr(model, model.base_model_prefix, model)
        assert type(inner) is families.FAMILIES[base].long_class_of(base_class(base))
        assert sum(isinstance(m, Mechanism) for m in model.modules()) == 3


@every_cell("base", BASES, of=9, alike=kind_of_family)
class TestEveryBase:
    def test_attentions(self, base: str) -> None:
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

    def test_global_mask_of_the_wrong_shape(self, base: str) -> None:
        with pytest.raises(MaskError, match=r"global_attention_mask has shape \(2, 29\), but must be .* \(2, 30\)"):
            long_model(base)(tokens(2, 30), global_attention_mask=torch.zeros(2, 29))

    @pytest.mark.thorough
    def test_global_mask_without_a_layer_that_takes_it(self, base: str) -> None:
        model = long_model(base, long_attention={"mechanism": "window", "window": 8})
        with pytest.raises(MaskError, match="no layer of this model takes global tokens"):
            model(tokens(2, 30), global_attention_mask=torch.zeros(2, 30))
        mixed = long_model(base, long_attention={"mechanism": "window", "window": 8, "layers": {2: {"mechanism": "longformer"}}})
        mixed(tokens(2, 30), global_attention_mask=torch.zeros(2, 30))
        long_model(base, long_attention={"mechanism": "full"})(tokens(2, 30), global_attention_mask=torch.zeros(2, 30))

    @pytest.mark.thorough
    def test_copied_and_pickled(self, base: str) -> None:
        model = long_model(base)
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert type(twin) is type(model)
            with torch.no_grad():
                assert torch.equal(twin(tokens()).last_hidden_state, model(tokens()).last_hidden_state)

    @pytest.mark.thorough
    def test_saved_bytes(self, base: str, tmp_path: Path) -> None:
        model = long_model(base, LANGUAGE_MODELS[base], tie_word_embeddings=True)
        predicts = predicts_tokens(base)
        assert not predicts or model.get_output_embeddings().weight is model.get_input_embeddings().weight
        model.save_pretrained(tmp_path / "once")
        read = type(model).from_pretrained(tmp_path / "once")
        assert not predicts or read.get_output_embeddings().weight is read.get_input_embeddings().weight
        read.save_pretrained(tmp_path / "twice")
        for name in ("model.safetensors", "config.json"):
            assert (tmp_path / "once" / name).read_bytes() == (tmp_path / "twice" / name).read_bytes()


@pytest.fixture
def trained_mechanism() -> Iterator[str]:
    """A user's own mechanism with a parameter, registered for the length of a test."""
    full = registry.mechanism_class("full")

    class Gated(full):  # type: ignore[valid-type, misc]
        traits = full.traits.but(trains=True)

        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.gate = nn.Parameter(torch.empty(self.num_heads, 1, 1))
            self.reset_parameters()

        def reset_parameters(self) -> None:
            nn.init.constant_(self.gate, 0.5)

        def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, call: Any) -> torch.Tensor:
            return super().forward(q, k, v, call) * self.gate

    registry.register_mechanism("gated_for_a_test")(Gated)
    yield "gated_for_a_test"
    del registry._REGISTRY["gated_for_a_test"]


@every_cell(("base", "reentrant"), alternately(BASES), of=9, alike=kind_of_family)
def test_gradient_checkpointing(base: str, reentrant: bool) -> None:
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


@pytest.mark.thorough
@every_cell("base", BASES, of=9, alike=kind_of_family)
def test_parameters_of_a_mechanism(base: str, trained_mechanism: str, tmp_path: Path) -> None:
    plain = plain_model(base)
    plain.save_pretrained(tmp_path / "plain")
    long_class = families.FAMILIES[base].long_class_of(type(plain))
    assert long_class is not None
    config = long_class.config_class.from_pretrained(tmp_path / "plain", long_attention={"mechanism": trained_mechanism})
    model = long_class.from_pretrained(tmp_path / "plain", config=config)
    gates = {name: p for name, p in model.named_parameters() if ".long_attention." in name and name.endswith(".gate")}
    assert len(gates) == own_windows(plain.config).count(None)
    assert all(re.search(r"long_attention(\.\d+)?\.gate$", name) and (p == 0.5).all() for name, p in gates.items())
    with torch.no_grad():
        for gate in gates.values():
            gate.fill_(0.75)
    model.save_pretrained(tmp_path / "long")
    read = long_class.from_pretrained(tmp_path / "long")
    assert all((p == 0.75).all() for name, p in read.named_parameters() if name in gates)


def test_two_models_with_different_mechanisms_side_by_side() -> None:
    plain = plain_model("bert")
    full, narrow = (long_like(plain, "bert", chosen) for chosen in ({"mechanism": "full"}, {"mechanism": "window", "window": 4}))
    with torch.no_grad():
        expected = [model(tokens()).last_hidden_state for model in (plain, narrow)]
        found = [model(tokens()).last_hidden_state for model in (full, narrow)]
    assert torch.equal(expected[0], found[0])
    assert torch.equal(expected[1], found[1])
    assert (expected[0] - expected[1]).abs().max() > 1e-2


def test_inputs_embeds() -> None:
    model = pair("bert", None, LONGFORMER)[1]
    with torch.no_grad():
        expected = model(tokens()).last_hidden_state
        assert torch.equal(model(inputs_embeds=model.get_input_embeddings()(tokens())).last_hidden_state, expected)


@every_cell("name", ["bigbird", "hybrid", "longformer", "nystrom", "window", "full"])
def test_positions_of_an_encoder_count_from_the_text(name: str) -> None:
    """Of one that never computes its source's attention. Full attention keeps the source's positions, which count padding."""
    model = long_model("bert", None, {"mechanism": name, **mechanism_class(name).sample}).eval()
    ids, mask = tokens(2, 60), torch.ones(2, 60, dtype=torch.long)
    mask[0, :23] = 0
    with torch.no_grad():
        alone, padded = model(ids[:1, 23:]).last_hidden_state[0], model(ids, attention_mask=mask).last_hidden_state
        if name == "full":
            model.use_base_attention()
            torch.testing.assert_close(padded[1], model(ids, attention_mask=mask).last_hidden_state[1], atol=1e-5, rtol=1e-5)
    assert torch.allclose(padded[0, 23:], alone, atol=1e-5) == (name != "full")


def test_without_mechanisms_an_encoder_has_its_sources_positions() -> None:
    model, ids, mask = long_model("bert", None, {"mechanism": "window", "window": 8}).eval(), tokens(1, 40), torch.ones(1, 40)
    mask[0, :9] = 0
    plain = plain_model("bert").eval()
    plain.load_state_dict(model.state_dict(), strict=False)
    model.use_base_attention()
    with torch.no_grad():
        found, expected = (one(ids, attention_mask=mask).last_hidden_state[:, 9:] for one in (model, plain))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
