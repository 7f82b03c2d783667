"""CUDA engine: compiled flex_attention over lists of visible blocks.

The blocks of a band follow from its width. Global columns and rows are computed outside the kernel, by plain operations. In a compiled
graph the number of global tokens is unknown. The block lists then include the global tokens, and have room for every pair of a query block
and a key block. Tiles are in :mod:`.flex_tiles`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask

from ..common.batch import Batch
from ..common.byte_cache import BYTE_CACHE, tensor_bytes
from ..common.call import AttentionCall, Pattern
from ..common.dense import merged
from ..common.global_rows import global_columns, index_of_globals, overwrite_global_rows
from .flex_kernel import fused_flex, kind_of

Lists = tuple[Tensor, Tensor]
"""Counts ``(B, H, rows)`` and block numbers ``(B, H, rows, width)``, int32. A row is a block; its first ``count`` entries are valid."""


def packed(chosen: Tensor, indices: Tensor) -> Lists:
    """Block lists with the ``indices (…, rows, width)`` for which ``chosen (B, H, rows, width)`` is True, in order."""
    order = (~chosen).int().argsort(dim=-1, stable=True)
    return chosen.sum(-1, dtype=torch.int32), indices.expand(chosen.shape).gather(-1, order).to(torch.int32).contiguous()


def listed(rows: Tensor, columns: Tensor, chosen: Tensor, count: int, width: int | None = None) -> Lists:
    """Block lists with the columns of the chosen pairs ``(row, column)``, for ``count`` rows. Repeated pairs give repeated columns.

    rows, columns: ``(…, pairs)``, which broadcast with ``chosen (B, H, pairs)``.
    width: indices per row. By default as many as needed, a number that is read from the device.
    """
    rows, columns = torch.broadcast_tensors(torch.where(chosen, rows, count), columns)
    order = rows.argsort(dim=-1, stable=True)
    rows, columns = rows.gather(-1, order), columns.gather(-1, order)
    totals = rows.new_zeros(*rows.shape[:2], count + 1).scatter_add_(2, rows, torch.ones_like(rows))
    width = max(1, int(totals[..., :count].max())) if width is None else width
    slot = torch.arange(rows.shape[2], device=rows.device) - (totals.cumsum(-1) - totals).gather(-1, rows)
    target = torch.where(rows < count, rows * width + slot, count * width)
    indices = columns.new_zeros(*rows.shape[:2], count * width + 1).scatter_(2, target, columns)[..., :-1]
    return totals[..., :count].to(torch.int32), indices.unflatten(-1, (count, width)).to(torch.int32).contiguous()


def block_mask(
    lengths: tuple[int, int], size: int, mask_mod: Any, *, by_query: tuple[Lists, Lists | None], by_key: tuple[Lists, Lists | None]
) -> BlockMask:
    """The BlockMask of (partial, full) block lists by query block and by key block. ``mask_mod`` is evaluated in partial blocks only.

    ``BlockMask.from_kv_blocks`` would derive the lists by key block, but in memory for every pair of blocks and without repetitions.

    size: tokens per block.
    """
    lists = [x for pair in (*by_query, *by_key) for x in pair or (None, None)]
    arguments: tuple[Any, ...] = lengths, *lists, (size, size), mask_mod
    return BlockMask(*arguments)


BAND_BLOCK = 128
"""Tokens per block of a band."""


def flex_band(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, call: AttentionCall) -> Tensor:
    """The output of :func:`hf_longattn.engines.block_sparse.block_sparse_attention`, without dropout.

    Raises:
        NoKernel: this machine has no such kernel.
    """
    key_mask, global_mask, score_mod = call.key_mask, call.global_mask, call.score_mod
    q_len, kv_len = q.shape[2], k.shape[2]
    offset = _offset(q_len, kv_len)
    shifted = None if score_mod is None else (lambda score, b, h, i, j: score_mod(score, b, h, i + offset, j))
    in_graph = torch.compiler.is_compiling()  # a graph cannot hold a number of columns that depends on the data
    index, real = (None, None) if global_mask is None or in_graph else index_of_globals(call)
    has_columns = index is not None and index.shape[1] > 0
    if global_mask is not None and in_graph:
        mask = band_block_mask(pattern, q_len, kv_len, key_mask, q.device, global_mask)
    else:
        mask = kept_band_block_mask(pattern, q_len, kv_len, call.batch, q.device)
    sinks = call.sink_scores
    settings: dict[str, Any] = {"return_aux": AuxRequest(lse=True)} if has_columns or sinks is not None else {}
    settings |= {"score_mod": shifted, "block_mask": mask, "scale": call.scale_for(q.shape[-1])}
    out = fused_flex(("band", pattern, key_mask is None, kind_of(score_mod)), q, k, v, **settings)
    if not has_columns or index is None or real is None:
        return out if sinks is None else merged([out[0]], [out[1].lse], sinks)
    # Every query visits the global columns. In the band's block lists, they would make every row longer.
    columns, lse = global_columns(q, k, v, index, real, pattern, call)
    out = merged([out[0], columns], [out[1].lse, lse], sinks)
    return overwrite_global_rows(out, q, k, v, index, real, call.replace(causal=pattern.causal)) if pattern.global_rows else out


def kept_band_block_mask(pattern: Pattern, q_len: int, kv_len: int, batch: Batch | None, device: torch.device) -> BlockMask:
    """Cached :func:`band_block_mask`: shared by all calls without padding, otherwise by all layers of a batch."""
    key = ("band block mask", pattern, q_len, kv_len, device)
    mask = None if batch is None else batch.mask
    if batch is None or mask is None:
        return BYTE_CACHE.get(key, lambda: band_block_mask(pattern, q_len, kv_len, None, device), lambda made: tensor_bytes(vars(made)))
    return batch.cached(key, lambda: band_block_mask(pattern, q_len, kv_len, mask, device))


def band_block_mask(
    pattern: Pattern, q_len: int, kv_len: int, key_mask: Tensor | None, device: torch.device, global_mask: Tensor | None = None
) -> BlockMask:
    """The BlockMask of a band. Its lists have (blocks of the sequence) × (blocks of the window) entries.

    Blocks in which every pair is visible are listed as full: the kernel evaluates no mask there. With ``global_mask``, the lists also hold
    the blocks of global columns and rows, and have a slot for every pair of blocks: in a graph their size cannot depend on data.
    """
    offset = _offset(q_len, kv_len)
    any_real, all_real = (None, None) if key_mask is None else (per_block(key_mask, any), per_block(key_mask, all))
    columns = None if global_mask is None else per_block(global_mask, any)
    rows = None if global_mask is None or not pattern.global_rows else per_block(global_mask[:, offset:] if offset else global_mask, any)

    def partial_and_full(q_block: Tensor, k_block: Tensor, indices: Tensor) -> tuple[Lists, Lists]:
        q_start, k_start = q_block * BAND_BLOCK + offset, k_block * BAND_BLOCK
        q_stop, k_stop = (q_start + BAND_BLOCK).clamp(max=kv_len) - 1, (k_start + BAND_BLOCK).clamp(max=kv_len) - 1
        touched = ((q_start - k_stop <= pattern.left) & (k_start - q_stop <= pattern.right))[None]
        if columns is not None:
            seen = columns[:, k_block.clamp(0, columns.shape[1] - 1)]
            seen = seen if rows is None else seen | rows[:, q_block.clamp(0, rows.shape[1] - 1)]
            touched = touched | (seen & (k_start <= q_stop) if pattern.causal else seen)
        touched = touched & ((q_block >= 0) & (q_start < kv_len) & (k_block >= 0) & (k_start < kv_len))
        full = (q_stop - k_start <= pattern.left) & (k_stop - q_start <= pattern.right)
        full = full & (q_stop - q_start == BAND_BLOCK - 1) & (k_stop - k_start == BAND_BLOCK - 1)
        touched, full = touched[:, None], full[None, None]
        if any_real is not None and all_real is not None:
            at = k_block.clamp(0, any_real.shape[1] - 1)
            touched, full = touched & any_real[:, at][:, None], full & all_real[:, at][:, None]
        return packed(touched & ~full, indices), packed(touched & full, indices)

    def neighbours(blocks: int, key_blocks: int, first: int, width: int) -> tuple[Tensor, Tensor]:
        """Block numbers of one axis, and the blocks of the other that may be visible, from position ``row · BAND_BLOCK + first`` on."""
        row = torch.arange(blocks, device=device)[:, None]
        if global_mask is not None:
            return row, torch.arange(key_blocks, device=device)[None]
        start = (row * BAND_BLOCK + first).div(BAND_BLOCK, rounding_mode="floor").clamp(min=0)
        return row, start + torch.arange(min(key_blocks, (width + 3 * BAND_BLOCK - 3) // BAND_BLOCK), device=device)

    left, right = min(pattern.left, kv_len), min(pattern.right, kv_len)
    q_blocks, k_blocks = -(-q_len // BAND_BLOCK), -(-kv_len // BAND_BLOCK)
    row, met = neighbours(q_blocks, k_blocks, offset - left, left + right + 1)
    column, meeting = neighbours(k_blocks, q_blocks, -right - offset, left + right + 1)

    visible = pattern.visible_mod(global_mask)

    def mask_mod(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        seen = visible(b, h, q_idx + offset, kv_idx)
        return seen if key_mask is None else seen & key_mask[b, kv_idx]

    by_query, by_key = partial_and_full(row, met, met), partial_and_full(meeting, column, meeting)
    return block_mask((q_len, kv_len), BAND_BLOCK, mask_mod, by_query=by_query, by_key=by_key)


def _offset(q_len: int, kv_len: int) -> int:
    """Position of the first query. A plain 0 for whole sequences, since the CPU kernel rejects the difference of symbolic lengths."""
    return 0 if q_len == kv_len else kv_len - q_len


def per_block(mask: Tensor, reduce: Any) -> Tensor:
    """Reduce ``mask (B, N)`` by ``any`` or ``all`` over each block, ``(B, blocks)``. Positions past the end count as False."""
    missing = -mask.shape[1] % BAND_BLOCK
    blocks = torch.nn.functional.pad(mask, (0, missing)).unflatten(1, (-1, BAND_BLOCK))
    return blocks.any(-1) if reduce is any else blocks.all(-1)
