"""LSG attention: local, sparse and global keys, the five selections, both forms."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_longattn import attend, build_mechanism, reference_attend
from hf_longattn.errors import OptionError
from hf_longattn.mechanisms.lsg import SELECTIONS, Cells, chosen_keys, clusters, directions, means_of_cells
from tests.cells import every_cell
from tests.grids import grid, pairwise
from tests.mechanisms.definition import Attention

GRAPHS = ("compiled", "exported")
CALLS = pairwise(SELECTIONS, ("none", "left", "inside"), (False, True), (33, 250, 300))

SMALL: dict[str, Any] = {"block_size": 16, "sparse_block_size": 8, "sparsity_factor": 4}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def random(length: int, heads: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(torch.randn(2, heads, length, 8) for _ in range(3))  # type: ignore[return-value]


def weights(length: int, causal: bool = False, **options: Any) -> Tensor:
    q, k, _ = random(length)
    return build_mechanism("lsg", num_heads=4, head_dim=8, **options).weights(q, k, causal=causal)


def padding(length: int, side: str) -> Tensor:
    mask = torch.ones(2, length, dtype=torch.bool)
    if side == "left":
        mask[0, : length // 3] = False
    elif side == "inside":
        mask[0, length // 2 : length // 2 + length // 6] = False
        mask[1, length - length // 5 :] = False
    return mask


@every_cell(("selection", "side", "causal", "length"), CALLS)
def test_output_and_gradients_equal_the_reference(selection: str, side: str, causal: bool, length: int) -> None:
    q, k, v = (x.requires_grad_() for x in random(length))
    mask = padding(length, side)
    arguments = {"causal": causal, "padding_mask": mask, "global_mask": torch.rand(2, length) < 0.03, "selection": selection, **SMALL}

    def nearer(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return score - 0.02 * (h + 1) * (i - j).abs()

    real = mask[:, None, :, None]
    for score_mod in (None, nearer):
        arguments["score_mod"] = score_mod
        out, expected = attend(q, k, v, "lsg", **arguments), reference_attend(q, k, v, "lsg", **arguments)
        torch.testing.assert_close(out * real, (expected * real).float(), atol=1e-5, rtol=0)
        weight = torch.randn_like(out) * real
        for a, b in zip(*(torch.autograd.grad((x * weight).sum(), (q, k, v)) for x in (out, expected)), strict=True):
            torch.testing.assert_close(a, b, atol=5e-5, rtol=0)


@pytest.mark.thorough
@every_cell("causal", [False, True])
@every_cell("selection", SELECTIONS)
def test_fewer_queries_and_left_padding(selection: str, causal: bool) -> None:
    q, k, v = random(300)
    options = {"selection": selection, "causal": causal, **SMALL}
    whole = attend(q, k, v, "lsg", **options)
    pad = [torch.nn.functional.pad(x, (0, 0, 21, 0), value=3.0) for x in (q, k, v)]
    mask = torch.arange(321).expand(2, -1) >= 21
    for n in (1, 5, 290):
        few = attend(q[:, :, -n:], k, v, "lsg", **options)
        torch.testing.assert_close(few, whole[:, :, -n:], atol=1e-5, rtol=0)
        few = attend(pad[0][:, :, -n:], pad[1], pad[2], "lsg", padding_mask=mask, **options)
        torch.testing.assert_close(few, whole[:, :, -n:], atol=1e-5, rtol=0)


@every_cell("selection", SELECTIONS)
def test_later_tokens_never_change_earlier_rows_of_the_causal_form(selection: str) -> None:
    q, k, v = random(300)
    whole = attend(q, k, v, "lsg", causal=True, selection=selection, **SMALL)
    for n in (33, 64, 250):
        cut = attend(q[:, :, :n], k[:, :, :n], v[:, :, :n], "lsg", causal=True, selection=selection, **SMALL)
        torch.testing.assert_close(cut, whole[:, :, :n], atol=1e-5, rtol=0)


@pytest.mark.slow
@every_cell(
    ("selection", "graph"),
    grid(itertools.product(SELECTIONS, GRAPHS), lambda selection, graph: graph == GRAPHS[SELECTIONS.index(selection) % 2]),
    of=3,
)
def test_compiled_and_exported(selection: str, graph: str) -> None:
    q, k, v = random(300)
    module = build_mechanism("lsg", num_heads=4, head_dim=8, selection=selection, **SMALL)
    expected = attend(q, k, v, module)
    torch._dynamo.reset()
    whole = Attention(module)
    captured = (
        torch.compile(whole, fullgraph=True, backend="eager") if graph == "compiled" else torch.export.export(whole, (q, k, v)).module()
    )
    torch.testing.assert_close(captured(q, k, v), expected, atol=1e-6, rtol=0)


def test_which_keys_a_hand_made_example_sees() -> None:
    """Blocks of four, every second token strided by head, one block beyond the neighbours, token 0 global."""
    q, k = torch.randn(1, 2, 24, 4), torch.randn(1, 2, 24, 4)
    options = {"block_size": 4, "sparse_block_size": 2, "sparsity_factor": 2, "selection": "strided"}
    module = build_mechanism("lsg", num_heads=2, head_dim=4, **options)
    for causal, rows in {
        False: ((13, "1...  1.1.  1111  1111  1111  1.1."), (4, "1111  1111  1111  1.1.  ....  ....")),
        True: ((13, "1...  1.1.  1111  11..  ....  ...."), (4, "1111  1...  ....  ....  ....  ....")),
    }.items():
        found = module.weights(q, k, causal=causal)[0] > 0
        for row, expected in rows:
            seen = ["".join(".1"[int(x)] for x in found[0, row, at : at + 4]) for at in range(0, 24, 4)]
            assert seen == expected.split()
        assert found[1, 13, 5]
        assert not found[1, 13, 4]
        assert found[:, 0, 0].all()
        assert bool(found[:, 0].all()) is not causal


def test_strided_and_block_strided_tokens_differ_by_head() -> None:
    k, cells = torch.randn(1, 3, 20, 4), Cells(8, 4)
    assert chosen_keys("strided", k, None, cells)[0].tolist() == [
        [[0, 4], [8, 12], [16, -1]],
        [[1, 5], [9, 13], [17, -1]],
        [[2, 6], [10, 14], [18, -1]],
    ]
    assert chosen_keys("block_strided", k, None, cells)[0].tolist() == [
        [[0, 1], [8, 9], [16, 17]],
        [[2, 3], [10, 11], [18, 19]],
        [[4, 5], [12, 13], [-1, -1]],
    ]


def test_the_highest_norms_of_every_cell_and_the_earlier_of_equal_ones() -> None:
    k = torch.tensor([1.0, -3, 2, 2, 5, 0, 0, 0, 1, 1, 1]).view(1, 1, -1, 1)
    assert chosen_keys("max_norm", k, None, Cells(4, 2))[0, 0].tolist() == [[1, 2], [4, 5], [8, 9]]
    real = torch.tensor([[True, False, True, True, True, False, False, False, True, False, True]])
    assert chosen_keys("max_norm", k, real, Cells(4, 2))[0, 0].tolist() == [[2, 3], [4, -1], [8, 10]]


def test_means_of_runs_and_of_clusters() -> None:
    k, v = torch.randn(2, 3, 30, 6), torch.randn(2, 3, 30, 6)
    real = torch.rand(2, 30) < 0.7
    cells = Cells(8, 2)
    runs, hashed = (means_of_cells(selection, k, v, real, cells, 7, 0) for selection in ("average_pooling", "lsh"))
    bucket = clusters(k, real, 8, 4, 0, 7)
    for b in range(2):
        for h in range(3):
            for m in range(16):
                run = [j for j in range(m * 2, m * 2 + 2) if j < 30 and real[b, j]]
                cluster = [j for j in range(m // 4 * 8, m // 4 * 8 + 8) if j < 30 and real[b, j] and bucket[b, h, j] == m % 4]
                for made, members in ((runs, run), (hashed, cluster)):
                    assert made.real[b, h, m] == bool(members)
                    if members:
                        torch.testing.assert_close(made.keys[b, h, m], k[b, h, members].mean(0))
                        torch.testing.assert_close(made.values[b, h, m], v[b, h, members].mean(0))
                        assert made.position[b, h, m] == sum(members) // len(members)


def test_near_keys_share_a_cluster_and_the_seed_draws_the_directions() -> None:
    k, every = torch.randn(1, 2, 48, 8), torch.ones(1, 48, dtype=torch.bool)

    def found(k: Tensor, rounds: int = 0, seed: int = 0) -> Tensor:
        return clusters(k, every, 16, 8, rounds, seed)

    assert torch.equal(found(k), found(k * torch.rand(1, 2, 48, 1).add(0.1))), "length does not matter"
    assert (found(k) != found(-k)).all()
    assert set(found(k).flatten().tolist()) == set(range(8))
    assert not torch.equal(found(k), found(k, seed=1))
    assert not torch.equal(found(k), found(k, rounds=1))
    for one, same, other in zip(*(directions(seed, 2, 8, (16, 8), k.device) for seed in (3, 3, 4)), strict=True):
        assert torch.equal(one, same)
        assert not torch.equal(one, other)


def rounds_of_the_authors(k: Tensor, real: list[bool], rotations: list[Tensor]) -> list[int]:
    """The cluster of every key of one cell ``(c, D)``: each round hashes the sums of the clusters before it, and joins whole clusters."""
    groups = [[j] for j in range(len(k))]
    for round_, directions_ in enumerate(rotations):
        buckets: dict[int, list[int]] = {}
        for members in groups:
            total = sum((k[j] for j in members if real[j]), torch.zeros(k.shape[1], dtype=k.dtype))
            products = total @ directions_
            buckets.setdefault(int(torch.cat([products, -products]).argmax()), []).extend(members)
        groups = list(buckets.values())
        if round_ == len(rotations) - 1:
            return [next(bucket for bucket, members in buckets.items() if j in members) for j in range(len(k))]
    raise AssertionError


@every_cell("pre_rounds", [0, 1, 2])
def test_pre_rounds_merge_near_keys_as_in_the_authors_converter(pre_rounds: int) -> None:
    k, real = torch.randn(1, 2, 32, 6, dtype=torch.float64), torch.rand(1, 32) < 0.8
    rotations = directions(5, 2, 6, [16] * pre_rounds + [4], k.device)
    found = clusters(k, real, 16, 4, pre_rounds, 5)
    for head in range(2):
        for first in (0, 16):
            at = slice(first, first + 16)
            expected = rounds_of_the_authors(k[0, head, at], real[0, at].tolist(), [t[head] for t in rotations])
            got = found[0, head, at].tolist()
            assert [g for g, r in zip(got, real[0, at], strict=True) if r] == [e for e, r in zip(expected, real[0, at], strict=True) if r]


def test_cells_are_the_smaller_of_block_and_sparse_block_where_tokens_are_compared() -> None:
    cells = {s: build_mechanism("lsg", num_heads=2, head_dim=4, selection=s, **SMALL).cells for s in SELECTIONS}  # type: ignore[union-attr]
    assert {s: (c.size, c.keys, c.in_block) for s, c in cells.items()} == {
        "strided": (16, 4, 1), "block_strided": (16, 4, 1), "max_norm": (8, 2, 2), "average_pooling": (16, 4, 1), "lsh": (8, 2, 2),
    }  # fmt: skip


@every_cell("selection", SELECTIONS)
def test_global_tokens_are_no_sparse_keys(selection: str) -> None:
    """As the authors mask them there: what a global token holds changes no other sparse key."""
    q, k, _ = random(128)
    mask = torch.zeros(2, 128, dtype=torch.bool)
    mask[:, 100] = True
    k[:, :, 100] *= 50  # the highest norm by far
    module = build_mechanism("lsg", num_heads=4, head_dim=8, selection=selection, **SMALL)
    weights = module.weights(q, k, global_mask=mask)[:, :, 56]  # of block 3; the token is in block 6
    k[:, :, 100] = 0.0
    again = module.weights(q, k, global_mask=mask)[:, :, 56]
    others = torch.arange(128) != 100
    first, second = (x[..., others] / x[..., others].sum(-1, keepdim=True) for x in (weights, again))
    torch.testing.assert_close(first, second, atol=1e-6, rtol=1e-4)


def test_blocks_begin_after_tokens_in_front() -> None:
    """With one global token in front this is the converter's model, whose blocks are those of the text after it."""
    q, k, _ = random(129)
    options = {**SMALL, "selection": "max_norm"}
    found = build_mechanism("lsg", num_heads=4, head_dim=8, block_offset=1, **options).weights(q, k)
    text = build_mechanism("lsg", num_heads=4, head_dim=8, global_tokens=(), **options).weights(q[:, :, 1:], k[:, :, 1:])
    inside = found[:, :, 1:, 1:]
    torch.testing.assert_close(inside / inside.sum(-1, keepdim=True), text, atol=1e-5, rtol=1e-4)
    assert (found[:, :, 0] > 0).all()
    assert (found[..., 0] > 0).all()


@every_cell(("selection", "side", "causal", "length"), CALLS)
def test_an_offset_equals_the_reference(selection: str, side: str, causal: bool, length: int) -> None:
    q, k, v = (x.requires_grad_() for x in random(length))
    mask = padding(length, side)
    arguments = {"causal": causal, "padding_mask": mask, "selection": selection, "block_offset": 3, "lsh_pre_rounds": 2, **SMALL}
    arguments["score_mod"] = lambda score, b, h, i, j: score - 0.02 * (h + 1) * (i - j).abs()
    real = mask[:, None, :, None]
    out, expected = attend(q, k, v, "lsg", **arguments), reference_attend(q, k, v, "lsg", **arguments)
    torch.testing.assert_close(out * real, (expected * real).float(), atol=1e-5, rtol=0)
    weight = torch.randn_like(out) * real
    for a, b in zip(*(torch.autograd.grad((x * weight).sum(), (q, k, v)) for x in (out, expected)), strict=True):
        torch.testing.assert_close(a, b, atol=5e-5, rtol=0)
    few = attend(q[:, :, -5:], k, v, "lsg", **arguments)
    torch.testing.assert_close(few * real[:, :, -5:], (out * real)[:, :, -5:], atol=1e-5, rtol=0)


def test_the_seed_is_an_option() -> None:
    q, k, v = random(300)
    first, other = (attend(q, k, v, "lsg", selection="lsh", seed=0, **SMALL), attend(q, k, v, "lsg", selection="lsh", **SMALL))
    assert torch.equal(first, other)


def test_means_spread_their_weight_evenly() -> None:
    found = weights(128, selection="average_pooling", global_tokens=(), **SMALL)
    torch.testing.assert_close(found.sum(-1), torch.ones(2, 4, 128))
    beyond = found[:, :, 48:64, 80:112].unflatten(-1, (8, 4))
    assert (beyond > 0).all()
    torch.testing.assert_close(beyond, beyond[..., :1].expand_as(beyond))
    assert (found[:, :, 48:64, 112:] == 0).all()


def test_a_global_token_counts_once() -> None:
    """Equal scores: every seen token has the same weight, however many of the three ways it is seen."""
    q, k = torch.zeros(1, 4, 128, 8), torch.randn(1, 4, 128, 8)
    for selection in ("strided", "block_strided", "max_norm"):
        for causal in (False, True):
            module = build_mechanism("lsg", num_heads=4, head_dim=8, selection=selection, global_tokens=tuple(range(0, 128, 3)), **SMALL)
            found = module.weights(q, k, causal=causal)
            count = (found > 0).sum(-1, keepdim=True)
            torch.testing.assert_close(found, (found > 0) / count)
            out = attend(q, k, torch.eye(128).expand(1, 4, -1, -1)[..., :8], module, causal=causal)
            torch.testing.assert_close(out, found[..., :8], atol=1e-6, rtol=0)


def test_without_sparse_keys_it_is_local_and_global_only() -> None:
    found = weights(96, block_size=16, sparse_block_size=0, global_tokens=()) > 0
    block = torch.arange(96) // 16
    assert torch.equal(found, ((block[:, None] - block).abs() <= 1).expand_as(found))


@every_cell(
    ("options", "sentence"),
    [
        ({"block_size": 0}, "'block_size' of mechanism 'lsg' is 0, but must be at least 1"),
        ({"sparsity_factor": 0}, "'sparsity_factor' of mechanism 'lsg' is 0, but must be at least 1"),
        ({"sparse_block_size": -1}, "'sparse_block_size' of mechanism 'lsg' is -1, but must be at least 0"),
        ({"selection": "max_nrom"}, "'selection' of mechanism 'lsg' is 'max_nrom'.* max_norm"),
        ({"block_size": 128, "sparsity_factor": 3}, "must divide block_size=128"),
        ({"block_size": 128, "sparse_block_size": 48}, "must be a multiple of block_size / sparsity_factor = 32"),
        (
            {"block_size": 12, "sparse_block_size": 12, "sparsity_factor": 4, "selection": "lsh"},
            "12 tokens have 3 clusters, but that must be even",
        ),
        ({"block_offset": 128}, "'block_offset' of mechanism 'lsg' is 128, but must be less than block_size=128"),
        ({"lsh_pre_rounds": -1}, "'lsh_pre_rounds' of mechanism 'lsg' is -1, but must be at least 0"),
        ({"global_tokens": (-1,)}, "positions count from 0"),
    ],
)
def test_impossible_options_are_refused(options: dict, sentence: str) -> None:
    with pytest.raises(OptionError, match=sentence):
        build_mechanism("lsg", num_heads=2, head_dim=4, **options)


@every_cell("causal", [False, True])
@every_cell("offset", [0, 5])
@every_cell("length", [20, 100, 250])
def test_pairs_count_what_is_seen(length: int, offset: int, causal: bool) -> None:
    options = {"selection": "strided", "global_tokens": (), "block_offset": offset, **SMALL}
    found = int((weights(length, causal, **options)[0, 0] > 0).sum())
    counted = build_mechanism("lsg", num_heads=4, head_dim=8, **options).pairs(length, causal)
    assert counted <= found + length * 4  # a last block that is not full has fewer sparse keys
    assert counted >= found
