"""CUDA engine: compiled flex_attention over lists of visible blocks.

The blocks of a band follow from its width. With global tokens, the lists have room for every pair of a query block and
a key block, so that the host reads no values from the device. The lists are made once per forward pass.

A table of blocks (:func:`flex_block_table`) gives all queries of a block the same blocks of keys. In a selection
(:func:`flex_block_selected`), each query selects its blocks of keys, as a boolean table ``(N, blocks)`` for each head,
which the host does not read. A block of :data:`BAND_BLOCK` queries visits every key block that any of its queries
selects, and the mask looks up which queries do. Neighbouring queries select similar blocks, so most queries see the
visited blocks. A visited block costs no more than in full attention.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask

from ..byte_cache import BYTE_CACHE, tensor_bytes
from ..call import AttentionCall, DispatchContext, Pattern, clear_padding, selection_mask
from ..dense import merged, same_dtype
from ..score_terms import ScoreMod, add_term
from .flex_kernel import NoKernel, fused_flex, signature_of, why_not

Lists = tuple[Tensor, Tensor]
"""For each block (a row), the list of blocks that it meets: counts ``(B, H, rows)`` and block numbers
``(B, H, rows, width)``, int32. The first ``count`` numbers of a row are valid."""


def packed(chosen: Tensor, indices: Tensor) -> Lists:
    """Block lists of the numbers ``indices (…, rows, width)`` at which ``chosen (B, H, rows, width)`` is True. They
    keep their order."""
    order = (~chosen).int().argsort(dim=-1, stable=True)
    blocks = indices.expand(chosen.shape).gather(-1, order)
    return chosen.sum(-1, dtype=torch.int32), blocks.to(torch.int32).contiguous()


def block_mask(
    lengths: tuple[int, int],
    mask_mod: Any,
    *,
    by_query: tuple[Lists, Lists | None],
    by_key: tuple[Lists, Lists | None],
) -> BlockMask:
    """The BlockMask of block lists.

    ``BlockMask.from_kv_blocks`` would derive the lists by key block, but in memory for every pair of blocks and
    without repetitions.

    Args:
        lengths: numbers of queries and of keys.
        mask_mod: which pairs are visible. It is evaluated in partial blocks only.
        by_query, by_key: lists of partial and of full blocks, for each query block and for each key block.
    """
    # Counts and numbers of each list: the argument for a missing list is None.
    lists = [x for pair in (*by_query, *by_key) for x in pair or (None, None)]
    arguments: tuple[Any, ...] = lengths, *lists, (BAND_BLOCK, BAND_BLOCK), mask_mod
    return BlockMask(*arguments)


BAND_BLOCK = 128
"""Tokens per block of a band."""
MAX_LISTED_TOKENS = 1 << 16
"""Maximum number of keys if one call also computes global tokens. A tile with a global query visits all keys, one
after the other. Untuned."""


def flex_band(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, call: AttentionCall) -> Tensor:
    """Compute :func:`hf_longattn.engines.block_sparse.block_sparse_attention`, without dropout.

    One kernel computes the band, global columns and rows, padding anywhere, and packed documents. k and v may have
    fewer heads than q.

    Raises:
        NoKernel: this machine has no such kernel.
    """
    if call.padding_values == "any":  # a weight of zero does not hide NaN: 0 · NaN is NaN
        q, k, v, call = clear_padding(q, k, v, call)
    score_mod, batch = call.score_mod, call.batch
    shifted = _shifted(score_mod, _offset(q.shape[2], k.shape[2]))
    signature = (
        "band",
        pattern,
        batch is None,
        call.key_mask is not None,
        batch is not None and batch.documents is not None,
        call.global_mask is not None,
        call.global_positions is None,
        signature_of(score_mod),
    )
    mask = cached_band_block_mask(pattern, q.shape[2], k.shape[2], call, q.device)
    return masked_flex(signature, q, k, v, mask, shifted, call)


def _shifted(score_mod: ScoreMod | None, offset: int) -> ScoreMod | None:
    """``score_mod`` as a plain function for queries that begin at position ``offset``."""
    if score_mod is None:
        return None
    return lambda score, b, h, i, j: score_mod(score, b, h, i + offset, j)


def masked_flex(
    signature: Hashable, q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, score_mod: Any, call: AttentionCall
) -> Tensor:
    """The output of one kernel call with the scale and sinks of ``call``. k and v may have fewer heads than q.
    ``signature``: see :func:`fused_flex`."""
    settings: dict[str, Any] = {"block_mask": mask, "scale": call.scale_for(q.shape[-1])}
    if k.shape[1] != q.shape[1]:
        settings["enable_gqa"] = True
    if score_mod is not None:
        settings["score_mod"] = score_mod
    if call.sink_scores is None:
        only_output: Tensor = fused_flex(signature, q, k, v, **settings)
        return only_output
    out, aux = fused_flex(signature, q, k, v, return_aux=AuxRequest(lse=True), **settings)
    return merged([out], [aux.lse], call.sink_scores)


def cached_band_block_mask(
    pattern: Pattern, q_len: int, kv_len: int, call: AttentionCall, device: torch.device
) -> BlockMask:
    """:func:`band_block_mask` of a call, cached. Only the beginnings of documents are read from the device."""

    def make() -> BlockMask:
        tokens, labels = call.global_mask, call.documents
        documents = None
        if tokens is not None and call.batch is None and call.global_positions is not None:
            tokens = tokens[0]  # the same in every row, so that one mask serves batches of any size
        if labels is not None:
            documents = labels.number
        return band_block_mask(
            pattern, q_len, kv_len, device, key_mask=call.key_mask, tokens=tokens, documents=documents
        )

    return call.cached(
        ("band block mask", pattern, q_len, kv_len, device), make, lambda mask: tensor_bytes(vars(mask))
    )


def band_block_mask(
    pattern: Pattern,
    q_len: int,
    kv_len: int,
    device: torch.device,
    *,
    key_mask: Tensor | None = None,
    tokens: Tensor | None = None,
    documents: Tensor | None = None,
) -> BlockMask:
    """The BlockMask of a band. Its lists have (blocks of the sequence) × (blocks of the window) entries.

    Blocks in which every pair is visible are listed as full: the kernel evaluates no mask there. With global
    ``tokens``, the lists also hold the blocks of global columns and rows, and have a slot for every pair of blocks, so
    that no size is read from the device.

    Args:
        key_mask: ``(B, Nk)`` bool, True = real token.
        tokens: global tokens, ``(B, Nk)`` bool, or ``(Nk,)`` if they are the same in every row.
        documents: ``(B, Nk)``, the ascending number of each token's document; a query sees its own document only.
    """
    offset = _offset(q_len, kv_len)
    every_pair = tokens is not None
    # What a block of queries or keys holds: real tokens, global tokens, and the first and last document.
    real = global_keys = global_queries = documents_of_queries = documents_of_keys = None
    if key_mask is not None:
        real = in_blocks(key_mask)
    if tokens is not None:
        batch_tokens = tokens.view(-1, kv_len)
        global_keys = global_queries = in_blocks(batch_tokens).any(-1)
        if offset:
            global_queries = in_blocks(batch_tokens[:, offset:]).any(-1)
    if documents is not None:
        documents_of_keys = documents_of_queries = _block_ends(documents)
        if offset:
            documents_of_queries = _block_ends(documents[:, offset:])

    def partial_and_full(pairs: BlockPairs) -> tuple[Tensor, Tensor]:
        """Which pairs of blocks are visited with the mask, and which without it, ``(B or 1, 1, …)`` bool each."""

        def by_q_block(x: Tensor) -> Tensor:
            return x[:, :, None] if every_pair else x[:, pairs.q_block]

        def by_k_block(x: Tensor) -> Tensor:
            return x[:, None] if every_pair else x[:, pairs.k_block]

        touched, full = pairs.near[None], pairs.inside[None]
        if global_keys is not None and global_queries is not None:
            seen = by_k_block(global_keys)
            if pattern.global_rows:
                seen = seen | by_q_block(global_queries)
            if pattern.causal:
                seen = seen & pairs.earlier
            touched = touched | seen
        if real is not None:
            touched = touched & by_k_block(real.any(-1))
            full = full & by_k_block(real.all(-1))
        if documents_of_queries is not None and documents_of_keys is not None:
            q_first, q_last = map(by_q_block, documents_of_queries)
            k_first, k_last = map(by_k_block, documents_of_keys)
            touched = touched & (q_first <= k_last) & (k_first <= q_last)
            full = full & (q_first == k_last) & (k_first == q_last)
        partial, whole = torch.broadcast_tensors(touched ^ full, full)  # a full block is touched
        return partial[:, None], whole[:, None]

    # The lists of partial and of full blocks, for each query block and for each key block.
    groups = _block_pairs(pattern, q_len, kv_len, every_pair, device)
    if every_pair:
        by_query, by_key = lists_of(*partial_and_full(groups[0]))
    else:
        q_pairs, k_pairs = groups
        partial, full = partial_and_full(q_pairs)
        by_query = packed(partial, q_pairs.k_block), packed(full, q_pairs.k_block)
        partial, full = partial_and_full(k_pairs)
        by_key = packed(partial, k_pairs.q_block), packed(full, k_pairs.q_block)
    visible = pattern.visible_mod(tokens)

    def mask_mod(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        """Whether a query sees a key, for single tokens instead of blocks."""
        seen = visible(b, h, q_idx + offset, kv_idx)
        if documents is not None:
            seen = seen & (documents[b, q_idx + offset] == documents[b, kv_idx])
        if key_mask is not None:
            seen = seen & key_mask[b, kv_idx]
        return seen

    return block_mask((q_len, kv_len), mask_mod, by_query=by_query, by_key=by_key)


def _block_ends(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """The first and the last number in each block of ``numbers (B, N)``, ``(B, blocks)`` each."""
    starts = torch.arange(0, numbers.shape[1], BAND_BLOCK, device=numbers.device)
    return numbers[:, starts], numbers[:, (starts + BAND_BLOCK - 1).clamp(max=numbers.shape[1] - 1)]


class BlockPairs(NamedTuple):
    """Pairs of a query block and a key block, and their relation to the band, ``(rows, columns)`` bool each.

    q_block, k_block: numbers of the blocks.
    near: whether some pair of tokens is in the band.
    inside: whether all pairs of tokens are in the band.
    earlier: whether some key is not after some query.
    """

    q_block: Tensor
    k_block: Tensor
    near: Tensor
    inside: Tensor
    earlier: Tensor


def _block_pairs(
    pattern: Pattern, q_len: int, kv_len: int, every_pair: bool, device: torch.device
) -> list[BlockPairs]:
    """All pairs of blocks, if ``every_pair``; otherwise two groups of pairs near the band, one with a row for each
    query block and one with a row for each key block. Cached for the process."""
    offset = _offset(q_len, kv_len)
    q_blocks, k_blocks = -(-q_len // BAND_BLOCK), -(-kv_len // BAND_BLOCK)
    left, right = min(pattern.left, kv_len), min(pattern.right, kv_len)

    def neighbours(row: Tensor, first: int, blocks: int) -> Tensor:
        """For each block of one axis, the blocks of the other axis that may be visible. They begin at position
        ``row · BAND_BLOCK + first``."""
        start = (row * BAND_BLOCK + first).div(BAND_BLOCK, rounding_mode="floor").clamp(min=0)
        return start + torch.arange(min(blocks, (left + right + 3 * BAND_BLOCK - 2) // BAND_BLOCK), device=device)

    def pairs_of(q_block: Tensor, k_block: Tensor) -> BlockPairs:
        # Positions of the first and the last token of each block.
        q_first = q_block * BAND_BLOCK + offset
        k_first = k_block * BAND_BLOCK
        q_last = (q_first + BAND_BLOCK).clamp(max=kv_len) - 1
        k_last = (k_first + BAND_BLOCK).clamp(max=kv_len) - 1
        near = (q_first - k_last <= pattern.left) & (k_first - q_last <= pattern.right)
        near = near & (q_first < kv_len) & (k_first < kv_len)
        inside = near & (q_last - k_first <= pattern.left) & (k_last - q_first <= pattern.right)
        inside = inside & (q_last - q_first == BAND_BLOCK - 1) & (k_last - k_first == BAND_BLOCK - 1)
        return BlockPairs(
            q_block.clamp(max=q_blocks - 1), k_block.clamp(max=k_blocks - 1), near, inside, k_first <= q_last
        )

    def make() -> list[BlockPairs]:
        queries, keys = (torch.arange(blocks, device=device)[:, None] for blocks in (q_blocks, k_blocks))
        if every_pair:
            return [pairs_of(queries, keys.T)]
        keys_of_queries = neighbours(queries, offset - left, k_blocks)
        queries_of_keys = neighbours(keys, -right - offset, q_blocks)
        return [pairs_of(queries, keys_of_queries), pairs_of(queries_of_keys, keys)]

    return BYTE_CACHE.get(("pairs of blocks", pattern.left, pattern.right, q_len, kv_len, every_pair, device), make)


def sorted_blocks(chosen: Tensor) -> Lists:
    """Block lists of the True entries of ``chosen (…, rows, columns)``, with a slot for every block."""
    order = chosen.int().argsort(dim=-1, descending=True, stable=True)
    return chosen.sum(-1, dtype=torch.int32), order.to(torch.int32)


def lists_of(partial: Tensor, full: Tensor) -> tuple[tuple[Lists, Lists], tuple[Lists, Lists]]:
    """The lists of partial and full blocks, for each query block and for each key block.

    partial, full: ``(B, H, query blocks, key blocks)`` bool. The lists have a slot for every block.
    """
    chosen = partial, full, partial.mT, full.mT
    if partial.shape[2] == partial.shape[3]:  # all at once, which launches fewer kernels
        q_partial, q_full, k_partial, k_full = zip(*sorted_blocks(torch.stack(chosen)), strict=True)
    else:
        q_partial, q_full, k_partial, k_full = map(sorted_blocks, chosen)
    return (q_partial, q_full), (k_partial, k_full)


def in_blocks(mask: Tensor) -> Tensor:
    """``mask (B, N)`` in blocks, ``(B, blocks, BAND_BLOCK)``. Positions past the end are False."""
    return F.pad(mask, (0, -mask.shape[1] % BAND_BLOCK)).unflatten(1, (-1, BAND_BLOCK))


def _offset(q_len: int, kv_len: int) -> int:
    """Position of the first query. A plain 0 for whole sequences, since the CPU kernel rejects the difference of
    symbolic lengths."""
    if q_len == kv_len:
        return 0
    return kv_len - q_len


# ---- blocks of keys, selected or fixed


def _axes_read(table: Tensor) -> tuple[bool, ...]:
    """For each axis of ``table``, whether :func:`lookup` reads it. Axes of size 1 are not read."""
    return tuple(size > 1 for size in table.shape)


def lookup(table: Tensor) -> Callable[..., Tensor]:
    """``table`` as a function of one index per axis."""
    read = _axes_read(table)
    values = table.squeeze()
    return lambda *index: values[tuple([x for x, is_read in zip(index, read, strict=True) if is_read])]


MAX_TABLE_TOKENS = 1 << 15
"""Maximum number of keys for this path. Longer sequences visit many blocks in which no pair is visible. Untuned."""


def why_not_blocks(context: DispatchContext) -> str | None:
    """Why flex_attention does not run a selection or a table of blocks, as a clause. ``None`` if it may run."""
    size = context.block_size
    if size and BAND_BLOCK % size and size % BAND_BLOCK:
        return f"blocks of {size} tokens do not fit the kernel's blocks of {BAND_BLOCK}"
    if context.kv_len > MAX_TABLE_TOKENS:
        return f"beyond {MAX_TABLE_TOKENS:,} tokens its lists of blocks are large"
    if not size and torch.compiler.is_compiling():
        return "its block lists need values, which a graph lacks"
    return why_not(context)


def flex_block_selected(
    q: Tensor, k: Tensor, v: Tensor, chosen: Tensor, block_size: int, call: AttentionCall
) -> Tensor:
    """Compute :func:`hf_longattn.engines.gathered.block_selected_attention`, without dropout.

    Raises:
        NoKernel: ``block_size`` does not fit the kernel's blocks, or this machine has no such kernel.
    """
    if BAND_BLOCK % block_size and block_size % BAND_BLOCK:
        raise NoKernel(f"blocks of {block_size} tokens do not fit the kernel's blocks of {BAND_BLOCK}")
    q, k, v = same_dtype(q, k, v)
    length, key_mask, score_mod, causal = q.shape[2], call.key_mask, call.score_mod, call.causal
    own_block = torch.arange(length, device=q.device)[:, None] // block_size
    selected = selection_mask(chosen, own_block, -(-length // block_size))  # (B, H, N, blocks)

    # Whether any pair of a query block and a key block of the kernel may be visible, (B, H, n, n) bool for n blocks.
    touched = F.pad(selected, (0, 0, 0, -selected.shape[2] % BAND_BLOCK)).unflatten(2, (-1, BAND_BLOCK)).any(3)
    if block_size < BAND_BLOCK:
        small_blocks = BAND_BLOCK // block_size
        touched = F.pad(touched, (0, -touched.shape[3] % small_blocks)).unflatten(3, (-1, small_blocks)).any(-1)
    else:
        touched = touched.repeat_interleave(block_size // BAND_BLOCK, 3)[..., : touched.shape[2]]
    if causal:
        touched = touched.tril()
    if key_mask is not None:
        touched = touched & in_blocks(key_mask).any(-1)[:, None, None]
    by_query, by_key = ((sorted_blocks(x), None) for x in (touched, touched.mT.contiguous()))

    def mask_mod(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        seen = selected[b, h, q_idx, kv_idx // block_size]
        if causal:
            seen = seen & (kv_idx <= q_idx)
        if key_mask is not None:
            seen = seen & key_mask[b, kv_idx]
        return seen

    mask = block_mask((length, length), mask_mod, by_query=by_query, by_key=by_key)
    signature = "chosen blocks", causal, key_mask is None, signature_of(score_mod)
    return masked_flex(signature, q, k, v, mask, score_mod, call)


def _in_kernel_blocks(seen: Tensor, size: int, blocks: int) -> tuple[Tensor, Tensor]:
    """Which pairs of the kernel's blocks have some visible pair of tokens, and which have only visible pairs,
    ``(B or 1, H or 1, blocks, blocks)`` bool each.

    seen: ``(B or 1, H or 1, n, n)`` bool, which pairs of blocks of ``size`` tokens are visible.
    """
    if size >= BAND_BLOCK:
        repeats = size // BAND_BLOCK
        repeated = seen.repeat_interleave(repeats, 2).repeat_interleave(repeats, 3)[:, :, :blocks, :blocks]
        return repeated, repeated
    small_blocks = BAND_BLOCK // size
    missing = blocks * small_blocks - seen.shape[3]
    complete = F.pad(seen, (0, missing, 0, missing))
    split = complete.unflatten(3, (blocks, small_blocks)).unflatten(2, (blocks, small_blocks))
    return split.any(5).any(3), split.all(5).all(3)


class BlockTable(NamedTuple):
    """The key blocks that each query block sees, for n blocks of equal size.

    seen: ``(B or 1, H or 1, n, n)`` bool.
    added: added to the scores of a pair of blocks, with the shape of ``seen`` or fewer heads; ``None`` for nothing.
    """

    seen: Tensor
    added: Tensor | None


def flex_block_table(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key: tuple[Hashable, ...],
    make: Callable[[], BlockTable],
    size: int,
    call: AttentionCall,
) -> Tensor:
    """Softmax attention ``(B, H, N, D)`` over the blocks of a table, and to and from the call's global tokens, without
    dropout.

    Args:
        q, k, v: ``(B, H, N, D)`` and ``(B, H_kv, N, D)``. Values in padding must be finite.
        key, make: ``make()`` returns the table. The table and its block lists are cached by ``key``, see
            :meth:`AttentionCall.cached`.
        size: tokens in a block.

    Raises:
        NoKernel: this machine has no such kernel.
    """
    q, k, v = same_dtype(q, k, v)
    length, causal, tokens, inner = q.shape[2], call.causal, call.global_mask, call.score_mod
    key_mask = call.key_mask

    def made() -> tuple[BlockMask, BlockTable]:
        table = make()
        seen = table.seen
        blocks = -(-length // BAND_BLOCK)
        touched, full = _in_kernel_blocks(seen, size, blocks)
        if length % BAND_BLOCK:  # the last block is incomplete
            filled = torch.arange(blocks, device=q.device) < blocks - 1
            full = full & (filled & filled[:, None])
        if causal:
            full = full.tril(-1)
        if tokens is not None:
            has_globals = in_blocks(tokens).any(-1)
            touched = touched | (has_globals[:, None, None] | has_globals[:, None, :, None])
        if causal:
            touched = touched.tril()
        if key_mask is not None:
            real = in_blocks(key_mask)
            touched = touched & real.any(-1)[:, None, None]
            full = full & real.all(-1)[:, None, None]
        by_query, by_key = lists_of(*torch.broadcast_tensors(touched ^ full, full))
        sees = lookup(seen)

        def mask_mod(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
            visible = sees(b, h, q_idx // size, kv_idx // size)
            if tokens is not None:
                visible = visible | tokens[b, q_idx] | tokens[b, kv_idx]
            if causal:
                visible = visible & (kv_idx <= q_idx)
            if key_mask is not None:
                visible = visible & key_mask[b, kv_idx]
            return visible

        return block_mask((length, length), mask_mod, by_query=by_query, by_key=by_key), table

    mask, table = call.cached(
        ("block table", *key, size, length, causal, q.device), made, lambda x: tensor_bytes([vars(x[0]), [*x[1]]])
    )
    signature = (
        "block table",
        size,
        causal,
        key_mask is None,
        tokens is None,
        _axes_read(table.seen),
        None if table.added is None else _axes_read(table.added),
        signature_of(inner),
    )
    score_mod = _shifted(inner, 0)
    if table.added is not None:
        added_at = lookup(table.added)

        def added(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Tensor:
            number = added_at(b, h, q_idx // size, kv_idx // size)
            if tokens is not None:
                number = torch.where(tokens[b, q_idx] | tokens[b, kv_idx], 0.0, number)
            return number

        score_mod = add_term(score_mod, added)
    return masked_flex(signature, q, k, v, mask, score_mod, call)
