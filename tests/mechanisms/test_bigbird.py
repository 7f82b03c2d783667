"""BigBird: how its random blocks are drawn, and where its blocks lie in a padded batch."""

from __future__ import annotations

import itertools
import pickle

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertModel

from hf_longattn import attend, build_mechanism, enable_long_attention, reference_attend
from hf_longattn.engines.call import AttentionCall
from hf_longattn.mechanisms.bigbird import BigBird
from tests.cases import every_case
from tests.mechanisms.definition import visible

SMALL = {"block_size": 4, "num_random_blocks": 2}


def bigbird(heads: int = 2, **options: object) -> BigBird:
    mechanism = build_mechanism("bigbird", num_heads=heads, head_dim=8, **{**SMALL, **options})
    assert isinstance(mechanism, BigBird)
    return mechanism


def seen(mechanism: BigBird, length: int, padding_mask: Tensor | None = None) -> Tensor:
    return visible(mechanism, length, False, padding_mask)


def table(mechanism: BigBird, blocks: int, causal: bool = False, seed: int = 0) -> Tensor:
    length = blocks * mechanism.options.block_size
    return mechanism.blocks(length, AttentionCall(causal, seed=seed), torch.device("cpu")).random[0]


@pytest.mark.parametrize("causal", [False, True])
def test_bigbird_random_blocks_are_distinct_and_outside_window_and_globals(causal: bool) -> None:
    drawn = table(bigbird(heads=8, num_random_blocks=3), 40, causal).tolist()
    for head, row in itertools.product(range(8), range(1, 39)):
        blocks = drawn[head][row]
        low, high = (1, row - 3) if causal else (1, 38)
        left = [block for block in range(low, high + 1) if causal or abs(block - row) > 1]
        chosen = [block for block in blocks if block >= 0]
        assert len(chosen) == len(set(chosen)) == min(3, len(left))
        assert set(chosen) <= set(left)


def test_bigbird_random_blocks_are_spread_evenly() -> None:
    drawn = table(bigbird(heads=64, num_random_blocks=3), 34)
    counts = drawn[:, 16].flatten().bincount(minlength=34)
    assert counts[[0, 15, 16, 17, 33]].sum() == 0
    assert counts.sum() == 3 * 64
    many = torch.stack([table(bigbird(heads=64, num_random_blocks=3), 34, seed=seed)[:, 16] for seed in range(50)])
    share = many.flatten().bincount(minlength=34)[1:15].double() / many.numel()
    assert (share - 1 / 29).abs().max() < 0.006


def test_bigbird_random_blocks_differ_by_head_seed_and_layer_only() -> None:
    first = table(bigbird(), 30)
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, table(bigbird(seed=1), 30))
    assert torch.equal(table(bigbird(seed=1), 30), table(bigbird(), 30, seed=1))
    assert torch.equal(first, table(pickle.loads(pickle.dumps(bigbird())), 30))
    model = BertModel(
        BertConfig(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=16, vocab_size=20)
    )
    enable_long_attention(model, {"mechanism": "bigbird", **SMALL})
    layers = [layer.attention.self.long_attention for layer in model.encoder.layer]
    for index, layer in enumerate(layers):
        assert torch.equal(table(layer, 30), table(bigbird(seed=index), 30))


def test_bigbird_draws_the_same_blocks_on_every_machine() -> None:
    assert table(bigbird(), 30)[:, 10].tolist() == [[17, 2], [26, 28]]
    assert table(bigbird(), 30, causal=True)[:, 20].tolist() == [[4, 14], [5, 1]]


def test_causal_bigbird_blocks_do_not_depend_on_later_tokens() -> None:
    assert torch.equal(table(bigbird(), 20, causal=True), table(bigbird(), 50, causal=True)[:, :20])


def test_the_last_bigbird_block_is_of_each_text_or_of_the_input_by_blocks_over() -> None:
    mask = torch.ones(2, 80, dtype=torch.bool)
    mask[1, 60:] = False
    own = seen(bigbird(), 80, padding_mask=mask)
    assert own[0, :, 20, 76:].all()
    assert own[1, :, 20, 56:60].all()
    assert torch.equal(own[1, :, :60, :60], seen(bigbird(), 60)[0])
    over_input = seen(bigbird(blocks_over="input"), 80, padding_mask=mask)
    assert torch.equal(over_input[1, :, :60, :60], seen(bigbird(), 80)[0, :, :60, :60])


def test_bigbird_attends_to_a_short_sequence_fully_in_any_batch() -> None:
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


@every_case("pattern", ["seeded", "hf_eval"])
@every_case("side", ["left", "right", "inside"])
@every_case("cut", [70, 400])
def test_blocks_over_the_input_of_a_packed_document_are_cut_with_its_padding(
    cut: int, side: str, pattern: str
) -> None:
    """As if the document and its padding were alone; one document is the whole row."""
    mechanism = bigbird(random_pattern=pattern, blocks_over="input").eval()
    q, k, v = torch.randn(3, 2, 2, 400, 8, dtype=torch.float64)
    places, mask = torch.arange(400), torch.ones(2, 400, dtype=torch.bool)
    mask[1] = {"left": places >= 33, "right": places < 350, "inside": (places < 20) | (places >= 55)}[side]
    for run in (attend, reference_attend):
        packed = run(q, k, v, mechanism, padding_mask=mask, documents=(places >= cut).long().expand(2, -1))
        pieces = [
            run(q[:, :, at], k[:, :, at], v[:, :, at], mechanism, padding_mask=mask[:, at])
            for at in (slice(0, cut), slice(cut, 400))
            if at.start < 400
        ]
        alone = torch.cat(pieces, 2)
        real = mask[:, None, :, None]
        torch.testing.assert_close(packed * real, alone * real, atol=1e-12, rtol=0)


@pytest.mark.parametrize("blocks_over", ["text", "input"])
def test_bigbird_decodes_with_the_blocks_of_the_whole_pass_in_front_of_which_is_padding(blocks_over: str) -> None:
    mechanism = bigbird(blocks_over=blocks_over).eval()
    q, k, v = (
        torch.randn(2, 2, 61, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        for seed in range(3)
    )
    call = AttentionCall.of(causal=True, padding_mask=torch.arange(61) >= torch.tensor([[0], [6]]))
    step = mechanism.attend_rows(q[:, :, -1:], k, v, call)
    expected = reference_attend(q, k, v, mechanism, causal=True, padding_mask=call.key_mask)
    torch.testing.assert_close(step, expected[:, :, -1:], atol=1e-12, rtol=0)
