"""Every path of the block-sparse engine computes the same thing: fused CPU kernel, blockwise operations, flex_attention, dense."""

import itertools

import pytest
import torch
from torch import Tensor

from hf_longattn import build_mechanism, reference_attend
from hf_longattn.attend import run_batch
from hf_longattn.engines.batch import Batch
from hf_longattn.engines.block_sparse import WIDE, cpu_band
from hf_longattn.engines.call import AttentionCall, Pattern
from hf_longattn.engines.flex import flex_band
from hf_longattn.engines.plain import blockwise_attention

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
    settings = (pattern.left, pattern.right, pattern.causal, pattern.global_rows, call.scale_for(16))
    return cpu_band(q, k, v, call.key_mask, call.global_mask, *settings)[0]


@pytest.mark.usefixtures("unfused_flex")
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("path", [run_cpu_band, blockwise_attention, flex_band])
@pytest.mark.parametrize(("visited", "causal", "length", "side", "few_queries"), CASES)
def test_path_equals_the_definition(path, visited: str, causal: bool, length: int, side: str, few_queries: bool) -> None:
    torch.manual_seed(0)
    dtype = torch.float32 if path is flex_band else torch.float64
    q, k, v = (torch.randn(2, 4, length, 16, dtype=dtype) for _ in range(3))
    q = q[:, :, -5:] if few_queries else q
    mask, chosen = masks(length, side), torch.rand(2, length) < 0.1
    name, options = MECHANISMS[visited]
    module = build_mechanism(name, num_heads=4, head_dim=16, window=32, **options)
    call = AttentionCall(causal, Batch.of(mask), chosen, 0.25)

    def run(q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        return path(q, k, v, module.pattern(causal), call.replace(global_mask=module.resolve_globals(k, call)))

    out = run_batch(module, q, k, v, call, run)
    expected = reference_attend(q, k, v, module, causal=causal, padding_mask=mask, global_mask=chosen, scaling=0.25)
    real = torch.ones(2, length, dtype=torch.bool) if mask is None else mask
    rows = real[:, None, -q.shape[2] :, None]
    assert out.isfinite().all()
    torch.testing.assert_close(out.double() * rows, expected * rows, atol=1e-5 if path is flex_band else 1e-12, rtol=0)


@pytest.mark.parametrize(("causal", "side", "few_queries"), [(False, "none", False), (False, "inside", True), (True, "left", False)])
@pytest.mark.parametrize("visited", MECHANISMS)
def test_wide_bands_in_bf16(visited: str, causal: bool, side: str, few_queries: bool) -> None:
    """They run in larger blocks."""
    torch.manual_seed(0)
    length = 1100
    name, options = MECHANISMS[visited]
    module = build_mechanism(name, num_heads=4, head_dim=16, window=400, **options)
    pattern = module.pattern(causal)
    assert pattern.left + pattern.right >= WIDE
    q, k, v = (torch.randn(2, 4, length, 16).bfloat16() for _ in range(3))
    q = q[:, :, -300:] if few_queries else q
    mask, chosen = masks(length, side), torch.rand(2, length) < 0.01
    call = AttentionCall(causal, Batch.of(mask), chosen, 0.25)

    def run(q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        return run_cpu_band(q, k, v, pattern, call.replace(global_mask=module.resolve_globals(k, call)))

    out = run_batch(module, q, k, v, call, run)
    exact = (x.double() for x in (q, k, v))
    expected = reference_attend(*exact, module, causal=causal, padding_mask=mask, global_mask=chosen, scaling=0.25)
    rows = (torch.ones(2, length, dtype=torch.bool) if mask is None else mask)[:, None, -q.shape[2] :, None]
    torch.testing.assert_close(out.double() * rows, expected * rows, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("chosen", [False, True])
def test_cpu_operator_is_well_formed_for_compile_and_export(chosen: bool) -> None:
    q, k, v = (torch.randn(1, 2, 200, 8, requires_grad=True) for _ in range(3))
    tokens = torch.zeros(1, 200, dtype=torch.bool) if chosen else None
    if tokens is not None:
        tokens[0, [3, 150]] = True
    arguments = (q, k, v, None, tokens, 16, 16, False, True, 0.3)
    torch.library.opcheck(cpu_band, arguments, test_utils=("test_schema", "test_autograd_registration", "test_faketensor"))


def test_memory_follows_the_window_not_the_square() -> None:
    """The block list of 1,000,000 tokens would not fit if it were dense; a pattern holds none of it."""
    pattern = Pattern.window(512, causal=False)
    assert pattern.width == 513
    assert not pattern.covers(1_000_000, 1_000_000)
