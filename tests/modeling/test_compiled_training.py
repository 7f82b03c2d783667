"""Training steps of Long encoders as a single graph of torch.compile, with dropout of 0.1 as in BERT's config."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hf_longattn import attend, build_mechanism, list_mechanisms
from hf_longattn.engines import block_sparse
from hf_longattn.mechanisms.common.registry import mechanism_class
from tests.cases import every_case
from tests.grids import grid, quickly
from tests.reference.small_models import long_model, padding, tokens

LENGTH = 300
"""More tokens than a masked call over all pairs takes on the CPU."""
ENCODERS = list_mechanisms(causal=False, grid=False)
LONGFORMER = {"mechanism": "longformer", "window": 32}
WITH_GLOBALS: dict[str, dict[str, Any]] = {
    "global token of the config": LONGFORMER,
    "no global token in the config": {**LONGFORMER, "global_tokens": ()},
    "separate projections": {**LONGFORMER, "separate_global": True},
    "separate projections and a term": {**LONGFORMER, "separate_global": True, "relative": "alibi"},
    "a term of queries": {**LONGFORMER, "relative": "shaw:clip=8"},
    "global ids": {**LONGFORMER, "global_token_ids": (7,)},
    "sinks": {"mechanism": "window", "window": 32, "num_sinks": 2},
    "sinks and a term": {"mechanism": "window", "window": 32, "num_sinks": 2, "relative": "t5_buckets"},
    "blocks": {"mechanism": "bigbird", "block_size": 16},
}


def bert(long_attention: dict[str, Any], dropout: float) -> Any:
    rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    return long_model("bert", "BertForMaskedLM", long_attention, num_hidden_layers=1, **rates).train()


def batch(*, padded: bool, global_tokens: int) -> dict[str, Tensor]:
    """Inputs of two rows. The second has no global token."""
    inputs = {"input_ids": tokens(2, LENGTH), "labels": tokens(2, LENGTH)}
    if padded:
        inputs["attention_mask"] = padding(2, LENGTH)
        inputs["labels"] = inputs["labels"].masked_fill(inputs["attention_mask"] == 0, -100)  # outputs at padding mean nothing
    if global_tokens:
        inputs["global_attention_mask"] = torch.zeros(2, LENGTH, dtype=torch.long)
        inputs["global_attention_mask"][0, 5 : 5 + global_tokens] = 1
    return inputs


def gradients(model: Any, run: Any, inputs: dict[str, Tensor]) -> list[Tensor]:
    model.zero_grad()
    torch.manual_seed(3)
    run(**inputs).loss.backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def compiled_gradients(model: Any, inputs: dict[str, Tensor], *, fullgraph: bool = True) -> list[Tensor]:
    """Gradients of a compiled step, which must be one graph without a break."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    graphs = []

    def eager(graph: torch.fx.GraphModule, examples: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    found = gradients(model, torch.compile(model, backend=eager, fullgraph=fullgraph), inputs)
    assert len(graphs) == 1
    assert not torch._dynamo.utils.counters["graph_break"]
    return found


def assert_equal(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected)
    for gradient, wanted in zip(found, expected, strict=True):
        assert gradient.isfinite().all()
        torch.testing.assert_close(gradient, wanted, atol=1e-5, rtol=1e-4)


@every_case(("fullgraph", "global_tokens"), grid([(True, 3), (False, 0)], lambda fullgraph, global_tokens: fullgraph))
def test_a_step_with_global_tokens_is_one_graph_that_draws_the_dropout_of_eager_mode(fullgraph: bool, global_tokens: int) -> None:
    model, inputs = bert(LONGFORMER, 0.1), batch(padded=True, global_tokens=global_tokens)
    expected = gradients(model, model, inputs)
    assert_equal(compiled_gradients(model, inputs, fullgraph=fullgraph), expected)


@pytest.mark.thorough
def test_a_step_with_separate_projections_of_global_tokens_is_one_graph() -> None:
    model = bert(WITH_GLOBALS["separate projections"], 0.1)
    found = compiled_gradients(model, batch(padded=True, global_tokens=3), fullgraph=False)
    assert all(gradient.isfinite().all() for gradient in found)


@every_case("marked", quickly([True, False], [True]))
def test_compiled_plain_operations_count_the_global_tokens_of_the_options(marked: bool) -> None:
    """A term that only plain operations add. More positions are global than the text has tokens, or fewer rows have global tokens."""
    module = build_mechanism("longformer", num_heads=2, head_dim=4, window=16, global_tokens=(0, 7, *range(1000, 1400)))
    x, global_mask = torch.randn(2, 2, LENGTH, 4), torch.zeros(2, LENGTH, dtype=torch.bool)
    global_mask[0, 3:6] = True

    def run(x: Tensor) -> Tensor:
        return attend(x, x, x, module, score_mod=lambda s, b, h, i, j: s - 0.01 * (i * j), global_mask=global_mask if marked else None)

    leaves = [x.clone().requires_grad_() for _ in range(2)]
    torch._dynamo.reset()
    outs = [f(leaf) for f, leaf in zip((run, torch.compile(run, backend="eager", fullgraph=True)), leaves, strict=True)]
    torch.testing.assert_close(*outs, atol=1e-5, rtol=0)
    assert_equal([torch.autograd.grad(outs[1].sin().sum(), leaves[1])[0]], [torch.autograd.grad(outs[0].sin().sum(), leaves[0])[0]])


@pytest.mark.slow
@pytest.mark.parametrize("kind", WITH_GLOBALS)
@every_case(("fullgraph", "padded", "global_tokens"), [(True, True, 3), (False, False, 1), (False, True, 0)])
def test_global_tokens_of_every_kind_are_in_the_graph(kind: str, fullgraph: bool, padded: bool, global_tokens: int) -> None:
    options = WITH_GLOBALS[kind]
    if global_tokens and "num_sinks" in options:
        pytest.skip("sinks are no global tokens of a mask")
    inputs = batch(padded=padded, global_tokens=global_tokens)
    assert all(gradient.isfinite().all() for gradient in compiled_gradients(bert(options, 0.1), inputs, fullgraph=fullgraph))
    model = bert(options, 0.0)
    assert_equal(compiled_gradients(model, inputs, fullgraph=fullgraph), gradients(model, model, inputs))


@pytest.mark.slow
@pytest.mark.parametrize("mechanism", ENCODERS)
def test_every_mechanism_of_encoders_trains_as_one_graph(mechanism: str) -> None:
    options = {"mechanism": mechanism, **mechanism_class(mechanism).about.sample}
    inputs = batch(padded=True, global_tokens=0)
    assert all(gradient.isfinite().all() for gradient in compiled_gradients(bert(options, 0.1), inputs, fullgraph=False))
    model = bert(options, 0.0)
    assert_equal(compiled_gradients(model, inputs), gradients(model, model, inputs))


@pytest.mark.slow
@every_case("options", [LONGFORMER, {**LONGFORMER, "separate_global": True}], ids=str)
def test_inductor_trains_with_dropout_and_global_tokens(options: dict[str, Any]) -> None:
    model, inputs = bert(options, 0.1), batch(padded=True, global_tokens=3)
    torch._dynamo.reset()
    found = gradients(model, torch.compile(model, fullgraph=True), inputs)
    assert all(gradient.isfinite().all() for gradient in found)
    assert any(gradient.any() for gradient in found)


def test_the_dropout_of_separate_rows_has_the_mean_and_the_gradients_of_its_weights() -> None:
    """Over many seeds, the mean output is the output without dropout; of one seed, gradients are those of finite differences."""
    from hf_longattn.engines.global_rows import separate_rows

    x = torch.randn(3, 1, 2, 6, 4, dtype=torch.float64, requires_grad=True)
    chosen = torch.tensor([[True, False, False, True, False, False]])

    def rows(x: Tensor, dropout: float = 0.3, seed: int | None = 1) -> Tensor:
        return separate_rows(*x, None, chosen, False, 0.5, dropout, None if seed is None else torch.tensor(seed))

    assert torch.autograd.gradcheck(rows, (x,))
    with torch.no_grad():
        mean = sum(rows(x, seed=seed) for seed in range(2000)) / 2000
        torch.testing.assert_close(mean, rows(x, 0.0, None), atol=0.1, rtol=0)
        assert not rows(x, dropout=1.0).any()


def test_tracing_shows_the_error_of_an_engine_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Tensor:
        raise RuntimeError("this engine failed")

    for name in ("attend_parts", "blockwise_attention", "dense_attention"):
        monkeypatch.setattr(block_sparse, name, fail)
    module, x = build_mechanism("window", num_heads=2, head_dim=4, window=8), torch.randn(1, 2, LENGTH, 4)
    torch._dynamo.reset()
    with pytest.raises(Exception, match="this engine failed"):
        torch.compile(lambda x: attend(x, x, x, module), backend="eager", fullgraph=True)(x)
