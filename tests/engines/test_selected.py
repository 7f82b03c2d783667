"""Scores, sums and spreads over listed keys against a one-hot einsum, and their gradients; rows of a cache, wherever it lies in memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hf_longattn.engines import selected
from hf_longattn.engines.selected import gather_kv, gathered_kv_attention, pair_scores, pair_spread, pair_sum


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def tensors(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    q, k, index = torch.randn(2, 3, 7, 4), torch.randn(2, 3, 11, 4), torch.randint(11, (2, 3, 7, 5))
    return q.to(dtype), k.to(dtype), torch.rand(2, 3, 7, 5).to(dtype), index


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("slice_", [1, 1 << 20])
def test_operations_are_what_they_say(dtype: torch.dtype, slice_: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selected, "SLICE", slice_)
    q, k, w, index = tensors(dtype)
    one_hot = torch.nn.functional.one_hot(index, 11).to(torch.float64)
    a, b, c = q.double(), k.double(), w.double()
    expected = (
        torch.einsum("bhid,bhmd,bhijm->bhij", a, b, one_hot),
        torch.einsum("bhij,bhmd,bhijm->bhid", c, b, one_hot),
        torch.einsum("bhij,bhid,bhijm->bhmd", c, a, one_hot),
    )
    for got, wanted in zip((pair_scores(q, k, index), pair_sum(w, k, index), pair_spread(w, q, index, 11)), expected, strict=True):
        assert got.dtype == torch.promote_types(dtype, torch.float32)
        torch.testing.assert_close(got.double(), wanted, atol=1e-5, rtol=0)


def test_first_and_second_gradients() -> None:
    q, k, w, index = tensors(torch.float64)
    q, k, w = (x[:1, :1].contiguous().requires_grad_() for x in (q, k, w))
    index = index[:1, :1]
    for call, given in (
        (lambda a, b: pair_scores(a, b, index), (q, k)),
        (lambda a, b: pair_sum(a, b, index), (w, k)),
        (lambda a, b: pair_spread(a, b, index, 11), (w, q)),
    ):
        assert torch.autograd.gradcheck(call, given, fast_mode=True)
        assert torch.autograd.gradgradcheck(call, given, fast_mode=True)


def caches() -> dict[str, Tensor]:
    """The same shape in several layouts."""
    return {
        "contiguous": torch.randn(2, 3, 20, 5),
        "in a larger buffer": torch.randn(2, 3, 32, 5)[:, :, :20],
        "tokens before heads": torch.randn(2, 20, 3, 5).transpose(1, 2),
        "every second number": torch.randn(2, 3, 20, 10)[..., ::2],
        "odd stride": torch.randn(2, 3, 20, 7)[..., :5],
        "one item for all": torch.randn(1, 3, 20, 5).expand(2, -1, -1, -1),
    }


@pytest.mark.parametrize("layout", caches())
@pytest.mark.parametrize("heads", [3, 6])
def test_rows_of_any_layout(layout: str, heads: int) -> None:
    x = caches()[layout]
    index = torch.randint(20, (2, heads, 4, 7))
    whole = x.repeat_interleave(heads // 3, 1)[:, :, None].expand(-1, -1, 4, -1, -1)
    assert torch.equal(gather_kv(x, index), whole.gather(3, index[..., None].expand(-1, -1, -1, -1, 5)))


def test_a_query_that_sees_nothing_is_zero() -> None:
    q, keys, values = torch.randn(1, 2, 3, 4), torch.randn(1, 2, 3, 5, 4), torch.randn(1, 2, 3, 5, 4)
    seen = torch.rand(1, 2, 3, 5) < 0.5
    seen[:, :, 1] = False
    out = gathered_kv_attention(q, keys, values, seen, scaling=0.7)
    scores = (keys @ q[..., None])[..., 0] * 0.7
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1).nan_to_num()
    torch.testing.assert_close(out, (weights[..., None, :] @ values)[..., 0, :])
    assert (out[:, :, 1] == 0).all()
