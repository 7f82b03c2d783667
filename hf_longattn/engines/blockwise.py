"""Band and tile attention in plain PyTorch operations, on every device, for calls without a fused kernel.

Calls may have dropout, score terms or learned biases. In a band, each block of queries attends to a slice of the keys
(a view) and to global keys. Global queries attend to all keys. Memory is N times the keys per query. Tiles of more
than :data:`MAX_PAIRS` pairs are computed in pieces, which the eager backward pass recomputes.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .batch import no_fused_kernels
from .call import UNBOUNDED, AttentionCall, GatherTile, Pattern
from .dense import masked_softmax, merged, products
from .global_rows import index_of_globals, overwrite_global_rows, size_in_graph, softmax_part

QUERIES_PER_BLOCK = 128
"""Queries per block of a band."""
MAX_PAIRS = 1 << 24
"""Maximum pairs of a tile in one piece, over all heads and batch items. The eager backward pass recomputes pieces of
larger tiles."""


def blockwise_attention(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, call: AttentionCall) -> Tensor:
    """Compute :func:`hf_longattn.engines.block_sparse.block_sparse_attention`, with dropout and any ``score_mod``.

    Scores of global keys are appended as columns. Merging them by log-sum-exp would take 1.4 times as long for forward
    and backward (1,024 tokens, 8 of them global, 4 heads of 64, window 256, one CPU thread).
    """
    batch, heads, q_len, head_dim = q.shape
    kv_len = k.shape[2]
    key_mask, global_mask, scale, score_mod = call.key_mask, call.global_mask, call.scale_for(head_dim), call.score_mod
    device, offset = q.device, kv_len - q_len
    block, blocks, left, right = _sizes(pattern, q_len, kv_len, device)
    width = block + left + right

    def slices(x: Tensor, size: int, before: int) -> Tensor:
        """Slices ``(B, H, blocks, size, D)`` of ``x (B, H, N, D)``, starting ``before`` tokens before each block.
        Their values outside of x are arbitrary."""
        if torch.compiler.is_exporting():
            index = torch.arange(blocks, device=device)[:, None] * block - before + torch.arange(size, device=device)
            tokens = x.index_select(2, index.clamp(0, x.shape[2] - 1).flatten())
            return tokens.view(*x.shape[:2], blocks, size, x.shape[3])
        after = (blocks - 1) * block + size - before - x.shape[2]
        if before < 0:
            x, before = x[:, :, -before:], 0
        x = F.pad(x, (0, 0, before, after))
        return x.unfold(2, size, block).transpose(-1, -2)

    q_blocks = slices(q, block, 0)
    k_slices = slices(k, width, left - offset)
    v_slices = slices(v, width, left - offset)
    # Positions of queries and keys, broadcast over (B, H, blocks, queries of a block, keys of its slice).
    b = torch.arange(batch, device=device).view(-1, 1, 1, 1, 1)
    h = torch.arange(heads, device=device).view(1, -1, 1, 1, 1)
    start = torch.arange(blocks, device=device).view(1, 1, -1, 1, 1) * block + offset
    q_idx = start + torch.arange(block, device=device).view(1, 1, 1, -1, 1)
    kv_idx = start - left + torch.arange(width, device=device).view(1, 1, 1, 1, -1)
    inside = (kv_idx >= 0) & (kv_idx < kv_len) & (q_idx < kv_len)
    q_safe, kv_safe = q_idx.clamp(max=kv_len - 1), kv_idx.clamp(0, kv_len - 1)

    def scored(queries: Tensor, keys: Tensor, i: Tensor, j: Tensor) -> Tensor:
        scores = products(queries, keys) * scale
        if score_mod is None:
            return scores
        return score_mod(scores, b, h, i, j)

    # The keys of each block's slice.
    seen = inside & pattern.band_mod(b, h, q_idx, kv_idx)
    if key_mask is not None:
        seen = seen & key_mask[b, kv_safe]
    scores = scored(q_blocks, k_slices, q_safe, kv_safe)
    if global_mask is not None:
        # A column for each global key that is outside of the query's band.
        index, real = index_of_globals(call)
        columns = index[:, None, None, None, :]
        column_seen = real[:, None, None, None, :] & (q_idx < kv_len) & ~pattern.band_mod(b, h, q_idx, columns)
        if pattern.causal:
            column_seen = column_seen & (columns <= q_idx)
        k_global, v_global = (
            x[torch.arange(batch, device=device)[:, None], :, index].transpose(1, 2)[:, :, None] for x in (k, v)
        )
        scores = torch.cat([scores, scored(q_blocks, k_global, q_safe, columns)], -1)
        shape = torch.broadcast_shapes(seen.shape[:-1], column_seen.shape[:-1])
        seen = torch.cat([seen.expand(*shape, -1), column_seen.expand(*shape, -1)], -1)
    weights = F.dropout(masked_softmax(scores, seen, call.sink_scores), call.dropout).to(v.dtype)
    if global_mask is None:
        return first_rows((weights @ v_slices).flatten(2, 3), q_len)
    out = first_rows((weights[..., :width] @ v_slices + weights[..., width:] @ v_global).flatten(2, 3), q_len)
    if not pattern.global_rows:
        return out
    return overwrite_global_rows(out, q, k, v, index, real, call.replace(causal=pattern.causal))


def _sizes(pattern: Pattern, q_len: int, kv_len: int, device: torch.device) -> tuple[int, int, int, int]:
    """Queries per block, number of blocks, and the width of the band to the left and right of a query."""
    if torch.compiler.is_exporting():
        # One graph for all lengths computes sizes when it runs, with blocks no longer than the input. If torch.export
        # knew a size as a minimum of the length, it would add guards.
        queries, keys = (torch.full((), length, device=device) for length in (q_len, kv_len))
        size = queries.clamp(max=QUERIES_PER_BLOCK)
        block = size_in_graph(size, 1, QUERIES_PER_BLOCK)
        blocks = size_in_graph((queries + size - 1) // size, 1, UNBOUNDED)
        left = size_in_graph(keys.clamp(max=pattern.left), 0, pattern.left)
        right = size_in_graph(keys.clamp(max=pattern.right), 0, pattern.right)
        return block, blocks, left, right
    # Branches, since torch.compile would keep min in the shapes, and Inductor fails to divide by it.
    left = pattern.left if pattern.left <= kv_len else kv_len
    right = pattern.right if pattern.right <= kv_len else kv_len
    return QUERIES_PER_BLOCK, -(-q_len // QUERIES_PER_BLOCK), left, right


def first_rows(x: Tensor, count: int) -> Tensor:
    """The first ``count`` tokens of ``x (B, H, N, D)``. An exported graph uses an index, since a slice compares
    ``count`` and N."""
    if torch.compiler.is_exporting():
        return x.index_select(2, torch.arange(count, device=x.device))
    return x[:, :, :count]


def plain_gathered(q: Tensor, k: Tensor, v: Tensor, tiles: Sequence[GatherTile], call: AttentionCall) -> Tensor:
    """Compute :func:`hf_longattn.engines.gathered.gathered_attention`, with dropout, any ``score_mod`` and learned
    biases."""
    batch, heads, q_len, head_dim = q.shape
    outs, lses = [], []  # outputs (B, H, Nq, D) and log-sum-exps (B, H, Nq) of tiles; -inf if a query sees no key
    for tile in tiles:
        # Compute a large tile in pieces. The backward pass recomputes them.
        pieces = list(_split_tile(tile, batch * heads))
        run: Any = _rows
        eager = not torch.compiler.is_compiling() and no_fused_kernels() is None
        if len(pieces) > 1 and torch.is_grad_enabled() and eager:
            run = functools.partial(checkpoint, _rows, use_reentrant=False)
        results = [run(q, k, v, piece, call) for piece in pieces]
        # Move the results to the positions of their queries. Empty slots go to an extra token after the last.
        listed = torch.cat([piece.queries.flatten(2) for piece in pieces], 2)
        index = torch.where(listed >= 0, listed, q_len).expand(batch, heads, -1)
        out = torch.cat([x.flatten(2, 3) for x, _ in results], 2)
        lse = torch.cat([x.flatten(2) for _, x in results], 2)
        all_features = index[..., None].expand(-1, -1, -1, head_dim)
        out = out.new_zeros(batch, heads, q_len + 1, head_dim).scatter(2, all_features, out)
        lse = lse.new_full((batch, heads, q_len + 1), float("-inf")).scatter(2, index, lse)
        outs.append(out[:, :, :q_len])
        lses.append(lse[:, :, :q_len])
    return merged(outs, lses, call.sink_scores)


def _split_tile(tile: GatherTile, copies: int) -> Iterator[GatherTile]:
    """Cut a tile into pieces of at most :data:`MAX_PAIRS` pairs over all ``copies``, the batch items times heads. A
    piece is a group of rows, or some of the query slots of one row."""
    rows, slots = tile.queries.shape[2:]
    width = copies * tile.keys.shape[3]
    if rows * slots * width <= MAX_PAIRS:
        yield tile
        return
    some_slots = max(1, min(slots, MAX_PAIRS // width))
    some_rows = max(1, MAX_PAIRS // (width * some_slots))
    for row in range(0, rows, some_rows):
        for slot in range(0, slots, some_slots):
            at = slice(row, row + some_rows)
            within = slice(slot, slot + some_slots)
            bias = tile.bias
            if bias is not None and bias.shape[2] > 1:
                bias = bias[:, :, at]
            if bias is not None and bias.shape[3] > 1:
                bias = bias[:, :, :, within]
            yield dataclasses.replace(
                tile, queries=tile.queries[:, :, at, within], keys=tile.keys[:, :, at], bias=bias
            )


def _rows(q: Tensor, k: Tensor, v: Tensor, tile: GatherTile, call: AttentionCall) -> tuple[Tensor, Tensor]:
    """Output ``(B, H, R, Tq, D)`` and log-sum-exp ``(B, H, R, Tq)`` of a tile's rows."""
    b = torch.arange(q.shape[0], device=q.device).view(-1, 1, 1, 1)
    h = torch.arange(q.shape[1], device=q.device).view(1, -1, 1, 1)
    rows, columns = tile.queries.clamp(min=0), tile.keys.clamp(min=0)
    scores = products(q[b, h, rows], k[b, h, columns]) * call.scale_for(q.shape[-1])
    q_idx, kv_idx = rows[..., :, None], columns[..., None, :]
    if call.score_mod is not None:
        scores = call.score_mod(scores, b[..., None], h[..., None], q_idx, kv_idx)
    seen = allowed(tile, call.key_mask, b)
    if tile.bias is not None:
        if tile.bias.dtype == torch.bool:
            seen = seen & tile.bias
        else:
            scores = scores + tile.bias
    return softmax_part(scores, seen, v[b, h, columns], call.dropout)


def allowed(tile: GatherTile, key_mask: Tensor | None, b: Tensor) -> Tensor:
    """Pairs that the tile's rules and the padding leave visible, ``(B or 1, H or 1, R, Tq, Tk)`` bool."""
    q_idx, kv_idx = tile.queries[..., :, None], tile.keys[..., None, :]
    seen = (q_idx >= 0) & (kv_idx >= 0) & tile.sees(q_idx - kv_idx)
    if key_mask is not None:
        seen = seen & key_mask[b, tile.keys.clamp(min=0)][..., None, :]
    return seen
