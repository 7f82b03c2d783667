"""BigBird: what it sees, how its random blocks are drawn, and where its blocks lie in a padded batch."""

from __future__ import annotations

import itertools
import pickle

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertModel

from hf_longattn import attend, build_mechanism, enable_long_attention, reference_attend
from hf_longattn.errors import OptionError
from hf_longattn.mechanisms.bigbird import BigBird
from tests.cells import every_cell
from tests.mechanisms.listed import visible

SMALL = {"block_size": 4, "num_random_blocks": 2}


def bigbird(heads: int = 2, **options: object) -> BigBird:
    mechanism = build_mechanism("bigbird", num_heads=heads, head_dim=8, **{**SMALL, **options})
    assert isinstance(mechanism, BigBird)
    return mechanism


def seen(mechanism: BigBird, length: int, causal: bool = False, padding_mask: Tensor | None = None) -> Tensor:
    return visible(mechanism, length, causal, padding_mask)


def table(mechanism: BigBird, blocks: int, causal: bool = False, seed: int = 0) -> Tensor:
    return mechanism.blocks(torch.tensor([blocks]), blocks, causal, torch.device("cpu"), seed).random[0]


@every_cell("causal", [False, True])
@every_cell(("edge", "window", "random"), [(1, 3, 2), (2, 5, 1), (0, 1, 3), (1, 1, 0)])
def test_what_a_token_sees(edge: int, window: int, random: int, causal: bool) -> None:
    mechanism = bigbird(num_global_blocks=edge, num_window_blocks=window, num_random_blocks=random)
    length, size = 58, 4
    total = -(-length // size)
    drawn, found = table(mechanism, total, causal).tolist(), seen(mechanism, length, causal).tolist()
    for head, i, j in itertools.product(range(2), range(length), range(length)):
        row, column = i // size, j // size
        if causal:
            near = column < edge or row - window < column <= row
            expected = j <= i and (near or column in drawn[head][row])
        else:
            ends = min(row, column) < edge or max(row, column) >= total - edge
            expected = ends or abs(row - column) <= window // 2 or column in drawn[head][row]
        assert found[0][head][i][j] == expected


@pytest.mark.parametrize("causal", [False, True])
def test_random_blocks_are_distinct_and_outside_window_and_globals(causal: bool) -> None:
    drawn = table(bigbird(heads=8, num_random_blocks=3), 40, causal).tolist()
    for head, row in itertools.product(range(8), range(1, 39)):
        blocks = drawn[head][row]
        low, high = (1, row - 3) if causal else (1, 38)
        left = [block for block in range(low, high + 1) if causal or abs(block - row) > 1]
        chosen = [block for block in blocks if block >= 0]
        assert len(chosen) == len(set(chosen)) == min(3, len(left))
        assert set(chosen) <= set(left)


def test_random_blocks_are_spread_evenly() -> None:
    drawn = table(bigbird(heads=64, num_random_blocks=3), 34)
    counts = drawn[:, 16].flatten().bincount(minlength=34)
    assert counts[[0, 15, 16, 17, 33]].sum() == 0
    assert counts.sum() == 3 * 64
    many = torch.stack([table(bigbird(heads=64, num_random_blocks=3), 34, seed=seed)[:, 16] for seed in range(50)])
    share = many.flatten().bincount(minlength=34)[1:15].double() / many.numel()
    assert (share - 1 / 29).abs().max() < 0.006


def test_random_blocks_differ_by_head_seed_and_layer_and_by_nothing_else() -> None:
    first = table(bigbird(), 30)
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, table(bigbird(seed=1), 30))
    assert torch.equal(table(bigbird(seed=1), 30), table(bigbird(), 30, seed=1))
    assert torch.equal(first, table(pickle.loads(pickle.dumps(bigbird())), 30))
    model = BertModel(BertConfig(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=16, vocab_size=20))
    enable_long_attention(model, {"mechanism": "bigbird", **SMALL})
    layers = [layer.attention.self.long_attention for layer in model.encoder.layer]
    for index, layer in enumerate(layers):
        assert torch.equal(table(layer, 30), table(bigbird(seed=index), 30))


def test_the_draw_is_the_same_on_every_machine() -> None:
    assert table(bigbird(), 30)[:, 10].tolist() == [[17, 2], [26, 28]]
    assert table(bigbird(), 30, causal=True)[:, 20].tolist() == [[4, 14], [5, 1]]


def test_causal_blocks_do_not_depend_on_what_follows() -> None:
    assert torch.equal(table(bigbird(), 20, causal=True), table(bigbird(), 50, causal=True)[:, :20])


def test_the_last_block_is_each_sequences_own_unless_blocks_are_cut_from_the_input() -> None:
    mask = torch.ones(2, 80, dtype=torch.bool)
    mask[1, 60:] = False
    own = seen(bigbird(), 80, padding_mask=mask)
    assert own[0, :, 20, 76:].all()
    assert own[1, :, 20, 56:60].all()
    assert torch.equal(own[1, :, :60, :60], seen(bigbird(), 60)[0])
    over_input = seen(bigbird(blocks_over="input"), 80, padding_mask=mask)
    assert torch.equal(over_input[1, :, :60, :60], seen(bigbird(), 80)[0, :, :60, :60])


def test_a_short_sequence_is_attended_to_fully_in_any_batch() -> None:
    mechanism = bigbird()
    assert mechanism.covers(9 * 4)
    assert not mechanism.covers(9 * 4 + 1)
    mask = torch.ones(2, 80, dtype=torch.bool)
    mask[1, 36:] = False
    assert seen(mechanism, 80, padding_mask=mask)[1, :, :36, :36].all()
    q, k, v = torch.randn(3, 2, 2, 400, 8)
    longer = torch.nn.functional.pad(mask, (0, 320), value=False)
    longer[0] = True
    out = attend(q, k, v, mechanism, padding_mask=longer)
    alone = attend(q[1:, :, :36], k[1:, :, :36], v[1:, :, :36], "full")
    torch.testing.assert_close(out[1:, :, :36], alone, atol=1e-5, rtol=0)


@every_cell("blocks_over", ["text", "input"])
@every_cell("pattern", ["seeded", "hf_eval"])
@every_cell("with_globals", [False, True])
def test_engine_and_definition_agree(pattern: str, blocks_over: str, with_globals: bool) -> None:
    mechanism = bigbird(block_size=16, random_pattern=pattern, blocks_over=blocks_over)
    q, k, v = torch.randn(3, 3, 2, 400, 8)
    mask = torch.ones(3, 400, dtype=torch.bool)
    mask[0, 333:] = mask[1, :77] = mask[2, 140:] = mask[2, 55] = False
    arguments = {"padding_mask": mask, "global_mask": torch.rand(3, 400) < 0.02 if with_globals else None}
    for training in (True, False):
        mechanism.train(training)
        out, expected = attend(q, k, v, mechanism, **arguments), reference_attend(q, k, v, mechanism, **arguments)
        torch.testing.assert_close(out * mask[:, None, :, None], (expected * mask[:, None, :, None]).float(), atol=1e-5, rtol=0)


def test_counting_a_key_again_adds_the_logarithm_of_the_count() -> None:
    q, k = torch.randn(2, 1, 2, 80, 8)
    once, again = (bigbird(random_pattern=p, num_random_blocks=r).eval().weights(q, k) for p, r in (("seeded", 0), ("hf_eval", 2)))
    once[:, :, 4:76, :4] *= 3
    torch.testing.assert_close(again, once / once.sum(-1, keepdim=True), atol=1e-6, rtol=0)


@every_cell("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_counting_again_in_every_dtype(dtype: torch.dtype) -> None:
    mechanism = bigbird(block_size=16, random_pattern="hf_eval").eval()
    q, k, v = torch.randn(3, 2, 2, 400, 8, dtype=torch.float64).to(dtype)
    out, expected = attend(q, k, v, mechanism), reference_attend(q, k, v, mechanism)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), expected, atol=1e-6 if dtype == torch.float64 else 2e-2, rtol=0)


def test_the_call_may_give_a_seed() -> None:
    q, k, v = torch.randn(3, 1, 2, 300, 8)
    options = {"block_size": 16, "num_random_blocks": 1}
    by_call, by_option = attend(q, k, v, "bigbird", seed=7, **options), attend(q, k, v, bigbird(seed=7, **options))
    assert torch.equal(by_call, by_option)
    assert not torch.allclose(by_call, attend(q, k, v, "bigbird", **options), atol=1e-3)


@every_cell("causal", [False, True])
@every_cell("length", [1, 35, 37, 58, 81])
def test_pairs_counts_what_is_visible(length: int, causal: bool) -> None:
    mechanism = bigbird(heads=1)
    assert mechanism.pairs(length, causal) == seen(mechanism, length, causal).sum()


@every_cell(
    ("options", "says"),
    [
        ({"block_size": 0}, "'block_size' of mechanism 'bigbird' is 0, but must be at least 1"),
        ({"num_random_blocks": -1}, "'num_random_blocks' of mechanism 'bigbird' is -1, but must be at least 0"),
        ({"num_window_blocks": 4}, "'num_window_blocks' of mechanism 'bigbird' is 4, but must be odd"),
        ({"random_pattern": "seded"}, "Did you mean 'seeded'"),
        ({"blocks_over": "batch"}, "must be one of: text, input"),
        ({"random_pattern": "hf_eval", "num_global_blocks": 2}, "exists for num_window_blocks=3 and num_global_blocks=1 only"),
        ({"num_globals": 1}, "has no option 'num_globals'"),
    ],
)
def test_impossible_options_are_refused(options: dict, says: str) -> None:
    with pytest.raises(OptionError, match=says):
        build_mechanism("bigbird", num_heads=2, head_dim=8, **options)


def test_the_patterns_of_transformers_have_no_causal_form() -> None:
    q, k, v = torch.randn(3, 1, 2, 30, 8)
    with pytest.raises(OptionError, match="exists only with causal=False"):
        attend(q, k, v, "bigbird", causal=True, random_pattern="hf_eval")


def test_a_config_that_drew_the_blocks_of_transformers_in_training_loads_and_trains_as_it_evaluates() -> None:
    old, new = (bigbird(block_size=16, random_pattern=pattern) for pattern in ("hf", "hf_eval"))
    with pytest.warns(UserWarning, match="choose random_pattern='seeded' to train with random blocks") as caught:
        old.train()
    assert len(caught) == 1
    q, k, v = torch.randn(3, 1, 2, 400, 8)
    out = attend(q, k, v, old)
    assert torch.equal(out, attend(q, k, v, new))
    assert torch.equal(out, attend(q, k, v, old.eval()))
