"""What is asked of a GPU, counted without one: operations, waits, devices of tensors."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxOutput, AuxRequest, BlockMask
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, StaticCache

from hf_longattn import build_mechanism, families, list_mechanisms
from hf_longattn.engines import accelerator, dense
from hf_longattn.engines.byte_cache import BYTE_CACHE
from hf_longattn.engines.call import DispatchContext
from hf_longattn.engines.cuda import flex
from hf_longattn.engines.cuda.flex_kernel import compile_errors
from hf_longattn.engines.topk import topk_keys
from hf_longattn.functional import prepare, run_batch
from hf_longattn.modeling import backend
from hf_longattn.modeling.mixin import LongAttentionMixin
from scripts.dev.tools.small_models import Shape, small_values
from tests.cases import every_case

from .eager_flex import by_the_lists
from .launches import Counting
from .pretended_cuda import results

# ---- Operations of a layer: few, whatever the length; none waits for the device, none is in float64.


def fused(
    kind: object,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    block_mask: BlockMask,
    return_aux: AuxRequest | None = None,
    **_: Any,
) -> Any:
    out = q + v.sum()
    return out if return_aux is None else (out, AuxOutput(lse=out[..., 0].float()))


def asked(name: str, length: int, causal: bool, gradients: bool = False) -> tuple[Counting, Counting | None]:
    """What the second of two layers asks for, and its backward pass."""
    module = build_mechanism(name, num_heads=8, head_dim=64, max_length=length, hidden_size=64).train(gradients)
    q, k, v = (torch.randn(1, 8, length, 64, dtype=torch.bfloat16, requires_grad=gradients) for _ in range(3))
    arguments: dict[str, Any] = {"causal": causal}
    if module.capabilities.takes_hidden_states:
        arguments["hidden_states"] = torch.randn(1, length, 64)
    module, call = prepare(q, k, v, module, **arguments)
    with torch.set_grad_enabled(gradients):
        run_batch(module, q, k, v, call)
        with Counting() as forward:
            out = run_batch(module, q, k, v, call)
        if not gradients:
            return forward, None
        with Counting() as backward:
            out.sum().backward()
        return forward, backward


MOST: list[tuple[str, int, bool, int, int]] = [
    ("linear", 8192, False, 30, 33),
    ("linear", 8192, True, 40, 64),
    ("taylor", 2048, True, 56, 88),
    ("performer", 2048, False, 49, 40),
    ("performer", 2048, True, 69, 73),
    ("hybrid", 2048, True, 86, 112),
]
"""Mechanism, tokens, causal, most operations of the forward and of the backward pass, for 8 heads."""


@pytest.mark.thorough
@pytest.mark.usefixtures("cuda_paths")
@every_case(("name", "length", "causal", "most", "most_backward"), MOST, of=3)
def test_linear_mechanisms_ask_few_gpu_operations_and_no_wait(
    name: str, length: int, causal: bool, most: int, most_backward: int
) -> None:
    forward, backward = asked(name, length, causal, gradients=True)
    assert backward is not None
    assert forward.operations <= most
    assert backward.operations <= most_backward
    assert forward.waits.total() <= int(name == "performer" and causal), (
        "which looks once whether exponents leave the range of fp32"
    )
    assert not backward.waits
    assert not forward.float64 + backward.float64


@pytest.mark.thorough
@pytest.mark.usefixtures("cuda_paths")
@pytest.mark.parametrize("causal", [False, True])
def test_the_search_of_top_k_never_waits_for_a_gpu(causal: bool) -> None:
    q, k = (torch.randn(1, 8, 2048, 64) for _ in range(2))
    with torch.no_grad(), Counting() as counts:
        topk_keys(q, k, None, 64, causal, 0.125)
    assert counts.operations <= 50
    assert not counts.waits


@pytest.mark.usefixtures("cuda_paths")
def test_selected_blocks_never_wait_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flex, "fused_flex", fused)
    forward, _ = asked("block_top_k", 2048, True)
    assert forward.operations <= 132
    assert forward.waits.total() == 0


# ---- Operations of a decoded token.


LAYERS, BATCH, LENGTH, ROOM, STEPS = 4, 2, 300, 400, 3
SHAPE = small_values("llama", Shape(width=64, layers=LAYERS, inner=128, tokens=4096), num_key_value_heads=2)
PLANS: dict[str, dict[str, Any]] = {
    "full": {"mechanism": "full"},
    "window": {"mechanism": "window", "window": 128},
    "longformer": {"mechanism": "longformer", "window": 128},
    "linear": {"mechanism": "linear"},
}
CELLS = tuple((cache, padding) for cache in ("dynamic", "static") for padding in ("none", "left"))
MOST_OF_A_TOKEN, MOST_WITH_TURNED_SINKS = 1.2, 1.5
"""Times the base's operations, and the same for sinks that have their positions in a cache."""


@contextlib.contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Choices as for tensors on CUDA."""
    made = DispatchContext.__init__

    def init(self: Any, device: str, *args: Any, **kwargs: Any) -> None:
        made(self, "cuda", *args, **kwargs)

    with (
        mock.patch.object(DispatchContext, "__init__", init),
        mock.patch.object(dense, "groups_are_fused", lambda k, v, mask: mask is None),
        mock.patch.object(backend, "accelerated", return_value=True),
        mock.patch.object(accelerator, "accelerated", return_value=True),
    ):
        yield


def model_of(plan: dict[str, Any] | None) -> Any:
    """A small model with random weights: plain, or with a mechanism."""
    torch.manual_seed(0)
    if plan is None:
        return LlamaForCausalLM(LlamaConfig(**SHAPE)).eval()
    return families.LongLlamaForCausalLM(families.LongLlamaConfig(**SHAPE, long_attention=plan)).eval()


@torch.no_grad()
def step_of(model: Any, cache_kind: str, padding: str) -> Counting:
    """The last of some decoded tokens."""
    ids = torch.randint(SHAPE["vocab_size"], (BATCH, LENGTH), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(BATCH, LENGTH, dtype=torch.long)
    mask[0, : 50 if padding == "left" else 0] = 0
    cache: Any = (
        StaticCache(config=model.config, max_cache_len=ROOM)
        if cache_kind == "static"
        else DynamicCache(config=model.config)
    )
    with as_on_a_gpu() if isinstance(model, LongAttentionMixin) else contextlib.nullcontext():
        with mock.patch.object(flex, "fused_flex", by_the_lists):  # the text itself is not counted
            token = model(ids, attention_mask=mask, past_key_values=cache).logits[:, -1:].argmax(-1)
        for _ in range(STEPS):
            mask = torch.cat([mask, mask.new_ones(BATCH, 1)], 1)
            BYTE_CACHE.clear()  # each step is as long as none before
            with Counting() as counting:
                given = mask if padding == "left" else None
                token = model(token, attention_mask=given, past_key_values=cache).logits[:, -1:].argmax(-1)
    return counting


@torch.no_grad()
def graphs_of(model: Any) -> int | None:
    """Graphs that the first steps over a static cache take, without a break; ``None`` where there is one."""
    torch.compiler.reset()
    graphs: list[Any] = []

    def keep(module: Any, _: Any) -> Any:
        graphs.append(module)
        return module.forward

    ids, mask = torch.ones(BATCH, LENGTH, dtype=torch.long), torch.ones(BATCH, LENGTH, dtype=torch.long)
    cache = StaticCache(config=model.config, max_cache_len=ROOM)
    model(ids, attention_mask=mask, past_key_values=cache)
    step = torch.compile(model.forward, backend=keep, fullgraph=True)
    try:
        for _ in range(STEPS + 1):
            mask = torch.cat([mask, mask.new_ones(BATCH, 1)], 1)
            step(ids[:, :1], attention_mask=mask, past_key_values=cache)
    except compile_errors() as error:
        if "disable_compile=True in generate" not in str(error):
            raise
        return None
    return len(graphs)


@functools.cache
def base() -> dict[tuple[str, str], Counting]:
    """The steps of the plain Llama."""
    model = model_of(None)
    return {cell: step_of(model, *cell) for cell in CELLS}


@pytest.mark.parametrize("name", PLANS)
def test_a_decoding_step_adds_few_operations_and_no_wait(name: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, "hf_longattn")
    model = model_of(PLANS[name])
    for cell in CELLS:
        step, plain = step_of(model, *cell), base()[cell]
        most = MOST_WITH_TURNED_SINKS if name == "longformer" else MOST_OF_A_TOKEN
        assert step.operations <= most * plain.operations, cell
        assert step.waits.total() <= plain.waits.total(), cell


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANS)
def test_a_compiled_decoding_step_takes_no_more_graphs_than_the_base(name: str) -> None:
    assert graphs_of(model_of(PLANS[name])) == graphs_of(model_of(None))


# ---- No operation mixes tensors of a GPU with those of the CPU: tensors only claim to be on one.


REFUSED_ON_A_GPU = {"nystrom": "InputError: Mechanism 'nystrom' reads all tokens at once"}
"""What mechanisms refuse on every device."""


@pytest.fixture(scope="module")
def ran() -> Iterator[Callable[[str], dict[str, Any]]]:
    with results("tests.engines.mixed_devices", "mechanism") as result_of:
        yield result_of


@pytest.mark.slow
@pytest.mark.parametrize("name", list_mechanisms(grid=False))
def test_no_mechanism_mixes_tensors_of_a_gpu_and_the_cpu(name: str, ran: Callable[[str], dict[str, Any]]) -> None:
    result = ran(name)
    assert result["calls"] >= 7
    assert not {
        call: failure
        for call, failure in result["failures"].items()
        if not failure.startswith(REFUSED_ON_A_GPU.get(name, "-"))
    }
