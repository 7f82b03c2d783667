"""LongDebertaV2's disentangled attention on a band: by the fused kernel, equal to transformers' scores and to the
plain form."""

from __future__ import annotations

import copy
import functools
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

import hf_longattn.families as families
from hf_longattn.engines.call import AttentionCall
from hf_longattn.engines.dense import dense_attention
from hf_longattn.errors import InputError, OptionError
from tests.cases import every_case
from tests.comparisons import paths_of
from tests.grids import grid
from tests.reference.small_models import padding, tokens
from tests.reference.test_hf_attention import values_of

LENGTH = 300
WINDOW: dict[str, Any] = {"mechanism": "window", "window": 64}
LONGFORMER: dict[str, Any] = {"mechanism": "longformer", "window": 64}
FORMS: list[dict[str, Any]] = [
    {},
    {"share_att_key": False},
    {"pos_att_type": "c2p"},
    {"pos_att_type": "p2c"},
    {"position_buckets": -1, "max_relative_positions": 60},
]


def model_of(attention: dict[str, Any], head: str = "Model", **changes: Any) -> Any:
    torch.manual_seed(0)
    values = {**values_of("deberta-v2"), "max_position_embeddings": 512, **changes}
    model_class = getattr(families, f"LongDebertaV2{head}")
    return model_class(families.LongDebertaV2Config(**values, long_attention=attention)).eval().double()


def definition_of(model: Any) -> Any:
    """A copy whose attention is the N×N scores of the plain form under the mechanism's mask."""
    definition = copy.deepcopy(model)

    def dense(mechanism: Any, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        return dense_attention(
            q, k, v, call, mask_mod=mechanism.mask_mod(call.causal, mechanism.resolve_globals(k, call))
        )

    for module in definition.modules():
        if hasattr(module, "long_attention"):
            module.long_attention.forward = functools.partial(dense, module.long_attention)
    return definition


@every_case(
    ("changes", "attention"),
    grid(
        itertools.product(FORMS, (LONGFORMER, WINDOW)),
        lambda changes, attention: (attention is WINDOW) == FORMS.index(changes) % 2,
    ),
    ids=str,
)
def test_bands_of_deberta_are_fused_and_equal_their_definition_with_gradients(
    changes: dict[str, Any], attention: dict[str, Any]
) -> None:
    model = model_of(attention, **changes)
    definition, ids, mask = definition_of(model), tokens(2, LENGTH), padding(2, LENGTH)
    inputs = {"attention_mask": mask, **({"global_attention_mask": global_mask()} if attention is LONGFORMER else {})}
    out, paths = paths_of(lambda: model(ids, **inputs).last_hidden_state)
    assert {*paths} - {"unchanged", "split"} == {"cpu-distances"}
    expected = definition(ids, **inputs).last_hidden_state
    torch.testing.assert_close(out[mask.bool()], expected[mask.bool()], atol=1e-10, rtol=0)
    weight = torch.randn_like(out) * mask[..., None]
    for states in (out, expected):
        (states * weight).sum().backward()
    for (name, fused), (_, dense) in zip(model.named_parameters(), definition.named_parameters(), strict=True):
        assert (fused.grad is None) == (dense.grad is None), name
        if fused.grad is not None:
            torch.testing.assert_close(fused.grad, dense.grad, atol=1e-8, rtol=1e-8, msg=name)


def global_mask() -> Tensor:
    marked = torch.zeros(2, LENGTH, dtype=torch.long)
    marked[:, 0] = marked[0, 77] = marked[1, [5, 100]] = 1
    return marked


@pytest.mark.thorough
@pytest.mark.parametrize(
    "values", [{}, {"conv_kernel_size": 3}, {"position_biased_input": True}], ids=["v3", "convolution", "positions"]
)
@pytest.mark.parametrize("masked", [True, False])
def test_heads_of_deberta_hand_global_tokens_down(values: dict[str, Any], masked: bool) -> None:
    head = model_of(LONGFORMER, "ForQuestionAnswering", **values)
    ids, mask = tokens(2, LENGTH), padding(2, LENGTH) if masked else None
    states = head.deberta(ids, attention_mask=mask, global_attention_mask=global_mask()).last_hidden_state
    start = head.qa_outputs(states)[..., 0]
    outputs = head(ids, attention_mask=mask, global_attention_mask=global_mask())
    real = torch.ones_like(ids).bool() if mask is None else mask.bool()
    torch.testing.assert_close(outputs.start_logits[real], start[real])
    without = head(ids, attention_mask=mask).start_logits
    assert (without - outputs.start_logits)[real].abs().max() > 1e-6
    int32 = None if mask is None else mask.int()
    assert torch.equal(head(ids, attention_mask=int32).start_logits, without), (
        "a mask of int32 without marks is a mask"
    )


@pytest.mark.thorough
def test_checkpointed_layers_of_deberta_keep_global_tokens() -> None:
    model = model_of(LONGFORMER)
    ids, gradients = tokens(2, LENGTH), []
    for checkpointed in (False, True):
        if checkpointed:
            model.gradient_checkpointing_enable()
        model.train().zero_grad()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        model(ids, global_attention_mask=global_mask()).last_hidden_state.square().sum().backward()
        gradients.append(model.embeddings.word_embeddings.weight.grad.clone())
    torch.testing.assert_close(*gradients)


def test_tokens_of_deberta_are_global_by_option_as_by_mask() -> None:
    ids, marked = tokens(2, LENGTH), torch.zeros(2, LENGTH, dtype=torch.long)
    marked[:, [0, 9]] = 1
    by_mask, by_option = model_of(LONGFORMER), model_of({**LONGFORMER, "global_tokens": [0, 9]})
    by_option.load_state_dict(by_mask.state_dict())
    with torch.no_grad():
        expected = by_mask(ids, global_attention_mask=marked).last_hidden_state
        torch.testing.assert_close(by_option(ids).last_hidden_state, expected)


def test_deberta_refuses_global_tokens_that_no_layer_takes() -> None:
    model, ids = model_of(WINDOW, "ForTokenClassification"), tokens(2, LENGTH)
    with pytest.raises(InputError, match="no layer of this model takes global tokens"):
        model(ids, global_attention_mask=global_mask())
    with pytest.raises(OptionError, match="has none that can be found"):
        model_of({**LONGFORMER, "separate_global": True})
    model = model_of(LONGFORMER)
    model.use_base_attention("eager")
    assert model(ids, global_attention_mask=global_mask()).last_hidden_state.shape[1] == LENGTH


@pytest.mark.thorough
def test_a_compiled_deberta_takes_global_tokens() -> None:
    model, ids, mask = (
        model_of(LONGFORMER, "ForTokenClassification", num_hidden_layers=1),
        tokens(2, LENGTH),
        padding(2, LENGTH),
    )
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        expected = model(ids, attention_mask=mask, global_attention_mask=global_mask()).logits
        out = compiled(ids, attention_mask=mask, global_attention_mask=global_mask()).logits
    torch.testing.assert_close(out[mask.bool()], expected[mask.bool()])


@every_case("options", [{}, {"integration": "pooled"}], ids=str)
def test_a_term_of_single_keys_is_refused_with_means_of_keys(options: dict[str, Any]) -> None:
    attention = {"mechanism": "segmented" if "integration" in options else "hierarchical", **options}
    with pytest.raises(OptionError, match="DeBERTa adds a number for each key"):
        model_of(attention)(tokens(1, 60))
    model_of(attention, pos_att_type="c2p")(tokens(1, 60))
