"""Decoding from a static cache is one graph, as the base's, and gives the tokens of eager decoding."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from transformers import CompileConfig, StaticCache
from transformers.cache_utils import StaticSlidingWindowLayer

from hf_longattn import enable_long_attention, list_mechanisms
from hf_longattn.errors import InputError
from hf_longattn.mechanisms.common.capabilities import Stateful
from hf_longattn.mechanisms.common.masked import steps_by_mask
from hf_longattn.mechanisms.common.registry import mechanism_class, prototype
from hf_longattn.modeling import backend
from tests.cases import every_case
from tests.grids import grid, quickly
from tests.reference import small_models
from tests.reference.small_models import in_one_pass, in_pieces, padding, plain_model, tokens

LENGTH, STEPS, ROOM = 60, 6, 100
GREEDY: dict[str, Any] = {"do_sample": False, "eos_token_id": None, "max_new_tokens": STEPS}
WINDOW = {"mechanism": "window", "window": 32}
LONGFORMER = {"mechanism": "longformer", "window": 32}
PLANS: dict[str, dict[str, Any]] = {
    "window": WINDOW,
    "window and sinks": {**WINDOW, "num_sinks": 4},
    "window, full decoding": {**WINDOW, "num_sinks": 4, "full_decoding": True},
    "longformer": {**LONGFORMER, "global_tokens": (0, 7)},
    "linear": {"mechanism": "linear"},
    "full": {"mechanism": "full"},
    "alibi": {**WINDOW, "relative": "alibi"},
    "window, full": {**WINDOW, "layers": {1: {"mechanism": "full"}}},
    "window, linear": {**WINDOW, "layers": {1: {"mechanism": "linear"}}},
    "longformer, hybrid": {**LONGFORMER, "layers": {1: {"mechanism": "hybrid", "window": 16}}},
}
CAUSAL = [name for name in list_mechanisms(causal=True, grid=False) if name != "recurrent_memory"]
ONE_GRAPH = {
    "fixed",
    "full",
    "hedgehog",
    "hybrid",
    "linear",
    "longformer",
    "performer",
    "strided",
    "taylor",
    "transformer_xl",
    "union",
    "window",
}
"""Mechanisms that must stay so; others say by themselves whether they decode in one graph."""


class Graphs:
    """A compiler that counts its graphs and runs them as they are."""

    def __init__(self) -> None:
        torch._dynamo.reset()
        self.count = 0

    def __call__(self, module: Any, _: Any) -> Any:
        self.count += 1
        return module.forward

    def __deepcopy__(self, memo: dict[int, Any]) -> Graphs:
        return self  # generate copies its configs


def long_model(plan: dict[str, Any]) -> Any:
    """Two layers where they differ: the graph of two alike takes twice as long."""
    layers = {"num_hidden_layers": 1 + ("layers" in plan)}
    return small_models.long_model("llama", "LlamaForCausalLM", plan, **layers)


@torch.no_grad()
def decoded(model: Any, cache: StaticCache, mask: torch.Tensor, **settings: Any) -> tuple[list[int], torch.Tensor]:
    """How many graphs each step compiled, and the tokens."""
    ids, graphs, counts = tokens(len(mask), LENGTH), Graphs(), []
    scores = model(
        ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0), past_key_values=cache
    ).logits
    step, found = torch.compile(model.forward, backend=graphs, **settings), [scores[:, -1:].argmax(-1)]
    for _ in range(STEPS - 1):
        before, mask = graphs.count, torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        positions = mask.sum(1, keepdim=True) - 1
        found.append(
            step(found[-1], attention_mask=mask, position_ids=positions, past_key_values=cache).logits.argmax(-1)
        )
        counts.append(graphs.count - before)
    return counts, torch.cat(found, 1)


@functools.cache
def graphs_of_base() -> list[int]:
    base = plain_model("llama", "LlamaForCausalLM", num_hidden_layers=1)
    return decoded(
        base, StaticCache(config=base.config, max_cache_len=ROOM), padding(3, LENGTH, left=True), fullgraph=True
    )[0]


QUICK = ("linear",)
"""A longformer is compiled by generate, a window and mechanisms by head, below."""
CELLS = grid(
    [(plan, padded) for plan in PLANS for padded in (True, False)], lambda plan, padded: padded and plan in QUICK
)


@pytest.mark.thorough
@pytest.mark.parametrize(("plan", "padded"), CELLS)
def test_a_compiled_decoding_step_is_as_many_graphs_as_that_of_the_base(plan: str, padded: bool) -> None:
    """The whole forward pass is one graph, and one more since the mask that is passed grows."""
    model, mask = long_model(PLANS[plan]), padding(3, LENGTH, left=True)
    mask = mask if padded else torch.ones_like(mask)
    expected = model.generate(tokens(3, LENGTH), attention_mask=mask, **GREEDY)[:, LENGTH:]
    counts, found = decoded(model, StaticCache(config=model.config, max_cache_len=ROOM), mask, fullgraph=True)
    assert counts == graphs_of_base() == [1, 1, *[0] * (STEPS - 3)]
    assert torch.equal(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("plan", quickly(["window", "longformer", "window, full"], ["window"]))
def test_a_static_cache_of_the_plain_base_serves_a_long_model(plan: str) -> None:
    """It keeps everything, in a model that has its mechanisms by enable_long_attention, too."""
    model, mask = long_model(PLANS[plan]), padding(3, LENGTH, left=True)
    expected = model.generate(tokens(3, LENGTH), attention_mask=mask, **GREEDY)[:, LENGTH:]
    plain = plain_model("llama", "LlamaForCausalLM", num_hidden_layers=len(model.model.layers))
    cache = StaticCache(config=plain.config, max_cache_len=ROOM)
    generic = enable_long_attention(plain, PLANS[plan])
    counts, found = decoded(generic, cache, mask, fullgraph=True)
    assert counts == graphs_of_base()
    assert torch.equal(found, expected)


@pytest.mark.thorough
@pytest.mark.parametrize("width", quickly([16, 64], [16]))
def test_sliding_cache_layers_of_transformers_are_read_in_text_order(width: int) -> None:
    """As wide as the window, and still filling while tokens are generated."""
    plain = plain_model("mistral", "MistralForCausalLM", num_hidden_layers=1, sliding_window=width)
    cache = StaticCache(config=plain.config, max_cache_len=ROOM)
    assert all(type(layer) is StaticSlidingWindowLayer for layer in cache.layers)
    generic, mask = (
        enable_long_attention(plain, {"mechanism": "window", "window": width}),
        padding(3, LENGTH, left=True),
    )
    expected = generic.generate(tokens(3, LENGTH), attention_mask=mask, use_cache=False, **GREEDY)[:, LENGTH:]
    assert torch.equal(decoded(generic, cache, mask, fullgraph=True)[1], expected)


@pytest.mark.thorough
@pytest.mark.parametrize("mechanism", quickly(CAUSAL, ["union"]))
def test_every_mechanism_decodes_in_one_graph_or_says_that_it_cannot(mechanism: str) -> None:
    options = mechanism_class(mechanism).about.sample
    model, mask = long_model({"mechanism": mechanism, **options}), padding(3, LENGTH, left=True)
    expected = model.generate(tokens(3, LENGTH), attention_mask=mask, **GREEDY)[:, LENGTH:]
    built = prototype(mechanism, dict(options))
    cache = StaticCache(config=model.config, max_cache_len=ROOM)
    if (steps_by_mask(built) or isinstance(built, Stateful)) and built.capabilities.recursion is None:
        counts, found = decoded(model, cache, mask, fullgraph=True)
        assert counts == graphs_of_base()
        assert torch.equal(found, expected)
        return
    assert mechanism not in ONE_GRAPH
    with pytest.raises(torch._dynamo.exc.Unsupported, match="disable_compile=True in generate"):
        decoded(model, cache, mask, fullgraph=True)
    cache = StaticCache(config=model.config, max_cache_len=ROOM)
    assert torch.equal(decoded(model, cache, mask)[1], expected)  # with breaks


@pytest.mark.parametrize("plan", quickly(PLANS, ["longformer"]))
def test_generate_compiles_long_models_where_it_compiles_the_base(plan: str) -> None:
    """On a GPU always; on a CPU where it is told to. The mask, and the global tokens, are as wide at every step: there
    is one graph."""
    model, mask = long_model(PLANS[plan]), padding(3, LENGTH, left=True)
    ids, graphs = tokens(3, LENGTH), Graphs()
    given = (
        {"global_attention_mask": torch.zeros_like(mask).index_fill(1, torch.tensor(30), 1)}
        if plan == "longformer"
        else {}
    )
    expected = model.generate(ids, attention_mask=mask, **given, **GREEDY)
    compiled = CompileConfig(fullgraph=True, backend=graphs, mode=None)
    compiled._compile_all_devices = True
    found = model.generate(
        ids, attention_mask=mask, cache_implementation="static", compile_config=compiled, **given, **GREEDY
    )
    assert graphs.count == 1
    assert torch.equal(found, expected)


def test_a_mechanism_without_one_graph_is_not_compiled_by_generate() -> None:
    model, ids, graphs = long_model({"mechanism": "top_k", "num_keys": 8}), tokens(2, LENGTH), Graphs()
    compiled = CompileConfig(backend=graphs, mode=None)
    compiled._compile_all_devices = True
    found = model.generate(ids, cache_implementation="static", compile_config=compiled, **GREEDY)
    assert graphs.count == 0
    assert torch.equal(found, model.generate(ids, **GREEDY))


@every_case("plan", ["window", "longformer", "window and sinks", "window, full decoding", "alibi"])
def test_decoding_over_all_slots_of_a_static_cache_equals_the_filled_ones(
    plan: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What runs on a GPU without a compiler: fixed shapes, for which nothing waits."""
    model, ids, mask = long_model(PLANS[plan]), tokens(3, LENGTH), padding(3, LENGTH, left=True)
    expected = model.generate(ids, attention_mask=mask, cache_implementation="static", **GREEDY)
    monkeypatch.setattr(backend, "accelerated", lambda query: True)
    assert torch.equal(model.generate(ids, attention_mask=mask, cache_implementation="static", **GREEDY), expected)


@every_case("plan", ["window", "window, linear", "window and sinks"])
def test_a_static_cache_takes_a_prompt_in_pieces_and_a_second_text(plan: str) -> None:
    model, ids, mask = long_model(PLANS[plan]), tokens(3, LENGTH), padding(3, LENGTH, left=True)
    cache = StaticCache(config=model.config, max_cache_len=ROOM)
    for _ in range(2):
        found = in_pieces(model, cache, ids, mask, [(0, 45), (45, 46), (46, 50), (50, 51), (51, LENGTH)])
        assert (found - in_one_pass(model, ids, mask))[mask.bool()].abs().max() < 1e-4
        cache.reset()


def test_a_text_longer_than_its_static_cache_is_refused() -> None:
    model = long_model(WINDOW)
    cache = StaticCache(config=model.config, max_cache_len=40)
    with torch.no_grad():
        model(tokens(1, 38), past_key_values=cache)
        with pytest.raises(InputError, match="max_cache_len=41"):
            model(tokens(1, 3), attention_mask=torch.ones(1, 41), past_key_values=cache)
