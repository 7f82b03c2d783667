"""Every number of a diagnosis against its definition on the attentions that transformers' own eager attention
returns."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from hf_longattn.inspect import diagnose
from hf_longattn.inspect.layer_attention import MEANS
from tests.cases import every_case
from tests.reference.small_models import BASES, EAGER, SHAPE, in_float64, long_like, plain_model, tokens
from tests.shared_code import kind_of_family

LENGTH = 41
ROUNDING = 2e-5
"""Some of transformers' eager attentions take their softmax in fp32 whatever the model is in."""
KEPT: dict[str, Callable[[int, int], bool]] = {
    "window:window=8": lambda i, j: abs(i - j) <= 4,
    "longformer:window=6": lambda i, j: abs(i - j) <= 3 or i == 0 or j == 0,
    "segmented:block_size=9,integration=none": lambda i, j: i // 9 == j // 9,
    "strided:window=4,stride=5": lambda i, j: abs(i - j) <= 2 or (i - j) % 5 == 0,
}
CAUSALLY: dict[str, Callable[[int, int], bool]] = {
    "window:window=8": lambda i, j: 0 <= i - j < 8,
    "longformer:window=6": lambda i, j: 0 <= i - j < 6 or j == 0,
    "segmented:block_size=9,integration=none": lambda i, j: i // 9 == j // 9,
    "strided:window=4,stride=5": lambda i, j: 0 <= i - j < 4 or (i - j) % 5 == 0,
}
SLIDING: list[tuple[str, dict[str, Any]]] = [
    ("mistral", {"sliding_window": 7}),
    ("gemma2", {"sliding_window": 9, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}),
    (
        "gemma3_text",
        {"sliding_window": 9, "layer_types": ["sliding_attention", "sliding_attention", "full_attention"]},
    ),
]
NOT_WATCHED = ("big_bird",)
"""Bases whose own classes are not on transformers' AttentionInterface; their Long models are diagnosed."""


def definition(attention: Tensor, causal: bool, kept: dict[str, Callable[[int, int], bool]]) -> dict[str, list[Any]]:
    """The numbers of every head from its weights ``(H, N, N)``, in Python's own arithmetic."""
    found: dict[str, list[Any]] = {name: [] for name in (*MEANS, "distance", *kept, "top_k:num_keys=5")}
    for weights in attention.double().tolist():
        rows: dict[str, list[float]] = {name: [] for name in found if name != "distance"}
        distance = [0.0] * (1 + math.ceil(math.log2(len(weights))))
        for i, row in enumerate(weights):
            entropy = -sum(p * math.log(p) for p in row if p > 0)
            rows["effective_tokens"].append(math.exp(entropy))
            rows["largest_weight"].append(max(row))
            rows["first_tokens"].append(sum(row[:4]))
            for name, keeps in kept.items():
                rows[name].append(sum(p for j, p in enumerate(row) if keeps(i, j)))
            rows["top_k:num_keys=5"].append(sum(sorted(row)[-5:]))
            for j, p in enumerate(row):
                distance[abs(i - j).bit_length()] += p / len(weights)
        for name, values in rows.items():
            found[name].append(sum(values) / len(values))
        found["distance"].append(distance)
    return found


def check(model: Any, ids: Tensor, attentions: tuple[Tensor, ...], causal: bool, **asked: Any) -> None:
    kept = CAUSALLY if causal else KEPT
    result = diagnose(model, ids, lengths=[len(ids)], queries=10**6, candidates=[*kept, "top_k:num_keys=5"], **asked)
    assert result.causal == causal
    assert not result.reasons
    assert len(result.last.layers) == len(attentions)
    for layer, weights in zip(result.last.layers, attentions, strict=True):
        expected = definition(weights[0], causal, kept)
        for name in MEANS:
            torch.testing.assert_close(
                layer.numbers[name], torch.tensor(expected[name]).double(), atol=ROUNDING, rtol=ROUNDING
            )
        torch.testing.assert_close(layer.distance, torch.tensor(expected["distance"]).double(), atol=ROUNDING, rtol=0)
        captured = torch.tensor([expected[str(one)] for one in result.candidates]).double().T
        torch.testing.assert_close(layer.captured, captured, atol=ROUNDING, rtol=0)


@torch.no_grad()
def attentions_of(model: Any, ids: Tensor) -> tuple[Tensor, ...]:
    """What transformers' eager attention returns."""
    model.set_attn_implementation("eager")
    found = model(input_ids=ids[None], output_attentions=True)
    return getattr(found, "encoder_attentions", None) or found.attentions


@every_case("base", [base for base in BASES if base not in NOT_WATCHED], of=9, code=kind_of_family)
def test_a_diagnosis_of_plain_models_equals_its_definition(base: str) -> None:
    model, ids = in_float64(plain_model(base)), tokens(1, LENGTH)[0]
    attentions = attentions_of(model, ids)
    causal = not any(weights.triu(1).any() for weights in attentions)
    model.set_attn_implementation("eager" if base in EAGER else "sdpa")
    with torch.no_grad():
        before = model(input_ids=ids[None])[0]
        check(model, ids, attentions, causal)
        assert torch.equal(model(input_ids=ids[None])[0], before), "the model is left as it was"
    assert not any("long_attention" in name for name, _ in model.named_modules())


@pytest.mark.thorough
@every_case(("base", "changes"), SLIDING, ids=[base for base, _ in SLIDING])
def test_a_diagnosis_of_sliding_windows_equals_its_definition(base: str, changes: dict[str, Any]) -> None:
    model, ids = plain_model(base, **changes).double(), tokens(1, LENGTH)[0]
    check(model, ids, attentions_of(model, ids), causal=True)


@pytest.mark.parametrize("name", ["BartModel", "T5Model"])
def test_a_diagnosis_of_the_encoder_of_two_stacks_equals_its_definition(name: str) -> None:
    sizes = {
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 1,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
        "d_kv": 8,
        "d_ff": 48,
        "num_layers": 2,
        "num_heads": 4,
    }
    config = getattr(transformers, name.replace("Model", "Config"))(vocab_size=SHAPE.vocabulary, **sizes)
    model, ids = getattr(transformers, name)(config).eval().double(), tokens(1, LENGTH)[0]
    model.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = model.get_encoder()(input_ids=ids[None], output_attentions=True).attentions
    check(model, ids, attentions, causal=False)


@every_case(("base", "mechanism"), [("bert", "linear"), ("bert", "full"), ("llama", "full"), ("big_bird", "window")])
def test_a_diagnosis_of_long_models_measures_all_keys(base: str, mechanism: str) -> None:
    """The first layer's queries and keys are those of the plain model, whatever runs; with full attention, those of
    all layers are."""
    plain = plain_model(base)
    plain, longer, ids = (
        plain.double(),
        long_like(plain, base, {"mechanism": mechanism}).double(),
        tokens(1, LENGTH)[0],
    )
    attentions = attentions_of(plain, ids)
    result = diagnose(longer, ids, lengths=[LENGTH], queries=10**6, candidates=["window:window=8"])
    for layer, weights in list(zip(result.last.layers, attentions, strict=True))[: None if mechanism == "full" else 1]:
        spread = torch.special.entr(weights[0].double()).sum(-1).exp().mean(-1)
        torch.testing.assert_close(layer.numbers["effective_tokens"], spread, atol=ROUNDING, rtol=ROUNDING)


@pytest.mark.thorough
@every_case(
    ("base", "relative"),
    [*itertools.product(["bert", "llama"], ["alibi", "t5_buckets", "shaw:clip=8", "transformer_xl"])],
)
def test_relative_positions_are_in_the_scores_of_a_diagnosis(base: str, relative: str) -> None:
    plain = plain_model(base)
    longer, ids = (
        long_like(plain, base, {"mechanism": "window", "window": 200, "relative": relative}),
        tokens(1, LENGTH)[0],
    )
    with torch.no_grad():
        for name, parameter in longer.named_parameters():
            if ".relative." in name:
                parameter.normal_(std=0.5)
        attentions = longer(input_ids=ids[None], output_attentions=True).attentions
    check(longer, ids, attentions, causal=base == "llama")


@pytest.mark.parametrize("base", ["deberta-v2", "mpnet"])
def test_terms_of_the_architecture_are_in_the_scores_of_a_diagnosis(base: str) -> None:
    from tests.reference.test_hf_attention import pair

    name = "MPNetModel" if base == "mpnet" else "DebertaV2Model"
    plain, longer = pair(base, name, {"mechanism": "full"})
    ids = tokens(1, LENGTH)[0]
    with torch.no_grad():
        attentions = plain(input_ids=ids[None], output_attentions=True).attentions
    check(longer, ids, attentions, causal=False)
