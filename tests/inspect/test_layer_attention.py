"""What is measured of rows: exact on weights whose numbers are known, in any blocks, linear in memory."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModel, MistralConfig, ModernBertConfig
from transformers.masking_utils import causal_mask_function, sliding_window_overlay

from hf_longattn.engines.call import AttentionCall
from hf_longattn.engines.token_grid import Grid
from hf_longattn.inspect import layer_attention as module
from hf_longattn.inspect.layer_attention import LayerAttention, RowSums, distance_bins, sampled_rows
from hf_longattn.inspect.watching import run_stack, watched_stack, watching

HEADS, WIDTH = 4, 8


def layer(length: int, causal: bool = False, **call: object) -> LayerAttention:
    torch.manual_seed(length)
    q, k = torch.randn(1, HEADS, length, WIDTH), torch.randn(1, HEADS // 2, length, WIDTH)
    return LayerAttention(q, k, AttentionCall.of(causal=causal, **call))


def test_equal_weights_have_as_many_effective_tokens_as_there_are() -> None:
    attention = LayerAttention(torch.zeros(1, 1, 64, 8), torch.randn(1, 1, 64, 8), AttentionCall())
    sums = RowSums(63, 1, 0)
    sums.add(attention, torch.arange(64), [])
    mean = sums.mean()
    for name, expected in {"effective_tokens": 64, "largest_weight": 1 / 64, "first_tokens": 4 / 64}.items():
        assert mean[name].item() == pytest.approx(expected, rel=1e-5)
    assert mean["distance"].sum().item() == pytest.approx(1)


def test_a_query_that_finds_one_key_has_one_effective_token() -> None:
    q = torch.zeros(1, 1, 64, 8)
    k = torch.zeros(1, 1, 64, 8)
    q[..., 0], k[0, 0, 7, 0] = 100.0, 100.0
    sums = RowSums(63, 1, 0)
    sums.add(LayerAttention(q, k, AttentionCall()), torch.arange(64), [])
    assert sums.mean()["effective_tokens"].item() == pytest.approx(1)
    assert sums.mean()["largest_weight"].item() == pytest.approx(1)


@pytest.mark.parametrize("causal", [False, True])
def test_the_size_of_blocks_of_scores_changes_no_sum(causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    attention, means = layer(90, causal), []
    for cells in (1, 5000, 1 << 22):
        monkeypatch.setattr(module, "SCORES_IN_MEMORY", cells)
        sums = RowSums(89, HEADS, 1)
        sums.add(attention, torch.arange(90), [lambda rows, scores: rows[:, None] - torch.arange(90) < 8])
        means.append(sums.mean())
    for name, value in means[0].items():
        for blocked in means[1:]:
            torch.testing.assert_close(blocked[name], value, atol=1e-6, rtol=1e-6)


def test_padding_is_neither_query_nor_key() -> None:
    whole = layer(50)
    mask = torch.arange(60)[None] < 50
    padded = LayerAttention(*(torch.nn.functional.pad(x, (0, 0, 0, 10), value=3.0) for x in (whole.q, whole.k)),
                            AttentionCall.of(padding_mask=mask))  # fmt: skip
    sums = [RowSums(63, HEADS, 0), RowSums(63, HEADS, 0)]
    for total, attention in zip(sums, (whole, padded), strict=True):
        total.add(attention, torch.arange(attention.length), [])
    for name, value in sums[0].mean().items():
        torch.testing.assert_close(sums[1].mean()[name], value, atol=1e-6, rtol=1e-6)


def test_distance_bins_hold_every_distance_once() -> None:
    for length in (1, 2, 3, 40, 64, 65, 5000):
        bins = distance_bins(length - 1)
        assert [distance for low, high in bins for distance in range(low, high + 1)] == list(range(length))
        sums = RowSums(length - 1, 1, 0)
        sums.add(LayerAttention(torch.zeros(1, 1, length, 8), torch.zeros(1, 1, length, 8), AttentionCall()), torch.tensor([0]), [])
        in_bins = [round(float(mass) * length) for mass in sums.mean()["distance"][0]]
        assert in_bins == [high - low + 1 for low, high in bins], "the first query gives every key the same weight"


def test_sampled_queries_are_spread_and_repeatable() -> None:
    assert torch.equal(sampled_rows(10, 20), torch.arange(10))
    drawn = sampled_rows(10_000, 100)
    assert torch.equal(drawn, sampled_rows(10_000, 100))
    assert torch.equal(drawn // 100, torch.arange(100)), "one from each part"
    assert len({int(one) % 100 for one in drawn}) > 40, "not always at the same place of a part"


def test_distances_on_a_grid_are_the_larger_of_rows_and_columns() -> None:
    grid = Grid((3, 4), prefix=1)
    attention = layer(13).on(grid)
    assert attention.furthest == 3
    distance = attention.distance(torch.tensor([0, 1, 6]))
    assert distance[0].tolist() == [0] * 13
    assert distance[1].tolist() == [0, 0, 1, 2, 3, 1, 1, 2, 3, 2, 2, 2, 3]
    assert distance[2].tolist() == [0, 1, 1, 1, 2, 1, 0, 1, 2, 1, 1, 1, 2]


def test_keys_in_a_base_s_sliding_window_are_those_of_transformers_mask() -> None:
    rows, watched = torch.arange(9), list[LayerAttention]()
    sizes = {"vocab_size": 16, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "pad_token_id": 0}
    decoder = MistralConfig(**sizes, num_hidden_layers=1, num_key_value_heads=1, sliding_window=4)
    encoder = ModernBertConfig(**sizes, num_hidden_layers=2, layer_types=["full_attention", "sliding_attention"], local_attention=4)
    for config in (decoder, encoder):
        stack = watched_stack(AutoModel.from_config(config))
        with watching(stack, lambda _, attention: watched.append(attention)):
            run_stack(stack, rows)
    seen = sliding_window_overlay(4)(0, 0, rows[:, None], rows) & causal_mask_function(0, 0, rows[:, None], rows)
    for attention, keys in zip(watched, (seen, None, (rows[:, None] - rows).abs() <= 2), strict=True):
        assert (attention.within is None) == (keys is None)
        if attention.within is not None and keys is not None:
            assert torch.equal(attention.within(rows, torch.zeros(1, 2, 9, 9)).expand(1, 2, 9, 9), keys.expand(1, 2, 9, 9))
