"""CUDA engine: tiles by compiled flex_attention.

The kernel reads two gathered axes, one of queries and one of keys. The rows of a tile lie on these axes one after the
other. Each tile row, or group of short rows, is padded to whole blocks. A query block visits the key blocks of its
group, and the mask looks up positions.

The position lists of fixed tiles are read once. Then tiles with equal rules share a layout, and blocks that the rules
leave empty are not visited. If an axis has only whole blocks of the sequence, the sequence is read instead, without a
copy. Scores are never stored in memory.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest

from ..blockwise import plain_tile
from ..byte_cache import BYTE_CACHE, tensor_bytes
from ..call import UNBOUNDED, AttentionCall, GatherTile
from ..dense import merged, repeat_heads
from . import flex
from .flex import Lists, listed, lookup
from .flex_kernel import signature_of

BLOCK = 128
"""Tokens per block of gathered rows. The backward kernels refuse other sizes on some GPUs."""
FORWARD_BLOCKS = (128, 64, 32)
"""Block sizes that the forward kernels take, in tokens, largest first."""
MIN_QUERIES = 6
"""Minimum queries per tile row for the kernel. Plain operations compute shorter rows, which would waste over nine
tenths of a block."""
Output = tuple[Tensor, Tensor | None]
"""Output ``(B, H, Nq, D)`` and log-sum-exp ``(B, H, Nq)``, -inf where a query sees nothing. The latter may be None for
one tile."""


def flex_gathered(q: Tensor, k: Tensor, v: Tensor, tiles: Sequence[GatherTile], call: AttentionCall) -> Tensor:
    """The output of :func:`hf_longattn.engines.gathered.gathered_attention`, without dropout. k and v may have fewer
    heads than q.

    Raises:
        NoKernel: this machine has no such kernel.
    """
    if torch.compiler.is_compiling():  # in a graph, positions are unknown, so each row visits all of its keys
        tiles = [dataclasses.replace(tile, fixed=False) for tile in tiles]
    learning = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    sizes = FORWARD_BLOCKS[:1] if learning else FORWARD_BLOCKS
    fused: list[GatherTile] = []
    plain: list[GatherTile] = []
    for tile in tiles:  # plain operations are faster for short rows
        (fused if tile.queries.shape[3] >= MIN_QUERIES or tile.queries.shape[2] == 1 else plain).append(tile)
    rows = layouts(fused, (q.shape[2], k.shape[2]), sizes, call.key_mask is not None)
    several = len(rows) + len(plain) > 1 or call.sink_scores is not None
    parts = [_attend(tile, layout, q, k, v, call, several) for tile, layout in rows]
    if plain:
        keys, values = repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1])
        parts += [plain_tile(q, keys, values, tile, call) for tile in plain]
    outs, lses = zip(*parts, strict=True)
    return merged(outs, lses, call.sink_scores) if several else outs[0]


class Axis(NamedTuple):
    """Gathered tokens, in the order in which the kernel reads them.

    positions: ``(B or 1, H or 1, slots)`` int32, -1 for an empty slot.
    read: int64 ``positions`` for gathering; empty slots hold an arbitrary valid position.
    """

    positions: Tensor
    read: Tensor


@dataclasses.dataclass(frozen=True)
class Layout:
    """Axes of tiles with equal rules, in blocks of ``size`` slots, with the blocks that the kernel visits.

    queries, keys: ``None`` if slot i is position i.
    write: the output position of every query slot. Empty slots write to position Nq, which is cut off. ``None`` if
        ``queries`` is ``None``.
    shares_blocks: whether a block holds slots of several tile rows.
    numbers: for queries and for keys, each slot's tile row and index within the row, ``(2, slots)`` int32. Empty if
        the mask needs none.
    by_query, by_key: partial and full blocks. The mask is evaluated in partial blocks only. If no full blocks are
        known, they are ``None``.
    """

    queries: Axis | None
    keys: Axis | None
    write: Tensor | None
    size: int
    shares_blocks: bool
    numbers: list[Tensor]
    by_query: tuple[Lists, Lists | None]
    by_key: tuple[Lists, Lists | None]


def _attend(
    tile: GatherTile, layout: Layout, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall, several: bool
) -> Output:
    """The output of a layout with the rules and the bias of ``tile``.

    several: whether log-sum-exps are needed.
    """
    heads, q_len, head_dim = q.shape[1:]
    q_axis, k_axis, size = layout.queries, layout.keys, layout.size
    queries = q if q_axis is None else at_positions(q, q_axis.read, heads)
    keys, values = (k, v) if k_axis is None else (at_positions(x, k_axis.read, heads) for x in (k, v))
    mask_mod, score_mod, signature = _mods(tile, layout, call)
    lengths = queries.shape[2], keys.shape[2]
    mask = flex.block_mask(lengths, size, mask_mod, by_query=layout.by_query, by_key=layout.by_key)
    settings: dict[str, Any] = {"return_aux": AuxRequest(lse=True)} if several else {}
    if keys.shape[1] != heads:
        settings["enable_gqa"] = True
    if size != BLOCK:  # the defaults fit blocks of 128
        settings["kernel_options"] = dict.fromkeys(
            ("BLOCK_M", "BLOCK_N", "BLOCK_M1", "BLOCK_N1", "BLOCK_M2", "BLOCK_N2"), size
        )
    settings |= {"score_mod": score_mod, "block_mask": mask, "scale": call.scale_for(head_dim)}
    results = flex.fused_flex(
        ("tiles", size, layout.by_query[1] is None, *signature), queries, keys, values, **settings
    )
    out, lse = (results[0], results[1].lse) if several else (results, None)
    if layout.write is None:
        return out, lse
    positions = layout.write.expand(*out.shape[:3])
    full = out.new_zeros(*out.shape[:2], q_len + 1, out.shape[3]).scatter(
        2, positions[..., None].expand(out.shape), out
    )
    if lse is not None:
        lse = lse.new_full((*out.shape[:2], q_len + 1), float("-inf")).scatter(2, positions, lse)[:, :, :q_len]
    return full[:, :, :q_len], lse


def at_positions(x: Tensor, positions: Tensor, heads: int) -> Tensor:
    """Tokens of ``x (B, H_kv, N, D)`` at ``positions (B or 1, H or 1, S)``: ``(B, H_kv, S, D)``, or H heads if
    ``positions`` has H."""
    if positions.shape[:2] == (1, 1):
        return x[:, :, positions[0, 0]]
    item = torch.arange(x.shape[0], device=x.device)
    if positions.shape[1] == 1:
        return x.transpose(1, 2)[item[:, None], positions[:, 0]].transpose(1, 2)
    head = torch.arange(heads, device=x.device) // (heads // x.shape[1])
    return x[item[:, None, None], head[:, None], positions]


def _mods(tile: GatherTile, layout: Layout, call: AttentionCall) -> tuple[Any, Any, tuple[Hashable, ...]]:
    """The ``mask_mod`` and ``score_mod`` on the axes of a layout, and the ``signature`` for :func:`fused_flex`."""
    key_mask, inner, bias, shares_blocks = call.key_mask, call.score_mod, tile.bias, layout.shares_blocks
    positions = (None if axis is None else axis.positions for axis in (layout.queries, layout.keys))
    (q_at, q_read), (k_at, k_read), (bias_at, bias_read) = (lookup(x) for x in (*positions, bias))
    numbers: list[Any] = layout.numbers or [(None, None)] * 2
    (q_row, q_slot), (k_row, k_slot) = numbers
    nothing = torch.empty(0, dtype=torch.long)
    # not `tile`: a graph would keep its index tensors
    rules = dataclasses.replace(tile, queries=nothing, keys=nothing, bias=None)
    hides, adds = (bias is not None and (bias.dtype == torch.bool) == boolean for boolean in (True, False))

    def mask_mod(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        key = k_at(b, h, kv_idx)
        seen = (key >= 0) & rules.sees(q_at(b, h, q_idx) - key)
        if shares_blocks:
            seen = seen & (q_row[q_idx] == k_row[kv_idx])
        if hides:
            seen = seen & bias_at(b, h, q_row[q_idx], q_slot[q_idx], k_slot[kv_idx])
        return seen if key_mask is None else seen & key_mask[b, key.clamp(min=0)]

    def score_mod(score: Tensor, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Tensor:
        if inner is not None:
            score = inner(score, b, h, q_at(b, h, q_idx).clamp(min=0), k_at(b, h, kv_idx).clamp(min=0))
        return score + bias_at(b, h, q_row[q_idx], q_slot[q_idx], k_slot[kv_idx]) if adds else score

    signature = key_mask is None, signature_of(inner), *_rules(tile), shares_blocks, q_read, k_read, bias_read, hides
    return mask_mod, None if inner is None and not adds else score_mod, signature


def _rules(tile: GatherTile) -> tuple[Hashable, ...]:
    return tile.causal, tile.inside, tile.outside


# Layouts of tiles.


def layouts(
    tiles: Sequence[GatherTile], lengths: tuple[int, int], sizes: Sequence[int], padded: bool = False
) -> list[tuple[GatherTile, Layout]]:
    """Pairs (tile, layout); the tile has the layout's rules and bias. Fixed tiles without bias are joined if rules and
    block size agree.

    Args:
        sizes: the block sizes that the kernel takes, largest first.
        padded: whether keys may be padding, so that no block is full.
    """
    alike: dict[Hashable, list[GatherTile]] = {}
    for number, tile in enumerate(tiles):
        signature = block_size(tile, lengths, sizes), rows_per_block(tile, BLOCK) > 1, *_rules(tile)
        alike.setdefault(signature if tile.fixed and tile.bias is None else number, []).append(tile)
    laid_out: list[tuple[GatherTile, Layout]] = []
    for same in alike.values():
        first, size = same[0], block_size(same[0], lengths, sizes) or BLOCK
        if first.fixed:  # cached, since reading values waits for the GPU
            tensors = [x for tile in same for x in (tile.queries, tile.keys)]
            key = (*lengths, size, padded, first.bias is None, *_rules(first))
            make = functools.partial(fixed_layouts, same, size, lengths, padded)
            layouts = BYTE_CACHE.of(tensors, ("layouts", *key), make, lambda found: tensor_bytes(found) or 0)
        else:
            layouts = [row_layout(first, lengths)]
        laid_out += [(first, layout) for layout in layouts]
    return laid_out


def block_size(tile: GatherTile, lengths: tuple[int, int], sizes: Sequence[int]) -> int | None:
    """The first of ``sizes`` for which the tile consists of whole blocks of the sequence. ``None`` if no size fits, or
    if the tile has a bias or is not fixed. Cached."""

    def find() -> tuple[int | None]:
        for size in sizes:
            sides = zip((tile.queries, tile.keys), lengths, strict=True)
            if tile.queries.shape[3] % size == 0 and all(
                axis_blocks(in_blocks(x, 1, size), n, size)[0] is None for x, n in sides
            ):
                return (size,)
        return (None,)

    if not tile.fixed or tile.bias is not None:
        return None
    return BYTE_CACHE.of([tile.queries, tile.keys], ("whole blocks", *lengths, *sizes), find, lambda _: 0)[0]


def row_layout(tile: GatherTile, lengths: tuple[int, int]) -> Layout:
    """The layout of any tile. Query blocks visit all key blocks of their group of rows, and no value is read from the
    device."""
    rows = rows_in_blocks(tile, BLOCK)
    q_blocks, k_blocks = (x.shape[2] // (rows.groups * BLOCK) for x in rows.positions)

    def all_blocks() -> tuple[Lists, Lists]:
        pairs = block_pairs([rows], BLOCK).to(torch.int32).view(2, rows.groups, q_blocks, k_blocks)
        indices = pairs[1].flatten(0, 1)[None, None], pairs[0].mT.flatten(0, 1)[None, None].contiguous()
        by_query, by_key = ((torch.full_like(x[..., 0], x.shape[3]), x) for x in indices)
        return by_query, by_key

    by_query, by_key = BYTE_CACHE.get(
        ("blocks of groups", rows.groups, q_blocks, k_blocks, tile.keys.device), all_blocks
    )
    queries, keys = (axis_of(x, length) for x, length in zip(rows.positions, lengths, strict=True))
    write = torch.where(rows.positions[0] >= 0, rows.positions[0], lengths[0])
    return Layout(
        queries, keys, write, BLOCK, rows_per_block(tile, BLOCK) > 1, rows.numbers, (by_query, None), (by_key, None)
    )


def fixed_layouts(tiles: Sequence[GatherTile], size: int, lengths: tuple[int, int], padded: bool) -> list[Layout]:
    """One layout for fixed tiles with equal rules. If it would gather a query twice, each tile gets its own layout."""
    firsts = itertools.accumulate((tile.queries.shape[2] for tile in tiles), initial=0)
    parts = [rows_in_blocks(tile, size, first) for tile, first in zip(tiles, firsts, strict=False)]
    positions = [_concatenated(x) for x in zip(*(rows.positions for rows in parts), strict=True)]
    numbers = [_concatenated(x) for x in zip(*(rows.numbers for rows in parts), strict=True)]
    sides = [
        axis_blocks(x, length, size, in_order=bool(numbers)) for x, length in zip(positions, lengths, strict=True)
    ]
    (queries, q_blocks, q_count), (keys, k_blocks, k_count) = sides
    if queries is not None and len(tiles) > 1:
        gathered = torch.where(positions[0] < 0, lengths[0], positions[0])
        times = gathered.new_zeros(*gathered.shape[:2], lengths[0] + 1).scatter_add_(
            2, gathered, torch.ones_like(gathered)
        )
        if bool((times[..., :-1] > 1).any()):
            return [layout for tile in tiles for layout in fixed_layouts([tile], size, lengths, padded)]
    q_pair, k_pair = block_pairs(parts, size)
    touched, full = visible(tiles[0], block_ends(positions[0], size, q_pair), block_ends(positions[1], size, k_pair))
    row, column = q_blocks[..., q_pair], k_blocks[..., k_pair]

    def lists(chosen: Tensor, widths: Sequence[int | None] = (None, None)) -> tuple[Lists, Lists]:
        return listed(row, column, chosen, q_count, widths[0]), listed(column, row, chosen, k_count, widths[1])

    partial = lists(touched)
    whole: tuple[Lists | None, Lists | None] = (None, None)
    if not padded and not numbers and bool(full.any()):  # `numbers`: the mask also compares rows or reads a bias
        widths = [indices.shape[3] for _, indices in partial]
        partial, whole = lists(touched & ~full, widths), lists(full, widths)
    write = None if queries is None else torch.where(positions[0] >= 0, positions[0], lengths[0])
    return [
        Layout(
            queries, keys, write, size, rows_per_block(tiles[0], size) > 1, numbers, *zip(partial, whole, strict=True)
        )
    ]


class Rows(NamedTuple):
    """The rows of a tile in ``groups``, one after the other. Each group is padded to whole blocks.

    positions: of queries and of keys, ``(B or 1, H or 1, slots)`` int64, -1 for an empty slot.
    numbers: as in :class:`Layout`.
    """

    groups: int
    positions: list[Tensor]
    numbers: list[Tensor]


def rows_in_blocks(tile: GatherTile, size: int, first: int = 0) -> Rows:
    """The rows of a tile, padded to blocks of ``size`` slots. The first tile row gets number ``first``."""
    sides, count, together = (tile.queries, tile.keys), tile.queries.shape[2], rows_per_block(tile, size)

    def numbers(width: int) -> Tensor:
        slots = torch.arange(first * width, (first + count) * width, dtype=torch.int32, device=tile.keys.device).view(
            1, 1, count, width
        )
        slots = in_blocks(slots, together, size)[0, 0].clamp(min=0)
        return torch.stack([slots // width, slots % width])

    needs_numbers = together > 1 or tile.bias is not None
    positions = [in_blocks(x, together, size) for x in sides]
    return Rows(-(-count // together), positions, [numbers(x.shape[3]) for x in sides] if needs_numbers else [])


def rows_per_block(tile: GatherTile, size: int) -> int:
    """Number of rows per block of ``size`` query slots."""
    rows, width = tile.queries.shape[2:]
    return max(1, min(rows, size // width))


def in_blocks(index: Tensor, together: int, size: int) -> Tensor:
    """Join every ``together`` rows of ``(b, h, R, T)``. Each group is padded to whole blocks of ``size`` slots:
    ``(b, h, slots)``."""
    index = F.pad(index, (0, 0, 0, -index.shape[2] % together), value=-1).unflatten(2, (-1, together)).flatten(3)
    return F.pad(index, (0, -index.shape[3] % size), value=-1).flatten(2)


def block_pairs(parts: Sequence[Rows], size: int) -> Tensor:
    """Every query block with every key block of its group, ``(2, pairs)``."""
    pairs, q_start, k_start = [], 0, 0
    for rows in parts:
        q_blocks, k_blocks = (torch.arange(x.shape[2] // size, device=x.device) for x in rows.positions)
        grid = torch.broadcast_tensors(
            (q_blocks + q_start).view(rows.groups, -1, 1), (k_blocks + k_start).view(rows.groups, 1, -1)
        )
        pairs.append(torch.stack(grid).flatten(1))
        q_start, k_start = q_start + len(q_blocks), k_start + len(k_blocks)
    return torch.cat(pairs, 1)


def axis_blocks(positions: Tensor, length: int, size: int, in_order: bool = False) -> tuple[Axis | None, Tensor, int]:
    """The axis of ``positions``, the axis block of every block of ``positions``, and the number of axis blocks.

    The axis is ``None``, meaning the sequence itself, if every block of ``positions`` is empty or a whole block of the
    sequence. Then empty blocks are block -1. A whole block holds the ``size`` positions from ``n · size`` on, in
    order, with -1 past the end of the sequence.

    in_order: whether slot i must also hold position i for the axis to be the sequence.
    """
    slots = positions.unflatten(2, (-1, size))
    number, count = torch.arange(slots.shape[2], device=positions.device), -(-length // size)
    first = slots[..., 0]
    expected = first[..., None] + torch.arange(size, device=positions.device)
    is_whole = (first % size == 0) & (slots == torch.where(expected < length, expected, -1)).all(-1)
    blocks = torch.where(is_whole, first // size, -1)
    fits = (is_whole | (slots < 0).all(-1)).all()
    if in_order:
        fits = fits & (blocks == torch.where(number < count, number, -1)).all() & (len(number) >= count)
    return (None, blocks, count) if bool(fits) else (axis_of(positions, length), number, len(number))


def axis_of(positions: Tensor, length: int) -> Axis:
    """The axis of int64 ``positions``, where -1 is an empty slot. Empty slots read tokens by their number modulo
    ``length``. If all read the same token, the backward pass would add their gradients one after the other."""
    spread = torch.arange(positions.shape[2], device=positions.device) % length
    return Axis(positions.to(torch.int32), torch.where(positions >= 0, positions, spread))


def block_ends(positions: Tensor, size: int, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Lowest and highest position in each block of ``index``, and whether the block has no empty slot."""
    positions = positions.unflatten(2, (-1, size))
    lowest = torch.where(positions < 0, UNBOUNDED, positions).amin(-1)
    return lowest[..., index], positions.amax(-1)[..., index], (positions >= 0).all(-1)[..., index]


def visible(
    rules: GatherTile, queries: tuple[Tensor, Tensor, Tensor], keys: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """For each query and key block of :func:`block_ends`: whether any query-key pair may be visible by the rules, and
    whether all are."""
    (q_low, q_high, q_filled), (k_low, k_high, k_filled) = queries, keys
    nearest, farthest = q_low - k_high, q_high - k_low  # the smallest and the largest query - key
    touched, full = (q_high >= 0) & (k_high >= 0), q_filled & k_filled
    for low, high in filter(None, ((0, UNBOUNDED) if rules.causal else None, rules.inside)):
        touched, full = touched & (farthest >= low) & (nearest <= high), full & (nearest >= low) & (farthest <= high)
    if rules.outside is not None:
        low, high = rules.outside
        touched, full = (
            touched & ~((nearest >= low) & (farthest <= high)),
            full & ((farthest < low) | (nearest > high)),
        )
    return torch.broadcast_tensors(touched, full)


def _concatenated(parts: Sequence[Tensor]) -> Tensor:
    """Concatenate on the last axis; other axes of size 1 are expanded."""
    shape = torch.broadcast_shapes(*(x.shape[:-1] for x in parts))
    return torch.cat([x.expand(*shape, -1) for x in parts], -1)
