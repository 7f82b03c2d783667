"""Dilated attention (Ding et al. 2023, LongNet, sections 2.2 to 2.4).

Branch n cuts the text into segments of w_n tokens, counted from the first real token. Within a segment, a head takes every r_n-th token,
beginning with token h mod r_n for head h (counted from 0). The tokens that it takes attend to each other:

    branch n pairs i with j:  ⌊i/w_n⌋ = ⌊j/w_n⌋  and  i mod w_n ≡ j mod w_n ≡ h  (mod r_n)          (and j <= i in the causal form)

Let O_n be the output of branch n, and s_n the denominator of its softmax (0 if it does not take query i). The output is

    O = Σ_n α_n O_n,   α_n = s_n / Σ_m s_m          (equation 10)

This is one softmax in which a key counts once for each branch that pairs it with the query. If M_ij branches pair i with j,

    weights_ij  ∝  M_ij exp(s_ij)

The authors' code, torchscale, gives the same first token to neighbouring heads: ⌊h / ⌈H/r⌉⌋ for head h of H. It also treats α_n as a
constant in the backward pass. In both points, this mechanism follows the paper's equations.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..engines.common.call import AttentionCall, GatherTile, MaskMod, rows_of
from ..engines.common.score_terms import add_term
from ..errors import OptionError
from ..options import Options, option
from ..positions.distances import Locality
from .common.layout import block_sizes, cells, full_pairs
from .common.masked import GatheredMechanism
from .common.registry import register_mechanism


@dataclasses.dataclass(frozen=True)
class LongNetOptions(Options):
    segments: tuple[int, ...] = option((2048, 4096, 8192, 16384, 32768), "w, segment length of each branch, ascending", "tokens", least=1)
    dilations: tuple[int, ...] = option((), "r of each branch: a head takes every r-th token; one must be 1; default: 1, 2, 4, …", "tokens")

    def check(self) -> None:
        if not self.segments or list(self.segments) != sorted(set(self.segments)):
            raise OptionError(
                f"Option 'segments' of mechanism 'longnet' is {self.segments}, but must be ascending; for example segments=2048+4096."
            )
        if self.dilations and (len(self.dilations) != len(self.segments) or min(self.dilations) != 1):
            doubled = "+".join(str(2**n) for n in range(len(self.segments)))
            raise OptionError(
                f"Option 'dilations' of mechanism 'longnet' is {self.dilations}, but must be {len(self.segments)} numbers of at least 1, "
                f"as many as segments, and one of them 1, so that every token sees itself; for example dilations={doubled}."
            )

    @property
    def branches(self) -> list[tuple[int, int]]:
        """``(w, r)`` of every branch."""
        return list(zip(self.segments, self.dilations or [2**n for n in range(len(self.segments))], strict=True))

    def is_mask(self) -> bool:
        return len(self.segments) == 1

    def min_heads(self) -> int:
        return max(dilation for _, dilation in self.branches)


@register_mechanism("longnet")
class LongNet(GatheredMechanism):
    """Softmax within segments of several lengths. In longer segments, a head sees fewer tokens."""

    summary = "segments of several lengths; in longer ones a head sees every r-th token, and the heads together see all"
    paper = "Ding et al. 2023, LongNet, §2.2-2.4, eq. 10"
    when = "you train a model on very long text; each head sees near tokens densely and far tokens sparsely"
    cost = "N·Σw/r²"
    per_head_tensors = ()
    sample: ClassVar[dict[str, Any]] = {"segments": (16, 64), "dilations": (1, 2)}

    @classmethod
    def covering(cls, length: int, causal: bool) -> dict[str, Any]:
        return {"segments": (length,)}

    options: LongNetOptions

    @property
    def heads(self) -> range:
        """Indices of this mechanism's heads among all heads of the layer."""
        return range(self.num_heads)

    def times(self, h: Any, q_idx: Any, kv_idx: Any) -> Tensor:
        """M, the number of branches that pair a query with a key."""
        paired = []
        for segment, dilation in self.options.branches:
            first = (h + self.heads[0]) % dilation
            taken = (q_idx % segment % dilation == first) & (kv_idx % segment % dilation == first)
            paired.append((taken & (q_idx // segment == kv_idx // segment)).int())
        return functools.reduce(torch.add, paired)

    def log_times(self, dtype: torch.dtype, h: Any, q_idx: Any, kv_idx: Any) -> Tensor:
        """log M in float32 or wider, and 0 where M is 0. Added to a score, it makes the key count M times."""
        return self.times(h, q_idx, kv_idx).clamp(min=1).to(torch.promote_types(dtype, torch.float32)).log()

    def with_counts(self, call: AttentionCall, dtype: torch.dtype) -> AttentionCall:
        return call.replace(score_mod=add_term(call.score_mod, lambda b, *index: self.log_times(dtype, *index)))

    def mask_mod(self, causal: bool, global_mask: Tensor | None) -> MaskMod:
        return lambda b, h, q_idx, kv_idx: self.times(h, q_idx, kv_idx) > 0

    def attend_kept(
        self, q: Tensor, k: Tensor, v: Tensor, q_positions: Tensor, k_positions: Tensor, real: Tensor, call: AttentionCall
    ) -> Tensor:
        h = torch.arange(self.num_heads, device=q.device).view(1, -1, 1, 1)
        term = self.log_times(q.dtype, h, q_positions[:, None, :, None], k_positions[:, None, None, :])
        seen = self.kept_visible(q_positions, k_positions, real, call.causal)
        return self.attend_with_terms(q, k, v, seen, q_positions, k_positions, call, term)

    def parts(self, length: int, causal: bool, device: torch.device) -> tuple[GatherTile, ...]:
        """The tiles of each branch in turn. A pair counts once for every branch that lists it."""
        return tuple(tile for branch in self.options.branches for tile in branch_tiles(length, *branch, self.heads, causal, device))

    def kept(self, positions: Tensor, upcoming: Tensor) -> Tensor:
        return positions >= functools.reduce(torch.minimum, (upcoming // segment * segment for segment in self.options.segments))

    def locality(self, causal: bool) -> Locality:
        furthest = self.options.segments[-1] - 1
        ahead, nested = 0 if causal else furthest, all((furthest + 1) % segment == 0 for segment in self.options.segments)
        width = furthest if causal or nested else 2 * furthest  # a segment may cross the end of the longest segment
        return Locality(furthest, ahead, math.lcm(*self.options.segments), width_of_keys=width)

    def covers(self, length: int, causal: bool = False) -> bool:
        return length <= 1 or (length <= self.options.segments[0] and all(dilation == 1 for _, dilation in self.options.branches))

    def pairs(self, length: int, causal: bool = False) -> int:
        """Mean number of pairs over the heads, rounded down, but at most that of full attention. A pair counts once per branch."""
        listed = sum(
            full_pairs(len(range(head % dilation, tokens, dilation)), causal)
            for segment, dilation in self.options.branches
            for tokens in block_sizes(length, segment)
            for head in self.heads
        )
        return min(full_pairs(length, causal), listed // self.num_heads)


def branch_tiles(length: int, segment: int, dilation: int, heads: range, causal: bool, device: torch.device) -> Iterator[GatherTile]:
    """Tiles with the pairs of one branch, for ``length`` tokens and these ``heads``."""
    size = segment if segment < length else length
    tokens = F.pad(rows_of(length, size, device)[0, 0], (0, -size % dilation), value=-1).unflatten(1, (-1, dilation))
    rows = [tokens[..., head % dilation] for head in heads] if dilation > 1 else [tokens[..., 0]]
    if device.type == "cuda" and len(rows) > 1:  # on a GPU, tiles that differ by head need a kernel call each, so make one tile
        stacked = torch.stack(rows)[None]
        yield GatherTile(stacked, stacked, causal=causal)
        return
    for tiles in zip(*(cells(row, row, causal=causal) for row in rows), strict=True):
        queries, keys = (torch.cat([getattr(tile, name) for tile in tiles], 1) for name in ("queries", "keys"))
        yield GatherTile(queries, keys, causal=causal)
