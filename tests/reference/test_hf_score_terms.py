"""LongMPNet and LongDebertaV2 against transformers' own, whose attention is not on the interface and adds terms to its scores."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

import hf_longattn.families as families
from hf_longattn.errors import OptionError
from scripts.dev.tools.small_models import small_values
from tests.cases import every_case
from tests.reference.small_models import SHAPE, head_inputs, tokens

V3 = {"relative_attention": True, "pos_att_type": "p2c|c2p", "position_biased_input": False, "norm_rel_ebd": "layer_norm",
      "position_buckets": 32, "share_att_key": True, "type_vocab_size": 0}  # fmt: skip
VALUES: dict[str, dict[str, Any]] = {"mpnet": {}, "deberta-v2": V3}
HEADS = [(base, head) for base in VALUES for head in families.FAMILIES[base].model_classes]
BASE_MODELS = [("mpnet", "MPNetModel"), ("deberta-v2", "DebertaV2Model")]
COVERING = {"mechanism": "window", "window": 800, "layers": {1: {"mechanism": "full"}}}


def values_of(base: str) -> dict[str, Any]:
    return {**small_values(base, SHAPE, initializer_range=0.2), **VALUES[base]}


def pair(base: str, head: str, long_attention: dict[str, Any], **changes: Any) -> tuple[Any, Any]:
    family, values = families.FAMILIES[base], {**values_of(base), **changes}
    torch.manual_seed(0)
    plain = getattr(transformers, head)(family.base_config_class(**values)).eval()
    longer = family.model_class(head)(family.config_class(**values, long_attention=long_attention)).eval()
    longer.load_state_dict(plain.state_dict())
    return plain, longer


def difference(plain: Any, longer: Any, inputs: dict[str, torch.Tensor]) -> float:
    real, found = inputs["attention_mask"].bool(), 0.0
    with torch.no_grad():
        expected, returned = plain(**inputs), longer(**inputs)
    for name, value in expected.items():
        rows = real if value.shape[: real.dim()] == real.shape else ...
        found = max(found, float((value[rows] - returned[name][rows]).abs().max()))
    return found


@every_case(("base", "head"), HEADS, of=3, code=lambda base, head: base, ids=[head for _, head in HEADS])
def test_every_head_of_mpnet_and_deberta_equals_transformers(base: str, head: str) -> None:
    plain, longer = pair(base, head, COVERING)
    inputs = head_inputs(head, length=150, pad_token=plain.config.pad_token_id)
    assert difference(plain, longer, inputs) < 3e-5
    longer.use_base_attention("eager")
    assert difference(plain, longer, inputs) < 3e-5


@every_case(
    "changes",
    [
        {"share_att_key": False},
        {"pos_att_type": "c2p"},
        {"pos_att_type": "p2c", "share_att_key": False, "position_biased_input": True},
        {"relative_attention": False, "pos_att_type": None, "position_biased_input": True},
        {"position_buckets": -1, "max_relative_positions": 60, "norm_rel_ebd": "none"},
        {"conv_kernel_size": 3, "type_vocab_size": 2, "embedding_size": 24},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_every_form_of_disentangled_attention_equals_transformers(changes: dict[str, Any]) -> None:
    plain, longer = pair("deberta-v2", "DebertaV2Model", COVERING, **changes)
    assert difference(plain, longer, head_inputs("", length=150, pad_token=0)) < 3e-5


@every_case(("base", "head"), BASE_MODELS)
def test_attentions_of_mpnet_and_deberta_equal_transformers(base: str, head: str) -> None:
    plain, longer = pair(base, head, {"mechanism": "full"})
    with torch.no_grad():
        expected, found = (model(tokens(2, 100), output_attentions=True).attentions for model in (plain, longer))
    assert all((a - b).abs().max() < 1e-5 for a, b in zip(expected, found, strict=True))


@every_case(("base", "head"), BASE_MODELS)
def test_gradients_of_mpnet_and_deberta_equal_transformers(base: str, head: str) -> None:
    plain, longer = pair(base, head, {"mechanism": "window", "window": 700})
    for model in (plain, longer):
        model(tokens(2, 100)).last_hidden_state.square().mul(torch.arange(plain.config.hidden_size)).mean().backward()
    for (name, one), (_, other) in zip(plain.named_parameters(), longer.named_parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None) or not other.grad.any(), name
        assert one.grad is None or (one.grad - other.grad).abs().max() <= 1e-4 * (1 + one.grad.abs().max()), name


@pytest.mark.parametrize("base", VALUES)
def test_mpnet_and_deberta_have_a_window_by_default(base: str) -> None:
    assert families.FAMILIES[base].config_class().long_attention.mechanism == "window"


@every_case(("base", "head"), BASE_MODELS)
def test_mpnet_and_deberta_refuse_a_mechanism_without_scores(base: str, head: str) -> None:
    with pytest.raises(OptionError, match="has no scores"):
        pair(base, head, {"mechanism": "performer"})


def test_mpnet_refuses_global_tokens() -> None:
    with pytest.raises(OptionError, match="cannot pass global tokens"):
        pair("mpnet", "MPNetModel", {"mechanism": "longformer"})


def test_longer_deberta_keeps_the_buckets_of_the_short_model() -> None:
    config = families.LongDebertaV2Config(**values_of("deberta-v2"))
    config.max_position_embeddings = 4096
    assert families.LongDebertaV2Config(**config.to_dict()).max_relative_positions == 512
