"""CUDA engine: attention to blocks of keys, selected or fixed, by one call of compiled flex_attention.

With a table (:func:`flex_block_table`), all queries of a block see the same blocks of keys. With a selection, a block of :data:`BAND_BLOCK`
queries visits every key block that any of its queries selects, and the mask looks up which queries select it. Neighbouring queries select
similar blocks, so most queries see the blocks that are visited. A visited block costs no more than in full attention. The selection is a
boolean table ``(N, blocks)`` for each head. The host reads no values from the device.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from ..byte_cache import tensor_bytes
from ..call import AttentionCall, DispatchContext, selection_mask
from ..dense import same_dtype
from . import flex
from .flex import BAND_BLOCK, in_blocks, lists_of, packed
from .flex_kernel import NoKernel, kind_of
from .flex_kernel import why_not as why_no_kernel
from .flex_tiles import lookup

MAX_TABLE_TOKENS = 1 << 15
"""Maximum number of keys for this path. Longer sequences visit many blocks in which no pair is visible. Untuned."""


def why_not(context: DispatchContext) -> str | None:
    """Why this path does not run, as a clause. ``None`` if it may run."""
    size, selected = context.block_size, not context.block_size
    if not selected and BAND_BLOCK % size and size % BAND_BLOCK:
        return f"blocks of {size} tokens do not fit the kernel's blocks of {BAND_BLOCK}"
    if context.kv_len > MAX_TABLE_TOKENS:
        return f"beyond {MAX_TABLE_TOKENS:,} tokens its lists of blocks are large"
    if selected and context.call.sink_scores is not None:
        return "it merges no sinks"
    if (why := why_no_kernel(context)) is not None:
        return why
    return "its block lists need values, which a graph lacks" if selected and torch.compiler.is_compiling() else None


def flex_block_selected(q: Tensor, k: Tensor, v: Tensor, chosen: Tensor, block_size: int, call: AttentionCall) -> Tensor:
    """The output of :func:`hf_longattn.engines.gathered.block_selected_attention`, without dropout.

    Raises:
        NoKernel: ``block_size`` does not fit the kernel's blocks, or this machine has no such kernel.
    """
    if BAND_BLOCK % block_size and block_size % BAND_BLOCK:
        raise NoKernel(f"blocks of {block_size} tokens do not fit the kernel's blocks of {BAND_BLOCK}")
    q, k, v = same_dtype(q, k, v)
    length, key_mask, score_mod, causal = q.shape[2], call.key_mask, call.score_mod, call.causal
    own_block = torch.arange(length, device=q.device)[:, None] // block_size
    selected = selection_mask(chosen, own_block, -(-length // block_size))  # (B, H, N, blocks)
    touched = _touched(selected, block_size, causal, key_mask)
    places = torch.arange(touched.shape[3], device=q.device)
    by_query, by_key = ((packed(x, places), None) for x in (touched, touched.mT))

    def mask_mod(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        seen = selected[b, h, q_idx, kv_idx // block_size]
        if causal:
            seen = seen & (kv_idx <= q_idx)
        return seen if key_mask is None else seen & key_mask[b, kv_idx]

    mask = flex.block_mask((length, length), BAND_BLOCK, mask_mod, by_query=by_query, by_key=by_key)
    kind = "chosen blocks", causal, key_mask is None, kind_of(score_mod)
    out: Tensor = flex.fused_flex(kind, q, k, v, score_mod=score_mod, block_mask=mask, scale=call.scale_for(q.shape[-1]))
    return out


def _touched(selected: Tensor, block_size: int, causal: bool, key_mask: Tensor | None) -> Tensor:
    """Whether any pair of a query block and a key block of the kernel may be visible, ``(B, H, n, n)`` bool for n blocks."""
    touched = F.pad(selected, (0, 0, 0, -selected.shape[2] % BAND_BLOCK)).unflatten(2, (-1, BAND_BLOCK)).any(3)
    if block_size < BAND_BLOCK:
        parts = BAND_BLOCK // block_size
        touched = F.pad(touched, (0, -touched.shape[3] % parts)).unflatten(3, (-1, parts)).any(-1)
    else:
        touched = touched.repeat_interleave(block_size // BAND_BLOCK, 3)[..., : touched.shape[2]]
    touched = touched.tril() if causal else touched
    return touched if key_mask is None else touched & in_blocks(key_mask).any(-1)[:, None, None]


class BlockTable(NamedTuple):
    """Which blocks of keys the queries of each block see, for n blocks of equal size.

    seen: ``(B or 1, H or 1, n, n)`` bool.
    added: added to the scores of a pair of blocks, with the shape of ``seen`` or fewer heads; ``None`` for nothing.
    """

    seen: Tensor
    added: Tensor | None


def flex_block_table(
    q: Tensor, k: Tensor, v: Tensor, key: tuple[Hashable, ...], make: Callable[[], BlockTable], size: int, call: AttentionCall
) -> Tensor:
    """Softmax attention ``(B, H, N, D)`` over the blocks of a table, and to and from the call's global tokens, without dropout.

    Args:
        q, k, v: ``(B, H, N, D)`` and ``(B, H_kv, N, D)``. Values in padding must be finite.
        key, make: the table, which is kept with its lists as :meth:`AttentionCall.kept` says.
        size: tokens in a block.

    Raises:
        NoKernel: this machine has no such kernel.
    """
    q, k, v = same_dtype(q, k, v)
    length, causal, tokens, inner = q.shape[2], call.causal, call.global_mask, call.score_mod

    def made() -> tuple[BlockMask, BlockTable]:
        table = make()
        return _table_mask(table, size, length, call), table

    mask, table = call.kept(("block table", *key, size, length, causal, q.device), made, lambda x: tensor_bytes([vars(x[0]), [*x[1]]]))
    (added_at, read), added = lookup(table.added), table.added is not None

    def score_mod(score: Tensor, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Tensor:
        if inner is not None:
            score = inner(score, b, h, q_idx, kv_idx)
        if not added:
            return score
        more = added_at(b, h, q_idx // size, kv_idx // size)
        return score + (more if tokens is None else torch.where(tokens[b, q_idx] | tokens[b, kv_idx], 0.0, more))

    kind = "block table", size, causal, call.key_mask is None, tokens is None, lookup(table.seen)[1], read, kind_of(inner)
    return flex.masked_flex(kind, q, k, v, mask, score_mod if added or inner is not None else None, call)


def _table_mask(table: BlockTable, size: int, length: int, call: AttentionCall) -> BlockMask:
    """The BlockMask of a table, padding, causality and global tokens."""
    tokens, key_mask, causal, seen = call.global_mask, call.key_mask, call.causal, table.seen
    blocks, device = -(-length // BAND_BLOCK), seen.device
    if size < BAND_BLOCK:
        parts = BAND_BLOCK // size
        missing = blocks * parts - seen.shape[3]
        of_blocks = F.pad(seen, (0, missing, 0, missing)).unflatten(3, (blocks, parts)).unflatten(2, (blocks, parts))
        touched, full = of_blocks.any(5).any(3), of_blocks.all(5).all(3)
    else:
        touched = full = seen.repeat_interleave(size // BAND_BLOCK, 2).repeat_interleave(size // BAND_BLOCK, 3)[:, :, :blocks, :blocks]
    if length % BAND_BLOCK:
        filled = torch.arange(blocks, device=device) < blocks - 1
        full = full & (filled & filled[:, None])
    if causal:
        full = full.tril(-1)
    if tokens is not None:
        crossed = in_blocks(tokens).any(-1)
        touched = touched | (crossed[:, None, None] | crossed[:, None, :, None])
    touched = touched.tril() if causal else touched
    if key_mask is not None:
        real = in_blocks(key_mask)
        touched, full = touched & real.any(-1)[:, None, None], full & real.all(-1)[:, None, None]
    by_query, by_key = lists_of(*torch.broadcast_tensors(touched ^ full, full))
    at, _ = lookup(seen)

    def mask_mod(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        visible = at(b, h, q_idx // size, kv_idx // size)
        if tokens is not None:
            visible = visible | tokens[b, q_idx] | tokens[b, kv_idx]
        if causal:
            visible = visible & (kv_idx <= q_idx)
        return visible if key_mask is None else visible & key_mask[b, kv_idx]

    return flex.block_mask((length, length), BAND_BLOCK, mask_mod, by_query=by_query, by_key=by_key)
