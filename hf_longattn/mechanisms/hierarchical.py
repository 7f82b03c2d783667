"""Hierarchical attention: exact near the diagonal, coarser with distance (Zhu & Soricut 2021, H-Transformer-1D,
sections 4 and 6).

The sequence, from its first real token, is cut into blocks of b tokens. On level l, 2^l of these blocks form a block
of b·2^l tokens. A pool of level l is the mean of 2^l consecutive tokens. Query i attends to

    level 0:      the tokens of its block and of the two neighbouring blocks
    level l:      the pools of its level-l block and of the two neighbouring blocks, beyond what lower levels cover
    top level L:  the pools of all other tokens; by default, L is the lowest level on which two blocks hold the whole
                  sequence

Let p(i, j) be the real tokens of the pool in which query i sees key j (on level 0, j alone). The weights are

    A_ij = exp(scale · q_i · k̄_p) / Σ_j' exp(scale · q_i · k̄_p')        k̄_p = mean of k over p

so a pool counts once for each of its real tokens, and its value is the mean of their v.

This is the paper's block hierarchy (equations 25 to 28), except that the paper also pools the queries of level l over
2^l tokens. Here every query is exact, which costs N·b·log(N/b) instead of N·b. The results agree if the queries of
each pool are equal. In the causal form a query sees earlier tokens only, and pools lie entirely before it. For a score
term, the position of a pool is its middle, or the last token of the text if that comes earlier.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from ..engines.batch import in_graph, last_real
from ..engines.byte_cache import BYTE_CACHE
from ..engines.call import AttentionCall, GatherTile, rows_of
from ..engines.dense import at_least_fp32, dense_attention, grid_of, repeat_heads
from ..engines.dispatch import choose
from ..engines.gathered import gathered_attention
from ..engines.score_terms import remapped
from .common.base import Mechanism, pad_queries, softmax_over, visible_in_full_attention
from .common.capabilities import About
from .common.layout import block_sizes, full_pairs
from .common.options import Options, option
from .common.registry import register_mechanism


@dataclasses.dataclass(frozen=True)
class HierarchicalOptions(Options):
    block_size: int = option(64, "tokens in a block of level 0, an even number", "tokens", parity="even")
    levels: int | None = option(
        None, "maximum number of levels, the exact one included; default: what the length needs", "levels", least=1
    )

    def pools_keys(self) -> bool:
        return True


@register_mechanism("hierarchical")
class Hierarchical(Mechanism):
    about = About(
        summary="exact near the diagonal, pooled keys and values that grow coarser with distance",
        paper="Zhu & Soricut 2021, H-Transformer-1D, §4 and §6",
        when="distant text matters in outline only: a token sees near ones exactly, and means of growing pools "
        "beyond; needs no training",
        engine="gathered",
        cost="N·b·log(N/b)",
        sample={"block_size": 8},
        covering=lambda length, causal: {"block_size": length + length % 2},
    )
    per_head_tensors = ()
    options: HierarchicalOptions

    def pyramid(self, length: int) -> Pyramid:
        """The levels of a sequence: as few as possible so that two top-level blocks cover the sequence, and at most
        the option ``levels``."""
        block, levels = self.options.block_size, self.options.levels
        top = 0
        while block << top < -(-length // 2):
            top += 1
        if levels is not None:
            top = min(top, levels - 1)
        return Pyramid(length, block, top)

    def covers(self, length: int, causal: bool = False) -> bool:
        return self.pyramid(length).top == 0

    def pairs(self, length: int, causal: bool = False) -> int:
        return full_pairs(length, causal) if self.covers(length, causal) else self.pyramid(length).pairs(causal)

    def dense_weights(self, q: Tensor, k: Tensor, call: AttentionCall) -> Tensor:
        """The weights ``(B, H, Nq, Nk)``: each key has the score of the pool in which the query sees it."""
        heads, kv_len, real = q.shape[1], k.shape[2], call.key_mask
        pyramid = self.pyramid(kv_len)
        b, h, q_idx, kv_idx = grid_of(q, k)
        # Scores and positions of the keys on level 0, then of the pools on each level for the pairs of that level.
        level, centres = pyramid.level_of(q_idx, kv_idx), kv_idx
        scores = q @ repeat_heads(k, heads).mT
        for number, keys in enumerate(pyramid.pooled(k, real).split(pyramid.sizes[1:], 2), 1):
            pool = kv_idx[0, 0, 0] >> number
            level_scores = (q @ repeat_heads(keys, heads).mT)[..., pool]
            scores = torch.where(level == number, level_scores, scores)
            centres = torch.where(level == number, pyramid.centre(number, pool), centres)
        scores = scores * call.scale_for(q.shape[-1])
        if call.score_mod is not None:
            last = kv_len - 1 if real is None else last_real(real)[b]
            scores = call.score_mod(scores, b, h, q_idx, centres.clamp(max=last))
        return softmax_over(scores, visible_in_full_attention(q, k, call))

    def forward(self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        """The output ``(B, H, Nq, D)``: dense for short texts, else over tiles of tokens and pools."""
        q_len, kv_len, heads = q.shape[2], k.shape[2], q.shape[1]
        path = choose("pairs", q, k, call, covered=self.covers(kv_len, call.causal))
        if path == "dense":
            return dense_attention(q, k, v, call)
        if path == "dense-masked":
            weights = self.dense_weights(at_least_fp32(q), at_least_fp32(k), call)
            return F.dropout(weights, call.dropout).to(v.dtype) @ repeat_heads(v, heads)

        # The pools of all levels are further keys and values, after those of the tokens.
        pyramid, real, device = self.pyramid(kv_len), call.key_mask, q.device
        keys = torch.cat([k, pyramid.pooled(k, real)], 2)
        values = torch.cat([v, pyramid.pooled(v, real)], 2)

        # The bias of a pool is the logarithm of its number of tokens. Without padding, all calls of this length share
        # the biased tiles.
        counts, dtype = pyramid.counts(real, device), torch.promote_types(q.dtype, torch.float32)

        def weighted() -> tuple[GatherTile, ...]:
            """The tiles of the pyramid, with biases for the tiles of pools."""
            key = ("pyramid", pyramid, call.causal, device)
            near, *far = BYTE_CACHE.get(key, lambda: pyramid.parts(call.causal, device))
            weights = counts.to(dtype).clamp(min=1).log()
            for number, tile in enumerate(far):
                bias = weights[:, tile.keys.clamp(min=0)[0, 0]][:, None, :, None]
                far[number] = dataclasses.replace(tile, bias=bias)
            return near, *far

        if real is None:
            parts = BYTE_CACHE.get(("weighted pyramid", pyramid, call.causal, device, dtype), weighted)
        else:
            parts = weighted()
        if call.score_mod is not None:
            centres = pyramid.centres(device)
            last = None if real is None else last_real(real)

            def position(b: Tensor, h: Tensor, kv_idx: Tensor) -> Tensor:
                """The position of each key or pool in score terms."""
                return centres[kv_idx] if last is None else centres[kv_idx].clamp(max=last[b])

            call = call.replace(score_mod=remapped(call.score_mod, position))
        call = call.with_mask(None if real is None else counts > 0)
        out = gathered_attention(pad_queries(q, kv_len), keys, values, parts, call)
        return out[:, :, kv_len - q_len :]


QUERIES_PER_ROW = 128
"""Maximum queries per tile row, unless a block has more. On level l, all queries of a level l-1 block see the same
pools."""


@dataclasses.dataclass(frozen=True)
class Pyramid:
    """Levels 0 (tokens) to ``top`` of a sequence of ``length`` tokens, with blocks of ``block`` tokens on level 0.

    A query sees each key on the lowest level on which the key is in the query's block or a neighbouring block.
    """

    length: int
    block: int
    top: int

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of tokens, and of pools on each level above 0."""
        return (self.length, *(-(-self.length >> level) for level in range(1, self.top + 1)))

    def level_of(self, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        """The level on which each query sees each key. The positions broadcast."""
        level = torch.zeros((), dtype=torch.long, device=q_idx.device)
        for below in range(self.top):
            size = self.block << below
            level = level + ((q_idx // size - kv_idx // size).abs() > 1)
        return level

    def centre(self, level: int, pool: Tensor) -> Tensor:
        """Position of a pool in score terms: its middle, or the token on level 0."""
        width = 2**level
        return (pool * width + width // 2).clamp(max=self.length - 1)

    def centres(self, device: torch.device) -> Tensor:
        """:meth:`centre` of every entry of the key axis, which holds the tokens and then the pools of each level."""
        return torch.cat(
            [self.centre(level, torch.arange(size, device=device)) for level, size in enumerate(self.sizes)]
        )

    def counts(self, real: Tensor | None, device: torch.device) -> Tensor:
        """Number of tokens in every entry of the key axis, ``(B or 1, entries of all levels)`` float32.

        Only the tokens that are True in ``real (B, N)`` count; without ``real``, all tokens.
        """

        def count(tokens: Tensor) -> Tensor:
            levels = [tokens.float()]
            for _ in range(self.top):
                levels.append(_pairs(levels[-1][..., None])[..., 0].sum(-1))
            return torch.cat(levels, -1)

        if real is not None:
            return count(real)
        return BYTE_CACHE.get(
            ("pool counts", self, device), lambda: count(torch.ones(1, self.length, dtype=torch.bool, device=device))
        )

    def pooled(self, x: Tensor, real: Tensor | None) -> Tensor:
        """The pools of ``x (B, H, N, D)`` on all levels above 0, concatenated: means of real tokens, or zeros."""
        counts = self.counts(real, x.device)
        level = at_least_fp32(x)
        if real is not None:
            level = level.masked_fill(~real[:, None, :, None], 0.0)
        levels = [level[:, :, :0]]  # torch.cat needs one tensor if there is no level above 0
        for _ in range(self.top):
            level = _pairs(level).sum(-2)
            levels.append(level)
        count = counts[:, None, self.length :, None].to(level.dtype)
        return torch.cat(levels, 2).div_(count.clamp(min=1)).to(x.dtype)

    def parts(self, causal: bool, device: torch.device) -> tuple[GatherTile, ...]:
        """The tile of level 0, the tile of level 1 and a tile of all higher levels, as far as these levels exist.

        Queries see the tokens of three blocks (two when causal), and pools farther away.
        """
        first = torch.arange(0, self.length, self.block, device=device).view(1, 1, -1, 1) - self.block
        near = first + torch.arange((2 if causal else 3) * self.block, device=device)
        near = torch.where((near >= 0) & (near < self.length), near, -1)
        parts = [GatherTile(rows_of(self.length, self.block, device), near, causal=causal)]
        levels_above = range(1, self.top + 1)
        for levels in (levels_above[:1], levels_above[1:]):
            if levels:
                size = self.block  # queries per row, which must see the same pools of the lowest of these levels
                while size * 2 <= QUERIES_PER_ROW and size < self.block << (levels[0] - 1):
                    size *= 2
                rows = rows_of(self.length, size, device)
                starts = torch.arange(rows.shape[2], device=device) * size
                keys = torch.cat([self._far(level, starts, causal) for level in levels], -1)
                # values can be read: move empty slots to the end, and cut to the longest row
                if not in_graph():
                    order = (keys < 0).sort(dim=-1, stable=True)
                    keys = keys.gather(-1, order.indices)[..., : int((keys >= 0).sum(-1).max())]
                parts.append(GatherTile(rows, keys[None, None]))
        return tuple(parts)

    def _far(self, level: int, starts: Tensor, causal: bool) -> Tensor:
        """Key-axis indices ``(R, T)`` of the pools of ``level`` > 0 for each row of queries, by its first query
        ``starts``; -1 for none."""
        half, size = self.block // 2, self.sizes[level]
        own_block = (starts // (self.block << (level - 1)))[:, None]
        # the range that the level below covers, in pools of this level
        low, high = (own_block - 1) * half, (own_block + 2) * half
        if level == self.top:  # all pools outside that range
            pools = torch.arange(size, device=starts.device).expand(len(starts), -1)
            seen = (pools < low) | ((pools >= high) & (not causal))
        else:  # the pools of the own block and its neighbours, from `left` on, outside that range
            left = (own_block // 2 - 1) * self.block
            slots = torch.arange(2 * half if causal else 3 * half, device=starts.device)
            pools = torch.where(slots < low - left, left + slots, high + slots - (low - left))
            seen = (pools >= 0) & (pools < size) & ((pools < low) | (not causal))
        first_index = sum(self.sizes[:level])
        return torch.where(seen, pools + first_index, -1)

    def pairs(self, causal: bool) -> int:
        """Number of visible pairs. A query and a pool are one pair."""
        visited = 0
        for tile in self.parts(causal, torch.device("cpu")):
            visited += int(((tile.queries >= 0).sum(-1) * (tile.keys >= 0).sum(-1)).sum())
        if causal:  # the later tokens of a query's own block
            visited -= sum(size * (size - 1) // 2 for size in block_sizes(self.length, self.block))
        return visited


def _pairs(x: Tensor) -> Tensor:
    """Neighbouring tokens as pairs, ``(…, N, D) -> (…, ceil(N / 2), 2, D)``."""
    if torch.compiler.is_compiling() or x.shape[-2] % 2:  # F.pad copies even where it adds nothing
        x = F.pad(x, (0, 0, 0, x.shape[-2] % 2))
    return x.unflatten(-2, (-1, 2))
