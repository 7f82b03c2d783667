"""Gradients of Long models: stopped at a memory, in compiled graphs, with sharded weights."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import hf_longattn
from hf_longattn import attend, build_mechanism
from hf_longattn.errors import InputError
from hf_longattn.modeling.attach.attention_sites import attention_sites
from tests.cases import every_case
from tests.grids import grid, quickly
from tests.ranks import Ranks
from tests.reference.small_models import (
    BASES,
    base_class,
    checkpoint_activations,
    in_float64,
    long_model,
    padding,
    tokens,
)
from tests.shared_code import kind_of_family

SIZE, MEMORY, LENGTH = 24, 16, 72
XL = {"mechanism": "transformer_xl", "segment_length": SIZE, "memory_length": MEMORY}


def model(base: str, head: str | None = None, **options: Any) -> Any:
    return in_float64(long_model(base, head, {**XL, **options}))


def gradients_of(
    module: Any, inputs: dict[str, Tensor], rows: slice, of: list[Tensor], **given: Any
) -> tuple[Tensor | None, ...]:
    out = module(**inputs, **given)[0][:, rows]
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=out.dtype)
    return torch.autograd.grad((out * weight).sum(), of, allow_unused=True)


def embedded(module: Any) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    width = module.get_input_embeddings().weight.shape[1]
    return torch.randn(2, LENGTH, width, generator=generator, dtype=torch.float64).requires_grad_()


@every_case(
    "base",
    [base for base in BASES if "inputs_embeds" in inspect.signature(base_class(base).forward).parameters],
    of=9,
    code=kind_of_family,
)
def test_gradients_do_not_enter_the_memory_of_transformer_xl(base: str) -> None:
    long = model(base)
    rows = slice(LENGTH - SIZE, LENGTH)
    embeddings = embedded(long)
    [gradient] = gradients_of(long, {"inputs_embeds": embeddings}, rows, [embeddings])
    assert gradient is not None
    if all(site.mechanism.name == "transformer_xl" for site in attention_sites(long)):  # ModernBERT keeps its windows
        assert (gradient[:, : LENGTH - SIZE] == 0).all(), "gradients reach the own segment alone"
    assert (gradient[:, LENGTH - SIZE :] != 0).any()


@pytest.mark.parametrize("base", ["gpt2", "llama"])
def test_a_cache_and_checkpointing_change_no_gradient_of_transformer_xl(base: str) -> None:
    head = {"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM"}[base]
    long = model(base, head)
    ids = {"input_ids": tokens(2, LENGTH)}
    rows = slice(0, LENGTH)
    wanted = gradients_of(long, ids, rows, list(long.parameters()), use_cache=False)
    cached = gradients_of(long, ids, rows, list(long.parameters()), use_cache=True)
    long.train()
    checkpoint_activations(long, use_reentrant=False)
    for module in long.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    again = gradients_of(long, ids, rows, list(long.parameters()), use_cache=False)
    for found in (cached, again):
        torch.testing.assert_close(found, wanted, atol=1e-9, rtol=1e-7)


COMPILED_LENGTH = 300
"""More tokens than a masked call over all pairs takes on the CPU."""
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
    inputs = {"input_ids": tokens(2, COMPILED_LENGTH), "labels": tokens(2, COMPILED_LENGTH)}
    if padded:
        inputs["attention_mask"] = padding(2, COMPILED_LENGTH)
        # outputs at padding mean nothing
        inputs["labels"] = inputs["labels"].masked_fill(inputs["attention_mask"] == 0, -100)
    if global_tokens:
        inputs["global_attention_mask"] = torch.zeros(2, COMPILED_LENGTH, dtype=torch.long)
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
def test_a_step_with_global_tokens_is_one_graph_that_draws_the_dropout_of_eager_mode(
    fullgraph: bool, global_tokens: int
) -> None:
    model = bert(LONGFORMER, 0.1)
    inputs = batch(padded=True, global_tokens=global_tokens)
    expected = gradients(model, model, inputs)
    assert_equal(compiled_gradients(model, inputs, fullgraph=fullgraph), expected)


def test_compiled_plain_operations_count_the_global_tokens_of_the_options() -> None:
    """A term that only plain operations add. More positions are global than the text has tokens, or fewer rows have
    global tokens."""
    module = build_mechanism(
        "longformer", num_heads=2, head_dim=4, window=16, global_tokens=(0, 7, *range(1000, 1400))
    )
    x = torch.randn(2, 2, COMPILED_LENGTH, 4)
    global_mask = torch.zeros(2, COMPILED_LENGTH, dtype=torch.bool)
    global_mask[0, 3:6] = True

    def run(x: Tensor) -> Tensor:
        return attend(
            x,
            x,
            x,
            module,
            score_mod=lambda s, b, h, i, j: s - 0.01 * (i * j),
            global_mask=global_mask,
        )

    leaves = [x.clone().requires_grad_() for _ in range(2)]
    torch._dynamo.reset()
    outs = [
        f(leaf) for f, leaf in zip((run, torch.compile(run, backend="eager", fullgraph=True)), leaves, strict=True)
    ]
    torch.testing.assert_close(*outs, atol=1e-5, rtol=0)
    assert_equal(
        [torch.autograd.grad(outs[1].sin().sum(), leaves[1])[0]],
        [torch.autograd.grad(outs[0].sin().sum(), leaves[0])[0]],
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", WITH_GLOBALS)
@every_case(("fullgraph", "padded", "global_tokens"), [(True, True, 3), (False, False, 1), (False, True, 0)])
def test_global_tokens_of_every_kind_are_in_the_graph(
    kind: str, fullgraph: bool, padded: bool, global_tokens: int
) -> None:
    options = WITH_GLOBALS[kind]
    if global_tokens and "num_sinks" in options:
        pytest.skip("sinks are no global tokens of a mask")
    inputs = batch(padded=padded, global_tokens=global_tokens)
    assert all(
        gradient.isfinite().all() for gradient in compiled_gradients(bert(options, 0.1), inputs, fullgraph=fullgraph)
    )
    model = bert(options, 0.0)
    assert_equal(compiled_gradients(model, inputs, fullgraph=fullgraph), gradients(model, model, inputs))


def test_the_dropout_of_separate_rows_has_the_mean_and_the_gradients_of_its_weights() -> None:
    """Over many seeds, the mean output is the output without dropout; of one seed, gradients are those of finite
    differences."""
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


SETTINGS: dict[str, Any] = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 256,
    "attention_probs_dropout_prob": 0.0,
    "hidden_dropout_prob": 0.0,
}
RECURRENT = {"mechanism": "recurrent_memory", "segment_length": 64, "num_memory_tokens": 2}
SHARDED: list[dict[str, Any]] = [
    {"mechanism": "longformer", "window": 32, "separate_global": True},
    {"mechanism": "hybrid", "window": 16},
    {"mechanism": "adaptive_span", "max_span": 40},
    {"mechanism": "linformer", "rank": 16},
    RECURRENT,
]
TOLERANCE = 1e-8


def models(attention: dict[str, Any]) -> tuple[Any, Any]:
    """A model, its copy with a share of the weights in each process, and the processes."""
    torch.set_default_dtype(torch.float64)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    torch.manual_seed(5)
    config = hf_longattn.LongBertConfig(**SETTINGS, long_attention=attention)
    sharded: Any = hf_longattn.LongBertForMaskedLM(config).train()
    plain = copy.deepcopy(sharded)
    for layer in sharded.base_model.encoder.layer:
        fully_shard(layer, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    return plain, sharded


def compare(attention: dict[str, Any], folder: str) -> None:
    plain, sharded = models(attention)
    ids = torch.randint(5, 99, (2, 203))
    batch = {"input_ids": ids, "labels": ids.masked_fill(torch.rand(ids.shape) < 0.5, -100)}
    expected = plain(**batch)
    expected.loss.backward()
    gradients = {name: parameter.grad for name, parameter in plain.named_parameters() if parameter.grad is not None}

    def check(loss: torch.Tensor) -> None:
        loss.backward()
        assert abs(loss.item() - expected.loss.item()) < TOLERANCE
        for name, parameter in sharded.named_parameters():
            if name in gradients:
                assert (parameter.grad.full_tensor() - gradients[name]).abs().max() < TOLERANCE, name
        sharded.zero_grad()

    check(sharded(**batch).loss)
    state = get_model_state_dict(sharded, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if dist.get_rank() == 0:
        plain.save_pretrained(folder, state_dict=state)
        again = type(plain).from_pretrained(folder, dtype=torch.float64).train()
        assert abs(again(**batch).loss.item() - expected.loss.item()) < TOLERANCE


def pass_different_lengths() -> None:
    _, sharded = models(RECURRENT)
    ids = torch.randint(5, 99, (2, 203))
    with pytest.raises(InputError, match="through 1 segments in one process and through 4 in another"):
        sharded(input_ids=ids[:, : 50 if dist.get_rank() else 203])


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    with Ranks() as processes:
        yield processes


@pytest.mark.parametrize("attention", quickly(SHARDED, SHARDED[::2]), ids=lambda attention: attention["mechanism"])
def test_fully_sharded_models_have_the_loss_and_gradients_of_one_process(
    attention: dict[str, Any], ranks: Ranks, tmp_path: Path
) -> None:
    ranks.run(compare, attention, str(tmp_path / "saved"))


def test_memory_tokens_need_as_many_segments_in_every_process(ranks: Ranks) -> None:
    ranks.run(pass_different_lengths)
