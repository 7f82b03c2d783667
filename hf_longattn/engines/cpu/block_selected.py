"""The path ``cpu-blocks``: each query's own and selected blocks, by PyTorch's fused CPU kernel.

A block of keys is a slice. The queries of a head are copied in the order of their selected blocks, so the queries of a
block are a slice, too. In bidirectional attention, a query's own block is one more selection. Causal queries attend to
their own blocks in separate calls, on views of queries and keys with one mask. The outputs for all blocks are merged
by log-sum-exp.

The tiles of the gathered engine take 1.8 times as long for the forward pass and 1.7 times for forward and backward
(2,048 and 8,192 tokens, 4 blocks of 128 per query, 4 heads of 64, one thread).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ..call import DispatchContext, Pattern, inverse_permutation, precise_dtype
from .kernels import MASKED, NO_DROPOUT, padding_of, visible_mask, why_not_tiles
from .softmax import Part, Runs, Scope, Source, source

MAX_OWN_QUERIES = 4096
"""Maximum queries, over all heads, in one call for own blocks."""


def why_not(context: DispatchContext) -> str | None:
    """Why this path does not run, as a clause. ``None`` if it may run."""
    if context.block_size:
        return "the blocks are those of a table"
    return why_not_tiles(context) or (NO_DROPOUT if context.call.dropout else None)


class _Head(Scope):
    """The selections of one head, sorted by block. Their results are merged by :meth:`finish`."""

    def __init__(
        self,
        item: int,
        head: int,
        order: Tensor,
        shape: tuple[int, int],
        none: int,
        merges: bool,
        parts: Iterable[Part],
    ) -> None:
        """
        Args:
            order: the selections sorted by block, ``(N · K)``.
            shape: ``(N, K)``.
            none: number of empty selections, which come first. Their weight in the merged output is 0.
            merges: whether queries already have results, which count as one more selection.
        """
        super().__init__(parts)
        self.at, self.none, self.merges = (item, head), none, merges
        self.queries, self.row = order // shape[1], inverse_permutation(order).view(shape)
        self.buffers: dict[str, Tensor] = {}

    def read(self, name: str, x: Tensor) -> Tensor:
        x = x[self.at]
        return (x if name in ("k", "v") else x.contiguous().index_select(0, self.queries))[None, None]

    def into(self, name: str, x: Tensor) -> Tensor:
        """The tensor for results: for ``dk`` and ``dv`` a view of the gradient, otherwise a new buffer with one row
        per selection."""
        x = x[self.at]
        if name in ("dk", "dv"):
            return x[None, None]
        count = len(self.queries)
        earlier = len(x) if self.merges and name != "dq" else 0
        rows = x.new_empty(count + earlier, *x.shape[1:], dtype=precise_dtype(x))
        rows[: self.none] = MASKED if name == "lse" else 0
        if earlier:
            rows[count:] = x
        self.buffers[name] = rows
        return rows[None, None]

    def finish(self, results: dict[str, Tensor]) -> None:
        row = self.row
        if "dq" in results:
            results["dq"][self.at] += F.embedding_bag(row, self.buffers["dq"], mode="sum")
            return
        if self.merges:
            row = torch.cat([row, torch.arange(row.numel(), row.numel() + len(row))[:, None]], 1)
        shares = self.buffers["lse"][row.t()]
        merged = shares.logsumexp(0)
        weights = shares.sub_(merged).exp_().t().contiguous()
        results["out"][self.at] = F.embedding_bag(row, self.buffers["out"], mode="sum", per_sample_weights=weights)
        results["lse"][self.at] = merged


@source
class Blocks(Source):
    """Every query's own block and its selected blocks.

    - fixed: key mask ``(B, N)`` bool, or None; the selection ``(B, H, N, K)`` int64, as
      :func:`hf_longattn.engines.gathered.block_selected_attention` takes it.
    - numbers: tokens per block, and whether queries see only themselves and earlier keys in their own block.
    """

    name = "blocks"
    may_see_nothing = True

    def read_arguments(self) -> None:
        self.key_mask, chosen = self.fixed
        self.size, self.causal = self.numbers
        assert chosen is not None
        own_block = (torch.arange(chosen.shape[2]) // self.size)[:, None].expand(*chosen.shape[:3], 1)
        self.chosen = chosen if self.causal else torch.cat([chosen, own_block], -1)

    def scopes(self, backward: bool) -> Iterator[Scope]:
        for item in range(len(self.q)):
            padding = padding_of(self.key_mask, item, self.dtype)
            if self.causal:
                yield Scope(self._own_blocks(padding), slice(item, item + 1))
            if self.chosen.shape[3]:
                yield from self._heads(item, padding)

    def _own_blocks(self, padding: Tensor | None) -> Iterator[Part]:
        """Parts for causal queries and their own blocks. A part has as many blocks as fit the CPU cache. An incomplete
        block comes last."""
        size, heads, length = self.size, *self.q.shape[1:3]
        full_blocks, step = length // size, max(1, MAX_OWN_QUERIES // (heads * size))
        pieces = [(at * size, min(step, full_blocks - at), size) for at in range(0, full_blocks, step)]
        if length > full_blocks * size:
            pieces.append((full_blocks * size, 1, length - full_blocks * size))
        for first, count, width in pieces:
            runs = Runs(first, width, count, width)
            mask = visible_mask(width, width, 0, Pattern.everything(causal=True), None, self.dtype)
            hidden = None if padding is None else runs.of(padding[None, None])[:, :, None]
            if hidden is not None and bool(hidden.any()):
                mask = mask + hidden
            yield Part(runs, runs, mask)

    def _heads(self, item: int, padding: Tensor | None) -> Iterator[_Head]:
        """Every head's selections."""
        size, chosen = self.size, self.chosen[item]
        heads, length, choices = chosen.shape
        blocks = -(-length // size)
        numbers = chosen.flatten(1)
        if blocks < 1 << 15:  # NumPy has a stable radix sort for 16 bits
            by_block = torch.from_numpy(numbers.to(torch.int16).numpy().argsort(-1, kind="stable"))
        else:
            by_block = numbers.argsort(dim=-1, stable=True)
        hidden = [False] * blocks
        if padding is not None:
            hidden = F.pad(padding != 0, (0, blocks * size - length)).view(blocks, size).any(1).tolist()
        for head in range(heads):
            none, *counts = torch.bincount(chosen[head].flatten() + 1, minlength=blocks + 1).tolist()
            end, parts = none, []
            for block, count in enumerate(counts):
                if count:
                    keys = Runs(block * size, min(size, length - block * size))
                    mask = keys.of(padding[None, None])[:, :, None] if padding is not None and hidden[block] else None
                    parts.append(Part(Runs(end, count, first_writer=True), keys, mask))
                end += count
            yield _Head(item, head, by_block[head], (length, choices), none, bool(self.causal), parts)
