"""The gathered engine equals softmax attention with the pairs counted one by one: every rule, every way of listing, both directions."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hf_longattn.engines.gathered import Part, gathered_attention, rows_of
from hf_longattn.engines.gathered_plain import plain_gathered

BATCH, HEADS, WIDTH = 2, 3, 8


def counted(q: Tensor, k: Tensor, v: Tensor, parts: list[Part], key_mask: Tensor | None, scale: float) -> Tensor:
    """The definition, slot by slot: weights proportional to the sum of exp(score + bias) over all listings of a pair."""
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
        b, h = torch.arange(BATCH).view(-1, 1, 1, 1, 1).expand_as(seen), torch.arange(HEADS).view(-1, 1, 1, 1).expand_as(seen)
        total = total.index_put((b, h, i, j), bias.exp() * seen, accumulate=True)
    if key_mask is not None:
        total = total * key_mask[:, None, None, :]
    weights = total * (scores - scores.amax(-1, keepdim=True).detach()).exp()
    return weights / weights.sum(-1, keepdim=True).clamp(min=1e-300) @ v


@st.composite
def parts_and_mask(draw: Callable) -> tuple[list[Part], Tensor | None, int, int]:
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
        parts.append(Part(queries, keys, **rules, bias=bias))
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


def plain(q: Tensor, k: Tensor, v: Tensor, parts: list[Part], *, key_mask: Tensor | None, scaling: float) -> Tensor:
    return plain_gathered(q, k, v, parts, key_mask=key_mask, scale=scaling)


@pytest.mark.parametrize("path", [gathered_attention, plain])
@settings(max_examples=40, deadline=None, derandomize=True)
@given(case=parts_and_mask(), stored=st.sampled_from(["heads", "tokens", "slices"]))
def test_output_and_gradients_equal_the_pairs_counted_one_by_one(path, case, stored: str) -> None:
    parts, mask, q_len, kv_len = case
    x = inputs(q_len, kv_len, stored=stored)
    out, expected = path(*x, parts, key_mask=mask, scaling=0.4), counted(*x, parts, mask, 0.4)
    torch.testing.assert_close(out, expected, atol=1e-10, rtol=0)
    weight = torch.randn_like(expected)
    got, wanted = (torch.autograd.grad((y * weight).sum(), x, allow_unused=True) for y in (out, expected))
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, torch.zeros_like(a) if b is None else b, atol=1e-9, rtol=0)
