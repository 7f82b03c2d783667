"""Adaptive attention span (Sukhbaatar et al. 2019, Adaptive Attention Span in Transformers, equations 3 to 5).

Every head learns a span z in [0, max_span]. With a ramp of R tokens at the end of the span, a key at distance
x = |i - j| has the weight

    A_ij = m_z(x) exp(s_ij) / Σ_j' m_z(x') exp(s_ij')        m_z(x) = clamp((R + z - x) / R, 0, 1)

where j' runs over past keys in the causal form, else over all keys. Models add the auxiliary loss λ · (mean of z over
heads), which keeps spans short. The parameter is z / max_span, as in the authors' code, so that usual learning rates
suit it. The engine visits only keys within the longest learned span. A compiled graph has fixed shapes and therefore
visits all keys within max_span.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor, nn

from ..engines.batch import in_graph
from ..engines.block_sparse import block_sparse_attention
from ..engines.call import AttentionCall, Pattern
from ..engines.dense import at_least_fp32, dense_attention, grid_of
from ..engines.score_terms import DistanceBias, chain_score_mods
from ..errors import OptionError
from ..positions.trained_distances import Locality
from .common.base import LayerSizes, Mechanism, scaled_scores, softmax_over, visible_in_full_attention
from .common.capabilities import About, AddsLoss
from .common.layout import band_pairs
from .common.options import Options, option
from .common.registry import register_mechanism
from .common.shared_options import AttendedKeys


@dataclasses.dataclass(frozen=True)
class AdaptiveSpanOptions(Options):
    max_span: int = option(1024, "the longest span that a head can learn", "tokens", least=1)
    ramp: int = option(
        32, "R, tokens over which the weight falls from 1 to 0 at the end of the span", "tokens", least=1
    )
    init_span: int | None = option(None, "the initial span; default: max_span", "tokens")
    span_loss_weight: float = option(2e-6, "λ, factor of the mean span in the loss", least=0)

    def check(self) -> None:
        if self.init_span is not None and not 0 <= self.init_span <= self.max_span:
            raise OptionError(
                f"Option 'init_span' of mechanism 'adaptive_span' is {self.init_span}, but must be between 0 and "
                f"max_span={self.max_span}."
            )


@register_mechanism("adaptive_span")
class AdaptiveSpan(Mechanism, AddsLoss):
    about = About(
        summary="a learned soft span per head; keys beyond the longest span are skipped",
        paper="Sukhbaatar et al. 2019, Adaptive Attention Span in Transformers, eq. 3-5",
        when="you train a decoder and want every head to learn how far it looks",
        engine="block_sparse",
        cost="N·(longest span + ramp)",
        sample={"max_span": 40, "ramp": 8, "init_span": 20},
        covering=lambda length, causal: {"max_span": length},
    )
    capabilities = Mechanism.capabilities.but(trains=True, position_dependent=False)
    per_head_tensors = ("span_fraction",)
    options: AdaptiveSpanOptions

    def __init__(self, sizes: LayerSizes, options: AdaptiveSpanOptions) -> None:
        super().__init__(sizes, options)
        self.span_fraction = nn.Parameter(torch.empty(sizes.num_heads))
        """``(H,)``, each head's span divided by max_span."""
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        super().reset_parameters(generator)
        initial = self.options.init_span
        nn.init.constant_(self.span_fraction, 1.0 if initial is None else initial / self.options.max_span)

    @property
    def spans(self) -> Tensor:
        """z in tokens, ``(H,)``, clamped to [0, max_span], in at least fp32. The clamp passes gradients on unchanged,
        so that a z outside the range can return."""
        fraction = at_least_fp32(self.span_fraction)
        return (fraction + (fraction.clamp(0, 1) - fraction).detach()) * self.options.max_span

    def auxiliary_loss(self) -> Tensor:
        return self.options.span_loss_weight * self.options.max_span * self.span_fraction.float().clamp(0, 1).mean()

    def soft_mask(self, distance: Tensor, h: Tensor, dtype: torch.dtype) -> Tensor:
        """The soft mask m_z at ``distance`` in heads ``h`` (broadcastable tensors)."""
        ramp = self.options.ramp
        return ((ramp + self.spans.to(dtype)[h] - distance) / ramp).clamp(0, 1)

    def extremes(self) -> tuple[float, float]:
        """The shortest and the longest span in tokens; 0 and max_span in graphs and on the meta device.

        The parameter is read in every call, because changes of its data cannot be detected.
        """
        if in_graph() or self.span_fraction.is_meta:
            return 0.0, float(self.options.max_span)
        shortest, longest = torch.stack(self.span_fraction.detach().float().clamp(0, 1).aminmax()).tolist()
        return shortest * self.options.max_span, longest * self.options.max_span

    def pattern(self, causal: bool, longest: float | None = None) -> Pattern:
        """The band of keys within the longest span and its ramp. ``longest``: that span, if it is known."""
        if longest is None:
            longest = self.extremes()[1]
        side = math.ceil(longest + self.options.ramp) - 1
        return Pattern(side, 0 if causal else side, causal)

    def dense_weights(self, q: Tensor, k: Tensor, call: AttentionCall) -> Tensor:
        scores = scaled_scores(q, k, call)
        _, h, q_idx, kv_idx = grid_of(q, k)
        mask = self.soft_mask((q_idx - kv_idx).abs(), h, scores.dtype)
        return softmax_over(scores + logarithm(mask), (mask > 0) & visible_in_full_attention(q, k, call))

    def attended_keys(self, q: Tensor, k: Tensor, call: AttentionCall) -> AttendedKeys:
        reach = (self.spans.detach() + self.options.ramp).view(-1, 1, 1)
        positions = torch.arange(k.shape[2], device=k.device)
        return lambda rows, scores: (rows[:, None] - positions).abs() < reach

    def forward(self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        """Attention over the keys within the longest span, with the logarithm of the soft mask as a score term.

        Full attention if no span is shorter than the text and none is being learned.
        """
        longest = None
        if not in_graph():
            if self.training:
                self.span_fraction.data.clamp_(0, 1)
            shortest, longest = self.extremes()
            learning = torch.is_grad_enabled() and self.span_fraction.requires_grad
            if not learning and shortest >= k.shape[2]:
                return dense_attention(q, k, v, call)

        # The logarithm of the soft mask is a score term by distance, from -ahead to reach.
        dtype = torch.promote_types(q.dtype, torch.float32)
        band, reach = self.pattern(call.causal, longest), k.shape[2]
        if band.left < reach:  # a branch, since torch.compile would keep a min in the shapes
            reach = band.left
        ahead = 0 if call.causal else reach
        distance = torch.arange(-ahead, reach + 1, device=q.device)
        soft = self.soft_mask(distance.abs(), torch.arange(self.num_heads, device=q.device)[:, None], dtype)
        spans = DistanceBias(logarithm(soft).masked_fill(soft <= 0, float("-inf")), ahead)  # log m_z
        term = spans if call.score_mod is None else chain_score_mods(call.score_mod, spans)
        return block_sparse_attention(q, k, v, band, call.replace(score_mod=term))

    def covers(self, length: int, causal: bool = False) -> bool:
        """Whether the current spans of all heads cover every distance."""
        return self.extremes()[0] >= length

    def pairs(self, length: int, causal: bool = False) -> int:
        """Number of pairs within the longest span. Every head visits all of them."""
        band = self.pattern(causal)
        return band_pairs(length, band.left, band.right)

    def locality(self, causal: bool) -> Locality:
        side = self.options.max_span + self.options.ramp - 1
        return Locality(side, 0 if causal else side)


def logarithm(mask: Tensor) -> Tensor:
    """log of ``mask``. Where ``mask`` is 0, the result is finite and has no gradient."""
    return mask.clamp(min=torch.finfo(mask.dtype).tiny).log()
