"""flex_attention where no GPU is: the paths for CUDA, forced onto the CPU's kernel, compiled, at lengths that change under one callable.

The CPU's kernel has no backward pass and no log-sum-exp, so that global columns, which are merged by it, and training are not among these.
"""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

from hf_longattn.engines import block_sparse, flex, flex_gathered
from hf_longattn.engines.blockwise import blockwise_attention
from hf_longattn.engines.byte_cache import KEPT
from hf_longattn.engines.parts import Part
from hf_longattn.engines.pattern import Pattern

PATTERN = Pattern.window(160, causal=True)


def band(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    return flex.flex_band(q, k, v, PATTERN, key_mask=mask, global_mask=None, scale=0.25)


def inputs(length: int) -> list[Tensor]:
    return list(torch.randn(3, 2, 2, length, 16, generator=torch.Generator().manual_seed(length)))


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_lengths_change_under_one_compiled_callable(backend: str, padded: bool) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(band, backend=backend, dynamic=True, fullgraph=True)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*lru_cache.*")
        for length in (300, 700, 513, 300):
            mask = torch.arange(length) < torch.tensor([[length], [length - 37]]) if padded else None
            found = compiled(*inputs(length), mask)
            expected = blockwise_attention(*inputs(length), PATTERN, key_mask=mask, global_mask=None, scale=0.25)
            real = torch.ones(2, length, dtype=torch.bool) if mask is None else mask
            torch.testing.assert_close(found * real[:, None, :, None], expected * real[:, None, :, None], atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_the_mask_of_a_shape_is_made_once_for_all_layers() -> None:
    KEPT.clear()
    made = [flex.kept_band_block_mask(PATTERN, 300, 300, None, torch.device("cpu")) for _ in range(24)]
    assert all(mask is made[0] for mask in made)
    mask = torch.ones(2, 300, dtype=torch.bool)
    assert flex.kept_band_block_mask(PATTERN, 300, 300, mask, torch.device("cpu")) is not made[0]
    torch.testing.assert_close(band(*inputs(300)), band(*inputs(300), mask), atol=1e-6, rtol=0)


def test_every_kind_of_call_has_a_code_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch counts what it compiles by code and stops at a limit: many windows in one process must not share one."""
    torch._dynamo.reset()
    counts = torch._dynamo.utils.counters
    monkeypatch.setattr(flex, "_kernels", {})
    made = flex.compiled_kernel
    monkeypatch.setattr(flex, "compiled_kernel", lambda number: made(number, backend="aot_eager"))
    q, k, v = inputs(130)
    with torch.no_grad(), torch._dynamo.config.patch(recompile_limit=2, fail_on_recompile_limit_hit=True):
        for window in range(20, 90, 10):
            pattern = Pattern.window(window, causal=True)
            mask = flex.band_block_mask(pattern, 130, 130, None, q.device)
            kernel = flex.kernel("cuda", ("band", pattern))
            assert kernel is flex.kernel("cuda", ("band", pattern))
            expected = blockwise_attention(q, k, v, pattern, key_mask=None, global_mask=None, scale=0.25)
            torch.testing.assert_close(kernel(q, k, v, block_mask=mask, scale=0.25), expected, atol=1e-5, rtol=0)
    assert len(flex._kernels) == 7
    assert counts is not None


def test_kernels_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flex, "_kernels", {})
    monkeypatch.setattr(flex, "compiled_kernel", lambda number: number)
    for window in range(500):
        flex.kernel("cuda", window)
    assert len(flex._kernels) == flex.MOST_KERNELS + 1


def test_a_graph_that_is_being_compiled_takes_flex_attention_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert flex.kernel("cuda", "any") is flex.flex_attention
    assert block_sparse.suits_dense(1, 10_000)


def test_what_a_call_without_gradients_made_serves_one_with_gradients() -> None:
    """Tensors made under inference mode cannot be saved for a backward pass."""
    part = Part(*(torch.arange(256).view(1, 1, 2, 128) for _ in range(2)))
    with torch.inference_mode():
        mask = flex.kept_band_block_mask(PATTERN, 384, 384, None, torch.device("cpu"))
        found = flex_gathered.kept_block_lists(part, 256, 256)
    assert found is not None
    assert flex.kept_band_block_mask(PATTERN, 384, 384, None, torch.device("cpu")) is mask
    assert flex_gathered.kept_block_lists(part, 256, 256) is found
    assert not any(x.is_inference() for x in (*found[1], *(x for x in vars(mask).values() if isinstance(x, torch.Tensor))))
