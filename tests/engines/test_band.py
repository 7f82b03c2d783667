"""Every path of the band engine computes the same, also in graphs for all lengths; full attention keeps to fused
kernels."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hf_longattn import attend, build_mechanism, reference_attend
from hf_longattn.engines import dense
from hf_longattn.engines.batch import Batch, roll_left
from hf_longattn.engines.blockwise import QUERIES_PER_BLOCK as BLOCK
from hf_longattn.engines.blockwise import blockwise_attention
from hf_longattn.engines.byte_cache import BYTE_CACHE
from hf_longattn.engines.call import AttentionCall, Pattern
from hf_longattn.engines.cpu import band
from hf_longattn.engines.cpu import kernels as cpu_kernels
from hf_longattn.engines.cpu.band import BF16, BF16_AMX, band_plan
from hf_longattn.engines.cpu.softmax import cpu_softmax
from hf_longattn.engines.cuda.flex import flex_band
from hf_longattn.engines.dense import dense_attention
from hf_longattn.engines.global_rows import overwrite_global_rows
from hf_longattn.engines.score_terms import DistanceBias
from hf_longattn.functional import run_batch
from tests.cases import every_case
from tests.comparisons import assert_equal_with_gradients
from tests.grids import quickly
from tests.largest_tensor import LargestTensor

# ---- Paths of the band engine.


MECHANISMS = {
    "band": ("window", {}),
    "band and columns": ("window", {"num_sinks": 5}),
    "band, columns and rows": ("longformer", {}),
}
CASES = list(
    itertools.product(MECHANISMS, [False, True], [7, 130, 300], ["none", "left", "right", "inside"], [False, True])
)


def masks(length: int, side: str) -> Tensor | None:
    if side == "none":
        return None
    mask = torch.ones(2, length, dtype=torch.bool)
    cut = length // 3
    mask[
        0,
        {
            "left": slice(0, cut),
            "right": slice(length - cut, None),
            "inside": slice(length // 2, length // 2 + cut // 2),
        }[side],
    ] = False
    return mask


def run_cpu_band(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, call: AttentionCall) -> Tensor:
    fixed, numbers = (
        [call.key_mask, call.global_mask],
        [pattern.left, pattern.right, pattern.causal, pattern.global_rows, 0],
    )
    return cpu_softmax("band", q, k, v, [], fixed, numbers, call.scale_for(16), 0.0, None, None)[0]


@pytest.mark.usefixtures("unfused_flex")
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@every_case("path", [run_cpu_band, blockwise_attention, flex_band])
@every_case(("visited", "causal", "length", "side", "few_queries"), CASES, of=6)
def test_every_path_of_a_band_equals_the_definition(
    path, visited: str, causal: bool, length: int, side: str, few_queries: bool
) -> None:
    dtype = torch.float32 if path is flex_band else torch.float64
    q, k, v = (torch.randn(2, 4, length, 16, dtype=dtype) for _ in range(3))
    q = q[:, :, -5:] if few_queries else q
    mask, chosen = masks(length, side), torch.rand(2, length) < 0.1
    name, options = MECHANISMS[visited]
    module = build_mechanism(name, num_heads=4, head_dim=16, window=32, **options)
    call = AttentionCall(causal, Batch.of(mask), chosen, scale=0.25)

    def run(q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        return path(q, k, v, module.pattern(causal), call.replace(global_mask=module.resolve_globals(k, call)))

    module.forward = run
    out = run_batch(module, q, k, v, call)
    expected = reference_attend(
        q,
        k,
        v,
        module,
        causal=causal,
        padding_mask=mask,
        global_mask=chosen if module.capabilities.takes_globals else None,
        scaling=0.25,
    )
    real = torch.ones(2, length, dtype=torch.bool) if mask is None else mask
    rows = real[:, None, -q.shape[2] :, None]
    assert out.isfinite().all()
    torch.testing.assert_close(out.double() * rows, expected * rows, atol=1e-5 if path is flex_band else 1e-12, rtol=0)


BLOCKS = [32, 64, 192, 1000]
"""Sizes of blocks; with the last one, all queries are in one."""


@every_case("block", BLOCKS, pairs=True)
@every_case(
    ("causal", "side", "few_queries"),
    [(False, "none", False), (True, "none", True), (False, "inside", True), (True, "left", False)],
)
@every_case("visited", MECHANISMS)
def test_cpu_bands_in_blocks_of_every_size_equal_the_definition(
    visited: str, causal: bool, side: str, few_queries: bool, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(band, "band_plan", functools.partial(band_plan, block=block))
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

    module.forward = run
    out = run_batch(module, queries, k, v, call)
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
    assert_equal_with_gradients(out, expected, (q, k, v), mask)


@pytest.mark.thorough
@every_case("causal", [False, True])
@every_case("few_queries", [False, True])
@every_case("visited", MECHANISMS)
def test_short_bands_on_a_cpu_are_one_masked_call(
    visited: str, few_queries: bool, causal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
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
        assert_equal_with_gradients(out, expected, (q, k, v))
    assert len(masks_used) == 2
    assert masks_used[0] is masks_used[1]


@every_case("block", BLOCKS)
@every_case("side", ["none", "inside"])
def test_a_distance_bias_of_a_cpu_band_is_the_same_in_blocks_of_every_size(
    side: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(band, "band_plan", functools.partial(band_plan, block=block))
    q, k, v = (torch.randn(2, 2, 300, 8, dtype=torch.float64, requires_grad=True) for _ in range(3))
    table = torch.randn(2, 81, dtype=torch.float64, requires_grad=True)
    module = build_mechanism("longformer", num_heads=2, head_dim=8, window=64)
    mask = masks(300, side)
    arguments: dict[str, Any] = {"padding_mask": mask, "score_mod": DistanceBias(table, 40)}
    out, expected = (attention(q, k, v, module, **arguments) for attention in (attend, reference_attend))
    # the table is in single precision
    assert_equal_with_gradients(out, expected, (q, k, v, table), mask, atol=1e-6, gradients=1e-4, rtol=1e-5)


def test_cpu_bands_choose_one_block_for_short_and_fixed_blocks_for_long_inputs() -> None:
    """One block up to about the length that the band covers, blocks of a fixed size for long inputs; AMX takes larger
    ones."""
    for dtype in (torch.float32, torch.bfloat16):
        plans = {length: band_plan(length, length, 0, 256, 256, dtype, 1) for length in (300, 1024, 8192, 65536)}
        assert plans[300].dense
        assert not plans[1024].dense
        assert plans[8192].block == plans[65536].block
    for seen in (
        band_plan(100, 4096, 3996, 255, 0, torch.float32, 1),
        band_plan(1, 4096, 4095, 255, 0, torch.float32, 1),
    ):
        assert sum(group.blocks * group.width for group in seen.groups) < 2048, "few queries see few keys"
    assert BF16_AMX.sizes[1] > max(BF16.sizes)


# ---- Exported graphs.


HEADS, DIM, WINDOW = 2, 8, 48
PATTERNS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "band": ("window", {}, False),
    "causal band": ("window", {}, True),
    "band, columns and rows": ("longformer", {}, False),
}


class Attention(nn.Module):
    """A mechanism as a function of tensors."""

    def __init__(self, name: str) -> None:
        super().__init__()
        mechanism, options, self.causal = PATTERNS[name]
        self.mechanism = build_mechanism(mechanism, num_heads=HEADS, head_dim=DIM, window=WINDOW, **options)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, real: Tensor, chosen: Tensor) -> Tensor:
        call = AttentionCall(
            self.causal, Batch.of(real), chosen if self.mechanism.capabilities.takes_globals else None
        )
        return self.mechanism(q, k, v, call)


def inputs(length: int, batch: int = 2) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(length)
    q, k, v = (torch.randn(batch, HEADS, length, DIM, generator=generator) for _ in range(3))
    real = torch.arange(length)[None] < torch.tensor([length, max(1, length - length // 3)])[:batch, None]
    chosen = (torch.arange(length)[None] % 50 == 1) & real
    return q, k, v, real, chosen


@pytest.fixture(scope="module", params=quickly(PATTERNS, ("band, columns and rows",)))
def exported(request: pytest.FixtureRequest) -> tuple[Attention, Any]:
    attention = Attention(request.param).eval()
    batch, length = torch.export.Dim("batch", min=1), torch.export.Dim("length", min=2, max=4096)
    free = ({0: batch, 2: length},) * 3 + ({0: batch, 1: length},) * 2
    return attention, torch.export.export(attention, inputs(600), dynamic_shapes=free).module()


@pytest.mark.parametrize(
    "lengths", [range(2, BLOCK, 31), range(BLOCK - 2, BLOCK + 3), range(BLOCK + 9, 2 * BLOCK + 3, 60), (600, 700)]
)
def test_an_exported_band_equals_the_definition_at_every_length(exported: tuple[Attention, Any], lengths: Any) -> None:
    attention, graph = exported
    for length in lengths:
        q, k, v, real, chosen = inputs(length)
        tokens = {"global_mask": chosen} if attention.mechanism.capabilities.takes_globals else {}
        expected = reference_attend(q, k, v, attention.mechanism, causal=attention.causal, padding_mask=real, **tokens)
        with torch.no_grad():
            out = graph(q, k, v, real, chosen)
        rows = real[:, None, :, None]
        torch.testing.assert_close(
            out.double() * rows, expected * rows, atol=1e-5, rtol=0, msg=lambda why, n=length: f"{n} tokens: {why}"
        )


def test_an_exported_band_costs_the_tokens_of_the_text_and_not_a_block(exported: tuple[Attention, Any]) -> None:
    _, graph = exported
    with torch.no_grad(), LargestTensor() as largest:
        graph(*inputs(3, batch=1))
    assert largest.elements <= HEADS * DIM * 3 * 4, "a row's tokens, a few times"


# ---- Full attention.


class KernelCalls(TorchFunctionMode):
    """The keywords and the numbers of queries and key heads of all calls of scaled_dot_product_attention."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[dict[str, Any]] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is F.scaled_dot_product_attention:
            self.calls.append({**kwargs, "queries": args[0].shape[2], "key_heads": args[1].shape[1]})
        return function(*args, **kwargs or {})


def grouped_inputs(q_len: int, head_dim: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(
        torch.randn(2, heads, length, head_dim, device=device) for heads, length in ((4, q_len), (2, 40), (2, 40))
    )


@every_case("q_len", [1, 40])
@every_case("padded", [False, True])
@every_case("head_dim", [64, 512])
@every_case("device", ["cpu", "meta"])
def test_dense_attention_groups_heads_only_where_a_fused_kernel_does(
    device: str, head_dim: int, padded: bool, q_len: int
) -> None:
    """On CUDA it takes N×N memory for all heads; on the CPU, the fused kernel takes groups with and without a mask.
    Tensors on meta stand for those on every other device than the CPU."""
    with KernelCalls() as kernel:
        mask = torch.ones(2, 40, dtype=torch.bool, device=device) if padded else None
        out = dense.dense_attention(
            *grouped_inputs(q_len, head_dim, device), AttentionCall(causal=True, batch=Batch.of(mask))
        )
        assert out.shape == (2, 4, q_len, head_dim)
    (call,) = kernel.calls
    fused = device == "cpu" or (call.get("attn_mask") is None and head_dim <= 256)
    assert call.get("enable_gqa", False) is fused
    assert fused or call["key_heads"] == (2 if q_len == 1 else 4)


@every_case("q_len", [1, 7, 40])
@every_case("mask_heads", [None, 1, 4])
def test_fused_attention_of_grouped_heads_is_the_same_without_a_kernel_for_them(
    mask_heads: int | None, q_len: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    q, k, v = grouped_inputs(q_len, 16, "cpu")
    mask = None if mask_heads is None else torch.randn(2, mask_heads, q_len, 40)
    expected = dense.fused_attention(q, k, v, attn_mask=mask, scale=0.3)
    monkeypatch.setattr(dense, "groups_are_fused", lambda *_: False)
    torch.testing.assert_close(dense.fused_attention(q, k, v, attn_mask=mask, scale=0.3), expected, atol=1e-5, rtol=0)


@every_case("heads", [4, 2])
@every_case("masked", [False, True])
@every_case("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_one_query_in_half_precision_is_computed_as_two(dtype: torch.dtype, masked: bool, heads: int) -> None:
    q, k, v = (torch.randn(2, count, length, 64) for count, length in ((4, 1), (heads, 300), (heads, 300)))
    mask = torch.rand(2, 1, 1, 300) > 0.3 if masked else None
    expected = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), attn_mask=mask, enable_gqa=True)
    with KernelCalls() as kernel:
        out = dense.fused_attention(q.to(dtype), k.to(dtype), v.to(dtype), attn_mask=mask)
    assert len(kernel.calls) == 1
    assert kernel.calls[0]["queries"] == (1 if dtype == torch.float32 else 2)
    assert out.shape == (2, 4, 1, 64)
    torch.testing.assert_close(out.double(), expected, atol=1e-5 if dtype == torch.float32 else 1e-2, rtol=0)


# ---- Rows and documents of a batch.


def test_rows_of_a_batch_are_rolled_left_and_back() -> None:
    x = torch.arange(24).view(3, 1, 8, 1)
    start = torch.tensor([0, 3, 8])
    rolled = roll_left(x, start)
    for row, expected, by in zip(rolled, x, start.tolist(), strict=True):
        assert torch.equal(row, expected.roll(-by, 1))
    assert torch.equal(roll_left(rolled, -start), x)


def test_the_document_numbers_of_padding_do_not_count() -> None:
    """Whatever number padding has, it belongs to the document before it."""
    mask = torch.tensor([[True, True, False, True, True, False]])
    batch = Batch(mask, torch.tensor([[0, 0, 9, 1, 1, -1]]))
    assert [(span.start, span.stop, span.holes) for span in batch.sequences] == [(0, 2, False), (3, 5, False)]
    assert batch.labels.number.tolist() == [[0, 0, 0, 1, 1, 1]]


def test_a_global_token_before_the_first_query_overwrites_no_row() -> None:
    """The queries are the last three of five tokens; of the global tokens 1 and 3, the second is one of them."""
    q, k, v, out = (torch.randn(1, 2, length, 4) for length in (3, 5, 5, 3))
    index, real = torch.tensor([[1, 3]]), torch.ones(1, 2, dtype=torch.bool)
    found = overwrite_global_rows(out, q, k, v, index, real, AttentionCall(causal=False))
    assert torch.equal(found[:, :, [0, 2]], out[:, :, [0, 2]])
    torch.testing.assert_close(found[:, :, 1], dense_attention(q, k, v, AttentionCall(causal=False))[:, :, 1])
