"""What a decoded token asks of a GPU, counted without one.

Whole models decode on the CPU while the table of paths is told that it is a GPU. Operations that launch a kernel there, and those that the
host waits for, are counted in one step after a text, of a plain Llama and of LongLlamas, with either cache and with and without padding;
and how many graphs ``torch.compile`` makes of the first steps over a static cache.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, StaticCache

from hf_longattn import families
from hf_longattn.engines import accelerator, dense
from hf_longattn.engines.byte_cache import BYTE_CACHE
from hf_longattn.engines.call import DispatchContext
from hf_longattn.engines.cuda import flex
from hf_longattn.engines.cuda.flex_kernel import compile_errors
from hf_longattn.modeling import backend
from hf_longattn.modeling.mixin import LongAttentionMixin

from .eager_flex import by_the_lists
from .launches import Counting

LAYERS, BATCH, LENGTH, ROOM, STEPS = 4, 2, 300, 400, 3
SHAPE: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": 100, "max_position_embeddings": 4096,
}  # fmt: skip
PLANS: dict[str, dict[str, Any]] = {
    "full": {"mechanism": "full"},
    "window": {"mechanism": "window", "window": 128},
    "longformer": {"mechanism": "longformer", "window": 128},
    "linear": {"mechanism": "linear"},
}
CELLS = tuple((cache, padding) for cache in ("dynamic", "static") for padding in ("none", "left"))
MOST = 1.2
"""Times the base's operations."""


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
    cache: Any = StaticCache(config=model.config, max_cache_len=ROOM) if cache_kind == "static" else DynamicCache(config=model.config)
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
        assert step.operations <= MOST * plain.operations, cell
        assert step.waits.total() <= plain.waits.total(), cell


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANS)
def test_a_compiled_decoding_step_takes_no_more_graphs_than_the_base(name: str) -> None:
    assert graphs_of(model_of(PLANS[name])) == graphs_of(model_of(None))
