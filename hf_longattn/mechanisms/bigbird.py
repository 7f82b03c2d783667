"""BigBird attention: a window of blocks, global blocks and random blocks (Zaheer et al. 2020, Big Bird, section 2 and
appendix D).

The sequence is cut into n blocks of b tokens. With g global blocks at each end, a window of w blocks and r random
blocks, a query of block I sees the keys of block J if

    bidirectional:  I or J is one of the first or last g blocks, or |I - J| <= w//2, or J is one of the random blocks
                    of I
    causal:         J < g, or I-w < J <= I, or J is one of the random blocks of I, which lie before its window (and
                    key <= query)

Global blocks are the paper's internal global tokens (ITC). The tokens of ``global_mask`` are global too (ETC): they
attend to, and are attended by, all tokens. Bidirectional sequences of up to 2g + w + 2r blocks get full attention, as
in transformers' BigBird.

A key that counts m times for a query has the weight m · exp(score). With ``random_pattern="hf_eval"``, the first
block counts once more for each random block, as in transformers' BigBird in evaluation. transformers draws random
blocks only in training; here the pattern is fixed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..engines import accelerator
from ..engines.batch import in_graph, last_real
from ..engines.byte_cache import BYTE_CACHE
from ..engines.call import AttentionCall, DispatchContext, GatherTile, MaskMod
from ..engines.cuda.flex import BlockTable, flex_block_table
from ..engines.dense import dense_attention, grid_of, index_grid
from ..engines.dispatch import choose, try_path
from ..engines.gathered import gathered_attention
from ..engines.global_rows import global_index
from ..engines.score_terms import add_term
from ..errors import OptionError
from ..positions.trained_distances import Locality
from .common.base import LayerSizes, pad_queries, scaled_scores, softmax_over, visible_in_full_attention
from .common.capabilities import About
from .common.global_tokens import global_tokens
from .common.layout import block_sizes, full_pairs, tokens_of
from .common.masked import MaskedMechanism
from .common.options import Options, option
from .common.registry import register_mechanism
from .common.shared_options import AttendedKeys

TABLE_STEP = 64
"""Number of blocks by which a decoding table grows. Untuned."""
MAX_TABLE = 1 << 24
"""Maximum entries (one byte each) of a layer's decoding table. For longer texts, every step draws the random blocks
again. Untuned."""


@dataclasses.dataclass(frozen=True)
class BigBirdOptions(Options):
    block_size: int = option(64, "tokens in a block", "tokens", least=1)
    num_random_blocks: int = option(
        3, "random key blocks of each query block, drawn for each head", "blocks", most=64, least=0
    )
    num_window_blocks: int = option(
        3, "blocks in the window, the query's in the middle, or the last one when causal", "blocks", parity="odd"
    )
    num_global_blocks: int = option(
        1, "global blocks at each end of the sequence, or at the start when causal", "blocks", least=0
    )
    seed: int = option(0, "seed of the random blocks; layer l draws with seed + l", least=0)
    random_pattern: str = option(
        "seeded",
        "'seeded': distinct blocks outside the window and the global blocks; 'hf_eval': the first block counts again "
        "instead of each random one, as in transformers in evaluation",
        choices=("seeded", "hf_eval"),
    )
    blocks_over: str = option(
        "text",
        "'text': blocks are cut from each sequence without its padding; 'input': blocks are cut from the padded "
        "input, and padding has the output 0, as in transformers",
        choices=("text", "input"),
    )

    def check(self) -> None:
        if self.random_pattern != "seeded" and (self.num_window_blocks, self.num_global_blocks) != (3, 1):
            raise OptionError(
                f"random_pattern={self.random_pattern!r} of mechanism 'bigbird' exists for num_window_blocks=3 and "
                "num_global_blocks=1 only, as in transformers; choose random_pattern='seeded'."
            )

    @property
    def full_blocks(self) -> int:
        """Maximum number of blocks at which every query still sees every key, in the bidirectional form."""
        return 2 * self.num_global_blocks + self.num_window_blocks + 2 * self.num_random_blocks


@register_mechanism("bigbird")
class BigBird(MaskedMechanism):
    about = About(
        summary="a window of blocks, random blocks, and global blocks that attend to and are attended by all",
        paper="Zaheer et al. 2020, Big Bird, §2 and appendix D",
        when="a BigBird checkpoint, or an encoder that should pass information through random blocks and the first "
        "one, without global tokens of your own",
        engine="gathered",
        cost="N·b·(w+r+2g)",
        sample={"block_size": 4, "num_random_blocks": 2},
        covering=lambda length, causal: {"block_size": length},
    )
    capabilities = MaskedMechanism.capabilities.but(takes_globals=True)
    per_head_tensors = ()
    drawn_by_layer = True
    options: BigBirdOptions

    def __init__(self, sizes: LayerSizes, options: BigBirdOptions) -> None:
        super().__init__(sizes, options)
        self.definition_is_mask = options.random_pattern == "seeded"  # otherwise keys count more than once
        if options.random_pattern != "seeded":
            self.causal = False  # transformers has no causal form
        self.capabilities = self.capabilities.but(ignores_padding=options.blocks_over == "text")

    def covers(self, length: int, causal: bool = False) -> bool:
        options = self.options
        max_blocks = options.full_blocks
        if causal:
            max_blocks = options.num_global_blocks + options.num_window_blocks + options.num_random_blocks
        return -(-length // options.block_size) <= max_blocks

    def locality(self, causal: bool) -> Locality | None:
        options = self.options
        if options.num_random_blocks and options.random_pattern == "seeded":
            return None
        back = (options.num_window_blocks if causal else options.num_window_blocks // 2 + 1) * options.block_size - 1
        width = back if causal else options.num_window_blocks * options.block_size - 1
        return Locality(back, 0 if causal else back, options.block_size, beside="others", width_of_keys=width)

    def pairs(self, length: int, causal: bool = False) -> int:
        """Number of visible pairs of one head, counted in blocks."""
        if self.covers(length, causal):
            return full_pairs(length, causal)
        device = torch.device("cpu")
        sizes = torch.tensor(block_sizes(length, self.options.block_size))
        pattern = self.blocks(length, AttentionCall(causal), device)
        seen = pattern.times(*index_grid(1, 1, len(sizes), len(sizes), device))[0, 0] > 0
        if not causal:
            return int((seen * sizes[:, None] * sizes).sum())
        pairs = int((seen.tril() * sizes[:, None] * sizes).sum())
        hidden_in_own_block = int((sizes * (sizes - 1) // 2).sum())
        return pairs - hidden_in_own_block

    def blocks(self, length: int, call: AttentionCall, device: torch.device) -> Blocks:
        """The block pattern of a call with ``length`` keys."""
        options = self.options
        rows = -(-length // options.block_size)
        texts = self.cut_texts(call)
        if texts is None:
            count = torch.full((1,), rows, device=device)
        else:
            count = (last_real(texts) + options.block_size) // options.block_size
        return self.blocks_of(count, rows, call)

    def blocks_of(self, count: Tensor, rows: int, call: AttentionCall) -> Blocks:
        """The block pattern of sequences with ``count (B or 1,)`` blocks each, the longest with ``rows`` blocks."""
        if self.options.random_pattern == "seeded":
            random = self.drawn_blocks(count, rows, call.causal, call.seed)
        else:
            random = count.new_zeros(1, 1, rows, 0)
        return Blocks(self.options, count, rows, call.causal, random)

    def drawn_blocks(self, count: Tensor, rows: int, causal: bool, seed: int) -> Tensor:
        """Distinct random key blocks per head and query block, outside the window and the global blocks.

        A draw depends only on the seed, the layer, the head, the query block and, when not causal, the number of
        blocks in the sequence. So it is the same on every device, in every batch and after loading. Floyd's algorithm
        (Bentley & Floyd 1987) draws without replacement in ``num_random_blocks`` steps.

        Args:
            count: ``(B or 1,)``, number of blocks of each sequence.
            rows: number of query blocks in the result.
        Returns:
            ``(B or 1, H, rows, num_random_blocks)`` block indices; -1 in unused slots, if fewer blocks can be drawn.
        """
        options = self.options
        device = count.device
        window = options.num_window_blocks
        edge = options.num_global_blocks
        seed = options.seed + self.layer + seed
        row = torch.arange(rows, device=device).view(1, 1, -1)
        head = torch.arange(self.num_heads, device=device).view(1, -1, 1)

        # Number of blocks to draw from: those after the global blocks at the start, without the window low … high - 1.
        if causal:
            low = high = row - window + 1  # later blocks are not drawn
            available = (low - edge).clamp(min=0)
        else:
            last = count.view(-1, 1, 1) - edge
            low = (row - window // 2).clamp(min=edge)
            high = torch.minimum(row + window // 2 + 1, last)
            available = (last - edge - (high - low).clamp(min=0)).clamp(min=0)

        # Floyd's algorithm: each step draws from one number more, and takes that number if the draw repeats another.
        hashes = BYTE_CACHE.get(
            ("bigbird hashes", seed, self.num_heads, rows, options.num_random_blocks, device),
            lambda: [_hash(seed, head, row, step) for step in range(options.num_random_blocks)],
        )
        chosen: list[Tensor] = []
        for step in range(options.num_random_blocks):
            highest = available - options.num_random_blocks + step
            drawn = (hashes[step] * (highest + 1).clamp(min=0)) >> 31
            for earlier in chosen:
                drawn = torch.where(earlier == drawn, highest, drawn)
            chosen.append(torch.where(highest >= 0, drawn, -1))
        if not chosen:
            return row.new_zeros(1, self.num_heads, rows, 0)

        # From the index among the available blocks to the index of the block.
        index = torch.stack(torch.broadcast_tensors(*chosen), -1)
        block = index + edge
        block = torch.where(block >= low[..., None], block + (high - low)[..., None], block)
        return torch.where(index >= 0, block, -1)

    def cut_texts(self, call: AttentionCall) -> Tensor | None:
        """The mask of real tokens if the blocks of each text depend on its length, else ``None``."""
        if call.causal or self.options.blocks_over == "input":
            return None
        return call.key_mask

    def mask_mod(self, causal: bool, global_mask: Tensor | None) -> MaskMod:
        """Whether a key counts at least once.

        Decoding reads the blocks from a cached table, which is faster than drawing the random blocks in every step.
        """
        call, size = AttentionCall(causal), self.options.block_size
        times = self.times(call, global_mask)

        def seen(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Tensor:
            # Decoding looks up a table of blocks, which grows in steps.
            rows = -(-kv_idx.shape[-1] // (size * TABLE_STEP)) * TABLE_STEP
            if not causal or rows * rows * self.num_heads > MAX_TABLE:
                return times(b, h, q_idx, kv_idx) > 0
            table = self.table(rows * size, call, kv_idx.device).seen[0].expand(self.num_heads, -1, -1)
            visible = table[h, q_idx.clamp(min=0) // size, kv_idx.clamp(min=0) // size]
            if global_mask is not None:
                visible = visible | global_mask[b, q_idx] | global_mask[b, kv_idx]
            return visible

        return seen

    def times(self, call: AttentionCall, tokens: Tensor | None) -> Callable[[Any, Any, Any, Any], Tensor]:
        """A function of ``b, h, q_idx, kv_idx`` that returns how often each key counts in a query's softmax.

        ``kv_idx`` must cover the whole sequence. ``tokens``: mask of the global tokens, ``(B, N)`` bool.
        """
        size, key_mask = self.options.block_size, call.key_mask

        def count(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
            length = kv_idx.shape[-1]
            pattern = self.blocks(length, call, kv_idx.device)
            times = pattern.times(b, h, q_idx // size, kv_idx // size)
            if tokens is not None:
                times = torch.where(tokens[b, q_idx] | tokens[b, kv_idx], 1, times)
            if key_mask is not None and self._zeroes_padding(length):
                times = times * key_mask[b, q_idx]
            return times

        return count

    def attended_keys(self, q: Tensor, k: Tensor, call: AttentionCall) -> AttendedKeys:
        times = self.times(call, self.resolve_globals(k, call))
        b, h, _, kv_idx = index_grid(k.shape[0], self.num_heads, 1, k.shape[2], k.device)
        return lambda rows, scores: times(b, h, rows.view(1, 1, -1, 1), kv_idx) > 0

    def hides_padding(self, k: Tensor, call: AttentionCall) -> bool:
        return call.padding_values == "finite" and accelerator.accelerated(k)

    def _zeroes_padding(self, length: int) -> bool:
        """Whether padding queries output zeros, as in transformers. Otherwise, the output is arbitrary."""
        return self.options.blocks_over == "input" and not self.covers(length)

    def resolve_globals(self, k: Tensor, call: AttentionCall) -> Tensor | None:
        """The tokens that are global in addition to the global blocks."""
        return global_tokens((), k, call)

    def dense_weights(self, q: Tensor, k: Tensor, call: AttentionCall) -> Tensor:
        scores = scaled_scores(q, k, call)
        times = self.times(call, self.resolve_globals(k, call))
        counts = times(*grid_of(q, k)) * visible_in_full_attention(q, k, call)
        return softmax_over(scores + counts.to(scores.dtype).log(), counts > 0, call.sink_scores)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        """The output ``(B, H, Nq, D)``: dense for short texts, else by a table of blocks (flex) or by tiles."""
        q_len, kv_len = q.shape[2], k.shape[2]
        tokens = self.resolve_globals(k, call)
        # The path for accelerators supports any number of global tokens, even in a graph.
        limits_globals = tokens is not None and not accelerator.accelerated(q)
        covered = self.covers(kv_len, call.causal)
        path = choose("pairs", q, k, call, covered=covered, global_tokens=limits_globals)
        if path == "dense":
            return dense_attention(q, k, v, call)
        if path == "dense-masked":
            times = self.times(call, tokens)
            if self.options.random_pattern != "seeded":  # keys may count several times
                exact = torch.promote_types(q.dtype, torch.float32)
                call = call.replace(
                    score_mod=add_term(call.score_mod, lambda *index: times(*index).clamp(min=1).to(exact).log())
                )
            return dense_attention(q, k, v, call, mask_mod=lambda *index: times(*index) > 0)

        padded, size = pad_queries(q, kv_len), self.options.block_size
        context = DispatchContext.of(padded, k, call, block_size=size)

        def by_table() -> Tensor:
            table_call = call.replace(global_mask=tokens).written_out()
            key = (type(self), self.options, self.num_heads, self.layer + call.seed)
            return flex_block_table(padded, k, v, key, lambda: self.table(kv_len, call, q.device), size, table_call)

        out, _ = try_path("blocks", context, {"flex": by_table})
        if out is None:
            parts = self.plan(kv_len, tokens, torch.promote_types(q.dtype, torch.float32), call, q.device)
            out = gathered_attention(padded, k, v, parts, call)
        if call.key_mask is not None and self._zeroes_padding(kv_len):
            out = out * call.key_mask[:, None, :, None]
        return out[:, :, kv_len - q_len :]

    def table(self, length: int, call: AttentionCall, device: torch.device) -> BlockTable:
        """The key blocks that each query block sees, for each sequence of a batch or for all.

        The table for each number of blocks is cached for the process.
        """
        size = self.options.block_size
        rows = -(-length // size)
        texts = self.cut_texts(call)
        counts = [rows]  # number of blocks of each sequence, or of all
        if texts is not None and call.batch is not None:
            if in_graph():  # lengths cannot be read in a graph
                return block_table(self.blocks(length, call, device))
            counts *= len(texts)
            for span in call.batch.sequences:
                counts[span.row] = -(-span.stop // size)
        key = ("bigbird table", self.options, self.num_heads, self.layer + call.seed, rows, call.causal, device)
        tables: dict[int, BlockTable] = {}
        for count in dict.fromkeys(counts):

            def make(count: int = count) -> BlockTable:
                return block_table(self.blocks_of(torch.full((1,), count, device=device), rows, call))

            tables[count] = BYTE_CACHE.get((*key, count), make)
        if len(tables) == 1:
            return tables[counts[0]]
        seen = torch.cat([tables[count].seen for count in counts])
        added = [table.added for count in counts if (table := tables[count]).added is not None]
        return BlockTable(seen, torch.cat(added) if added else None)

    def plan(
        self, length: int, tokens: Tensor | None, dtype: torch.dtype, call: AttentionCall, device: torch.device
    ) -> tuple[GatherTile, ...]:
        """The tiles of a call. They are cached if they depend only on the length.

        tokens: mask of the global tokens, ``(B, length)`` bool. dtype: that of the bias.
        """
        rows = -(-length // self.options.block_size)
        texts = self.cut_texts(call)
        if texts is not None and call.batch is not None:
            shortest = 0  # length of the shortest text, unknown in a graph
            if not in_graph():
                shortest = call.batch.cached(("shortest text",), lambda: int(last_real(texts).min()) + 1)
            shortest = -(-shortest // self.options.block_size)
            if shortest < rows:
                blocks = self.blocks(length, call, device)
                return blocks.parts(length, tokens, dtype, shortest)

        def make() -> tuple[GatherTile, ...]:
            return self.blocks(length, call.with_mask(None), device).parts(length, tokens, dtype, rows)

        if tokens is not None:
            return make()
        key = (type(self), self.options, self.num_heads, self.layer + call.seed, length, call.causal, device, dtype)
        return BYTE_CACHE.get(key, make)


def block_table(pattern: Blocks) -> BlockTable:
    """The key blocks that each query block of a pattern sees. If keys count several times, also the logarithm of their
    number, to be added to scores."""
    heads, device = pattern.random.shape[1], pattern.count.device
    times = pattern.times(*index_grid(len(pattern.count), heads, pattern.rows, pattern.rows, device))
    return BlockTable(times > 0, times.clamp(min=1).log() if pattern.again else None)


def _hash(seed: int, head: Tensor, row: Tensor, step: int) -> Tensor:
    """31 uniform bits, int64, for every (seed, head, row, step). Rounds of MurmurHash3's finaliser fmix32, in integers
    only. ``head`` and ``row`` broadcast."""

    def mixed(x: Tensor) -> Tensor:
        """fmix32 of 32 bits in an int64. Products overflow, but their low 32 bits are correct."""
        x = (x ^ (x >> 16)) * 0x85EBCA6B & 0xFFFFFFFF
        x = (x ^ (x >> 13)) * 0xC2B2AE35 & 0xFFFFFFFF
        return x ^ (x >> 16)

    state = mixed(torch.full_like(head, seed % (1 << 32)))
    for counter in (head, row, torch.full_like(head, step)):
        state = mixed(state ^ (counter * 0x9E3779B1 + 0x85EBCA77 & 0xFFFFFFFF))
    return state >> 1


@dataclasses.dataclass(frozen=True)
class Blocks:
    """The block pattern of a batch of sequences.

    count: ``(B or 1,)``, number of blocks of each sequence.
    rows: blocks of the longest sequence.
    random: ``(B or 1, H or 1, rows, r)``, the random key blocks of every query block; -1 for none.
    """

    options: BigBirdOptions
    count: Tensor
    rows: int
    causal: bool
    random: Tensor

    @property
    def edge(self) -> int:
        """Number of global blocks at each end, or at the start when causal."""
        return self.options.num_global_blocks

    @property
    def again(self) -> int:
        """Number of extra times that the first block counts for queries without full attention."""
        return self.options.num_random_blocks - self.random.shape[-1]

    def times(self, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        """How many times keys of block ``j`` count in the softmax of queries of block ``i``. The caller hides keys
        after the query."""
        total = self.count[b.clamp(max=len(self.count) - 1)]
        window = self.options.num_window_blocks
        if self.causal:
            seen = ((i - j < window) & (j <= i)) | (j < self.edge)
            sees_all = i < 0  # no query
        else:
            seen = ((i - j).abs() <= window // 2) | self._global(j, total)
            sees_all = self._global(i, total) | (total <= self.options.full_blocks)
        counted = seen.int() + self.again * (j == 0).int()
        batch, heads, _, count = self.random.shape
        b, h, row = b.clamp(max=batch - 1), h.clamp(max=heads - 1), i.clamp(0, self.rows - 1)
        for number in range(count):  # a saved graph cannot unbind an empty axis
            counted = counted + (self.random[..., number][b, h, row] == j).int()
        return torch.where(sees_all, 1, counted)

    def _global(self, block: Tensor, total: Tensor) -> Tensor:
        """Whether each block is one of the first or last blocks of a sequence with ``total`` blocks."""
        return (block < self.edge) | (block >= total - self.edge)

    def seen(self) -> Tensor:
        """Key blocks of each non-global query block, ``(B or 1, H or 1, rows, K)``. Global blocks at the start come
        first; -1 for none."""
        edge, window, device = self.edge, self.options.num_window_blocks, self.count.device
        row = torch.arange(self.rows, device=device).view(1, 1, -1, 1)
        offsets = torch.arange(window, device=device)
        edge_blocks = torch.arange(edge, device=device)
        first = edge_blocks.expand(1, 1, self.rows, -1)
        if self.causal:
            near = row - window + 1 + offsets
            return joined(torch.where(first <= row, first, -1), torch.where(near >= edge, near, -1), self.random)
        total = self.count.view(-1, 1, 1, 1)
        near = row - window // 2 + offsets
        near = torch.where((near >= edge) & (near < total - edge), near, -1)
        last = (total - edge + edge_blocks).expand(-1, -1, self.rows, -1)
        return joined(first, near, last, self.random)

    def parts(self, length: int, tokens: Tensor | None, dtype: torch.dtype, shortest: int) -> tuple[GatherTile, ...]:
        """The tiles of an input of ``length`` tokens. All its sequences start at position 0.

        Args:
            tokens: ``(B, length)`` bool, tokens that are global in addition to the global blocks.
            dtype: dtype of the bias on the scores.
            shortest: number of blocks of the shortest sequence; 0 if unknown.
        """
        if tokens is not None and not in_graph() and not bool(tokens.any()):
            tokens = None
        edge, rows, causal, total = self.edge, self.rows, self.causal, self.count.view(-1, 1, 1, 1)
        size, full = self.options.block_size, self.options.full_blocks
        row = torch.arange(rows, device=total.device).view(1, 1, -1, 1)

        # A tile for the query blocks that see only some keys. In the causal form, this is every block of every
        # sequence. Otherwise, it is every block of a long sequence that is not global.
        if causal:
            long = total > 0
            inner = slice(None)
            active = long & (row >= 0)
        else:
            long = total > full  # short sequences get full attention
            inner = slice(edge, rows - edge if shortest == rows else rows)
            active = long & (row < total - edge)
        queries = tokens_of(torch.where(active, row, -1)[:, :, inner], size, length)
        keys = tokens_of(self.seen()[:, :, inner], size, length)
        if tokens is not None:  # global tokens are keys of all these queries, and are no queries of this tile
            tokens = tokens & long.view(-1, 1)
            index, real = global_index(tokens)
            index = torch.where(real, index, -1)[:, None, None]
            queries = without(queries, tokens)
            keys = joined(without(keys, tokens), index.expand(-1, -1, keys.shape[2], -1))
        bias = None
        if self.again:  # the keys of the first block, listed first, count more than once
            first = torch.arange(keys.shape[-1], device=keys.device).view(1, 1, 1, 1, -1) < size
            bias = first.to(dtype) * math.log(1 + self.again)
        parts = [GatherTile(queries, keys, causal=causal, bias=bias)]

        # A tile for the queries in long sequences that see all keys.
        all_keys = torch.arange(length, device=total.device)
        global_queries = self.global_rows(length, tokens, long)
        if global_queries is not None:
            keys = all_keys.expand(1, 1, global_queries.shape[2], -1)
            parts.append(GatherTile(global_queries, keys, causal=causal))

        # A tile for full attention in short sequences.
        if not causal and shortest <= full:
            blocks = min(full, rows)
            short = torch.where(~long & (row[:, :, :blocks] < total), row[:, :, :blocks], -1)
            keys = all_keys[: blocks * size].expand(1, 1, blocks, -1)
            parts.append(GatherTile(tokens_of(short, size, length), keys))
        return tuple(parts)

    def global_rows(self, length: int, tokens: Tensor | None, long: Tensor) -> Tensor | None:
        """Positions of the queries that see everything, ``(B or 1, 1, R, size)``; -1 in empty slots. ``None`` without
        such queries.

        Args:
            tokens: ``(B, length)`` bool, tokens that are global in addition to the global blocks.
            long: ``(B or 1, 1, 1, 1)`` bool, False for sequences with full attention.
        """
        total, edge, size = self.count.view(-1, 1), self.edge, self.options.block_size
        if tokens is None:
            if self.causal or edge == 0:
                return None
            edge_blocks = torch.arange(edge, device=total.device)
            block = torch.cat([edge_blocks.expand(total.shape[0], -1), total - edge + edge_blocks], -1)
            return tokens_of(torch.where(long, block[:, None, :, None], -1), size, length)
        if not self.causal:
            block = torch.arange(length, device=total.device) // size
            tokens = tokens | (self._global(block, total) & (block < total) & long.view(-1, 1))
        index, real = global_index(tokens)
        index = F.pad(torch.where(real, index, -1), (0, -index.shape[1] % size), value=-1)
        return index.view(len(index), 1, -1, size)


def without(positions: Tensor, tokens: Tensor) -> Tensor:
    """``positions (B or 1, H or 1, R, T)`` with -1 at the positions of ``tokens (B, N)`` bool."""
    row = torch.arange(len(tokens), device=tokens.device).view(-1, 1, 1, 1)
    return torch.where(tokens[row, positions.clamp(min=0)], -1, positions)


def joined(*lists: Tensor) -> Tensor:
    """Concatenate lists of positions ``(B or 1, H or 1, R, K)`` along the last axis."""
    batch, heads = (max(x.shape[axis] for x in lists) for axis in (0, 1))
    return torch.cat([x.expand(batch, heads, -1, -1) for x in lists], -1)
