"""The path ``cpu-blocks``: each query's own and selected blocks, by PyTorch's fused CPU kernel.

A block of keys is a slice. For each head, the path copies a query once for each block that it selected, in the order
of the blocks. So the queries that selected a block are a slice, too. In bidirectional attention, a query's own block
is one more selection. Causal queries attend to their own blocks in separate calls, on views of queries and keys with
one mask. The outputs for all blocks are merged by log-sum-exp.

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
        return "the visible blocks come from a table"
    return why_not_tiles(context) or (NO_DROPOUT if context.call.dropout else None)


class _Head(Scope):
    """The selections of one head, sorted by block. :meth:`finish` merges their results into one for each query."""

    def __init__(
        self,
        item: int,
        head: int,
        order: Tensor,
        shape: tuple[int, int],
        empty: int,
        merges: bool,
        parts: Iterable[Part],
    ) -> None:
        """
        Args:
            item, head: the batch item and the head.
            order: ``(N · K,)`` int64, the numbers of the selections, sorted by block. Query i has the numbers
                ``i · K …``.
            shape: ``(N, K)``.
            empty: number of empty selections, which come first. Their weight in the merged output is 0.
            merges: whether queries already have results, which count as one more selection.
            parts: one part for each selected block.
        """
        super().__init__(parts)
        self.at, self.empty, self.merges = (item, head), empty, merges
        self.queries = order // shape[1]  # the query of each row of the buffers
        self.buffer_rows = inverse_permutation(order).view(shape)  # (N, K), the buffers' rows of each query
        self.buffers: dict[str, Tensor] = {}

    def read(self, name: str, x: Tensor) -> Tensor:
        x = x[self.at]
        if name not in ("k", "v"):
            x = x.contiguous().index_select(0, self.queries)
        return x[None, None]

    def into(self, name: str, x: Tensor) -> Tensor:
        """The tensor for results: for ``dk`` and ``dv`` a view of the gradient, otherwise a new buffer with one row
        per selection, and after these the earlier result of each query, if any."""
        x = x[self.at]
        if name in ("dk", "dv"):
            return x[None, None]
        count = len(self.queries)
        earlier = len(x) if self.merges and name != "dq" else 0
        buffer = x.new_empty(count + earlier, *x.shape[1:], dtype=precise_dtype(x))
        buffer[: self.empty] = MASKED if name == "lse" else 0
        if earlier:
            buffer[count:] = x
        self.buffers[name] = buffer
        return buffer[None, None]

    def finish(self, results: dict[str, Tensor]) -> None:
        """Sum the gradients of each query's selections, or average their outputs by log-sum-exp."""
        rows = self.buffer_rows
        if "dq" in results:
            results["dq"][self.at] += F.embedding_bag(rows, self.buffers["dq"], mode="sum")
            return
        if self.merges:
            rows = torch.cat([rows, torch.arange(rows.numel(), rows.numel() + len(rows))[:, None]], 1)
        lses = self.buffers["lse"][rows.t()]
        merged = lses.logsumexp(0)
        weights = lses.sub_(merged).exp_().t().contiguous()
        results["out"][self.at] = F.embedding_bag(rows, self.buffers["out"], mode="sum", per_sample_weights=weights)
        results["lse"][self.at] = merged


@source
class Blocks(Source):
    """Every query's own block and its selected blocks.

    - fixed: key mask ``(B, N)`` bool, or None; the selection ``(B, H, N, K)`` int64, the argument ``chosen`` of
      :func:`hf_longattn.engines.gathered.block_selected_attention`.
    - numbers: tokens per block, and whether a query sees no later keys in its own block.
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
        block comes last. ``padding``: ``(N,)``, an additive mask."""
        size = self.size
        heads, length = self.q.shape[1:3]
        full_blocks = length // size
        step = max(1, MAX_OWN_QUERIES // (heads * size))
        # (first token, number of blocks, tokens of a block)
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
        """Yield the selections of every head of a batch item. ``padding``: ``(N,)``, an additive mask."""
        size, chosen = self.size, self.chosen[item]
        heads, length, choices = chosen.shape
        blocks = -(-length // size)
        numbers = chosen.flatten(1)
        if blocks < 1 << 15:  # NumPy has a stable radix sort for 16 bits
            by_block = torch.from_numpy(numbers.to(torch.int16).numpy().argsort(-1, kind="stable"))
        else:
            by_block = numbers.argsort(dim=-1, stable=True)
        has_padding = [False] * blocks
        if padding is not None:
            has_padding = F.pad(padding != 0, (0, blocks * size - length)).view(blocks, size).any(1).tolist()
        for head in range(heads):
            # The number of empty selections, and of the selections of each block.
            empty, *counts = torch.bincount(chosen[head].flatten() + 1, minlength=blocks + 1).tolist()
            first, parts = empty, []
            for block, count in enumerate(counts):
                if count:
                    keys, mask = Runs(block * size, min(size, length - block * size)), None
                    if padding is not None and has_padding[block]:
                        mask = keys.of(padding[None, None])[:, :, None]
                    parts.append(Part(Runs(first, count, first_writer=True), keys, mask))
                first += count
            yield _Head(item, head, by_block[head], (length, choices), empty, bool(self.causal), parts)
