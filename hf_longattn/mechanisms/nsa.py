"""Native sparse attention (Yuan et al. 2025, Native Sparse Attention, section 3.3, equations 5-12): three branches, mixed by learned gates.

    o_i = g_i^cmp Attn(q_i, K^cmp, V^cmp) + g_i^slc Attn(q_i, K^slc_i, V^slc_i) + g_i^win Attn(q_i, K^win_i, V^win_i)

**Compressed**: block m holds the l tokens from m·d on. φ turns it into one key and one value. Query i sees the blocks that end at or
before i.

    φ(x_0 … x_{l-1}) = mean_r x_r + W_2 relu(W_1 [x_0 + e_0; …; x_{l-1} + e_{l-1}] + b_1) + b_2

**Selected**: p^cmp are the compressed branch's weights. Block j of l' tokens has the score

    p^slc_j = Σ_{heads that share a key head} Σ_{m' < l'/d} Σ_{n' < l/d} p^cmp_{(l'/d) j + m' - n'}

(equations 9 and 10 with blocks counted from 0). Query heads that share a key head therefore select the same blocks. Query i sees
``num_blocks`` blocks, up to itself: the ``initial_blocks`` first ones, its own, the ``local_blocks`` - 1 before its own, and those with the
highest scores. Ties go to the earlier block. Choices are made in float64, and no gradient flows through them.

**Window**: the last w keys.

The paper leaves some things open, and some are different here:

- φ is a mean plus an MLP with positions e inside the block, shared by the heads of a layer. W_2 is initialised as 0, so φ is the mean at
  first.
- g = sigmoid(U q_i + c) per head. Its input is the head's query, after any rotation of positions, instead of the layer's input. U is
  initialised as 0, and c so that each gate is 1/3. A converted checkpoint therefore starts with the mean of the branches. The first l - 1
  tokens see no compressed block, so their outputs start at two thirds of the mean of the other two branches.
- The branches share the layer's keys and values. The paper projects them three times, which needs three caches, and a checkpoint has only
  one projection.
- For a score term, a compressed key lies at the middle of its block.
- The bidirectional form is not in the paper. Every block with a token is compressed and seen; local blocks and window are on both sides.

A decode cache keeps all keys and values, since any block may be selected. For every d tokens it also keeps one compressed key (in float64)
and value. With d = 16 that is 9% more memory in fp32, and 16% in bf16.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..engines.block_selected import block_selected_attention
from ..engines.block_sparse import block_sparse_attention
from ..engines.common import accelerator
from ..engines.common.batch import in_graph
from ..engines.common.call import AttentionCall, Pattern, middle_of, selection_mask
from ..engines.common.dense import at_least_fp32, dense_attention, grid_of, index_grid, repeat_heads
from ..engines.common.score_terms import ScoreMod, remapped
from ..engines.dispatch import choose
from ..engines.topk import (
    SCORE_CELLS,
    exact_dtype,
    float32_products,
    product_margin,
    ranking,
    rows_per_step,
    searched_again,
    term_at,
    topk,
)  # fmt: skip
from ..errors import OptionError
from ..options import Options, option
from .common.layout import band_pairs, full_pairs
from .common.pooled import uniform
from .common.registry import register_mechanism
from .common.relative_terms import with_dense_terms
from .common.scores import pad_queries, scaled_scores, softmax_over, visible_to_all
from .common.summaries import CacheSummaries, SummarisedMechanism, attend_to_blocks
from .common.traits import Handling

INITIAL_GATE = 1 / 3
"""Value of each gate before training."""
FORCED_BLOCK_SCORE = float(1 << 30)
"""Score of always-selected blocks, above any sum of weights."""


@dataclasses.dataclass(frozen=True)
class NSAOptions(Options):
    compress_size: int = option(32, "l, tokens of which one compressed key is made", "tokens", least=1, most=65536)
    compress_stride: int = option(16, "d, distance between the first tokens of compressed blocks", "tokens", least=1)
    block_size: int = option(64, "l', tokens in a block that is selected", "tokens", least=1)
    num_blocks: int = option(16, "n, blocks that each query selects, the initial and the local ones included", "blocks", least=1)
    initial_blocks: int = option(1, "first blocks of the text that are always selected", "blocks", least=0)
    local_blocks: int = option(
        2, "blocks near the query that are always selected: its own and those before it; if bidirectional, its own and half of them "
        "on each side, so that an even number needs one more in num_blocks",
        "blocks", least=1,
    )  # fmt: skip
    window: int = option(512, "total width of the window: w/2 on each side, or the last w keys when causal", "tokens", least=1)
    hidden: int | None = option(None, "units in the hidden layer of φ; none uses the head size", "units", least=1, most=65536)

    def check(self) -> None:
        common = math.gcd(self.compress_size, self.block_size)
        if common % self.compress_stride:
            fitting = max(stride for stride in range(1, min(self.compress_stride, common) + 1) if common % stride == 0)
            raise OptionError(
                f"Option 'compress_stride' of mechanism 'nsa' is {self.compress_stride}, but must divide "
                f"compress_size={self.compress_size} and block_size={self.block_size}; for example compress_stride={fitting}."
            )
        if self.num_blocks < self.always_selected(causal=True):
            raise OptionError(
                f"Option 'num_blocks' of mechanism 'nsa' is {self.num_blocks}, but {self.initial_blocks} initial and {self.local_blocks} "
                f"local blocks are always selected; for example num_blocks={self.always_selected(causal=True) + 1}."
            )

    def always_selected(self, causal: bool) -> int:
        """Number of always-selected blocks, the query's own included. Near the ends of the text there may be fewer."""
        return self.initial_blocks + (self.local_blocks if causal else 2 * (self.local_blocks // 2) + 1)


class Compression(nn.Module):
    """φ, which maps ``size`` tokens of width ``width`` to one vector of that width."""

    def __init__(self, size: int, width: int, hidden: int) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.empty(size, width))
        self.first, self.first_bias = nn.Parameter(torch.empty(size, width, hidden)), nn.Parameter(torch.empty(hidden))
        self.second, self.second_bias = nn.Parameter(torch.empty(hidden, width)), nn.Parameter(torch.empty(width))

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw W_1 so that tokens of unit variance give hidden units of unit variance. All else is 0, so φ is the mean."""
        nn.init.normal_(self.first, std=self.first[..., 0].numel() ** -0.5, generator=generator)
        for tensor in (self.positions, self.first_bias, self.second, self.second_bias):
            nn.init.zeros_(tensor)

    def forward(self, blocks: Tensor, real: Tensor) -> Tensor:
        """Compress ``blocks (B, H, M, l, D)`` to ``(B, H, M, D)``, in at least fp32, without tokens where ``real (B, M, l)`` is False."""
        with torch.autocast(blocks.device.type, enabled=False):
            blocks = at_least_fp32(blocks).masked_fill(~real[:, None, ..., None], 0)
            mean = blocks.sum(3) / real.sum(-1).clamp(min=1)[:, None, :, None]
            placed = blocks + self.positions.to(blocks.dtype) * real[:, None, ..., None]
            hidden = F.relu(placed.flatten(3) @ self.first.to(blocks.dtype).flatten(0, 1) + self.first_bias.to(blocks.dtype))
            return mean + hidden @ self.second.to(blocks.dtype) + self.second_bias.to(blocks.dtype)

    def of_sequence(self, x: Tensor, real: Tensor, stride: int, dtype: torch.dtype) -> Tensor:
        """Compress the blocks at every ``stride``-th token of ``x (B, H, N, D)`` to ``(B, H, M, D)`` in ``dtype``.

        ``x`` must be 0 at padding. Overlapping blocks are not copied: W_1 multiplies a token once for each block that contains it.

        real: ``(B, M, l)`` bool, the real tokens of the blocks.
        """
        with torch.autocast(x.device.type, enabled=False):
            count, overlap, size = real.shape[1], real.shape[2] // stride, real.shape[2]
            x = F.pad(x, (0, 0, 0, -x.shape[2] % stride)) if x.shape[2] % stride else x
            x = x.to(dtype).unflatten(2, (-1, stride))
            of_strides = F.pad(x.sum(3), (0, 0, 0, overlap - 1))
            mean: Any = sum(of_strides[:, :, at : at + count] for at in range(overlap))
            first = self.first.to(dtype).unflatten(0, (overlap, stride)).flatten(1, 2)  # (overlap, stride * D, hidden)
            parts = F.pad(x.flatten(3) @ first.transpose(0, 1).flatten(1), (0, 0, 0, overlap - 1)).unflatten(-1, (overlap, -1))
            placed = (self.positions.to(dtype)[:, None] @ self.first.to(dtype)).view(size, -1)
            hidden: Any = sum(parts[:, :, at : at + count, at] for at in range(overlap))
            hidden = F.relu(hidden + (real.to(dtype) @ placed + self.first_bias.to(dtype))[:, None])
            mean = mean / real.sum(-1).clamp(min=1)[:, None, :, None]
            return mean + hidden @ self.second.to(dtype) + self.second_bias.to(dtype)


@register_mechanism("nsa")
class NSA(SummarisedMechanism):
    """Compressed blocks, selected blocks and a window, mixed by learned gates."""

    summary = "compressed blocks of the whole text, the blocks that these select, and a window, mixed by learned gates"
    paper = "Yuan et al. 2025, Native Sparse Attention, §3.3"
    when = "a decoder that you train on long text and that needs evidence from anywhere, at a cost far below full attention"
    engine = "block_selected"
    handling = Handling(exports_definition=True)
    cost = "N·(n·l'+w) + N·N/d"
    traits = SummarisedMechanism.traits.but(trains=True)
    per_head_tensors = ("gate", "gate_bias")
    sample: ClassVar[dict[str, Any]] = {
        "compress_size": 8, "compress_stride": 4, "block_size": 16, "num_blocks": 5, "window": 24, "hidden": 8,
    }  # fmt: skip

    options: NSAOptions

    def __init__(self, num_heads: int, head_dim: int, hidden_size: int, max_length: int | None, options: NSAOptions) -> None:
        super().__init__(num_heads, head_dim, hidden_size, max_length, options)
        if options.num_blocks < (needed := options.always_selected(causal=False)):
            why = (
                f"Mechanism 'nsa' always selects {needed} blocks in its bidirectional form, which {{where}} needs: the query's own, "
                f"{needed - options.initial_blocks - 1} next to it (half of local_blocks={options.local_blocks} on each side) and "
                f"{options.initial_blocks} initial ones; but num_blocks is {options.num_blocks}; for example num_blocks={needed + 1}."
            )
            self.causal, self.traits = True, self.traits.but(why_one_form=why)
        sizes = options.compress_size, head_dim, options.hidden or head_dim
        self.keys, self.values = Compression(*sizes), Compression(*sizes)
        self.gate, self.gate_bias = nn.Parameter(torch.empty(num_heads, head_dim, 3)), nn.Parameter(torch.empty(num_heads, 3))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Initialise φ as the mean, and every gate as 1/3 for every query."""
        super().reset_parameters(generator)
        self.keys.reset_parameters(generator)
        self.values.reset_parameters(generator)
        nn.init.zeros_(self.gate)
        nn.init.constant_(self.gate_bias, math.log(INITIAL_GATE / (1 - INITIAL_GATE)))

    def gates(self, q: Tensor) -> tuple[Tensor, ...]:
        """Gates of the compressed, selected and window branches, each ``(B, H, Nq, 1)``, in at least fp32."""
        with torch.autocast(q.device.type, enabled=False):
            q = at_least_fp32(q)
            return (q @ self.gate.to(q.dtype) + self.gate_bias.to(q.dtype)[:, None]).sigmoid().split(1, -1)

    def mixed(self, q: Tensor, *branches: Tensor) -> Tensor:
        """The sum of the branches' outputs ``(B, H, Nq, D)``, weighted by the gates of ``q``."""
        first, *others = zip(self.gates(q), branches, strict=True)
        total = first[0] * first[1]
        for gate, branch in others:
            total = torch.addcmul(total, gate, branch)
        return total.to(q.dtype)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        window = Pattern.window(self.options.window, call.causal)
        near = block_sparse_attention(q, k, v, window, call)
        return self.mixed(q, self._compressed(q, k, v, call), self._selected(q, k, v, call), near)

    def _compressed(self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        """The compressed branch, ``(B, H, Nq, D)``; zeros for queries that see no compressed block."""
        q_len, kv_len = q.shape[2], k.shape[2]
        real = self._real_blocks(k, call)
        keys, values = (
            self._compress(by, x, real, call, at_least_fp32(x).dtype).to(q.dtype) for by, x in ((self.keys, k), (self.values, v))
        )
        rows = torch.arange(kv_len - q_len, kv_len, device=q.device).view(1, 1, -1, 1)
        filled = real.any(-1)
        block_call = call.replace(causal=False, batch=None, score_mod=self._at_middles(call.score_mod, real))
        if not call.causal and call.key_mask is None:
            return dense_attention(q, keys, values, block_call, q_idx=rows)
        mod = self._sees_block(call.causal)
        return dense_attention(q, keys, values, block_call, mask_mod=lambda b, h, i, m: mod(i, m) & filled[b, m], q_idx=rows)

    def _compress(self, by: Compression, x: Tensor, real: Tensor, call: AttentionCall, dtype: torch.dtype) -> Tensor:
        """φ of every block of ``x (B, H, N, D)``, ``(B, H, M, D)`` in ``dtype``."""
        x = x if call.key_mask is None else x.masked_fill(~call.key_mask[:, None, :, None], 0)
        return by.of_sequence(x, real, self.options.compress_stride, dtype)

    def _real_blocks(self, k: Tensor, call: AttentionCall) -> Tensor:
        """Mask of the real tokens in every compressed block, ``(B, M, l)``. Blocks at the end of the text are filled up with padding."""
        size, stride = self.options.compress_size, self.options.compress_stride
        return F.pad(call.real(k), (0, -k.shape[2] % stride + size - stride)).unfold(1, size, stride)

    def _sees_block(self, causal: bool) -> Any:
        """``mod(i, m)``: whether query i sees compressed block m, provided the block has a token."""
        size, stride = self.options.compress_size, self.options.compress_stride
        return lambda i, m: (m * stride + size - 1 <= i) | (not causal)

    def _at_middles(self, score_mod: ScoreMod | None, real: Tensor) -> ScoreMod | None:
        """``score_mod`` for compressed keys, which lie at the middles of their blocks."""
        count = real.shape[1]
        starts = torch.arange(count, device=real.device) * self.options.compress_stride
        middle = torch.where(real.any(-1), starts + middle_of(real), 0)
        return remapped(score_mod, keys=lambda b, h, m: middle[b, m])

    def _selected(self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        """The selected branch, ``(B, H, Nq, D)``."""
        (heads, q_len), kv_len, size = q.shape[1:3], k.shape[2], self.options.block_size
        path = choose("pairs", q, k, call, covered=kv_len <= self.options.num_blocks * size)
        if path == "dense":
            return dense_attention(q, k, v, call)
        with torch.no_grad():
            chosen = self._search(q, k, call)
        if path == "dense-masked":
            chosen = repeat_heads(chosen, heads)
            block = torch.arange(kv_len, device=q.device) // size
            seen = selection_mask(chosen, block[kv_len - q_len :, None], -(-kv_len // size))[..., block] & visible_to_all(q, k, call)
            return dense_attention(q, k, v, call.replace(causal=False, batch=None), mask_mod=lambda *_: seen)
        chosen = F.pad(chosen, (0, 0, kv_len - q_len, 0), value=-1)
        return block_selected_attention(pad_queries(q, kv_len), k, v, chosen, size, call)[:, :, kv_len - q_len :]

    def _search(self, q: Tensor, k: Tensor, call: AttentionCall) -> Tensor:
        """The blocks that each query selects besides its own, ``(B, H_kv, Nq, K)`` int64; -1 in unused slots."""
        (batch, heads, q_len, _), kv_len, exact = q.shape, k.shape[2], exact_dtype(q.device)
        real, scale, mod = self._real_blocks(k, call), call.scale_for(q.shape[-1]), self._sees_block(call.causal)
        keys = self._compress(self.keys, k, real, call, exact)
        filled_blocks = self._filled_blocks(call.real(k))
        overlap, strides_per_block = self._strides
        exactly = in_graph() or q_len == 1 or call.score_mod is not None or overlap > strides_per_block + 1
        if accelerator.accelerated(q) and not exactly and float32_products(q):
            return self._prefiltered(q, keys, kv_len, real, filled_blocks, call)
        keys = repeat_heads(keys, heads).mT
        blocks = torch.arange(keys.shape[3], device=q.device)
        filled = real.any(-1)[:, None, None]
        score_mod = self._at_middles(call.score_mod, real)
        cells = accelerator.numbers_at_a_time(q, SCORE_CELLS * batch, exact.itemsize)
        step = q_len if torch.compiler.is_compiling() else max(1, cells // (batch * heads * keys.shape[3]))
        selections = []
        for first in range(0, q_len, step):
            rows = torch.arange(kv_len - q_len, kv_len, device=q.device)[first : first + step]
            scores = q[:, :, first : first + step].to(exact) @ keys * scale
            if score_mod is not None:
                b, h, *_ = index_grid(batch, heads, 1, 1, q.device)
                scores = score_mod(scores, b, h, rows.view(1, 1, -1, 1), blocks.view(1, 1, 1, -1)).to(exact)
            weights = softmax_over(scores, (mod(rows[:, None], blocks) & filled).expand(scores.shape))
            selections.append(self._best(weights, (rows // self.options.block_size)[None, None], filled_blocks, k.shape[1], call.causal))
        return torch.cat(selections, 2)

    def _filled_blocks(self, real: Tensor) -> Tensor:
        """Mask ``(B, S)`` of the selection blocks that have a real token; ``real`` is ``(B, N)``."""
        size = self.options.block_size
        return F.pad(real, (0, -real.shape[1] % size)).unflatten(1, (-1, size)).any(-1)

    def _best(self, weights: Tensor, own_block: Tensor, filled: Tensor, kv_heads: int, causal: bool) -> Tensor:
        """Indices of the selected blocks, ``(B, H_kv, n, K)``.

        Args:
            weights: ``(B, H, n, M)``, the weights of the compressed branch.
            own_block: ``(B or 1, H_kv or 1, n)``, each query's selection block.
            filled: ``(B, S)`` bool, selection blocks that have a token.
        """
        o, blocks = self.options, torch.arange(filled.shape[1], device=own_block.device)
        overlap, strides_per_block = self._strides
        shared = weights.unflatten(1, (kv_heads, -1)).sum(2)
        missing = filled.shape[1] * strides_per_block - shared.shape[-1]
        shared = F.pad(shared, (overlap - 1, missing)) if missing >= 0 else F.pad(shared, (overlap - 1, 0))
        count = filled.shape[1] * strides_per_block
        # Weights are added in a fixed order, so that blocks with equal weights have bitwise equal scores.
        of_steps = torch.zeros_like(shared[..., :count])
        for at in range(overlap):
            of_steps = of_steps + shared[..., at : at + count]
        scores = torch.zeros_like(of_steps[..., ::strides_per_block])
        for at in range(strides_per_block):
            scores = scores + of_steps[..., at::strides_per_block]
        away = own_block[..., None] - blocks
        allowed = ((away > 0) if causal else (away != 0)) & filled[:, None, None]
        scores = torch.where(self._always(away, blocks, causal), FORCED_BLOCK_SCORE - blocks.to(scores.dtype), scores)
        return topk(scores.masked_fill(~allowed, float("-inf")), min(o.num_blocks, filled.shape[1]) - 1)

    @property
    def _strides(self) -> tuple[int, int]:
        """Strides per compressed block, and per selection block."""
        o = self.options
        return o.compress_size // o.compress_stride, o.block_size // o.compress_stride

    def _prefiltered(self, q: Tensor, keys: Tensor, kv_len: int, real: Tensor, filled_blocks: Tensor, call: AttentionCall) -> Tensor:
        """:meth:`_search` by weights in float32. Queries with a doubtful choice are searched again in float64.

        A float32 score has an error of at most δ, the ``product_margin`` of ``engines/topk.py``. After subtraction of the largest score,
        which rounds too, the error is at most 5/4 δ. A weight's numerator and denominator are then each wrong by a factor of at most
        exp(5/4 δ). The relative error of the weight is at most exp(5/2 δ) - 1 ≤ 4 δ for δ ≤ 1/4; with a larger δ, every choice is doubtful.
        The rounding of exponentials and sums is added. A choice equals that of float64 if the last chosen block and the next differ by more
        than their errors. Weights are written and read once, and only the number of doubtful queries is read from the device.

        Args:
            keys: ``(B, H_kv, M, D)`` float64; real: ``(B, M, l)``; filled_blocks: ``(B, S)``.
        """
        o, (_, heads, q_len, width), (kv_heads, compressed) = self.options, q.shape, keys.shape[1:3]
        overlap, strides = self._strides
        group, total, device, scale = heads // kv_heads, filled_blocks.shape[1], q.device, call.scale_for(width)
        count = min(o.num_blocks, total) - 1
        blocks, places = torch.arange(total, device=device), torch.arange(total * strides, device=device)
        first = kv_len - q_len
        narrow = F.pad(keys.float(), (0, 0, 0, len(places) - compressed))
        hidden = None
        if call.key_mask is not None or len(places) > compressed:
            hidden = ~F.pad(real.any(-1), (0, len(places) - compressed))[:, None, None, None]
        at = torch.arange(strides, device=device)
        # Equation 9: how often the block compressed at each stride counts for the selection block it starts in, and for the next.
        shares = torch.stack([(strides - at).clamp(max=overlap), (overlap - strides + at).clamp(min=0)], 1).float()
        longest = torch.linalg.vector_norm(keys, dim=-1).amax(-1).float()
        margins = product_margin(q, longest.repeat_interleave(group, 1), scale).unflatten(1, (kv_heads, -1)).amax(2)[..., 0]
        margins = 4 * margins + (len(places) + 64) * torch.finfo(torch.float32).eps
        chosen, doubtful = [], []
        step = rows_per_step(q, len(places), call.causal)
        for start in range(0, q_len, step):
            rows = slice(start, min(start + step, q_len))
            seen_blocks = min(total, (first + rows.stop - 1) // o.block_size + 1) if call.causal else total
            positions, stop = torch.arange(first + rows.start, first + rows.stop, device=device), seen_blocks * strides
            queries = (q[:, :, rows].float() * scale).unflatten(1, (kv_heads, -1)).flatten(2, 3)
            scores = (queries @ narrow[:, :, :stop].mT).unflatten(2, (group, -1))
            if call.causal:
                ended = max(0, (first + rows.start + 1 - o.compress_size) // o.compress_stride + 1)
                late = places[ended:stop] * o.compress_stride + o.compress_size - 1 > positions[:, None]
                scores[..., ended:].masked_fill_(late, float("-inf"))
            if hidden is not None:
                scores.masked_fill_(hidden[..., :stop], float("-inf"))
            weights = scores.softmax(-1)
            weights = weights[:, :, 0] if group == 1 else weights.sum(2)
            pooled = weights.unflatten(-1, (seen_blocks, strides)) @ shares
            pooled[..., 1:, 0] += pooled[..., :-1, 1]
            if call.causal or hidden is not None:
                pooled.nan_to_num_()  # queries that see no block
            away = (positions // o.block_size).to(torch.int32)[:, None] - blocks[:seen_blocks].to(torch.int32)
            allowed = ((away > 0) if call.causal else (away != 0)) & filled_blocks[:, None, None, :seen_blocks]
            term = self._always(away, blocks[:seen_blocks], call.causal) * FORCED_BLOCK_SCORE
            values, index = (pooled[..., 0] + term.masked_fill(~allowed, float("-inf"))).topk(min(count + 1, seen_blocks), dim=-1)
            index = index.masked_fill(values == float("-inf"), -1)[..., :count]
            chosen.append(F.pad(index, (0, count - index.shape[3]), value=-1))
            if values.shape[3] > count > 0:
                lowest, next_one, margin = values[..., count - 1], values[..., count], margins[:, :, rows]
                doubtful.append(~(lowest * (1 - margin) > next_one * (1 + margin)) & (next_one != float("-inf")))
            else:
                doubtful.append(torch.zeros(index.shape[:3], dtype=torch.bool, device=device))
        grouped, exact_keys, mod = q.unflatten(1, (kv_heads, -1)), keys.mT[:, :, None], self._sees_block(call.causal)

        def exactly(rows: Tensor) -> Tensor:
            taken = rows[:, :, None, :, None].expand(-1, -1, group, -1, width)
            scores = grouped.gather(3, taken).to(keys.dtype) @ exact_keys * scale
            positions = rows + first
            seen = mod(positions[..., None], places[:compressed]) & real.any(-1)[:, None, None]
            weights = softmax_over(scores, seen[:, :, None].expand(scores.shape)).flatten(1, 2)
            return self._best(weights, positions // o.block_size, filled_blocks, kv_heads, call.causal)

        return searched_again(torch.cat(chosen, 2), torch.cat(doubtful, 2), exactly, q, compressed)

    def _always(self, away: Tensor, blocks: Tensor, causal: bool) -> Tensor:
        """Mask of the always-selected ``blocks``, initial and local. ``away``: how many blocks each lies before the query's block."""
        local = (away < self.options.local_blocks) if causal else (away.abs() <= self.options.local_blocks // 2)
        return (blocks < self.options.initial_blocks) | local

    @property
    def summary_unit(self) -> int | None:
        return self.options.compress_stride

    @property
    def summary_ahead(self) -> int:
        return self.options.compress_size - self.options.compress_stride

    def summarise_units(self, k: Tensor, v: Tensor, real: Tensor, call: AttentionCall) -> dict[str, Tensor]:
        """Per compressed block: its float64 key, its value, its middle, and whether any of its l tokens, or of its first d, is real."""
        return {
            "keys": self.keys(k.to(exact_dtype(k.device)), real),
            "values": self.values(v, real).to(v.dtype),
            "filled": real.any(-1)[:, None],
            "started": real[..., : self.options.compress_stride].any(-1)[:, None],
            "middle": middle_of(real)[:, None],
        }

    def attend_summarised(self, q: Tensor, k: Tensor, v: Tensor, summaries: CacheSummaries, call: AttentionCall) -> Tensor:
        o, (heads, q_len), kv_len, tables = self.options, q.shape[1:3], k.shape[2], summaries.tables
        positions = summaries.positions(q_len, kv_len)
        blocks = torch.arange(tables["keys"].shape[2], device=q.device)
        scores = q.to(tables["keys"].dtype) @ repeat_heads(tables["keys"], heads).mT * call.scale_for(q.shape[-1])
        if call.score_mod is not None:
            middles = blocks * o.compress_stride + tables["middle"][:, 0] + summaries.starts[:, None]
            middles = middles.clamp(0, kv_len - 1)[:, None, None].expand(-1, heads, q_len, -1)
            scores = scores + term_at(call.score_mod, middles, kv_len)
        seen = (blocks * o.compress_stride + o.compress_size - 1 <= positions[..., None])[:, None] & tables["filled"][:, :, None]
        weights = softmax_over(scores, seen.expand(scores.shape))
        compressed = weights.to(v.dtype) @ repeat_heads(tables["values"], heads)

        own_block = torch.div(positions, o.block_size, rounding_mode="floor")
        strides_per_block = o.block_size // o.compress_stride
        filled = F.pad(tables["started"][:, 0], (0, -len(blocks) % strides_per_block)).unflatten(1, (-1, strides_per_block)).any(-1)
        chosen = repeat_heads(self._best(weights, own_block[:, None], filled, k.shape[1], True), heads)
        listed = torch.cat([chosen, own_block[:, None, :, None].expand(-1, heads, -1, -1)], -1)
        selected = attend_to_blocks(q, k, v, listed, o.block_size, summaries, call)

        low = max(0, kv_len - q_len - o.window + 1)
        recent = (
            call.with_term(lambda term: term.shifted(low))
            .replace(causal=True)
            .with_mask(None if summaries.real is None else summaries.real[:, low:])
        )
        near = block_sparse_attention(q, k[:, :, low:], v[:, :, low:], Pattern.window(o.window, True), recent)
        return self.mixed(q, compressed, selected, near)

    def defined(self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        q, k, call = with_dense_terms(self, q, k, call)
        compressed, selected, window, _ = self._definition(q, k, call)
        gates, heads = self.gates(q), q.shape[1]
        values = repeat_heads(self._defined_compression(self.values, v, call), heads)
        tokens = (gates[1] * selected + gates[2] * window).to(v.dtype) @ repeat_heads(v, heads)
        return (gates[0] * (compressed.to(v.dtype) @ values) + tokens).to(q.dtype)

    def dense_weights(self, q: Tensor, k: Tensor, call: AttentionCall) -> Tensor:
        """The weights of tokens. The weight of a compressed block is spread evenly over its tokens, as in their mean."""
        compressed, selected, window, spread = self._definition(q, k, call)
        gates = self.gates(q)
        return (gates[0] * (compressed @ spread) + gates[1] * selected + gates[2] * window).to(q.dtype)

    def _definition(self, q: Tensor, k: Tensor, call: AttentionCall) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Weights of the three branches: compressed ``(B, H, Nq, M)``, selected and window ``(B, H, Nq, Nk)``. Also the share of each token
        in its compressed blocks, ``(B, 1, M, Nk)``."""
        o, kv_heads, kv_len, exact = self.options, k.shape[1], k.shape[2], exact_dtype(q.device)
        b, h, i, j = grid_of(q, k)
        first = torch.arange(0, kv_len, o.compress_stride, device=q.device)
        members = call.real(k)[:, None] & (j[0, 0] >= first[:, None]) & (j[0, 0] < first[:, None] + o.compress_size)  # (B, M, Nk)
        middle = (members * j[0, 0]).sum(-1) // members.sum(-1).clamp(min=1)

        def over_blocks(dtype: torch.dtype) -> Tensor:
            keys = repeat_heads(self._defined_compression(self.keys, k.to(dtype), call), q.shape[1])
            scores = q.to(dtype) @ keys.mT * call.scale_for(q.shape[-1])
            if call.score_mod is not None:
                scores = call.score_mod(scores, b, h, i, middle[:, None, None])
            ended = (first + o.compress_size - 1 <= i) if call.causal else (i >= 0)
            return softmax_over(scores, (ended & members.any(-1)[:, None, None]).expand(scores.shape))

        with torch.no_grad():
            chosen = self._defined_selection(over_blocks(exact), i[0, 0, :, 0], call.real(k), kv_heads, call.causal)
        seen = visible_to_all(q, k, call)
        scores = scaled_scores(q, k, call)
        selected = softmax_over(scores, chosen.repeat_interleave(q.shape[1] // kv_heads, 1) & seen)
        window = softmax_over(scores, (Pattern.window(o.window, call.causal).band_mod(b, h, i, j) & seen).expand(scores.shape))
        return over_blocks(q.dtype), selected, window, uniform(members, q.dtype)[:, None]

    def _defined_compression(self, compression: Compression, x: Tensor, call: AttentionCall) -> Tensor:
        """φ of every block of ``x (B, H_kv, N, D)``, summed over a block token by token."""
        o, length = self.options, x.shape[2]
        real = call.real(x)
        first = torch.arange(0, length, o.compress_stride, device=x.device)
        total: Any = 0.0
        count: Any = 0
        hidden = compression.first_bias.to(x.dtype)
        for r in range(o.compress_size):
            present = ((first + r < length) & real[:, (first + r).clamp(max=length - 1)])[:, None, :, None].to(x.dtype)
            token = x[:, :, (first + r).clamp(max=length - 1)]
            token = torch.where(present > 0, token, 0.0)
            total, count = total + token, count + present
            hidden = hidden + (token + present * compression.positions[r].to(x.dtype)) @ compression.first[r].to(x.dtype)
        out = hidden.clamp(min=0) @ compression.second.to(x.dtype) + compression.second_bias.to(x.dtype)
        return total / count.clamp(min=1) + out

    def _defined_selection(self, weights: Tensor, rows: Tensor, real: Tensor, kv_heads: int, causal: bool) -> Tensor:
        """Mask ``(B, H_kv, Nq, Nk)`` of the tokens in the selected blocks of queries ``rows (Nq,)``, later tokens and padding included."""
        o, length = self.options, real.shape[1]
        step = o.compress_stride
        block = torch.arange(length, device=rows.device) // o.block_size
        total = (length + o.block_size - 1) // o.block_size
        blocks, own_block = torch.arange(total, device=rows.device), (rows // o.block_size)[:, None]
        shared = weights.unflatten(1, (kv_heads, -1)).sum(2)
        scores = shared.new_zeros(*shared.shape[:3], total)
        for m in range(o.block_size // step):
            for n in range(o.compress_size // step):  # equation 9
                at = blocks * (o.block_size // step) + m - n
                inside = (at >= 0) & (at < shared.shape[-1])
                scores = scores + torch.where(inside, shared[..., at.clamp(0, shared.shape[-1] - 1)], 0.0)
        away = own_block - blocks
        scores = torch.where(self._always(away, blocks, causal), FORCED_BLOCK_SCORE - blocks.to(scores.dtype), scores)
        members = (block == blocks[:, None]) & real[:, None]  # (B, S, Nk)
        allowed = (((away > 0) if causal else (away != 0)) & members.any(-1)[:, None])[:, None]
        order = ranking(scores.masked_fill(~allowed, float("-inf")))
        chosen = torch.zeros_like(order, dtype=torch.bool).scatter(-1, order[..., : o.num_blocks - 1], True)
        return ((chosen & allowed) | (away == 0))[..., block]

    def pairs(self, length: int, causal: bool = False) -> int:
        """The pairs of all three branches. A query and a compressed block are one pair."""
        o = self.options
        band = Pattern.window(o.window, causal)
        near = band_pairs(length, band.left, band.right)
        if not causal:
            return near + length * (-(-length // o.compress_stride) + min(length, o.num_blocks * o.block_size))
        places = torch.arange(length)
        ended = ((places + 1 - o.compress_size).div(o.compress_stride, rounding_mode="floor") + 1).clamp(min=0)
        block_starts = (places // o.block_size).clamp(max=o.num_blocks - 1) * o.block_size
        selected = (
            full_pairs(length, True) if length <= o.num_blocks * o.block_size else int((block_starts + places % o.block_size + 1).sum())
        )
        return near + int(ended.sum()) + selected
