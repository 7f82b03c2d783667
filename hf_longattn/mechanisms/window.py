"""Sliding window attention (Beltagy et al. 2020, Longformer, section 3.1; the causal form: Jiang et al. 2023, Mistral 7B), with a dilation
per head (the same section of Longformer) and attention sinks (Xiao et al. 2023, StreamingLLM, section 3.2).

In a window of total width w with dilation d, query i sees key j if d divides i - j and

    bidirectional:  |i - j| <= d·w/2          causal:  0 <= i - j < d·w

and also if j is one of the first ``num_sinks`` real tokens (in the causal form, j <= i). Each key counts once. Rotary models
keep the positions of the text, whereas StreamingLLM renumbers the positions in its cache.

Tokens at the same position modulo d attend to each other through a plain window, so dilation costs nothing extra.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..engines.common.call import AttentionCall, GatherTile, MaskMod, Pattern, mod_of_heads
from ..engines.common.dense import repeat_heads
from ..engines.common.shards import Locality
from ..errors import OptionError
from ..positions.distances import Extent
from ..positions.relative import Span
from .common.layout import band_pairs, band_tile, column_pairs
from .common.masked import GatheredMechanism, MaskedMechanism, SparseMechanism
from .common.options import Options, option
from .common.registry import register_mechanism


@dataclasses.dataclass(frozen=True)
class WindowOptions(Options):
    window: int = option(512, "total width of the window: w/2 on each side, or the last w keys when causal", "tokens", least=1)
    num_sinks: int = option(0, "first tokens that every query sees (attention sinks)", "tokens", least=0)
    dilation: tuple[int, ...] = option((1,), "distance between the keys of a window: one number, or one for each head", "tokens")

    def check(self) -> None:
        if not self.dilation or min(self.dilation) < 1:
            raise OptionError(
                f"Option 'dilation' of mechanism 'window' is {self.dilation}, but must be one number of at least 1, or one for each head; "
                "for example dilation=2."
            )

    def min_heads(self) -> int:
        return len(self.dilation)


class WindowMask(MaskedMechanism):
    """The definition: a window whose head h has dilation ``dilations[h]``, and sinks."""

    options: WindowOptions

    def __init__(self, num_heads: int, head_dim: int, hidden_size: int, max_length: int | None, options: WindowOptions) -> None:
        super().__init__(num_heads, head_dim, hidden_size, max_length, options)
        if len(options.dilation) not in (1, num_heads):
            raise OptionError(
                f"Option 'dilation' of mechanism 'window' has {len(options.dilation)} entries for {num_heads} heads; "
                "give one number, or one for each head."
            )
        self.dilations = options.dilation if len(options.dilation) == num_heads else options.dilation * num_heads

    def mask_mod(self, causal: bool, global_mask: Tensor | None) -> MaskMod:
        pattern, sinks = Pattern.window(self.options.window, causal), self.options.num_sinks

        def band(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
            if max(self.dilations) == 1:
                return pattern.band_mod(b, h, q_idx, kv_idx)
            dilation = torch.tensor(self.dilations, device=q_idx.device)[h]
            away = q_idx - kv_idx
            return (away % dilation == 0) & (away <= pattern.left * dilation) & (-away <= pattern.right * dilation)

        if not sinks:
            return band
        return lambda b, h, q_idx, kv_idx: band(b, h, q_idx, kv_idx) | ((kv_idx >= 0) & (kv_idx < sinks))

    @property
    def _span(self) -> int:
        """Distance from a causal query to the last key before its window."""
        return (self.options.window - 1) * max(self.dilations) + 1

    def reach(self, causal: bool = True) -> int | None:
        return None if self.options.num_sinks else self._span

    def locality(self, causal: bool) -> Locality | None:
        pattern, longest = Pattern.window(self.options.window, causal), max(self.dilations)
        if self.options.num_sinks and not (longest == 1 and isinstance(self, SparseMechanism)):
            return None  # where sinks are a matter of positions, not global tokens
        return Locality(pattern.left * longest, pattern.right * longest)

    def extent(self, causal: bool) -> Extent:
        pattern, longest = Pattern.window(self.options.window, causal), max(self.dilations)
        return Extent(pattern.left * longest, pattern.right * longest, (pattern.left + pattern.right) * longest)

    def kept(self, positions: Tensor, upcoming: Tensor) -> Tensor | None:
        return (positions > upcoming - self._span) | (positions < self.options.num_sinks) if self.options.num_sinks else None

    def covers(self, length: int, causal: bool = False) -> bool:
        sinks = self.options.num_sinks
        if length <= max(sinks, 1) or max(self.dilations) > 1:
            return length <= max(sinks, 1)
        return length <= self.options.window + sinks if causal else Pattern.window(self.options.window, False).covers(length, length)

    def pairs(self, length: int, causal: bool = False) -> int:
        """The mean over the heads, rounded down."""
        return sum(self._pairs(length, causal, dilation) for dilation in self.dilations) // self.num_heads

    def _pairs(self, length: int, causal: bool, dilation: int) -> int:
        pattern, sinks = Pattern.window(self.options.window, causal), range(min(self.options.num_sinks, length))
        total = 0
        for residue in range(min(dilation, length)):
            members = range(residue, length, dilation)
            own = range(len(sinks[residue::dilation]))
            total += band_pairs(len(members), pattern.left, pattern.right)
            total += column_pairs(own, len(members), pattern.left, pattern.right, causal)
            others = [sink for sink in sinks if sink % dilation != residue]
            total += sum(len(members) - (len(range(residue, sink, dilation)) if causal else 0) for sink in others)
        return total


class DilatedWindow(WindowMask, GatheredMechanism):
    """The window on the gathered engine, for dilated heads and for unions."""

    name = "window"

    @property
    def per_head_tensors(self) -> tuple[str, ...] | None:  # type: ignore[override]
        return () if len(set(self.dilations)) == 1 else None

    def parts(self, length: int, causal: bool, device: torch.device) -> tuple[GatherTile, ...]:
        each = sorted(set(self.dilations))
        if len(each) == 1:
            return tuple(self._parts_of(each[0], length, causal, device))
        of_head = torch.tensor(self.dilations, device=device).view(1, -1, 1, 1)
        return tuple(
            dataclasses.replace(part, queries=torch.where(of_head == dilation, part.queries, -1))
            for dilation in each
            for part in self._parts_of(dilation, length, causal, device)
        )

    def _parts_of(self, dilation: int, length: int, causal: bool, device: torch.device) -> Iterator[GatherTile]:
        pattern = Pattern.window(self.options.window, causal)
        near = band_tile(length, pattern.left, pattern.right, device, dilation)
        yield near
        if not self.options.num_sinks:
            return
        # A sink of the queries' own residue may lie in their window, which has listed it; the other sinks never do.
        sinks = torch.arange(min(self.options.num_sinks, length), device=device)
        own = near.queries[..., :1] % dilation == sinks % dilation
        within = (-pattern.right * dilation, pattern.left * dilation)
        yield GatherTile(near.queries, torch.where(own, sinks, -1), causal=causal, outside=within)
        if dilation > 1:
            yield GatherTile(near.queries, torch.where(own, -1, sinks), causal=causal)


@register_mechanism("window")
class Window(WindowMask, SparseMechanism):
    """Each token sees its neighbours within a fixed distance, and the sinks."""

    summary = "each token sees the w tokens around it (the last w when causal); dilation per head, attention sinks"
    paper = "Beltagy et al. 2020, Longformer, §3.1; causal: Jiang et al. 2023, Mistral 7B; sinks: Xiao et al. 2023, StreamingLLM, §3.2"
    cost = "N·(w+sinks)"
    per_head_tensors = ()
    options_type = WindowOptions
    sample: ClassVar[dict[str, Any]] = {"window": 32}

    @classmethod
    def covering(cls, length: int, causal: bool) -> dict[str, Any]:
        return {"window": 2 * length}

    def __init__(self, num_heads: int, head_dim: int, hidden_size: int, max_length: int | None, options: WindowOptions) -> None:
        super().__init__(num_heads, head_dim, hidden_size, max_length, options)
        self._groups = [] if max(self.dilations) == 1 else [self._group(dilation) for dilation in sorted(set(self.dilations))]
        """The heads of each dilation, and a mechanism for them. They have no tensors, so they need not be submodules."""

    def _group(self, dilation: int) -> tuple[list[int], WindowMask]:
        heads = [head for head, own in enumerate(self.dilations) if own == dilation]
        options = dataclasses.replace(self.options, dilation=(dilation,), relative=None)  # the score term has the relative positions
        kind = Window if dilation == 1 else DilatedWindow
        return heads, kind(len(heads), self.head_dim, self.hidden_size, self.max_length, options)

    @property
    def exports_definition(self) -> bool:  # type: ignore[override]
        return bool(self._groups)

    def pattern(self, causal: bool) -> Pattern:
        """The band and the sinks' columns, without dilation."""
        return Pattern.window(self.options.window, causal, has_globals=self.options.num_sinks > 0, global_rows=False)

    def span(self, q_len: int, kv_len: int, causal: bool) -> Span:
        back, ahead = super().span(q_len, kv_len, causal)
        longest = max(self.dilations)  # the pattern counts in steps of the dilation
        return min(back * longest, kv_len - 1), min(ahead * longest, q_len - 1)

    def band(self, causal: bool) -> tuple[int, int] | None:
        pattern = self.pattern(causal)
        return None if pattern.has_globals or self._groups or self.relative is not None else (pattern.left, pattern.right)

    def resolve_globals(self, k: Tensor, call: AttentionCall) -> Tensor | None:
        """The sinks."""
        if not self.options.num_sinks:
            return None
        sinks = (torch.arange(k.shape[2], device=k.device) < self.options.num_sinks).expand(k.shape[0], -1)
        return sinks if call.key_mask is None else sinks & call.key_mask

    def only_pattern(self) -> bool:
        return not self._groups and type(self).forward is Window.forward

    def forward(self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        if not self._groups:
            return super().forward(q, k, v, call)
        if len(self._groups) == 1:
            return self._groups[0][1](q, k, v, call)
        k, v = repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1])
        outs, order = [], []
        for heads, mechanism in self._groups:
            own = call.replace(score_mod=mod_of_heads(call.score_mod, heads, q.device))
            outs.append(mechanism(*(x[:, heads] for x in (q, k, v)), own))
            order += heads
        return torch.cat(outs, 1)[:, [order.index(head) for head in range(self.num_heads)]]

    def for_union(self) -> MaskedMechanism:
        if self.options.num_sinks or self._groups:
            return DilatedWindow(self.num_heads, self.head_dim, self.hidden_size, self.max_length, self.options)
        return self
