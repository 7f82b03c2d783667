"""Sliding window attention (Beltagy et al. 2020, Longformer, section 3.1; Jiang et al. 2023, Mistral, for the causal form), with the
dilation per head of the same section and the attention sinks of Xiao et al. 2023 (StreamingLLM, section 3.2).

A window of total width w with dilation d lets query i see key j when d divides i - j and

    bidirectional:  |i - j| <= d·w/2          causal:  0 <= i - j < d·w

or when j is one of the ``num_sinks`` positions from the first real token on (and j <= i in the causal form). Each key counts once.
Positions stay those of the text, in rotary models too, whereas StreamingLLM counts them anew inside its cache.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..engines.dense import repeat_heads
from ..engines.pattern import MaskMod, Pattern, ScoreMod, mod_of_heads
from ..positions.relative import Span
from .base import Mechanism
from .dilated import DilatedWindow, dilated_band
from .masked import MaskedMechanism, first_tokens
from .registry import register_mechanism
from .sparse import SparseMechanism
from .window_mask import WindowMask, WindowOptions

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

    def resolve_globals(
        self, padding_mask: Tensor | None, global_mask: Tensor | None, shape: tuple[int, int], device: torch.device
    ) -> Tensor | None:
        """The sinks of each sequence."""
        return first_tokens(self.options.num_sinks, padding_mask, shape, device) if self.options.num_sinks else None

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        causal: bool = False,
        padding_mask: Tensor | None = None,
        global_mask: Tensor | None = None,
        scaling: float | None = None,
        dropout_p: float = 0.0,
        score_mod: ScoreMod | None = None,
        seed: int = 0,
    ) -> Tensor:
        arguments: dict[str, Any] = {"causal": causal, "padding_mask": padding_mask, "scaling": scaling, "dropout_p": dropout_p}
        if max(self.dilations) == 1:
            return super().forward(q, k, v, score_mod=score_mod, **arguments)
        k, v = repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1])
        outs, order = [], []
        for dilation in sorted(set(self.dilations)):
            heads = [head for head, own in enumerate(self.dilations) if own == dilation]
            of_heads = (x[:, heads] for x in (q, k, v))
            outs.append(self._of_dilation(dilation, len(heads))(*of_heads, score_mod=mod_of_heads(score_mod, heads), **arguments))
            order += heads
        return torch.cat(outs, 1)[:, [order.index(head) for head in range(self.num_heads)]] if len(outs) > 1 else outs[0]

    def _of_dilation(self, dilation: int, heads: int) -> Mechanism:
        """The heads of one dilation as a mechanism of their own."""
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
