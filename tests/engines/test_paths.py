"""Every path of the block-sparse engine computes the same thing: fused CPU kernel, blockwise operations, flex_attention, dense."""

import functools
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_longattn import attend, build_mechanism, reference_attend
from hf_longattn.engines.batch import Batch
from hf_longattn.engines.blockwise import blockwise_attention
from hf_longattn.engines.byte_cache import BYTE_CACHE
from hf_longattn.engines.call import AttentionCall, Pattern
from hf_longattn.engines.cpu import band
from hf_longattn.engines.cpu import kernels as cpu_kernels
from hf_longattn.engines.cpu.band import BF16, BF16_AMX, band_plan
from hf_longattn.engines.cpu.softmax import cpu_softmax
from hf_longattn.engines.cuda.flex import flex_band
from hf_longattn.engines.score_terms import DistanceBias
from hf_longattn.functional import run_batch
from tests.cases import every_case

MECHANISMS = {
    "band": ("window", {}),
    "band and columns": ("window", {"num_sinks": 5}),
    "band, columns and rows": ("longformer", {}),
}
CASES = list(itertools.product(MECHANISMS, [False, True], [7, 130, 300], ["none", "left", "right", "inside"], [False, True]))


def masks(length: int, side: str) -> Tensor | None:
    if side == "none":
        return None
    mask = torch.ones(2, length, dtype=torch.bool)
    cut = length // 3
    mask[0, {"left": slice(0, cut), "right": slice(length - cut, None), "inside": slice(length // 2, length // 2 + cut // 2)}[side]] = False
    return mask


def run_cpu_band(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, call: AttentionCall) -> Tensor:
    fixed, numbers = [call.key_mask, call.global_mask], [pattern.left, pattern.right, pattern.causal, pattern.global_rows, 0]
    return cpu_softmax("band", q, k, v, [], fixed, numbers, call.scale_for(16), 0.0, None, None)[0]


@pytest.mark.usefixtures("unfused_flex")
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@every_case("path", [run_cpu_band, blockwise_attention, flex_band])
@every_case(("visited", "causal", "length", "side", "few_queries"), CASES, of=6)
def test_every_path_of_a_band_equals_the_definition(path, visited: str, causal: bool, length: int, side: str, few_queries: bool) -> None:
    torch.manual_seed(0)
    dtype = torch.float32 if path is flex_band else torch.float64
    q, k, v = (torch.randn(2, 4, length, 16, dtype=dtype) for _ in range(3))
    q = q[:, :, -5:] if few_queries else q
    mask, chosen = masks(length, side), torch.rand(2, length) < 0.1
    name, options = MECHANISMS[visited]
    module = build_mechanism(name, num_heads=4, head_dim=16, window=32, **options)
    call = AttentionCall(causal, Batch.of(mask), chosen, scale=0.25)

    def run(q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        return path(q, k, v, module.pattern(causal), call.replace(global_mask=module.resolve_globals(k, call)))

    out = run_batch(module, q, k, v, call, run)
    expected = reference_attend(
        q, k, v, module, causal=causal, padding_mask=mask, global_mask=chosen if module.capabilities.takes_globals else None, scaling=0.25
    )
    real = torch.ones(2, length, dtype=torch.bool) if mask is None else mask
    rows = real[:, None, -q.shape[2] :, None]
    assert out.isfinite().all()
    torch.testing.assert_close(out.double() * rows, expected * rows, atol=1e-5 if path is flex_band else 1e-12, rtol=0)


BLOCKS = [32, 64, 192, 1000]
"""Sizes of blocks; with the last one, all queries are in one."""


@every_case("block", BLOCKS, pairs=True)
@every_case(
    ("causal", "side", "few_queries"), [(False, "none", False), (True, "none", True), (False, "inside", True), (True, "left", False)]
)
@every_case("visited", MECHANISMS)
def test_cpu_bands_in_blocks_of_every_size_equal_the_definition(
    visited: str, causal: bool, side: str, few_queries: bool, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(band, "band_plan", functools.partial(band_plan, block=block))
    torch.manual_seed(0)
    length, (name, options) = 300, MECHANISMS[visited]
    q, k, v = (torch.randn(2, 4, length, 8, dtype=torch.float64, requires_grad=True) for _ in range(3))
    queries = q[:, :, -200:] if few_queries else q
    mask, chosen = masks(length, side), torch.zeros(2, length, dtype=torch.bool)
    chosen[:, [0, 150]] = True
    chosen[1, 20:40] = True  # more than a few
    module = build_mechanism(name, num_heads=4, head_dim=8, window=64, **options)
    call = AttentionCall(causal, Batch.of(mask), chosen, scale=0.25)

    def run(q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        return run_cpu_band(q, k, v, module.pattern(causal), call.replace(global_mask=module.resolve_globals(k, call)))

    rows = (torch.ones(2, length, dtype=torch.bool) if mask is None else mask)[:, None, -queries.shape[2] :, None]
    upstream = torch.randn(2, 4, queries.shape[2], 8, dtype=torch.float64) * rows
    out = run_batch(module, queries, k, v, call, run)
    expected = reference_attend(
        queries,
        k,
        v,
        module,
        causal=causal,
        padding_mask=mask,
        global_mask=chosen if module.capabilities.takes_globals else None,
        scaling=0.25,
    )
    torch.testing.assert_close(out * rows, expected * rows, atol=1e-12, rtol=0)
    for found, wanted in zip(*(torch.autograd.grad(x, (q, k, v), upstream) for x in (out, expected)), strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-12, rtol=0)


@pytest.mark.thorough
@every_case("causal", [False, True])
@every_case("few_queries", [False, True])
@every_case("visited", MECHANISMS)
def test_short_bands_on_a_cpu_are_one_masked_call(visited: str, few_queries: bool, causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    BYTE_CACHE.clear()
    length, (name, options) = 200, MECHANISMS[visited]
    module, masks_used = build_mechanism(name, num_heads=4, head_dim=8, window=64, **options), []

    def flash(*inputs: Any, attn_mask: Tensor, scale: float) -> Any:
        masks_used.append(attn_mask)
        return kernel(*inputs, attn_mask=attn_mask, scale=scale)

    kernel = cpu_kernels.flash
    monkeypatch.setattr(cpu_kernels, "flash", flash)
    for _ in range(2):
        q, k, v = (torch.randn(2, 4, length, 8, dtype=torch.float64, requires_grad=True) for _ in range(3))
        queries = q[:, :, -150:] if few_queries else q
        out = attend(queries, k, v, module, causal=causal)
        expected = reference_attend(queries, k, v, module, causal=causal)
        torch.testing.assert_close(out, expected, atol=1e-12, rtol=0)
        upstream = torch.randn_like(out)
        for gradient, wanted in zip(*(torch.autograd.grad(x, (q, k, v), upstream) for x in (out, expected)), strict=True):
            torch.testing.assert_close(gradient, wanted, atol=1e-12, rtol=0)
    assert len(masks_used) == 2
    assert masks_used[0] is masks_used[1]


@every_case("block", BLOCKS)
@every_case("side", ["none", "inside"])
def test_a_distance_bias_of_a_cpu_band_is_the_same_in_blocks_of_every_size(side: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(band, "band_plan", functools.partial(band_plan, block=block))
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 2, 300, 8, dtype=torch.float64, requires_grad=True) for _ in range(3))
    table = torch.randn(2, 81, dtype=torch.float64, requires_grad=True)
    module = build_mechanism("longformer", num_heads=2, head_dim=8, window=64)
    mask = masks(300, side)
    rows = 1 if mask is None else mask[:, None, :, None]
    arguments: dict[str, Any] = {"padding_mask": mask, "score_mod": DistanceBias(table, 40)}
    out, expected = attend(q, k, v, module, **arguments) * rows, reference_attend(q, k, v, module, **arguments) * rows
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=0)  # of the table in single precision
    for found, wanted in zip(*(torch.autograd.grad(x.square().sum(), (q, k, v, table)) for x in (out, expected)), strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-5)


def test_cpu_bands_choose_one_block_for_short_and_fixed_blocks_for_long_inputs() -> None:
    """One block up to about the length that the band covers, blocks of a fixed size for long inputs; AMX takes larger ones."""
    for dtype in (torch.float32, torch.bfloat16):
        plans = {length: band_plan(length, length, 0, 256, 256, dtype, 1) for length in (300, 1024, 8192, 65536)}
        assert plans[300].dense
        assert not plans[1024].dense
        assert plans[8192].block == plans[65536].block
    for seen in (band_plan(100, 4096, 3996, 255, 0, torch.float32, 1), band_plan(1, 4096, 4095, 255, 0, torch.float32, 1)):
        assert sum(group.blocks * group.width for group in seen.groups) < 2048, "few queries see few keys"
    assert BF16_AMX.sizes[1] > max(BF16.sizes)


@pytest.mark.thorough
@every_case(("causal", "side", "few_queries"), [(False, "none", False), (False, "inside", True), (True, "left", False)])
@every_case("visited", MECHANISMS)
def test_wide_cpu_bands_in_bf16_are_near_the_definition(visited: str, causal: bool, side: str, few_queries: bool) -> None:
    torch.manual_seed(0)
    length = 1100
    name, options = MECHANISMS[visited]
    module = build_mechanism(name, num_heads=4, head_dim=16, window=400, **options)
    pattern = module.pattern(causal)

    q, k, v = (torch.randn(2, 4, length, 16).bfloat16() for _ in range(3))
    q = q[:, :, -300:] if few_queries else q
    mask, chosen = masks(length, side), torch.rand(2, length) < 0.01
    call = AttentionCall(causal, Batch.of(mask), chosen, scale=0.25)

    def run(q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        return run_cpu_band(q, k, v, pattern, call.replace(global_mask=module.resolve_globals(k, call)))

    out = run_batch(module, q, k, v, call, run)
    exact = (x.double() for x in (q, k, v))
    expected = reference_attend(
        *exact, module, causal=causal, padding_mask=mask, global_mask=chosen if module.capabilities.takes_globals else None, scaling=0.25
    )
    rows = (torch.ones(2, length, dtype=torch.bool) if mask is None else mask)[:, None, -q.shape[2] :, None]
    torch.testing.assert_close(out.double() * rows, expected * rows, atol=1e-2, rtol=1e-2)
