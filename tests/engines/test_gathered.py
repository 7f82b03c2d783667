"""The gathered engine and selected blocks equal softmax attention with the pairs counted one by one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hf_longattn import attend, build_mechanism, reference_attend
from hf_longattn.engines.blockwise import plain_gathered
from hf_longattn.engines.byte_cache import BYTE_CACHE
from hf_longattn.engines.call import AttentionCall, GatherTile, rows_of
from hf_longattn.engines.cuda import flex
from hf_longattn.engines.dense import masked_softmax
from hf_longattn.engines.gathered import block_selected_attention, gathered_attention, selected_block_tiles
from hf_longattn.engines.score_terms import DistanceTerm
from tests.cases import every_case
from tests.comparisons import assert_equal_with_gradients, paths_of
from tests.grids import drawn
from tests.largest_tensor import LargestTensor

from .eager_flex import by_the_lists

# ---- Tiles: every rule, every way of listing, both directions.


BATCH, HEADS, WIDTH = 2, 3, 8


def counted(q: Tensor, k: Tensor, v: Tensor, parts: list[GatherTile], key_mask: Tensor | None, scale: float) -> Tensor:
    """The definition, slot by slot: weights proportional to the sum of exp(score + bias) over all listings of a
    pair."""
    q, k, v = q.double(), k.double(), v.double()
    scores = q @ k.transpose(-1, -2) * scale
    total = torch.zeros_like(scores)
    for part in parts:
        rows = part.queries.shape[2]
        queries, keys = (x.expand(BATCH, HEADS, -1, -1) for x in (part.queries, part.keys))
        bias = torch.zeros(1) if part.bias is None else part.bias
        if bias.dtype == torch.bool:
            bias = torch.zeros(bias.shape).masked_fill(~bias, float("-inf"))
        bias = bias.double().expand(BATCH, HEADS, rows, queries.shape[3], keys.shape[3])
        i, j = queries[..., :, None], keys[..., None, :]
        seen = (i >= 0) & (j >= 0)
        if part.causal:
            seen = seen & (j <= i)
        if part.inside is not None:
            seen = seen & (i - j >= part.inside[0]) & (i - j <= part.inside[1])
        if part.outside is not None:
            seen = seen & ((i - j < part.outside[0]) | (i - j > part.outside[1]))
        i, j = (x.clamp(min=0).expand_as(seen) for x in (i, j))
        b, h = (
            torch.arange(BATCH).view(-1, 1, 1, 1, 1).expand_as(seen),
            torch.arange(HEADS).view(-1, 1, 1, 1).expand_as(seen),
        )
        total = total.index_put((b, h, i, j), bias.exp() * seen, accumulate=True)
    if key_mask is not None:
        total = total * key_mask[:, None, None, :]
    weights = total * (scores - scores.amax(-1, keepdim=True).detach()).exp()
    return weights / weights.sum(-1, keepdim=True).clamp(min=1e-300) @ v


@st.composite
def parts_and_mask(draw: Callable) -> tuple[list[GatherTile], Tensor | None, int, int]:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1 << 30)))
    q_len = draw(st.integers(1, 14))
    kv_len = q_len + draw(st.integers(0, 5))
    parts = []
    for _ in range(draw(st.integers(1, 3))):
        b, h = draw(st.sampled_from([1, BATCH])), draw(st.sampled_from([1, HEADS]))
        size = draw(st.integers(1, q_len))
        if draw(st.booleans()):
            queries = rows_of(q_len, size)
        else:
            rows = -(-q_len // size)
            order = torch.rand(b, h, rows * size, generator=generator).argsort(-1)
            queries = torch.where(order < q_len, order, -1).view(b, h, rows, size)
        rows = queries.shape[2]
        kind = draw(st.sampled_from(["band", "strided", "same", "random"]))
        if kind == "random":
            kb, kh = draw(st.sampled_from([1, BATCH])), draw(st.sampled_from([1, HEADS]))
            keys = torch.randint(-1, kv_len, (kb, kh, rows, draw(st.integers(1, 6))), generator=generator)
        else:
            start = torch.arange(rows)[:, None] * (0 if kind == "same" else draw(st.integers(1, 4)))
            keys = start + torch.arange(draw(st.integers(1, 7))) * draw(st.integers(1, 3)) - draw(st.integers(0, 3))
            keys = torch.where((keys >= 0) & (keys < kv_len), keys, -1)[None, None]
        low, high = draw(st.integers(-4, 2)), draw(st.integers(0, 4))
        bias = None
        if draw(st.booleans()):
            shape = [draw(st.sampled_from([1, n])) for n in (BATCH, HEADS, rows, queries.shape[3])] + [keys.shape[3]]
            bias = torch.randn(shape, generator=generator)
            bias = bias > -0.5 if draw(st.booleans()) else bias.masked_fill(bias < -1, float("-inf"))
        rules = {
            "causal": draw(st.booleans()),
            "inside": draw(st.sampled_from([None, (low - 3, high + 3)])),
            "outside": draw(st.sampled_from([None, (low, high)])),
        }
        parts.append(GatherTile(queries, keys, **rules, bias=bias))
    mask = torch.rand(BATCH, kv_len, generator=generator) < draw(st.sampled_from([0.3, 0.8]))
    return parts, draw(st.sampled_from([None, mask])), q_len, kv_len


def inputs(q_len: int, kv_len: int, dtype: torch.dtype = torch.float64, stored: str = "heads") -> tuple[Tensor, ...]:
    """Random q, k, v, stored head by head, token by token, or as slices of one projection."""
    torch.manual_seed(0)
    found = []
    for n in (q_len, kv_len, kv_len):
        x = torch.randn(BATCH, HEADS, n, WIDTH, dtype=torch.float64).to(dtype)
        if stored == "tokens":
            x = x.transpose(1, 2).contiguous().transpose(1, 2)
        if stored == "slices":
            x = torch.cat([x, x], -1).transpose(1, 2).contiguous().transpose(1, 2)[..., :WIDTH]
        found.append(x.detach().requires_grad_())
    return tuple(found)


@pytest.mark.parametrize("path", [gathered_attention, plain_gathered])
@drawn(40)
@given(case=parts_and_mask(), stored=st.sampled_from(["heads", "tokens", "slices"]))
def test_gathered_attention_equals_the_pairs_counted_one_by_one(path, case, stored: str) -> None:
    parts, mask, q_len, kv_len = case
    x = inputs(q_len, kv_len, stored=stored)
    out, expected = path(*x, parts, AttentionCall.of(padding_mask=mask, scaling=0.4)), counted(*x, parts, mask, 0.4)
    assert_equal_with_gradients(out, expected, x, atol=1e-10, gradients=1e-9)


def test_gathered_tiles_may_list_nothing() -> None:
    """No queries, no keys, or no part at all: zeros where a query sees nothing, with zero gradients."""
    q, k, v = inputs(10, 10)
    rows = rows_of(10, 5)
    nothing = [
        GatherTile(rows, rows[..., :0]),
        GatherTile(rows[..., :0], rows),
        GatherTile(rows[:, :, :0], rows[:, :, :0]),
    ]
    whole = [GatherTile(rows, rows)]
    expected = gathered_attention(q, k, v, whole, AttentionCall())
    assert torch.equal(gathered_attention(q, k, v, [*nothing, *whole], AttentionCall()), expected)
    for parts in (nothing, []):
        out = gathered_attention(q, k, v, parts, AttentionCall())
        assert torch.equal(out, torch.zeros_like(q))
        assert all(
            torch.equal(grad, torch.zeros_like(x))
            for grad, x in zip(torch.autograd.grad(out.sum(), (q, k, v)), (q, k, v), strict=True)
        )


def local_parts(length: int) -> list[GatherTile]:
    """Blocks of 8 with their neighbours, and 4 scattered keys for every row and head, in causal order."""
    rows = rows_of(length, 8)
    near = rows[..., :1] + torch.arange(-8, 16)
    far = (torch.arange(HEADS * rows.shape[2] * 4) * 7919 % length).view(1, HEADS, -1, 4)
    return [
        GatherTile(rows, torch.where((near >= 0) & (near < length), near, -1)),
        GatherTile(rows, far, causal=True, outside=(-15, 15)),
    ]


@every_case(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 2e-2)])
def test_gathered_attention_in_every_precision_is_near_the_definition(dtype: torch.dtype, tolerance: float) -> None:
    x = inputs(70, 70, dtype)
    out, expected = (
        gathered_attention(*x, local_parts(70), AttentionCall.of(scaling=0.4)),
        counted(*x, local_parts(70), None, 0.4),
    )
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), expected, atol=tolerance, rtol=0)
    torch.testing.assert_close(
        torch.autograd.grad(out.sum(), x), torch.autograd.grad(expected.sum(), x), atol=5 * tolerance, rtol=0
    )


def test_layouts_of_gathered_tiles_live_as_long_as_their_lists() -> None:
    def layouts() -> int:
        return sum(isinstance(key, tuple) and key[0] == "layout" for key in BYTE_CACHE._entries)

    before = layouts()
    parts = local_parts(30)
    x = inputs(30, 30)
    for _ in range(2):
        gathered_attention(*x, parts, AttentionCall.of())
    assert layouts() == before + 2
    parts[0].keys[:] = -1
    torch.testing.assert_close(
        gathered_attention(*x, parts, AttentionCall.of()), counted(*x, parts, None, WIDTH**-0.5), atol=1e-10, rtol=0
    )
    del parts
    assert layouts() == before


def test_plain_gathered_attention_in_pieces_is_the_same_with_a_learned_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    x = inputs(40, 40)
    parts = local_parts(40)
    bias = torch.randn(1, HEADS, 5, 8, 24, dtype=torch.float64, requires_grad=True)
    parts[0] = GatherTile(parts[0].queries, parts[0].keys, bias=bias)

    def run(**arguments: object) -> tuple[Tensor, ...]:
        torch.manual_seed(3)
        out = gathered_attention(
            *x,
            parts,
            AttentionCall.of(score_mod=lambda score, b, h, i, j: score - 0.1 * (i - j).abs() * (h + 1), **arguments),
        )
        return out, *torch.autograd.grad(out.square().sum(), (*x, bias))

    whole, dropped = run(), run(dropout_p=0.5)
    monkeypatch.setattr("hf_longattn.engines.blockwise.MAX_PAIRS", 400)
    torch.testing.assert_close(run(), whole, atol=1e-12, rtol=0)
    again = run(dropout_p=0.5)
    assert all(y.isfinite().all() for y in again)
    assert not torch.allclose(again[0], dropped[0]), "pieces draw their own numbers"
    torch.testing.assert_close(again[0], run(dropout_p=0.5)[0])


def test_distance_terms_of_gathered_attention_are_the_same_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    x = inputs(40, 40)
    vectors, table = (
        torch.randn(*shape, 4, dtype=torch.float64, requires_grad=True) for shape in ((BATCH, HEADS, 40), (HEADS, 17))
    )

    def run() -> tuple[Tensor, ...]:
        call = AttentionCall.of(score_mod=DistanceTerm(vectors, table, 8, x[1]))
        out = gathered_attention(*x, local_parts(40), call)
        return out, *torch.autograd.grad(out.square().sum(), (*x, vectors, table))

    at_once = run()
    monkeypatch.setattr("hf_longattn.engines.blockwise.MAX_PAIRS", 400)
    torch.testing.assert_close(run(), at_once, atol=1e-12, rtol=0)


@pytest.mark.thorough
@pytest.mark.parametrize("dropout_p", [0.0, 0.1])
def test_the_memory_of_gathered_attention_is_linear(dropout_p: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """16,384 tokens in rows of 64 over 512 random keys: 8 million pairs, of which no tensor holds more than a small
    part."""
    monkeypatch.setattr("hf_longattn.engines.blockwise.MAX_PAIRS", 1 << 18)
    length, width = 16384, 16
    rows = rows_of(length, 64)
    keys = torch.randint(0, length, (1, 1, rows.shape[2], 512))
    x = [torch.randn(1, 1, length, width, requires_grad=True) for _ in range(3)]
    with LargestTensor() as seen:
        gathered_attention(*x, [GatherTile(rows, keys)], AttentionCall.of(dropout_p=dropout_p)).sum().backward()
    assert seen.elements <= 4 * length * width


# ---- Blocks that each query selects.


def test_tiles_of_selected_blocks_leave_few_slots_unfilled() -> None:
    chosen = torch.rand(1, 4, 4096, 32).argsort(-1)[..., :3]
    slots = sum(part.queries.numel() for part in selected_block_tiles(chosen, 128, 4096))
    assert slots < 1.5 * chosen.numel()


@every_case("causal", [False, True], pairs=True)
@every_case(("length", "size", "ranks"), [(50, 8, 3), (50, 8, 0), (7, 10, 1), (64, 16, 2)])
@every_case("padded", [False, True])
@every_case("path", ["fused", "parts"])
def test_attention_to_selected_blocks_equals_the_mask_with_its_gradients(
    length: int, size: int, ranks: int, padded: bool, path: str, causal: bool
) -> None:
    q, k, v = (torch.randn(2, 3, length, 8, dtype=torch.float64, requires_grad=True) for _ in range(3))
    blocks, own = -(-length // size), torch.arange(length) // size
    chosen = (torch.rand(2, 3, length, blocks) - 2.0 * (torch.arange(blocks) == own[:, None])).argsort(
        -1, descending=True
    )[..., :ranks]
    chosen = chosen.masked_fill((torch.rand(chosen.shape) < 0.3) | (chosen == own[:, None]), -1)
    mask = torch.rand(2, length) < 0.7 if padded else torch.ones(2, length, dtype=torch.bool)
    mask[1] = not padded
    seen = (chosen[..., None] == own).any(3) | (
        (own[:, None] == own) & (torch.ones(length, length).tril().bool() | (not causal))
    )
    seen = seen & mask[:, None, None]
    expected = masked_softmax(q @ k.transpose(-1, -2) * 0.3, seen) @ v
    same = (lambda score, b, h, i, j: score) if path == "parts" else None
    out = block_selected_attention(
        q,
        k,
        v,
        chosen,
        size,
        AttentionCall.of(causal=causal, padding_mask=mask if padded else None, scaling=0.3, score_mod=same),
    )
    assert_equal_with_gradients(out, expected, (q, k, v))


@pytest.mark.slow
@pytest.mark.usefixtures("cuda_paths")
@every_case(("size", "count"), [(32, 4), (256, 2)])
@every_case("padded", [False, True])
@every_case("causal", [False, True])
def test_selected_blocks_on_the_paths_for_cuda_equal_the_definition(
    size: int, count: int, padded: bool, causal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flex, "fused_flex", by_the_lists)
    module = build_mechanism("block_top_k", num_heads=4, head_dim=16, block_size=size, num_blocks=count)
    length = 600 if size >= 128 else 400
    tensors = [torch.randn(2, heads, length, 16, requires_grad=True) for heads in (4, 2, 2)]
    with torch.no_grad():
        tensors[1][:, :, 256:384] = tensors[1][:, :, :1] * 3  # blocks that most queries select
    mask = torch.arange(length) < torch.tensor([[length], [length - 130 * padded]])
    out, paths = paths_of(lambda: attend(*tensors, module, causal=causal, padding_mask=mask if padded else None))
    assert "flex" in paths
    expected = reference_attend(*tensors, module, causal=causal, padding_mask=mask).float()
    assert_equal_with_gradients(out, expected, tensors, mask, atol=2e-5, gradients=1e-4, rtol=1e-4)
