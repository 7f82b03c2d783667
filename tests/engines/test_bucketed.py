"""The bucketed engine: sorting, rows, what stays out, the last keys of a bucket."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hf_longattn.engines.bucketed import ChunkRounds, RecentRounds, Rounds, Sorted
from hf_longattn.engines.common.call import GatherTile
from hf_longattn.engines.common.plain import allowed
from tests.cells import every_cell

BUCKETS, ROUNDS = 5, 3


def some(length: int, shared: bool) -> tuple[Tensor, Tensor]:
    keys = torch.randint(BUCKETS, (2, 2, ROUNDS, length))
    return (keys if shared else torch.randint(BUCKETS, keys.shape)), keys


def met(part: GatherTile, length: int) -> Tensor:
    """How often the part lists each pair, (2, 2, N, N)."""
    seen = allowed(part, None, torch.arange(2).view(-1, 1, 1, 1))
    seen = seen if part.bias is None else seen & part.bias
    rows = part.queries.clamp(min=0)[..., :, None].expand(seen.shape)
    columns = part.keys.clamp(min=0)[..., None, :].expand(seen.shape)
    count = torch.zeros(2, 2, length * length, dtype=torch.int64)
    return count.scatter_add_(2, (rows * length + columns).flatten(2), seen.long().flatten(2)).view(2, 2, length, length)


def padding(length: int) -> Tensor:
    real = torch.ones(2, length, dtype=torch.bool)
    real[0, : length // 4] = False
    real[1, length // 2 : length // 2 + 5] = False
    return real


def test_buckets_are_sorted_by_number_then_position_with_padding_last() -> None:
    _, keys = some(50, True)
    real = padding(50)
    ordered = Sorted.of(keys, BUCKETS, real)
    for b in range(2):
        for h in range(2):
            for r in range(ROUNDS):
                expected = sorted(range(50), key=lambda j: (not real[b, j], keys[b, h, r, j] if real[b, j] else 0, j))
                assert ordered.order[b, h, r].tolist() == expected
    assert torch.equal(ordered.places.gather(-1, ordered.order), torch.arange(50).expand(ordered.order.shape))


@pytest.mark.thorough
@every_cell("size", [1, 8, 30, 200])
@every_cell("q_len", [90, 3])
@every_cell("shared", [True, False])
@every_cell("kind", [ChunkRounds, RecentRounds])
def test_rounds_of_buckets_hold_every_query_once_and_no_pair_twice(kind: type[Rounds], shared: bool, q_len: int, size: int) -> None:
    real = padding(90)
    queries, keys = some(90, shared)
    rounds = kind(queries, keys, BUCKETS, real=real, q_len=q_len, size=size, shared=shared)
    often, once = rounds.parts(count_duplicates=True), rounds.parts(count_duplicates=False)
    for part in often:
        for b in range(2):
            listed = part.queries[b, 0][part.queries[b, 0] >= 0]
            assert sorted(listed.tolist()) == [i for i in range(90 - q_len, 90) if real[b, i]]
        assert met(part, 90).max() <= 1
    counts, total = sum(met(part, 90) for part in once), sum(met(part, 90) for part in often)
    assert torch.equal(counts, total.clamp(max=1))
    outside = ~(real[:, None, :, None] & real[:, None, None, :]) | (torch.arange(90) < 90 - q_len)[:, None]
    assert not (total * outside).any()
    alone = (total.sum(-1) == 0) & real[:, None] & (torch.arange(90) >= 90 - q_len)
    found = rounds.no_visible_key()
    assert torch.equal(alone, torch.zeros_like(alone) if found is None else found & real[:, None] & (torch.arange(90) >= 90 - q_len))


def test_chunks_of_equal_hashes_are_those_of_reformer() -> None:
    """Equal hashes of queries and keys: row c is chunk c of the sorted order, and it meets the chunks c - 1 and c."""
    _, keys = some(64, True)
    rounds = ChunkRounds(keys, keys, BUCKETS, real=None, q_len=64, size=16, shared=True)
    order = Sorted.of(keys, BUCKETS, None).order.view(2, 2, ROUNDS, 4, 16)
    for r, part in enumerate(rounds.parts(count_duplicates=True)):
        assert torch.equal(part.queries, order[:, :, r])
        assert torch.equal(part.keys, torch.cat([order[:, :, r].roll(1, 2), order[:, :, r]], -1))
        assert part.outside == (0, 0)


def test_queries_other_than_the_keys_meet_the_chunks_of_their_buckets() -> None:
    keys = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]).view(1, 1, 1, 8)
    queries = torch.tensor([3, 3, 3, 3, 3, 3, 3, 0]).view(1, 1, 1, 8)
    (part,) = ChunkRounds(queries, keys, 4, real=None, q_len=8, size=2, shared=False, before=0).parts(True)
    found = {int(i): set(row.tolist()) for row, slots in zip(part.keys[0, 0], part.queries[0, 0], strict=True) for i in slots if i >= 0}
    assert found == {i: {2, 3} if i == 7 else {6, 7} for i in range(8)}
