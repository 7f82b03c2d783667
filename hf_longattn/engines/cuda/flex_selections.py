"""CUDA engine: attention to selected blocks of keys, each query beside the others that selected the same block.

The queries that selected a block stand one after the other, in slots that fill whole blocks of the kernel, so that a block of slots visits
one block of keys and nothing is computed that nobody selected. The first slots are all queries in order, for their own blocks. What a query
found in its blocks merges by log-sum-exp. The cost is N·(selected blocks) copies of queries and outputs, where
:mod:`.flex_blocks`, which copies nothing, visits every block that one of 128 neighbouring queries selected: in a long text, most of them.

With the outputs o_s and log-sum-exps l_s of a query's slots and the shares w = softmax(l), the output is o = Σ_s w_s o_s. For a gradient g
of o, that of o_s is w_s g and that of l_s is w_s (g·o_s - g·o).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest
from torch.utils.checkpoint import checkpoint

from ..common.call import AttentionCall
from ..common.derivatives import first_derivatives_only, one_gradient_at_a_time
from . import flex
from .flex import BAND_BLOCK, Lists, packed
from .flex_kernel import NoKernel, kind_of
from .flex_tiles import FORWARD_BLOCKS


class Slots(NamedTuple):
    """Where the queries stand, for the heads of keys, which share a selection."""

    queries: Tensor
    """``(B, H_kv, S)`` int64: the query of a slot; any query where the slot is empty."""
    places: Tensor
    """The same as int32, for the mask; the number of tokens where the slot is empty."""
    blocks: Tensor
    """``(B, H_kv, S)`` int32: the block of keys that a slot is for."""
    of_queries: Tensor
    """``(B, H_kv, N, K + 1)`` int64: the slots of a query, that for its own block first; this one also where it selected fewer."""
    used: Tensor
    """``(B, H_kv, N, K + 1)`` bool: whether it selected as many."""
    first_row: Tensor
    """``(B, H_kv, blocks)``: the first of the kernel's blocks of slots for a block of keys."""
    rows: Tensor
    """``(B, H_kv, blocks)``: their number."""


def flex_selections(q: Tensor, k: Tensor, v: Tensor, chosen: Tensor, block_size: int, call: AttentionCall) -> Tensor:
    """The output of :func:`hf_longattn.engines.block_selected.block_selected_attention`, without dropout.

    With gradients, the backward pass runs the forward pass once more, so that the copies are not kept.

    Raises:
        NoKernel: the blocks do not fit those of the kernel, or this machine has no such kernel.
    """
    learning = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    size = kernel_block(block_size, learning)
    if size is None:
        raise NoKernel(f"blocks of {block_size} tokens do not fit the kernel's of {', '.join(map(str, FORWARD_BLOCKS))}")
    slots = slots_of(chosen, block_size)
    if not learning:
        return _attend(q, k, v, slots, block_size, size, call, learning)
    out: Tensor = checkpoint(
        _attend, q, k, v, slots, block_size, size, call, learning, use_reentrant=False, preserve_rng_state=False
    )  # fmt: skip
    return out


def kernel_block(block_size: int, learning: bool) -> int | None:
    """Tokens in the kernel's blocks of keys, for selected blocks of this size; ``None`` where there are none that fit."""
    if block_size % BAND_BLOCK == 0 or (learning and BAND_BLOCK % block_size == 0):  # backward, the kernel has no smaller ones
        return BAND_BLOCK
    return block_size if block_size in FORWARD_BLOCKS else None


def slots_of(chosen: Tensor, block_size: int) -> Slots:
    """The slots of every query, for ``chosen (B, H_kv, N, K)`` as the engine takes it. No value is looked at."""
    batch, heads, length, ranks = chosen.shape
    device, blocks, own_slots = chosen.device, -(-length // block_size), length + -length % BAND_BLOCK
    total = own_slots // BAND_BLOCK + length * ranks // BAND_BLOCK + blocks  # at most one row of a block is not filled
    own = torch.arange(own_slots, device=device)
    wanted = torch.where(chosen < 0, blocks, chosen).flatten(2).to(torch.int32)
    block, order = wanted.sort(dim=-1)
    block = block.long()
    counts = torch.zeros(batch, heads, blocks + 1, dtype=torch.int64, device=device).scatter_add_(2, block, torch.ones_like(block))
    rows = (counts[..., :blocks] + (BAND_BLOCK - 1)) // BAND_BLOCK
    end = rows.cumsum(-1) + own_slots // BAND_BLOCK
    # A selection's slot is that of its block's first, and its number in the block; those of no block are not used.
    shift = F.pad((end - rows) * BAND_BLOCK - (counts.cumsum(-1) - counts)[..., :blocks], (0, 1))
    slot = torch.arange(length * ranks, device=device) + shift.gather(2, block)
    no_slot = total * BAND_BLOCK
    slot = torch.where(block < blocks, slot, no_slot)
    places = torch.full((batch, heads, no_slot + 1), length, dtype=torch.int32, device=device)
    places[..., :own_slots] = own.clamp(max=length)
    places = places.scatter_(2, slot, (order // ranks).to(torch.int32))[..., :no_slot]
    chosen_row = torch.arange(own_slots // BAND_BLOCK, total, device=device).expand(batch, heads, -1).contiguous()
    row_block = torch.searchsorted(end, chosen_row, right=True)
    slot_block = torch.cat([(own // block_size).expand(batch, heads, -1), row_block.repeat_interleave(BAND_BLOCK, 2)], -1)
    by_query = torch.empty_like(slot).scatter_(2, order, slot).view(batch, heads, length, ranks)
    own_place = own[:length, None].expand(batch, heads, length, 1)
    used = chosen >= 0
    return Slots(
        queries=torch.where(places < length, places, torch.arange(no_slot, device=device) % length).long(),
        places=places,
        blocks=slot_block.to(torch.int32),
        of_queries=torch.cat([own_place, torch.where(used, by_query, own_place)], -1),
        used=F.pad(used, (1, 0), value=True),
        first_row=end - rows,
        rows=rows,
    )


def _attend(
    q: Tensor, k: Tensor, v: Tensor, slots: Slots, block_size: int, size: int, call: AttentionCall, learning: bool
) -> Tensor:  # fmt: skip
    heads, groups, causal, key_mask, inner = q.shape[1], k.shape[1], call.causal, call.key_mask, call.score_mod
    group = heads // slots.places.shape[1]
    places, blocks = slots.places, slots.blocks

    def mask_mod(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        seen = kv_idx // block_size == blocks[b, h // group, q_idx]
        if causal:
            seen = seen & (kv_idx <= places[b, h // group, q_idx])
        return seen if key_mask is None else seen & key_mask[b, kv_idx]

    def score_mod(score: Tensor, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Tensor:
        assert inner is not None
        return inner(score, b, h, places[b, h // group, q_idx].clamp(max=k.shape[2] - 1), kv_idx)

    queries, of_queries, used = (x.repeat_interleave(group, 1) if group > 1 else x for x in (slots.queries, slots.of_queries, slots.used))
    lists = block_lists(slots, k.shape[2], block_size, size, causal, key_mask, learning)
    mask = flex.block_mask((queries.shape[2], k.shape[2]), (BAND_BLOCK, size), mask_mod, **_repeated(lists, group))
    settings: dict[str, Any] = {} if groups == heads else {"enable_gqa": True}
    if size != BAND_BLOCK:  # the defaults fit blocks of 128
        settings["kernel_options"] = {"BLOCK_M": BAND_BLOCK, "BLOCK_N": size}
    kind = "selections", size, causal, key_mask is None, kind_of(inner)
    out, aux = flex.fused_flex(
        kind, _Copied.apply(q, queries, of_queries, used), k, v, score_mod=None if inner is None else score_mod, block_mask=mask,
        scale=call.scale_for(q.shape[-1]), return_aux=AuxRequest(lse=True), **settings,
    )  # fmt: skip
    merged: Tensor = _Merged.apply(out, aux.lse, queries, of_queries, used)
    return merged


def _repeated(lists: dict[str, Any], group: int) -> dict[str, Any]:
    """The lists for all heads of queries."""
    if group == 1:
        return lists
    return {
        name: both and tuple(tuple(x.repeat_interleave(group, 1) for x in kind) for kind in both) for name, both in lists.items()
    }  # fmt: skip


def block_lists(
    slots: Slots, length: int, block_size: int, size: int, causal: bool, key_mask: Tensor | None, by_keys: bool
) -> dict[str, tuple[Lists, Lists] | None]:
    """The kernel's (partial, full) blocks by rows of :data:`BAND_BLOCK` slots and, where the backward pass needs them, by blocks of keys.

    size: tokens in the kernel's blocks of keys.
    """
    device, own_rows, wide = slots.rows.device, -(-length // BAND_BLOCK), max(block_size, BAND_BLOCK)
    key_blocks = -(-length // size)
    column = torch.arange(key_blocks, device=device)
    real, whole = torch.ones_like(column, dtype=torch.bool)[None], (column < length // size)[None]
    if key_mask is not None:
        tokens = F.pad(key_mask, (0, -length % size)).unflatten(1, (-1, size))
        real, whole = tokens.any(-1), tokens.all(-1)
    if block_size < size:
        whole = torch.zeros_like(whole)
    # By rows: the blocks of keys around their own, then those of the selected block.
    row = torch.arange(own_rows, device=device)
    own_first = row * BAND_BLOCK // wide * (wide // size)
    of_row = slots.blocks[..., own_rows * BAND_BLOCK :: BAND_BLOCK].long()
    chosen_first = torch.where(of_row < slots.rows.shape[2], of_row * block_size // size, key_blocks)
    first = torch.cat([own_first.expand(*chosen_first.shape[:2], -1), chosen_first], -1)
    place = torch.arange(wide // size, device=device)
    met = first[..., None] + place
    is_own = (torch.arange(first.shape[2], device=device) < own_rows)[:, None]
    touched = (met < key_blocks) & (is_own | (place < max(1, block_size // size)))
    if causal:
        touched = touched & (~is_own | (met * size < (torch.arange(first.shape[2], device=device)[:, None] + 1) * BAND_BLOCK))
    at = met.clamp(max=key_blocks - 1)
    item = torch.arange(real.shape[0], device=device).view(-1, 1, 1, 1)
    touched, full = touched & real[item, at], whole[item, at] & ~is_own
    by_query = packed(touched & ~full, at), packed(touched & full, at)
    if not by_keys:
        return {"by_query": by_query, "by_key": None}
    # By blocks of keys: their own rows, then those of the queries that selected them, one after the other.
    own_row, last_own = column * size // wide * (wide // BAND_BLOCK), (column * size // wide + 1) * (wide // BAND_BLOCK)
    own_row, last_own = (column * size // BAND_BLOCK if causal else own_row), last_own.clamp(max=own_rows)
    low, high = column * size // block_size, ((column + 1) * size - 1).clamp(max=length - 1) // block_size
    first_row, rows = slots.first_row[..., low], slots.first_row[..., high] + slots.rows[..., high] - slots.first_row[..., low]
    chosen_rows = torch.where(real[:, None], rows, 0)
    own_count = torch.where(real[:, None], last_own - own_row, 0).expand(rows.shape)
    most = wide // BAND_BLOCK + first.shape[2] - own_rows
    number = torch.arange(most, device=device)
    listed = torch.where(number < own_count[..., None], own_row[:, None] + number, first_row[..., None] + number - own_count[..., None])
    partial = own_count + torch.where(whole[:, None], 0, chosen_rows), listed.clamp(max=first.shape[2] - 1)
    full_rows = torch.where(whole[:, None], chosen_rows, 0), (first_row[..., None] + number).clamp(max=first.shape[2] - 1)
    partial_lists, full_lists = ((counts.to(torch.int32), indices.to(torch.int32)) for counts, indices in (partial, full_rows))
    return {"by_query": by_query, "by_key": (partial_lists, full_lists)}


def _rows_of_heads(x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """``x (B, H, N, D)`` as a table of rows, and ``index (B, H, …)`` of positions in a head as one of its rows."""
    heads = torch.arange(x.shape[0] * x.shape[1], device=x.device).view(*x.shape[:2], *[1] * (index.dim() - 2))
    return x.flatten(0, 2), index + heads * x.shape[2]


def _weighted_sum(x: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """Σ_j w_ij x[index_ij]: ``(B, H, N, D)`` for ``x (B, H, S, D)`` and ``index, weights (B, H, N, K)``."""
    rows, places = _rows_of_heads(x, index)
    out = F.embedding_bag(places.flatten(0, 2), rows, mode="sum", per_sample_weights=weights.to(x.dtype).flatten(0, 2))
    return out.view(*index.shape[:3], x.shape[3])


def _at(x: Tensor, index: Tensor) -> Tensor:
    """Rows of ``x (B, H, N, D)`` at ``index (B, H, S)``: ``(B, H, S, D)``."""
    rows, places = _rows_of_heads(x, index)
    return F.embedding(places, rows)


class _Copied(torch.autograd.Function):
    """The queries in their slots, ``(B, H, S, D)``."""

    @staticmethod
    def forward(ctx, q, queries, of_queries, used):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(of_queries, used)
        return _at(q, queries)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        with one_gradient_at_a_time():
            of_queries, used = ctx.saved_tensors
            return first_derivatives_only((_weighted_sum(grad.contiguous(), of_queries, used), None, None, None))


class _Merged(torch.autograd.Function):
    """The outputs ``(B, H, S, D)`` of every query's slots as one, ``(B, H, N, D)``; zeros where a query sees nothing."""

    @staticmethod
    def forward(ctx, out, lse, queries, of_queries, used):  # type: ignore[no-untyped-def]
        found = lse.gather(2, of_queries.flatten(2)).view(of_queries.shape).masked_fill(~used, float("-inf"))
        shares = (found - found.amax(-1, keepdim=True).clamp(min=torch.finfo(lse.dtype).min)).exp()
        shares = shares / shares.sum(-1, keepdim=True).clamp(min=torch.finfo(lse.dtype).tiny)
        out = out.contiguous()
        merged = _weighted_sum(out, of_queries, shares)
        ctx.save_for_backward(out, merged, shares, queries, of_queries, used)
        return merged

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        with one_gradient_at_a_time():
            return first_derivatives_only(_merge_gradients(ctx, grad))


def _merge_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    out, merged, shares, queries, of_queries, used = ctx.saved_tensors
    slots = out.shape[2]
    target = torch.where(used, of_queries, slots).flatten(2)
    share = shares.new_zeros(*target.shape[:2], slots + 1).scatter_(2, target, shares.flatten(2))[..., :slots]
    delta = (grad.to(share.dtype) * merged.to(share.dtype)).sum(-1).gather(2, queries)
    at_slots = _at(grad.contiguous(), queries)
    of_lse = share * ((at_slots * out).sum(-1, dtype=share.dtype) - delta)
    return at_slots * share[..., None].to(out.dtype), of_lse, None, None, None
