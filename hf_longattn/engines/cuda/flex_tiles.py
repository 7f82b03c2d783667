"""CUDA engine: tiles by compiled flex_attention.

A fixed tile whose rows are whole blocks becomes a list of blocks of the sequence. Any other tile is computed on gathered axes: the queries
of its rows one after the other, padded to whole blocks, and the keys likewise. There a row, or a group of short rows, visits only its own
key blocks, and the mask looks up positions. The kernel never stores scores in memory. The host reads values from the device at most once
per fixed pattern.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask

from ..common.byte_cache import BYTE_CACHE, tensor_bytes
from ..common.call import AttentionCall, GatherTile
from ..common.dense import merged, repeat_heads
from ..common.plain import plain_tile
from . import flex
from .flex import Lists, packed, transposed
from .flex_kernel import kind_of

BLOCK = 128
"""Tokens per block of gathered rows. The backward kernels refuse other sizes on some GPUs."""
FORWARD_BLOCKS = (128, 64, 32)
"""Block sizes that the forward kernels take, in tokens, largest first."""
FEWEST_QUERIES = 6
"""Minimum queries per row for the kernel. Plain operations compute shorter rows: over nine tenths of a block's products would be wasted."""
Output = tuple[Tensor, Tensor | None]
"""Output ``(B, H, Nq, D)`` and log-sum-exp ``(B, H, Nq)``, -inf where a query sees nothing. A single tile may return None for it."""


def flex_gathered(q: Tensor, k: Tensor, v: Tensor, tiles: Sequence[GatherTile], call: AttentionCall) -> Tensor:
    """The output of :func:`hf_longattn.engines.gathered.gathered_attention`, without dropout. k and v may have fewer heads than q.

    Raises:
        NoKernel: this machine has no such kernel.
    """
    if torch.compiler.is_compiling():  # positions are unknown in a graph: each row visits all of its keys, as in tiles that are not fixed
        tiles = [dataclasses.replace(tile, fixed=False) for tile in tiles]
    learning = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    of_blocks, others = joined_by_rules(tiles, (q.shape[2], k.shape[2]), FORWARD_BLOCKS[:1] if learning else FORWARD_BLOCKS)
    parts: list[Callable[..., Output]] = [functools.partial(_attend_blocks, layout) for layout in of_blocks]
    parts += [functools.partial(_attend_plainly, tile) for tile in others if not has_kernel(tile)]
    rows = joined_rows([tile for tile in others if has_kernel(tile)], (q.shape[2], k.shape[2]))
    parts += [functools.partial(_attend_rows, tile, layout) for tile, layout in rows]
    outs, lses = zip(*(part(q, k, v, call, len(parts) > 1) for part in parts), strict=True)
    return outs[0] if len(parts) == 1 else merged(outs, lses)


def has_kernel(tile: GatherTile) -> bool:
    """Whether a kernel computes the rows of a tile faster than plain operations."""
    return tile.queries.shape[3] >= FEWEST_QUERIES or tile.queries.shape[2] == 1


def _attend_plainly(tile: GatherTile, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall, several: bool) -> Output:
    return plain_tile(q, repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1]), tile, call)


def _attend(kind: Hashable, q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, score_mod: Any, call: AttentionCall, several: bool) -> Output:
    """Run the kernel for this kind of mask and score term."""
    settings: dict[str, Any] = {"return_aux": AuxRequest(lse=True)} if several else {}
    if k.shape[1] != q.shape[1]:
        settings["enable_gqa"] = True
    size = mask.BLOCK_SIZE[0]
    if size != BLOCK:  # the defaults fit blocks of 128
        settings["kernel_options"] = dict.fromkeys(("BLOCK_M", "BLOCK_N", "BLOCK_M1", "BLOCK_N1", "BLOCK_M2", "BLOCK_N2"), size)
    out = flex.fused_flex((kind, size), q, k, v, score_mod=score_mod, block_mask=mask, scale=call.scale_for(q.shape[-1]), **settings)
    return (out[0], out[1].lse) if several else (out, None)


# Tiles of whole blocks of the sequence.


@dataclasses.dataclass(frozen=True)
class BlockLayout:
    """Lists of whole blocks, by query block and by key block. Blocks have ``size`` tokens and follow the tile's ``rules``."""

    rules: GatherTile
    size: int
    by_query: Lists
    by_key: Lists


def _attend_blocks(layout: BlockLayout, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall, several: bool) -> Output:
    rules, key_mask, score_mod = layout.rules, call.key_mask, call.score_mod

    def mask_mod(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        seen = rules.sees(q_idx - kv_idx)
        return seen if key_mask is None else seen & key_mask[b, kv_idx]

    lists = {"by_query": (layout.by_query, None), "by_key": (layout.by_key, None)}
    mask = flex.block_mask((q.shape[2], k.shape[2]), layout.size, mask_mod, **lists)
    kind = "blocks", key_mask is None, kind_of(score_mod), *_rules(rules)
    return _attend(kind, q, k, v, mask, score_mod, call, several)


def _rules(tile: GatherTile) -> tuple[Hashable, ...]:
    return tile.causal, tile.inside, tile.outside


def joined_by_rules(
    tiles: Sequence[GatherTile], lengths: tuple[int, int], sizes: Sequence[int]
) -> tuple[list[BlockLayout], list[GatherTile]]:
    """Layouts of the tiles made of whole blocks, and the other tiles. Tiles of equal block size (of ``sizes``) and rules are joined."""
    found: dict[Hashable, list[tuple[GatherTile, BlockLayout]]] = {}
    others = []
    for tile in tiles:
        layout = kept_block_layout(tile, *lengths, sizes)
        if layout is None:
            others.append(tile)
        else:
            found.setdefault((layout.size, *_rules(tile)), []).append((tile, layout))
    return [_joined(pairs, lengths) for pairs in found.values()], others


def _joined(pairs: list[tuple[GatherTile, BlockLayout]], lengths: tuple[int, int]) -> BlockLayout:
    """One layout with the blocks of all ``pairs``."""
    (_, first), *more = pairs
    if not more:
        return first

    def join() -> BlockLayout:
        every = [layout.by_query for _, layout in pairs]
        batch, heads = (max(counts.shape[axis] for counts, _ in every) for axis in (0, 1))
        indices = torch.cat([x.expand(batch, heads, -1, -1) for _, x in every], -1)
        chosen = [torch.arange(x.shape[-1], device=x.device) < counts[..., None] for counts, x in every]
        lists = packed(torch.cat([x.expand(batch, heads, -1, -1) for x in chosen], -1), indices)
        return dataclasses.replace(first, by_query=lists, by_key=transposed(lists, -(-lengths[1] // first.size)))

    tensors = [x for tile, _ in pairs for x in (tile.queries, tile.keys)]
    return BYTE_CACHE.of(tensors, ("joined blocks", *lengths, first.size), join, layout_bytes)


def layout_bytes(layout: Any) -> int:
    """Bytes of a layout's own tensors, without the tile in ``rules``."""
    return tensor_bytes([x for name, x in vars(layout).items() if name != "rules"]) or 0


def kept_block_layout(tile: GatherTile, q_len: int, kv_len: int, sizes: Sequence[int]) -> BlockLayout | None:
    """Cached :func:`block_layout` of a fixed tile without bias, since reading values waits for the GPU. ``None`` for other tiles."""
    if not tile.fixed or tile.bias is not None:
        return None
    found = BYTE_CACHE.of(
        [tile.queries, tile.keys],
        ("blocks", q_len, kv_len, *sizes),
        lambda: (block_layout(dataclasses.replace(tile, fixed=False), q_len, kv_len, sizes),),
        lambda found: 0 if found[0] is None else layout_bytes(found[0]),
    )[0]
    return None if found is None else dataclasses.replace(found, rules=_without_places(tile))


def _without_places(tile: GatherTile) -> GatherTile:
    """The rules of a tile without its tensors, safe to cache."""
    nothing = torch.empty(0, dtype=torch.long)
    return dataclasses.replace(tile, queries=nothing, keys=nothing, bias=None)


def block_layout(tile: GatherTile, q_len: int, kv_len: int, sizes: Sequence[int] = FORWARD_BLOCKS) -> BlockLayout | None:
    """The blocks of a tile, in the first of ``sizes`` that fits. ``None`` if its rows are not whole blocks.

    A whole block holds the ``size`` positions from ``n · size`` on, in order, with -1 past the end of the sequence.
    """
    for size in sizes:
        if tile.queries.shape[3] % size == 0 and (lists := block_lists(tile, q_len, kv_len, size)) is not None:
            return BlockLayout(_without_places(tile), size, lists, transposed(lists, -(-kv_len // size)))
    return None


def block_lists(tile: GatherTile, q_len: int, kv_len: int, size: int) -> Lists | None:
    """The key blocks of ``size`` tokens that each query block visits. ``None`` if the tile is not made of whole blocks."""
    queries = tile.queries.unflatten(-1, (-1, size)).flatten(2, 3)
    keys = F.pad(tile.keys, (0, -tile.keys.shape[3] % size), value=-1).unflatten(-1, (-1, size))
    keys = keys.repeat_interleave(queries.shape[2] // keys.shape[2], 2)
    row, row_whole = _blocks(queries, size, q_len)
    block, block_whole = _blocks(keys, size, kv_len)
    empty, unused = (keys < 0).all(-1), (queries < 0).all(-1)
    if not bool((row_whole | unused).all() & (block_whole | empty).all()):
        return None
    batch, heads, rows, width = torch.broadcast_shapes(row[..., None].shape, block.shape)
    count = -(-q_len // size)
    chosen = torch.zeros(batch, heads, count + 1, width, dtype=torch.bool, device=keys.device)
    indices = chosen.to(torch.int64)
    place = torch.where(unused, count, row)[..., None].expand(batch, heads, rows, width)
    chosen = chosen.scatter(2, place, (~empty).expand(place.shape))[:, :, :count]
    return packed(chosen, indices.scatter(2, place, block.clamp(min=0).expand(place.shape))[:, :, :count])


def _blocks(index: Tensor, size: int, length: int) -> tuple[Tensor, Tensor]:
    """The block of the first position in each list ``index (…, size)``. Also, whether the list is that whole block."""
    first = index[..., 0]
    places = first[..., None] + torch.arange(size, device=index.device)
    is_whole = (first >= 0) & (first % size == 0) & (index == torch.where(places < length, places, -1)).all(-1)
    return first.div(size, rounding_mode="floor"), is_whole


# Any other tiles, on gathered axes.


@dataclasses.dataclass(frozen=True)
class RowLayout:
    """The gathered axes of a tile: groups of rows, each padded to whole blocks, one after the other.

    queries: ``(B or 1, H or 1, slots)`` int64 positions, -1 for an empty slot; ``None`` if slot i is query i.
    keys: the same for keys.
    q_place, k_place: the same as int32, for the mask.
    q_row, k_row: ``(slots,)`` int32, the row of a slot.
    q_slot, k_slot: ``(slots,)`` int32, the place of a slot in its row.
    several: whether a block holds slots of several rows.
    touched: the visited blocks, by query block and by key block.
    whole: the touched blocks as (partial, full), by query block and by key block. The mask is evaluated in partial blocks only. ``None`` if
        no full blocks are known.
    read_queries, read_keys: ``queries`` and ``keys`` with some position to read in every slot; ``None`` where these are.
    write_queries: the output row of every slot, for empty slots a row after the last; ``None`` where ``queries`` is.
    """

    queries: Tensor | None
    keys: Tensor | None
    q_place: Tensor
    k_place: Tensor
    q_row: Tensor
    k_row: Tensor
    q_slot: Tensor
    k_slot: Tensor
    several: bool
    touched: tuple[Lists, Lists]
    whole: tuple[tuple[Lists, Lists], tuple[Lists, Lists]] | None = None
    read_queries: Tensor | None = None
    read_keys: Tensor | None = None
    write_queries: Tensor | None = None


def _attend_rows(tile: GatherTile, layout: RowLayout, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall, several: bool) -> Output:
    heads, q_len = q.shape[1:3]
    queries = q if layout.read_queries is None else at_places(q, layout.read_queries, heads)
    keys, values = (k, v) if layout.read_keys is None else (at_places(x, layout.read_keys, heads) for x in (k, v))
    mask_mod, score_mod, kind = _mods(tile, layout, call)
    lists: dict[str, tuple[Lists, Lists | None]]
    if layout.whole is None or call.key_mask is not None:
        lists = {"by_query": (layout.touched[0], None), "by_key": (layout.touched[1], None)}
    else:
        lists = {"by_query": layout.whole[0], "by_key": layout.whole[1]}
    mask = flex.block_mask((queries.shape[2], keys.shape[2]), BLOCK, mask_mod, **lists)
    kind = "rows", lists["by_query"][1] is None, *kind
    out, lse = _attend(kind, queries, keys, values, mask, score_mod, call, several)
    if layout.write_queries is None:
        return out, lse
    place = layout.write_queries.expand(*out.shape[:3])
    full = out.new_zeros(*out.shape[:2], q_len + 1, out.shape[3]).scatter(2, place[..., None].expand(out.shape), out)
    if lse is not None:
        lse = lse.new_full((*out.shape[:2], q_len + 1), float("-inf")).scatter(2, place, lse)[:, :, :q_len]
    return full[:, :, :q_len], lse


def at_places(x: Tensor, places: Tensor, heads: int) -> Tensor:
    """Tokens of ``x (B, H_kv, N, D)`` at ``places (B or 1, H or 1, S)``: ``(B, H_kv, S, D)``, or H heads if ``places`` has H."""
    if places.shape[:2] == (1, 1):
        return x[:, :, places[0, 0]]
    item = torch.arange(x.shape[0], device=x.device)
    if places.shape[1] == 1:
        return x.transpose(1, 2)[item[:, None], places[:, 0]].transpose(1, 2)
    head = torch.arange(heads, device=x.device) // (heads // x.shape[1])
    return x[item[:, None, None], head[:, None], places]


def readable(places: Tensor, length: int) -> Tensor:
    """``places (…, S)`` with a position in every empty slot. These are spread over the ``length`` positions of the sequence, since the
    backward pass adds gradients of the same position one after the other."""
    return torch.where(places >= 0, places, torch.arange(places.shape[-1], device=places.device) % length)


def lookup(table: Tensor) -> tuple[Callable[..., Tensor], tuple[bool, ...]]:
    """``table`` as a function of one index per axis, and which axes it reads. Axes of size 1 are not read."""
    read = tuple(size > 1 for size in table.shape)
    values = table.squeeze()

    def at(*index: Any) -> Tensor:
        return values[tuple([one for one, is_read in zip(index, read, strict=True) if is_read])]

    return at, read


def _mods(tile: GatherTile, layout: RowLayout, call: AttentionCall) -> tuple[Any, Any, tuple[Hashable, ...]]:
    """The ``mask_mod`` and ``score_mod`` on a tile's gathered axes, and their kind for :func:`fused_flex`."""
    key_mask, inner, bias, several = call.key_mask, call.score_mod, tile.bias, layout.several
    (q_at, q_read), (k_at, k_read) = lookup(layout.q_place), lookup(layout.k_place)
    q_row, k_row, q_slot, k_slot, rules = layout.q_row, layout.k_row, layout.q_slot, layout.k_slot, _without_places(tile)
    bias_at, bias_read = (None, None) if bias is None else lookup(bias)
    hides = bias is not None and bias.dtype == torch.bool

    def mask_mod(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        key = k_at(b, h, kv_idx)
        seen = (key >= 0) & rules.sees(q_at(b, h, q_idx) - key)
        if several:
            seen = seen & (q_row[q_idx] == k_row[kv_idx])
        if hides and bias_at is not None:
            seen = seen & bias_at(b, h, q_row[q_idx], q_slot[q_idx], k_slot[kv_idx])
        return seen if key_mask is None else seen & key_mask[b, key.clamp(min=0)]

    def score_mod(score: Tensor, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Tensor:
        if inner is not None:
            score = inner(score, b, h, q_at(b, h, q_idx).clamp(min=0), k_at(b, h, kv_idx).clamp(min=0))
        if bias_at is not None and not hides:
            score = score + bias_at(b, h, q_row[q_idx], q_slot[q_idx], k_slot[kv_idx])
        return score

    scored = inner is not None or (bias is not None and not hides)
    kind = key_mask is None, kind_of(inner), *_rules(tile), several, q_read, k_read, bias_read, hides
    return mask_mod, score_mod if scored else None, kind


def joined_rows(tiles: Sequence[GatherTile], lengths: tuple[int, int]) -> list[tuple[GatherTile, RowLayout]]:
    """The tiles with their layouts. Fixed tiles with equal rules and no common query are joined."""
    alike: dict[Hashable, list[GatherTile]] = {}
    for number, tile in enumerate(tiles):
        alone = not tile.fixed or tile.bias is not None or tile.queries.shape[:2] != (1, 1) or tile.keys.shape[:2] != (1, 1)
        alike.setdefault(number if alone else _rules(tile), []).append(tile)
    found: list[tuple[GatherTile, RowLayout]] = []
    for same in alike.values():
        layout = kept_joint_layout(same, *lengths) if len(same) > 1 else None
        found += [(tile, kept_row_layout(tile, *lengths)) for tile in same] if layout is None else [(same[0], layout)]
    return found


def kept_joint_layout(tiles: Sequence[GatherTile], q_len: int, kv_len: int) -> RowLayout | None:
    """The cached, concatenated layout of several fixed tiles. ``None`` if a query is in two of them."""

    def join() -> tuple[RowLayout | None]:
        queries = torch.cat([tile.queries.flatten() for tile in tiles])
        times = queries.new_zeros(q_len + 1).scatter_add_(0, torch.where(queries < 0, q_len, queries), torch.ones_like(queries))
        if bool((times[:q_len] > 1).any()):
            return (None,)
        return (without_copies(one_after_the_other([trimmed(row_layout(tile), tile) for tile in tiles]), q_len, kv_len),)

    tensors = [x for tile in tiles for x in (tile.queries, tile.keys)]
    key = "joined rows", q_len, kv_len, *_rules(tiles[0])
    return BYTE_CACHE.of(tensors, key, join, lambda found: 0 if found[0] is None else layout_bytes(found[0]))[0]


def kept_row_layout(tile: GatherTile, q_len: int, kv_len: int) -> RowLayout:
    """:func:`row_layout`; for a fixed tile trimmed and cached."""
    if not tile.fixed:
        return with_places(row_layout(tile), q_len, kv_len)
    key = "rows", q_len, kv_len, tile.bias is None, *_rules(tile)
    make = functools.partial(_trimmed_layout, dataclasses.replace(tile, fixed=False), q_len, kv_len)
    return BYTE_CACHE.of([tile.queries, tile.keys], key, make, layout_bytes)


def _trimmed_layout(tile: GatherTile, q_len: int, kv_len: int) -> RowLayout:
    return without_copies(trimmed(row_layout(tile), tile), q_len, kv_len)


def row_layout(tile: GatherTile) -> RowLayout:
    """The gathered axes of a tile. Query blocks visit all key blocks of their group of rows, and no value is read from the device."""
    rows, size = tile.queries.shape[2:]
    together = max(1, BLOCK // size)
    groups, device = -(-rows // together), tile.keys.device
    queries, keys = (in_groups(x, groups, together) for x in (tile.queries, tile.keys))
    q_blocks, k_blocks = (x.shape[2] // (groups * BLOCK) for x in (queries, keys))
    sides = [in_groups(_numbered(rows, x.shape[3], device), groups, together).clamp(min=0)[:, 0] for x in (tile.queries, tile.keys)]
    (q_row, q_slot), (k_row, k_slot) = ([y.contiguous() for y in x.to(torch.int32)] for x in sides)
    lists = BYTE_CACHE.get(("blocks of groups", groups, q_blocks, k_blocks, device), lambda: all_blocks(groups, q_blocks, k_blocks, device))
    places = queries.to(torch.int32), keys.to(torch.int32)
    return RowLayout(queries, keys, *places, q_row, k_row, q_slot, k_slot, together > 1, lists)


def _numbered(rows: int, size: int, device: torch.device) -> Tensor:
    """The row of every slot and its place in the row, ``(2, 1, rows, size)``."""
    row, place = torch.arange(rows, device=device)[:, None], torch.arange(size, device=device)
    return torch.stack([row.expand(rows, size), place.expand(rows, size)])[:, None]


def in_groups(index: Tensor, groups: int, together: int) -> Tensor:
    """Concatenate rows ``(b, h, R, T)`` in ``groups`` of ``together`` rows, each padded to whole blocks: ``(b, h, slots)``."""
    index = F.pad(index, (0, 0, 0, groups * together - index.shape[2]), value=-1).unflatten(2, (groups, together)).flatten(3)
    return F.pad(index, (0, -index.shape[3] % BLOCK), value=-1).flatten(2)


def all_blocks(groups: int, q_blocks: int, k_blocks: int, device: torch.device) -> tuple[Lists, Lists]:
    """Lists where every query block of a group visits all the group's key blocks."""

    def lists(rows: int, columns: int) -> Lists:
        first = torch.arange(groups, device=device).repeat_interleave(rows)[:, None] * columns
        indices = (first + torch.arange(columns, device=device)).to(torch.int32)[None, None]
        return torch.full(indices.shape[:3], columns, dtype=torch.int32, device=device), indices

    return lists(q_blocks, k_blocks), lists(k_blocks, q_blocks)


def trimmed(layout: RowLayout, tile: GatherTile) -> RowLayout:
    """``layout`` of a fixed tile without the blocks that the rules leave empty."""
    assert layout.queries is not None
    assert layout.keys is not None
    q_blocks = layout.touched[0][0].shape[2]
    width, height = layout.touched[0][1].shape[3], layout.touched[1][1].shape[3]
    groups = q_blocks // height
    q_low, q_high, q_filled = _extremes(layout.queries, groups, height)
    k_low, k_high, k_filled = _extremes(layout.keys, groups, width)
    q_low, q_high, q_filled = (x[..., :, None] for x in (q_low, q_high, q_filled))
    k_low, k_high, k_filled = (x[..., None, :] for x in (k_low, k_high, k_filled))
    nearest, farthest = q_low - k_high, q_high - k_low  # the smallest and the largest query - key
    touched = (q_high >= 0) & (k_high >= 0)
    full = q_filled & k_filled & (not layout.several and tile.bias is None)
    if tile.causal:
        touched, full = touched & (farthest >= 0), full & (nearest >= 0)
    if tile.inside is not None:
        low, high = tile.inside
        touched, full = touched & (farthest >= low) & (nearest <= high), full & (nearest >= low) & (farthest <= high)
    if tile.outside is not None:
        low, high = tile.outside
        touched, full = touched & ~((nearest >= low) & (farthest <= high)), full & ((farthest < low) | (nearest > high))
    touched, full = torch.broadcast_tensors(touched, full)
    by_query, by_key = layout.touched[0][1], layout.touched[1][1]

    def lists(chosen: Tensor) -> tuple[Lists, Lists]:
        return packed(chosen.flatten(2, 3), by_query), packed(chosen.transpose(3, 4).flatten(2, 3), by_key)

    partial, whole = lists(touched & ~full), lists(touched & full)
    return dataclasses.replace(layout, touched=lists(touched), whole=((partial[0], whole[0]), (partial[1], whole[1])))


def one_after_the_other(layouts: Sequence[RowLayout]) -> RowLayout:
    """Concatenate the axes of several trimmed layouts."""

    def axis(name: str) -> Tensor:
        return torch.cat([getattr(layout, name) for layout in layouts], -1)

    def rows(name: str) -> Tensor:
        ends = itertools.accumulate((int(layout.q_row.max()) + 1 for layout in layouts), initial=0)
        return torch.cat([getattr(layout, name) + end for layout, end in zip(layouts, ends, strict=False)])

    def lists(of: Callable[[RowLayout], Lists], columns: Sequence[int]) -> Lists:
        """Concatenate block lists; ``columns`` are the numbers of blocks that each layout's lists refer to."""
        every = [of(layout) for layout in layouts]
        width, firsts = max(indices.shape[-1] for _, indices in every), itertools.accumulate(columns, initial=0)
        moved = [F.pad(indices + first, (0, width - indices.shape[-1])) for (_, indices), first in zip(every, firsts, strict=False)]
        return torch.cat([counts for counts, _ in every], -1), torch.cat(moved, -2)

    q_blocks, k_blocks = ([layout.touched[side][0].shape[2] for layout in layouts] for side in (0, 1))
    touched = lists(lambda x: x.touched[0], k_blocks), lists(lambda x: x.touched[1], q_blocks)
    whole = [
        (lists(lambda x, side=side: x.whole[side][0], columns), lists(lambda x, side=side: x.whole[side][1], columns))  # type: ignore[misc]
        for side, columns in ((0, k_blocks), (1, q_blocks))
    ]
    queries, keys, q_place, k_place, q_slot, k_slot = (axis(name) for name in ("queries", "keys", "q_place", "k_place", "q_slot", "k_slot"))
    several = any(layout.several for layout in layouts)
    return RowLayout(
        queries, keys, q_place, k_place, rows("q_row"), rows("k_row"), q_slot, k_slot, several, touched, (whole[0], whole[1])
    )  # fmt: skip


def without_copies(layout: RowLayout, q_len: int, kv_len: int) -> RowLayout:
    """``layout`` without gathering an axis that is in place already."""
    assert layout.queries is not None
    assert layout.keys is not None
    assert layout.whole is not None
    in_place = [_is_in_place(places, n) for places, n in ((layout.queries, q_len), (layout.keys, kv_len))]

    def cut(lists: Lists, side: int) -> Lists:
        blocks = -(-(q_len, kv_len)[side] // BLOCK)
        return (lists[0][:, :, :blocks], lists[1][:, :, :blocks]) if in_place[side] else lists

    (q_partial, q_whole), (k_partial, k_whole) = layout.whole
    whole = (cut(q_partial, 0), cut(q_whole, 0)), (cut(k_partial, 1), cut(k_whole, 1))
    layout = dataclasses.replace(
        layout,
        queries=None if in_place[0] else layout.queries,
        keys=None if in_place[1] else layout.keys,
        touched=(cut(layout.touched[0], 0), cut(layout.touched[1], 1)),
        whole=whole if bool(q_whole[0].any()) else None,
    )
    return with_places(layout, q_len, kv_len)


def with_places(layout: RowLayout, q_len: int, kv_len: int) -> RowLayout:
    """``layout`` with the positions to read and to write."""
    queries, keys = layout.queries, layout.keys
    return dataclasses.replace(
        layout,
        read_queries=None if queries is None else readable(queries, q_len),
        read_keys=None if keys is None else readable(keys, kv_len),
        write_queries=None if queries is None else torch.where(queries >= 0, queries, q_len),
    )


def _extremes(places: Tensor, groups: int, blocks: int) -> tuple[Tensor, Tensor, Tensor]:
    """Lowest and highest position of every block ``(b, h, groups, blocks)``, and whether all its slots are filled."""
    places = places.unflatten(2, (groups, blocks, BLOCK))
    lowest = torch.where(places < 0, torch.iinfo(places.dtype).max // 4, places).amin(-1)
    return lowest, places.amax(-1), (places >= 0).all(-1)


def _is_in_place(places: Tensor, length: int) -> bool:
    """Whether slot i holds position i for all ``length`` positions, and later slots are empty."""
    if places.shape[:2] != (1, 1) or places.shape[2] < length:
        return False
    expected = torch.arange(places.shape[2], device=places.device)
    return bool((places[0, 0] == torch.where(expected < length, expected, -1)).all())
