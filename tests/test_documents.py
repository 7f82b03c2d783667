"""What a mask hides: one function decides it, as a softmax would, for every fill and dtype."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_longattn import build_mechanism
from hf_longattn.engines.dense_masks import documents_in_mask, hidden_pairs, only_hides
from hf_longattn.errors import InputError
from hf_longattn.modeling.backend import longattn_attention_forward
from tests.cases import every_case

LENGTH = 40
FILLS = (float("-inf"), -3.4e38, -1e30, -1e9, -65504.0, -1e4, -2e3)
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
MECHANISMS: dict[str, dict[str, Any]] = {
    "window": {"window": 8},
    "sinks": {"mechanism": "window", "window": 8, "num_sinks": 2},
    "longformer": {"window": 8},
    "bigbird": {"block_size": 4},
    "fixed": {"block_size": 8, "num_summary": 2},
    "strided": {"window": 8, "stride": 8},
    "block_top_k": {"block_size": 4, "num_blocks": 3},
    "top_k": {"num_keys": 8},
    "linear": {},
}


def attended(mechanism: str, mask: Tensor | None, causal: bool) -> Tensor:
    module, options = nn.Module(), {"mechanism": mechanism, **MECHANISMS[mechanism]}
    module.long_attention = build_mechanism(options.pop("mechanism"), num_heads=4, head_dim=8, max_length=LENGTH, **options).eval()
    q, k, v = torch.randn(3, 2, 4, LENGTH, 8, generator=torch.Generator().manual_seed(0)) * 2
    return longattn_attention_forward(module, q, k, v, mask, is_causal=causal)[0]


def pairs(first: int, second: int, last: int, causal: bool) -> tuple[Tensor, Tensor]:
    """Visible pairs ``(N, N)`` of two documents that start at ``first`` and ``second`` and end before ``last``; and the real tokens."""
    places = torch.arange(LENGTH)
    real, document = (places >= first) & (places < last), places >= second
    seen = (document[:, None] == document) & real
    return (seen.tril() if causal else seen), real


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_hidden_pairs_are_those_without_weight_in_any_softmax(dtype: torch.dtype) -> None:
    """Also beside a score that is lower by 200. In fp64, because other dtypes give even fewer pairs a weight."""
    for fill in FILLS:
        row = torch.tensor([0.0, max(fill, torch.finfo(dtype).min)], dtype=dtype)
        assert hidden_pairs(row).tolist() == [False, True]
        assert only_hides(row)
        assert (row.double() + torch.tensor([-200.0, 0.0])).softmax(0)[1] == 0
    for visible in (-500.0, -100.0, -5.0, -0.25, 0.0, 3.0, 2000.0):
        row = torch.tensor([0.0, visible], dtype=dtype)
        assert not hidden_pairs(row)[1]
        assert only_hides(row) is (visible == 0)
    assert hidden_pairs(torch.tensor([[0.0, 2000.0]], dtype=dtype)).tolist() == [[True, False]]


def test_hidden_pairs_are_whole_empty_rows_but_not_rows_that_are_low_everywhere() -> None:
    empty = torch.tensor([[-1e4, -1e4, -1e4], [-1e9, -2e9, -1e9], [float("-inf")] * 3, [torch.finfo(torch.float32).min] * 3])
    assert hidden_pairs(empty).all()
    assert hidden_pairs(torch.tensor([[-1500.0, -1501.0, -1e9]])).tolist() == [[False, False, True]]


def test_biases_of_scores_are_not_read_as_documents() -> None:
    """ALiBi far beyond the length at which it hides a pair, T5-like terms, and a bias that is low everywhere."""
    places = torch.arange(1200)
    alibi = -0.95 * (places[:, None] - places).abs().float()
    noise = torch.randn(1200, 1200, generator=torch.Generator().manual_seed(0)) * 3
    for bias in (alibi, noise, alibi - 5000, 2000 + alibi):
        assert documents_in_mask(bias[None, None]) is None
        assert not only_hides(bias)
    zero = torch.zeros(3, 3, requires_grad=True)
    assert not only_hides(zero)  # a parameter, which training changes


@every_case(("mechanism", "causal"), list(itertools.product(MECHANISMS, (False, True))), ids=str)
def test_every_fill_of_a_mask_keeps_documents_and_padding_apart(mechanism: str, causal: bool) -> None:
    """What the documents' own rows give, with padding before and behind them. One mask serves both rows of the batch.

    Every fill and dtype is tried with one mechanism: what a mask hides is decided before a mechanism runs.
    """
    for first, second, last in ((6, 20, 35), (7, 0, LENGTH), (0, 0, 31)):
        seen, real = pairs(first, second, last, causal)
        expected = attended(mechanism, seen[None, None], causal)
        for begin, end in ((first, second), (max(first, second), last)):
            if begin < end:
                alone = attended(mechanism, ((torch.arange(LENGTH) >= begin) & (torch.arange(LENGTH) < end)).expand(2, -1), causal)
                assert (expected - alone)[:, begin:end].abs().max() < 1e-5
        filled = [*((torch.float32, fill) for fill in FILLS), *((dtype, -1e4) for dtype in DTYPES)]
        for dtype, fill in filled if mechanism == "window" else filled[:1]:
            additive = torch.zeros(1, 1, LENGTH, LENGTH, dtype=dtype).masked_fill(~seen, max(fill, torch.finfo(dtype).min))
            assert torch.equal(attended(mechanism, additive, causal)[:, real], expected[:, real])


@every_case("mechanism", MECHANISMS)
@every_case("fill", [-5.0, -20.0, -100.0, -500.0])
def test_masks_that_hide_documents_too_little_are_exact_or_refused(mechanism: str, fill: float) -> None:
    seen, _ = pairs(0, 15, LENGTH, True)
    additive = torch.zeros(1, 1, LENGTH, LENGTH).masked_fill(~seen, fill)
    if mechanism in ("window", "top_k"):  # patterns of distances and contents
        assert attended(mechanism, additive, True).isfinite().all()
    else:
        with pytest.raises(InputError, match="too little to hide them"):
            attended(mechanism, additive, True)
    if mechanism == "window":
        q, k, v = torch.randn(3, 2, 4, LENGTH, 8, generator=torch.Generator().manual_seed(0)) * 2
        places = torch.arange(LENGTH)
        far = (places[:, None] - places >= 8) | (places[:, None] < places)
        expected = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=additive.masked_fill(far, float("-inf")))
        assert (attended(mechanism, additive, True).transpose(1, 2) - expected).abs().max() < 1e-5


def test_masks_of_wrong_dtype_or_shape_are_refused() -> None:
    for mask in (torch.ones(2, 1, LENGTH, LENGTH).long(), torch.zeros(2, 3, LENGTH, LENGTH), torch.zeros(3, 1, LENGTH, LENGTH)):
        with pytest.raises(InputError, match=r"must be \(batch, 1 or heads, queries, keys\) for 2 rows and 4 heads, bool"):
            attended("window", mask, False)


def test_query_whose_own_key_is_hidden_keeps_its_output() -> None:
    q, k, v = torch.randn(3, 2, 4, LENGTH, 8, generator=torch.Generator().manual_seed(0)) * 2
    seen = torch.ones(1, 1, LENGTH, LENGTH, dtype=torch.bool)
    seen[..., 5] = False
    places = torch.arange(LENGTH)
    expected = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen & ((places[:, None] - places).abs() <= 4))
    for mask in (seen, torch.zeros(seen.shape).masked_fill(~seen, -1e4)):
        assert (attended("window", mask, False).transpose(1, 2) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("fill", [None, -1e4, float("-inf")])
@pytest.mark.parametrize("mechanism", ["window", "longformer", "linear"])
def test_a_mask_that_shows_later_keys_is_refused_in_a_causal_layer(mechanism: str, fill: float | None) -> None:
    """Of a prefix that sees itself, and of an encoder. A layer that is not causal takes both."""
    prefix = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    prefix[:, :10] = True
    for seen in (prefix, torch.ones(LENGTH, LENGTH, dtype=torch.bool)):
        mask = (seen if fill is None else torch.zeros(LENGTH, LENGTH).masked_fill(~seen, fill))[None, None]
        with pytest.raises(InputError, match="shows later keys to earlier queries, but this layer is causal"):
            attended(mechanism, mask, True)
    assert attended("window", mask, False).isfinite().all()


def test_a_mask_of_nan_hides_nothing() -> None:
    row = torch.tensor([[0.0, float("nan")], [float("nan")] * 2])
    assert not hidden_pairs(row).any()
    assert not only_hides(row)
