"""The bucketed engine: attention between tokens sorted by bucket, in rounds. Each round is one tile of the gathered
engine.

In each round, a token has one bucket as a key and one as a query. The real keys are sorted by (bucket, position), so
each key has a *rank* 0 … n-1. A query has the rank that its (bucket, position) would have among the keys. In each
round it sees one run of ranks:

- :class:`ChunkRounds` cuts the sorted keys into chunks. A query sees its chunk and neighbouring ones. The first and
  the last chunk are neighbours.
- :class:`RecentRounds` lets a query see the last w keys of its bucket at or before it. Later tokens never change them.

Sorted queries with nearly the same run form a tile row. The cost is N·(size of the run) for buckets of any size: an
empty bucket adds no tile row, and a large bucket does not lengthen one. Padding is sorted to the end and never seen.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from .accelerator import accelerated
from .batch import DocumentLabels, graph_property
from .call import GatherTile, inverse_permutation
from .dense import both

MAX_ROW_QUERIES = 128
"""Maximum queries per tile row."""


@dataclasses.dataclass(frozen=True)
class Sorted:
    """Tokens sorted by (bucket, position) in every round. All tensors are ``(B, H, R, N)``.

    codes: bucket · N + position in ascending order, padding last.
    order: the token at each rank.
    """

    codes: Tensor
    order: Tensor

    @classmethod
    def of(cls, buckets: Tensor, num_buckets: int, real: Tensor | None, first: int = 0) -> Sorted:
        """Sort tokens by ``buckets (B, H, R, N)``. Tokens count as padding if they are not ``real (B, N)``, or before
        position ``first``."""
        length = buckets.shape[-1]
        if accelerated(buckets) and (num_buckets + 1) * length < 1 << 31:  # a GPU sorts int32 in half the time
            buckets = buckets.int()
        position = torch.arange(length, device=buckets.device, dtype=buckets.dtype)
        if first or real is not None:
            outside = position < first
            if real is not None:
                outside = outside | ~real[:, None, None, :]
            buckets = torch.where(outside, num_buckets, buckets)
        return cls(*torch.add(position, buckets, alpha=length).sort(-1))


class Rounds(ABC):
    """The visible keys of every query per round, and the gathered engine's tiles for them."""

    limits_rows: ClassVar[bool] = False
    """Whether some queries of a tile row see only a part of its keys."""
    groups: Tensor
    """The group of every sorted query, ``(B, H, R, N)``, non-decreasing. Queries of one group have nearly the same
    run, and a tile row has queries of one group only. Not set if :attr:`aligned`."""
    key_ranks = graph_property[Tensor](lambda self: inverse_permutation(self.keys.order))
    """The rank of each token among the keys."""

    def __init__(
        self,
        query_buckets: Tensor,
        key_buckets: Tensor,
        num_buckets: int,
        *,
        real: Tensor | None,
        q_len: int,
        size: int,
        shared: bool,
    ) -> None:
        """
        Args:
            query_buckets, key_buckets: ``(B, H, R, N)`` int64, below ``num_buckets``; only the last ``q_len`` query
                buckets are used.
            real: ``(B, N)`` bool, True = real token.
            size: tokens in a chunk, or in the run of earlier keys.
            shared: whether queries and keys are the same vectors. If they are, their buckets are equal, and a token
                does not see itself.
        """
        self.count, self.length = key_buckets.shape[-2:]
        if size >= self.length:  # a branch, since torch.compile would keep min in the shapes
            size = self.length
        self.size, self.shared, self.num_buckets = size, shared, num_buckets
        self.first = self.length - q_len
        self.keys = Sorted.of(key_buckets, num_buckets, real)
        same = shared and self.first == 0
        self.queries = self.keys if same else Sorted.of(query_buckets, num_buckets, real, self.first)
        codes = self.keys.codes
        if real is None:
            self.real = codes.new_full((1, 1, 1, 1), self.length)
        else:
            self.real = real.sum(-1, dtype=codes.dtype).view(-1, 1, 1, 1)
        # If queries and keys have the same order, a tile row has ``size`` consecutive ranks. Otherwise it has fewer,
        # since it also ends where the group changes.
        self.aligned = same and size <= MAX_ROW_QUERIES
        self.row_size = size
        if not self.aligned:
            self.row_size = max(1, min(size, MAX_ROW_QUERIES) // 2)

    def by_token(self, x: Tensor) -> Tensor:
        """Reorder ``x (B, H, R, N)`` from the order of the sorted queries to the order of positions."""
        return torch.empty_like(x).scatter_(-1, self.queries.order, x)

    @abstractmethod
    def run(self, group: Tensor) -> Tensor:
        """The ranks of the keys of each tile row, ``(B, H, R, rows, Tk)``, from the row's ``group (B, H, R, rows)``.
        Ranks that no real key has are empty slots."""

    @abstractmethod
    def meets(self, round: int, queries: Tensor, keys: Tensor) -> Tensor:
        """Which of ``keys (B, H, rows, Tk)`` each of ``queries (B, H, rows, Tq)`` sees in ``round``:
        ``(B, H, rows, Tq, Tk)`` bool."""

    @abstractmethod
    def no_visible_key(self) -> Tensor | None:
        """Which queries see no key in all rounds, by position, ``(B, H, N)`` bool; ``None`` if every query sees a key.
        The values at positions without a query are arbitrary."""

    def parts(self, count_duplicates: bool = False) -> tuple[GatherTile, ...]:
        """One tile per round. A tile omits the pairs of earlier tiles, unless ``count_duplicates``."""
        all_queries, group = self._rows()
        ranks = self.run(group)
        all_keys = self.keys.order.gather(-1, ranks.clamp(0, self.length - 1).flatten(-2)).view(ranks.shape)
        all_keys = torch.where((ranks >= 0) & (ranks < self.real[..., None]), all_keys, -1)
        outside = (0, 0) if self.shared else None
        tiles = []
        for round in range(all_queries.shape[2]):
            queries, keys = all_queries[:, :, round], all_keys[:, :, round]
            bias = None
            if self.limits_rows:
                bias = self.meets(round, queries, keys)
            if not count_duplicates:
                for earlier in range(round):
                    bias = both(bias, ~self.meets(earlier, queries, keys))
            tiles.append(GatherTile(queries, keys, outside=outside, bias=bias))
        return tuple(tiles)

    def _rows(self) -> tuple[Tensor, Tensor]:
        """The queries of each tile row, ``(B, H, R, rows, self.row_size)``, -1 in empty slots, and the group of each
        row, ``(B, H, R, rows)``."""
        order, size = self.queries.order, self.row_size
        queries = torch.where(self.queries.codes < self.num_buckets * self.length, order, -1)  # without padding
        if self.aligned:
            rows = -(-self.length // size)
            queries = torch.nn.functional.pad(queries, (0, rows * size - self.length), value=-1)
            group = torch.arange(rows, device=order.device).expand(*order.shape[:3], -1)
            return queries.unflatten(-1, (rows, size)), group
        groups = -(-self.length // self.size)
        return rows_by_group(queries, self.groups.clamp(0, groups - 1), groups, self.length - self.first, size)


class ChunkRounds(Rounds):
    """A query sees its chunk, the ``before`` previous chunks and the ``after`` next ones. The first and the last chunk
    are neighbours."""

    key_chunks = graph_property[Tensor](lambda self: self.key_ranks // self.size)
    query_chunks = graph_property[Tensor](lambda self: self.key_chunks if self.aligned else self.by_token(self.groups))
    """The chunk of each token as a key (``key_chunks``) and as a query."""

    def __init__(self, *args: Any, before: int = 1, after: int = 0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.before, self.after = before, after
        self.chunks = (self.real + self.size - 1) // self.size
        if not self.aligned:  # a group has the queries of one chunk
            is_int32 = self.keys.codes.dtype == torch.int32
            rank = torch.searchsorted(self.keys.codes, self.queries.codes, out_int32=is_int32)
            self.groups = rank.minimum((self.real - 1).clamp(min=0)) // self.size

    def neighbours(self, chunk: Tensor) -> Tensor:
        """The numbers of the chunks that queries of ``chunk (…)`` see, ``(…, offsets)``; -1 in place of those that
        would repeat a chunk, if there are few."""
        offsets = chunk_offsets(self.before, self.after, -(-self.length // self.size))
        offset = torch.arange(offsets.start, offsets.stop, device=chunk.device)
        near = (chunk[..., None] + offset) % self.chunks[..., None].clamp(min=1)
        return torch.where(offset + self.before < self.chunks[..., None], near, -1)

    def run(self, group: Tensor) -> Tensor:
        near = self.neighbours(group)
        inside = torch.arange(self.size, device=group.device)
        first_rank = torch.where(near >= 0, near * self.size, -self.length - self.size)  # negative if there is none
        return first_rank[..., None].add(inside).flatten(-2)

    def meets(self, round: int, queries: Tensor, keys: Tensor) -> Tensor:
        dtype = torch.int16 if self.length // self.size < 32000 else torch.int32
        query_chunks = taken(self.query_chunks[:, :, round], queries)
        key_chunks = taken(self.key_chunks[:, :, round], keys).to(dtype)[..., None, :]
        near = self.neighbours(query_chunks).to(dtype)  # (B, H, rows, Tq, offsets)
        seen = key_chunks == near[..., :1]
        for t in range(1, near.shape[-1]):
            seen = seen | (key_chunks == near[..., t : t + 1])
        return seen

    def no_visible_key(self) -> Tensor | None:
        if not self.shared:
            return None  # no chunk is empty
        # A token does not see itself, so it needs a second key in its chunks.
        near = self.neighbours(self.query_chunks)
        chunk_sizes = (self.real[..., None] - near * self.size).clamp(max=self.size)
        return (torch.where(near >= 0, chunk_sizes, 0).sum(-1) <= 1).all(2)


def chunk_offsets(before: int, after: int, chunks: int) -> range:
    """The offsets from a query's chunk to the chunks that it sees. They are at most ``chunks`` numbers, since more
    offsets would repeat chunks."""
    if before + after < chunks:
        return range(-before, after + 1)
    return range(-before, chunks - before)


class RecentRounds(Rounds):
    """A query sees the last ``size`` keys of its bucket at or before its position."""

    limits_rows = True
    low = graph_property[Tensor](lambda self: self.by_token(self.sorted_low))
    high = graph_property[Tensor](lambda self: self.by_token(self.sorted_high))
    """The ranks of the first key (``low``) and the last key that each token sees."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # A code is bucket · length + position, so codes sort by bucket, then by position. For each sorted query: the
        # rank of the last key up to its position, and that of the first key of its bucket that is not too far back.
        codes = self.queries.codes
        bucket_start = codes // self.length * self.length
        is_int32 = codes.dtype == torch.int32
        self.sorted_high = torch.searchsorted(self.keys.codes, codes, right=True, out_int32=is_int32) - 1
        first_in_bucket = torch.searchsorted(self.keys.codes, bucket_start, out_int32=is_int32)
        self.sorted_low = first_in_bucket.maximum(self.sorted_high - (self.size - 1))
        self.groups = self.sorted_high.clamp(min=0) // self.size  # queries whose last keys lie close together

    def run(self, group: Tensor) -> Tensor:
        start = group * self.size - (self.size - 1)
        return start[..., None] + torch.arange(2 * self.size - 1, device=group.device)

    def meets(self, round: int, queries: Tensor, keys: Tensor) -> Tensor:
        low, high = (taken(x[:, :, round], queries).int()[..., None] for x in (self.low, self.high))
        rank = taken(self.key_ranks[:, :, round], keys).int()[..., None, :]
        return (rank >= low) & (rank <= high)

    def no_visible_key(self) -> Tensor:
        return (self.high < self.low + int(self.shared)).all(2)


def rows_by_group(order: Tensor, groups: Tensor, num_groups: int, count: int, size: int) -> tuple[Tensor, Tensor]:
    """Cut sorted queries into tile rows of at most ``size`` queries of one group.

    A new row starts after every ``size`` sorted queries, and where the group changes. There are at most
    ``ceil(count / size) + num_groups`` rows.

    Args:
        order: ``(B, H, R, N)``, queries by ascending group. An entry is no query if it is -1, or if it comes after the
            first ``count`` entries.
        groups: ``(B, H, R, N)``, group of each entry of ``order``, below ``num_groups``.
    Returns:
        Queries ``(B, H, R, rows, size)``, -1 where a slot is empty, and the group of each row ``(B, H, R, rows)``.
    """
    slot = torch.arange(order.shape[-1], device=order.device)
    total = -(-count // size) + num_groups
    row = (slot // size + groups).clamp(max=total - 1)
    # Entries that are no queries go to an extra slot at the end, and their groups to an extra row.
    is_query = slot < count
    target = torch.where(is_query, row * size + slot % size, total * size)
    rows = order.new_full((*order.shape[:3], total * size + 1), -1)
    rows.scatter_(-1, target, torch.where(is_query, order, -1))
    group = groups.new_zeros(*order.shape[:3], total + 1).scatter_(-1, torch.where(is_query, row, total), groups)
    return rows[..., :-1].unflatten(-1, (total, size)), group[..., :-1]


def cluster_rows(
    clusters: Tensor, num_clusters: int, real: Tensor | None, q_len: int, size: int
) -> tuple[Tensor, Tensor]:
    """Sort queries by ``clusters (B, H, N)`` into rows of one cluster each.

    Returns:
        The positions of the queries ``(B, H, rows, size)``, -1 in empty slots, and the cluster of each row
        ``(B, H, rows)``.
    """
    length = clusters.shape[-1]
    ordered = Sorted.of(clusters[:, :, None], num_clusters, real, length - q_len)
    cluster = ordered.codes // length
    order = torch.where(cluster < num_clusters, ordered.order, -1)
    rows, group = rows_by_group(order, cluster.clamp(max=num_clusters - 1), num_clusters, q_len, size)
    return rows[:, :, 0], group[:, :, 0]


def taken(values: Tensor, positions: Tensor) -> Tensor:
    """``values (B, H, N)`` at ``positions (B, H, rows, T)``; arbitrary where a position is -1."""
    return values.gather(-1, positions.clamp(min=0).flatten(-2)).view(positions.shape)


def buckets_of_documents(buckets: Tensor, num_buckets: int, documents: DocumentLabels | None) -> tuple[Tensor, int]:
    """The buckets ``(B, H, R, N)`` renumbered so that no two packed documents share a bucket, and their new number."""
    if documents is None:
        return buckets, num_buckets
    return torch.add(buckets, documents.number[:, None, None], alpha=num_buckets), num_buckets * documents.most
