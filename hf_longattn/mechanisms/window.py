"""Sliding window attention (Beltagy et al. 2020, Longformer, section 3.1; Jiang et al. 2023, Mistral, for the causal form), with the
dilation per head of the same section and the attention sinks of Xiao et al. 2023 (StreamingLLM, section 3.2).

A window of total width w with dilation d lets query i see key j when d divides i - j and

    bidirectional:  |i - j| <= d·w/2          causal:  0 <= i - j < d·w

or when j is one of the ``num_sinks`` positions from the first real token on (and j <= i in the causal form). Each key counts once.
Positions stay those of the text, in rotary models too, whereas StreamingLLM counts them anew inside its cache.

Tokens whose positions are equal modulo d attend among themselves by a plain window, so a dilated window costs no more than a plain one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..engines.call import AttentionCall, GatherTile, MaskMod, Pattern, mod_of_heads
from ..engines.dense import repeat_heads
from ..errors import OptionError
from ..positions.relative import Span
from .base import Mechanism
from .layout import band_pairs, band_tile, column_pairs
from .masked import GatheredMechanism, MaskedMechanism, SparseMechanism
from .options import Options, option, positive
from .registry import register_mechanism


@dataclasses.dataclass(frozen=True)
class WindowOptions(Options):
    window: int = option(512, "total width of the window: w/2 on each side, or the last w keys when causal", "tokens")
    num_sinks: int = option(0, "how many of the first tokens every query keeps seeing (attention sinks)", "tokens")
    dilation: tuple[int, ...] = option((1,), "distance between the keys of a window: one number, or one for each head", "tokens")

    def check(self) -> None:
        positive("window", "window", self)
        if self.num_sinks < 0:
            raise OptionError(
                f"Option 'num_sinks' of mechanism 'window' is {self.num_sinks}, but must be at least 0; for example num_sinks=4."
            )
        if not self.dilation or min(self.dilation) < 1:
            raise OptionError(
                f"Option 'dilation' of mechanism 'window' is {self.dilation}, but must be one number from 1 on, or one for each head; "
                "for example dilation=2."
            )

    def min_heads(self) -> int:
        return len(self.dilation)


class WindowMask(MaskedMechanism):
    """A window whose head h has dilation ``dilations[h]``, and sinks."""

    options: WindowOptions

    def __init__(self, num_heads: int, head_dim: int, hidden_size: int, max_length: int | None, options: WindowOptions) -> None:
        super().__init__(num_heads, head_dim, hidden_size, max_length, options)
        if len(options.dilation) not in (1, num_heads):
            raise OptionError(
                f"Option 'dilation' of mechanism 'window' has {len(options.dilation)} entries for {num_heads} heads; "
                "give one number, or one for each head."
            )
        self.dilations = options.dilation if len(options.dilation) == num_heads else options.dilation * num_heads

    @property
    def _span(self) -> int:
        """Distance from a causal query to the last key before its window."""
        return (self.options.window - 1) * max(self.dilations) + 1

    def reach(self, causal: bool = True) -> int | None:
        return None if self.options.num_sinks else self._span

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
            members = len(range(residue, length, dilation))
            own = range(len(sinks[residue::dilation]))
            total += band_pairs(members, pattern.left, pattern.right) + column_pairs(own, members, pattern.left, pattern.right, causal)
            others = [sink for sink in sinks if sink % dilation != residue]
            total += sum(len(range(residue, length, dilation)) - (len(range(residue, sink, dilation)) if causal else 0) for sink in others)
        return total


class DilatedWindow(WindowMask, GatheredMechanism):
    """``window`` on the gathered engine; built by it, not by name."""

    name = "window"

    def mask_mod(self, causal: bool, global_mask: Tensor | None) -> MaskMod:
        pattern, sinks = Pattern.window(self.options.window, causal), self.options.num_sinks

        def mod(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
            return dilated_band(pattern, self.dilations, h, q_idx, kv_idx) | ((kv_idx < sinks) & (kv_idx >= 0))

        return mod

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
        # Sinks of the queries' own residue are left out where the window has them; the others never lie in it.
        sinks = torch.arange(min(self.options.num_sinks, length), device=device)
        own = near.queries[..., :1] % dilation == sinks % dilation
        within = (-pattern.right * dilation, pattern.left * dilation)
        yield GatherTile(near.queries, torch.where(own, sinks, -1), causal=causal, outside=within)
        if dilation > 1:
            yield GatherTile(near.queries, torch.where(own, -1, sinks), causal=causal)


def dilated_band(pattern: Pattern, dilations: tuple[int, ...], h: Any, q_idx: Any, kv_idx: Any) -> Any:
    """Which keys lie in the window of head h, as a mask_mod."""
    dilation = torch.tensor(dilations, device=q_idx.device)[h]
    away = q_idx - kv_idx
    return (away % dilation == 0) & (away <= pattern.left * dilation) & (-away <= pattern.right * dilation)


__all__ = ["Window", "WindowOptions"]


@register_mechanism("window")
class Window(WindowMask, SparseMechanism):
    """Each token sees its neighbours within a fixed distance, and the first tokens where sinks are kept."""

    summary = "each token sees the w tokens around it (the last w when causal); dilation per head, attention sinks"
    paper = "Beltagy et al. 2020, Longformer, §3.1; causal: Jiang et al. 2023, Mistral 7B; sinks: Xiao et al. 2023, StreamingLLM, §3.2"
    cost = "N·(w+sinks)"
    exact_when = "dilation = 1 and window ≥ 2(N−1), or window + num_sinks ≥ N when causal; num_sinks ≥ N"
    options_type = WindowOptions
    sample: ClassVar[dict[str, Any]] = {"window": 32}

    @classmethod
    def covering(cls, length: int, causal: bool) -> dict[str, Any]:
        return {"window": 2 * length}

    @property
    def exports(self) -> str:  # type: ignore[override]
        return "engine" if max(self.dilations) == 1 else "definition"

    def pattern(self, causal: bool) -> Pattern:
        """The band and the sinks' columns, without dilation."""
        pattern = Pattern.window(self.options.window, causal)
        return dataclasses.replace(pattern, has_globals=self.options.num_sinks > 0, global_rows=False)

    def span(self, q_len: int, kv_len: int, causal: bool) -> Span:
        back, ahead = super().span(q_len, kv_len, causal)
        longest = max(self.dilations)  # the pattern counts in steps of the dilation
        return min(back * longest, kv_len - 1), min(ahead * longest, q_len - 1)

    def mask_mod(self, causal: bool, global_mask: Tensor | None) -> MaskMod:
        pattern = self.pattern(causal)
        if max(self.dilations) == 1:
            return pattern.visible_mod(global_mask)

        def mod(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
            near = dilated_band(pattern, self.dilations, h, q_idx, kv_idx)
            if global_mask is None:
                return near
            return near | (global_mask[b, kv_idx] & (kv_idx <= q_idx) if causal else global_mask[b, kv_idx])

        return mod

    def resolve_globals(self, k: Tensor, call: AttentionCall) -> Tensor | None:
        """The sinks."""
        if not self.options.num_sinks:
            return None
        sinks = (torch.arange(k.shape[2], device=k.device) < self.options.num_sinks).expand(k.shape[0], -1)
        return sinks if call.key_mask is None else sinks & call.key_mask

    def forward(self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        if max(self.dilations) == 1:
            return super().forward(q, k, v, call)
        k, v = repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1])
        outs, order = [], []
        for dilation in sorted(set(self.dilations)):
            heads = [head for head, own in enumerate(self.dilations) if own == dilation]
            own = call.replace(score_mod=mod_of_heads(call.score_mod, heads))
            outs.append(self._of_dilation(dilation, len(heads))(*(x[:, heads] for x in (q, k, v)), own))
            order += heads
        return torch.cat(outs, 1)[:, [order.index(head) for head in range(self.num_heads)]] if len(outs) > 1 else outs[0]

    def _of_dilation(self, dilation: int, heads: int) -> Mechanism:
        """The heads of one dilation as a mechanism."""
        options = dataclasses.replace(self.options, dilation=(dilation,), relative=None)  # which are in the score term already
        kind = Window if dilation == 1 else DilatedWindow
        return kind(heads, self.head_dim, self.hidden_size, self.max_length, options)

    def kept_visible(self, q_positions: Tensor, k_positions: Tensor, real: Tensor) -> Tensor:
        sinks = (k_positions < self.options.num_sinks) & real
        crossing = sinks[:, None, None, :] & (k_positions[:, None, None, :] <= q_positions[:, None, :, None])
        return super().kept_visible(q_positions, k_positions, real) | crossing

    def for_union(self) -> MaskedMechanism:
        if self.options.num_sinks or max(self.dilations) > 1:
            return DilatedWindow(self.num_heads, self.head_dim, self.hidden_size, self.max_length, self.options)
        return self
