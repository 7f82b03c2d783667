"""The plan by which a band is cut into calls of the CPU's fused kernel: into blocks of the size that costs least, by what calls cost here.

A block is some successive queries with the one slice of keys that they see. Small blocks compute few pairs outside the band. Large ones are
fewer calls; the kernel takes less time for each of their pairs; and where it first lays keys out for the processor's tiles (AMX), each key
is laid out for more queries. The largest is one block of all queries: the dense kernel with the band as its mask, the fastest up to about
the length that the band covers. With global tokens, this one block needs no further calls for them.

The choice depends on lengths, band, dtype and processor alone, so that a sequence has the same bits in every batch and with every number of
heads.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ...private_apis import has_amx

KERNEL_QUERIES, KERNEL_KEYS = (32, 64, 256), 512
"""Queries that the kernel takes at a time, in blocks of up to 191, of up to 767, and of more; and keys."""
MAX_BLOCK_QUERIES = 2048
"""Most queries in one block, which bounds its mask."""


class Group(NamedTuple):
    """``blocks`` blocks of ``block`` queries from ``first`` on, whose key slices start ``step`` apart from ``start`` on, ``width`` long."""

    first: int
    blocks: int
    block: int
    start: int
    step: int
    width: int

    def queries(self, x: Tensor) -> Tensor:
        """The blocks of ``x (B, H, Nq, …)``, a view ``(blocks, H, block, …)`` of one sequence, or ``(B, H, block, …)`` for one block."""
        return self._slices(x, self.first, self.block, self.block)

    def keys(self, x: Tensor) -> Tensor:
        """The slices of ``x (B, H, Nk, …)``, a view as that of :meth:`queries`."""
        return self._slices(x, self.start, self.width, self.step)

    def add_to_keys(self, total: Tensor, parts: Tensor) -> None:
        """Add ``parts``, shaped as :meth:`keys`, to ``total (B, H, Nk, D)``: one step at a time, since slices no wider never overlap."""
        for at in range(0, self.width, self.step):
            size = min(self.step, self.width - at)
            self._slices(total, self.start + at, size, self.step).add_(parts[:, :, at : at + size])

    def _slices(self, x: Tensor, first: int, size: int, step: int) -> Tensor:
        """Slice i starts at ``first + i * step``; slices may overlap."""
        if self.blocks == 1:
            return x.narrow(2, first, size)
        _, heads, tokens, *inner = x.stride()
        shape = (self.blocks, x.shape[1], size, *x.shape[3:])
        return x.as_strided(shape, (step * tokens, heads, tokens, *inner), x.storage_offset() + first * tokens)

    def part(self, number: int, count: int) -> Group:
        """At most ``count`` blocks from block ``number`` on."""
        first, start = self.first + number * self.block, self.start + number * self.step
        return self._replace(first=first, start=start, blocks=min(count, self.blocks - number))

    def sees_all(self, shift: int, left: int, right: int) -> bool:
        """Whether the band leaves no pair of a block out, whose first query is at index ``shift`` of its slice."""
        return shift + self.block - 1 <= left and self.width - 1 - shift <= right


def groups(q_len: int, kv_len: int, shift: int, left: int, right: int, block: int) -> Iterator[Group]:
    """Cover all queries: the inner blocks, whose slices lie within the sequence, in one group; the edges block by block.

    Args:
        shift: position of the first query within the keys.
    """
    first = -(-max(0, left - shift) // block)
    last = max(first, min(q_len, kv_len - right - shift) // block)
    if last > first:
        yield Group(first * block, last - first, block, first * block + shift - left, block, block + left + right)
    edges = [(0, first * block), (last * block, q_len)] if last > first else [(0, q_len)]
    for start, stop in edges:
        for row in range(start, stop, block):
            size = min(block, stop - row)
            from_key = max(0, row + shift - left)
            width = min(kv_len, row + size + shift + right) - from_key
            yield Group(row, 1, size, from_key, width, width)


class Costs(NamedTuple):
    """Nanoseconds that calls take for each head of width 64, where there are 12 of them."""

    sizes: tuple[int, ...]
    """Queries of a block to choose from, besides all queries."""
    pair: tuple[float, float, float]
    """A pair of a query and a key without a mask, by the size of blocks as :data:`KERNEL_QUERIES`."""
    masked: float
    """More for a pair with a mask."""
    key: float
    """A key of a block: it is laid out for the tiles; or, in the backward pass, its gradients are added up."""
    call: float
    """A call of the kernel."""
    tokens: float
    """The calls for global tokens, besides those of blocks."""
    queries: int
    """Queries of a call at most, so that its results stay in the cache."""

    def of(self, group: Group, shift: int, left: int, right: int) -> float:
        """All calls for a group of blocks whose first query is at index ``shift`` of its slice."""
        size = (group.block >= 192) + (group.block >= 768)
        pair = self.pair[size] + (0.0 if group.sees_all(shift, left, right) else self.masked)
        calls = -(-group.blocks // max(1, self.queries // group.block))
        pairs = group.block * group.width
        if right == 0 and group.block == group.width:  # all queries and keys, where the kernel leaves out what is after a query
            pairs = sum(
                min(KERNEL_QUERIES[size], group.block - row)
                * min(group.width, -(-(row + KERNEL_QUERIES[size]) // KERNEL_KEYS) * KERNEL_KEYS)
                for row in range(0, group.block, KERNEL_QUERIES[size])
            )
        return calls * self.call + group.blocks * (pairs * pair + group.width * self.key)


FP32 = Costs((32, 64), (3.4, 3.2, 3.1), 0.2, 0.0, 3_500.0, 50_000.0, 2048)
BF16 = Costs((32, 64), (3.55, 3.2, 3.15), 0.2, 0.0, 5_800.0, 100_000.0, 2048)
BF16_AMX = Costs((32, 192, 256, 384, 768), (3.3, 1.1, 0.8), 0.25, 110.0, 5_000.0, 80_000.0, 384)
FP32_BACKWARD = Costs((64, 192), (8.0, 8.0, 7.6), 0.3, 100.0, 8_000.0, 200_000.0, 256)
BF16_BACKWARD = Costs((64, 192, 256), (8.0, 7.0, 5.4), 0.3, 250.0, 8_000.0, 200_000.0, 256)
"""Measured on an AMD EPYC of 2024 (AVX-512 without AMX) in processor time of one thread, with windows of 512 tokens and 256 to 2,048
tokens; those with AMX are estimated from whole models on an Intel Xeon of 2023."""


def costs_of(dtype: torch.dtype, backward: bool, threads: int) -> Costs:
    """The costs on this processor."""
    half = dtype.itemsize < 4
    if backward:
        return BF16_BACKWARD if half else FP32_BACKWARD
    if dtype == torch.bfloat16 and has_amx():
        return BF16_AMX._replace(queries=BF16_AMX.queries * threads)  # each thread's share stays in its cache
    return BF16 if half else FP32


class Plan(NamedTuple):
    """Blocks for all queries of a sequence, and how many of them a call takes."""

    groups: tuple[Group, ...]
    block: int
    """Queries of a block, fewer in the last one."""
    queries: int
    """Queries of a call at most."""

    dense: bool
    """Whether it is one block with all keys, whose mask also holds the global tokens."""

    def calls(self, group: Group) -> Iterator[Group]:
        """The calls of a group, each with as many blocks as a call takes."""
        count = max(1, self.queries // self.block)
        for number in range(0, group.blocks, count):
            yield group.part(number, count)


@functools.lru_cache(4096)
def band_plan(
    q_len: int, kv_len: int, shift: int, left: int, right: int, dtype: torch.dtype, threads: int, *, backward: bool = False,
    tokens: bool = False, block: int | None = None,
) -> Plan:  # fmt: skip
    """The cheapest plan for queries whose first is at position ``shift`` of the keys, and which see ``left`` keys back, ``right`` ahead.

    Args:
        threads: of the process.
        backward: for the backward pass.
        tokens: whether there are global tokens.
        block: the size of blocks, in place of the cheapest.
    """
    costs = costs_of(dtype, backward, threads)
    sizes = [block] if block else [*(size for size in costs.sizes if size < q_len), *([q_len] if q_len <= MAX_BLOCK_QUERIES else [])]
    plans = {}
    for size in sizes:
        blocks = tuple(groups(q_len, kv_len, shift, left, right, size))
        plan = Plan(blocks, size, costs.queries, dense=(blocks[0].block, blocks[0].width) == (q_len, kv_len))
        plans[plan] = sum(costs.of(group, group.first + shift - group.start, left, right) for group in blocks)
        plans[plan] += costs.tokens * (tokens and not plan.dense)
    return min(plans, key=plans.__getitem__)
