"""Softmax for near keys and linear attention for the others, under one normalisation (Zhang et al. 2024, LoLCATs,
equations 6 and 7).

W_i are the keys in query i's window of w tokens, s_ij = scale · q_i·k_j, c_i = max_{j ∈ W_i} s_ij, and κ is the kernel
of a linear mechanism. Then

    o_i = (γ Σ_{j ∈ W_i} exp(s_ij - c_i) v_j  +  Σ_{j ∉ W_i} κ(q_i, k_j) v_j)
          / (γ Σ_{j ∈ W_i} exp(s_ij - c_i)  +  Σ_{j ∉ W_i} κ(q_i, k_j))

γ is the sigmoid of one learned number per head. If the window covers the text, this is softmax attention. If the
kernel itself estimates exp(s_ij), as Taylor's does, it is multiplied by exp(-c_i), so that it has the scale of the
near terms, and γ starts near 1. The window slides, as in the equations; the authors' GPU kernels cut it into blocks
("terraced"). The bidirectional form is not in the paper.
"""

from __future__ import annotations

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..engines import accelerator
from ..engines.batch import in_graph, without_autocast
from ..engines.call import AttentionCall, Pattern, State
from ..engines.dense import at_least_fp32, grid_of, repeat_heads
from ..engines.linear_attention import absorb, empty_state, linear_attention, masked
from ..errors import OptionError
from .common.base import LayerSizes, Mechanism, drop_keys, normalised, visible_in_full_attention
from .common.capabilities import About, Stateful
from .common.feature_map import LinearMechanism
from .common.layout import band_pairs, full_pairs
from .common.options import Options, option
from .common.registry import MechanismSpec, mechanism_class, register_mechanism
from .hedgehog import HedgehogOptions

HEDGEHOG = MechanismSpec("hedgehog", HedgehogOptions())  # frozen, so that a dataclass field may have it as default
INITIAL_MIXING = 0.1
"""γ before training, as in LoLCATs."""
INITIAL_MIXING_OF_ESTIMATES = 0.9
"""γ before training if the kernel estimates exp(s_ij). Close to 1, but within the sigmoid's range."""
MIN_LARGEST_SCORE = -60.0
"""Lower bound on c_i, so that exp(-c_i) cannot overflow; terms below exp(-60) are negligible."""
QUERIES_PER_BLOCK = 64
"""Queries per block. A block reads this many keys plus the width of the window."""
QUERIES_PER_PIECE = 2048
"""Number of queries computed at a time on a CPU. Minimum of that number on an accelerator."""


@dataclasses.dataclass(frozen=True)
class HybridOptions(Options):
    window: int = option(
        64, "total width of the softmax window: w/2 on each side, or the last w keys when causal", "tokens", least=1
    )
    features: MechanismSpec = option(HEDGEHOG, "the linear mechanism for the other keys: hedgehog, taylor or linear")  # noqa: RUF009

    def check(self) -> None:
        chosen = mechanism_class(self.features.mechanism)
        if not (issubclass(chosen, LinearMechanism) and chosen.sums_beside_softmax):
            raise OptionError(
                f"Option 'features' of mechanism 'hybrid' is '{self.features}', which cannot be added to a softmax; "
                "choose hedgehog, taylor or linear, for example features=hedgehog."
            )


@register_mechanism("hybrid")
class Hybrid(Mechanism, Stateful):
    about = About(
        summary="softmax in a small window and linear attention to all other keys, normalised together",
        paper="Zhang et al. 2024, LoLCATs, eq. 6-7",
        when="you linearise a decoder: softmax for near tokens, and a state of constant size for all others",
        engine="linear",
        cost="N·(w+D²)",
        sample={"window": 16},
        covering=lambda length, causal: {"window": 2 * length},
    )
    capabilities = Mechanism.capabilities.but(trains=True, takes_score_mod=False, position_dependent=False)
    options: HybridOptions

    def __init__(self, sizes: LayerSizes, options: HybridOptions) -> None:
        super().__init__(sizes, options)
        linear = options.features.build(sizes)
        assert isinstance(linear, LinearMechanism)
        self.linear = linear
        self.mixing = nn.Parameter(torch.empty(sizes.num_heads))
        """``(H,)``. Its sigmoid is γ."""
        if linear.per_head_tensors is not None:
            self.per_head_tensors = ("mixing", *(f"linear.{name}" for name in linear.per_head_tensors))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Set γ to 0.1, or to 0.9 if the kernel estimates exp(s_ij). The linear mechanism initialises its features."""
        super().reset_parameters(generator)
        gamma = INITIAL_MIXING_OF_ESTIMATES if self.linear.estimates_exp else INITIAL_MIXING
        nn.init.constant_(self.mixing, math.log(gamma / (1 - gamma)))

    def forward(self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        with without_autocast(q):
            return self._run(q, k, v, None, call)

    def advance(
        self, q: Tensor, k: Tensor, v: Tensor, state: State | None, call: AttentionCall
    ) -> tuple[Tensor, State]:
        """The output of new tokens, and the state after them.

        The state has the window's ``keys, values (B, H_kv, w, D)`` and ``real (B, w)``. Its ``kv (B, H, F, D+1)`` and
        ``z (B, H, F)`` are sums over the keys before the window.
        """
        with without_autocast(q):
            mask = call.real(k)
            size = self.options.window
            if state is None:
                state = {
                    "keys": k.new_zeros(*k.shape[:2], size, k.shape[3]),
                    "values": v.new_zeros(*v.shape[:2], size, v.shape[3]),
                    "real": mask.new_zeros(len(mask), size),
                }
            k = torch.cat([state["keys"], k], 2)
            v = torch.cat([state["values"], v], 2)
            mask = torch.cat([state["real"], mask], 1)
            sums: State | None = {"kv": state["kv"], "z": state["z"]} if "kv" in state else None
            out = self._run(q, k, v, sums, call.replace(causal=True).with_mask(mask))

            # The keys that leave the window are added to the sums.
            leaving = k.shape[2] - size
            features = masked(self.linear.keys(at_least_fp32(k[:, :, :leaving]), call), mask[:, :leaving])
            values = _with_ones(at_least_fp32(v[:, :, :leaving]), features.shape[1])
            after = absorb(empty_state(features, values) if sums is None else sums, features, values)
            return out, {**after, "keys": k[:, :, leaving:], "values": v[:, :, leaving:], "real": mask[:, leaving:]}

    def _run(self, q: Tensor, k: Tensor, v: Tensor, sums: State | None, call: AttentionCall) -> Tensor:
        """The output for ``q``. ``sums``: state of the linear mechanism after the keys before ``k``."""
        pattern, dtype, dropout_p = Pattern.window(self.options.window, call.causal), q.dtype, call.dropout
        q, k, v = at_least_fp32(q), at_least_fp32(k), at_least_fp32(v)
        scale, gamma = call.scale_for(self.head_dim), self._gamma(v.dtype)
        total, weight, largest = local_softmax_terms(
            q, k, v, pattern.left, pattern.right, call.real(k), scale, dropout_p
        )
        total = total * gamma
        weight = weight * gamma
        if not pattern.covers(q.shape[2], k.shape[2]) or sums is not None:
            far = _far(  # no names for the features, so that they are freed before `far` is used
                self.linear.queries(q, call), self.linear.keys(k, call), drop_keys(v, dropout_p), pattern, sums, call
            )
            if self.linear.estimates_exp:
                far = far * (-largest.clamp(min=MIN_LARGEST_SCORE)).exp()
            total = total + far[..., :-1]
            weight = weight + far[..., -1:]
        return torch.where(weight > 0, total / torch.where(weight > 0, weight, 1.0), 0.0).to(dtype)

    def dense_weights(self, q: Tensor, k: Tensor, call: AttentionCall) -> Tensor:
        """The weights ``(B, H, Nq, Nk)``: softmax terms times γ in the window, κ elsewhere, normalised together."""
        scale, k = call.scale_for(self.head_dim), repeat_heads(k, q.shape[1])
        window = Pattern.window(self.options.window, call.causal)
        near = window.band_mod(*grid_of(q, k)).expand(*q.shape[:3], k.shape[2])
        seen = visible_in_full_attention(q, k, call)
        scores = (q @ k.mT * scale).masked_fill(~(near & seen), float("-inf"))
        largest = scores.amax(-1, keepdim=True)
        largest = largest.masked_fill(largest == float("-inf"), 0.0)
        far = self.linear.kernel(q, k, call)
        if self.linear.estimates_exp:
            far = far * (-largest).exp()
        weights = torch.where(near, self._gamma(q.dtype) * (scores - largest).exp(), far)
        return normalised(weights.masked_fill(~seen, 0.0))

    def _gamma(self, dtype: torch.dtype) -> Tensor:
        """γ of each head, ``(H, 1, 1)``."""
        return self.mixing.to(dtype).sigmoid()[:, None, None]

    def covers(self, length: int, causal: bool = False) -> bool:
        return Pattern.window(self.options.window, causal).covers(length, length)

    def pairs(self, length: int, causal: bool = False) -> int:
        pattern = Pattern.window(self.options.window, causal)
        band = band_pairs(length, pattern.left, pattern.right)
        return min(full_pairs(length, causal), band + length * 2 * self.linear.features_per_head)


def _far(phi_q: Tensor, phi_k: Tensor, v: Tensor, pattern: Pattern, sums: State | None, call: AttentionCall) -> Tensor:
    """Σ_j φ_q·φ_k v_j over keys outside the window, ``(B, H, Nq, D + 1)``. The last column is Σ_j φ_q·φ_k.

    A function, so that the features are freed before its result is used.
    """
    values = _with_ones(v, phi_k.shape[1])
    if call.key_mask is not None:
        phi_k = masked(phi_k, call.key_mask)
    far = _beyond(phi_q, phi_k, values, pattern.left + 1, sums)
    if call.causal:
        return far
    # keys after the window are keys before it in the reversed sequence
    phi_q, phi_k, values = (x.flip(2)[:, :, : phi_q.shape[2]] for x in (phi_q, phi_k, values))
    return far + _beyond(phi_q, phi_k, values, pattern.right + 1, None).flip(2)


def _beyond(phi_q: Tensor, phi_k: Tensor, values: Tensor, distance: int, sums: State | None) -> Tensor:
    """Σ_j φ_q·φ_k v_j over keys at least ``distance`` tokens before the query, ``(B, H, Nq, D + 1)``.

    The features ``phi_k`` are zeros at padding. ``sums``: state of the linear mechanism after the keys before
    ``phi_k``.
    """
    seen = max(0, phi_k.shape[2] - distance)
    rows = min(phi_q.shape[2], seen)  # queries that see such keys: the last ones
    nothing = phi_q.new_zeros(*phi_q.shape[:2], phi_q.shape[2] - rows, values.shape[-1])
    if not rows:
        return nothing
    phi_q, phi_k, values = phi_q[:, :, -rows:], phi_k[:, :, :seen], values[:, :, :seen]
    out, _ = linear_attention(phi_q, phi_k, values, normalise=False, initial_state=sums)
    return torch.cat([nothing, out], 2)


def _with_ones(v: Tensor, heads: int) -> Tensor:
    """Values ``(B, heads, n, D + 1)`` with a last column of ones. Sums of weighted values then have the sum of the
    weights in that column."""
    return F.pad(repeat_heads(v, heads), (0, 1), value=1.0)


def local_softmax_terms(
    q: Tensor, k: Tensor, v: Tensor, left: int, right: int, real: Tensor, scale: float, dropout_p: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Σ_j exp(s_ij - c_i) v_j and Σ_j exp(s_ij - c_i) over the keys with i - left ≤ j ≤ i + right. c_i is the largest
    s_ij.

    Takes time and memory N·(left + right + 64) per head. Tiles of softmax attention with their log-sum-exp would also
    give these sums with gradients, but take 1.35-1.5 times as long in the forward pass, and equally long for both
    passes (1,024 and 4,096 tokens, windows of 64 and 256).

    Args:
        q: ``(B, H, Nq, D)``, the last Nq positions of ``k, v (B, H, Nk, D)``.
        real: ``(B, Nk)`` bool, False = padding.
        scale: factor on q·k.
        dropout_p: dropout probability on the terms of the first sum.
    Returns:
        The two sums, ``(B, H, Nq, D)`` and ``(B, H, Nq, 1)``, and c ``(B, H, Nq, 1)``; zeros for queries that see no
        key.
    """
    first = k.shape[2] - q.shape[2]  # position of the first query
    size = q.shape[2]  # queries at a time
    if not in_graph():  # a band wider than the text must not cost more than the text
        left, right = min(left, k.shape[2]), min(right, k.shape[2])
        numbers_per_query = q.shape[0] * q.shape[1] * (left + right + QUERIES_PER_BLOCK)
        size = max(QUERIES_PER_PIECE, accelerator.numbers_at_a_time(q, 0) // numbers_per_query)
    reach = left + right
    after = right + QUERIES_PER_BLOCK  # the last block may be filled up with queries
    k, v = (F.pad(repeat_heads(x, q.shape[1]), (0, 0, left, after)) for x in (k, v))
    real = F.pad(real, (left, after))
    pieces = []
    for start in range(0, q.shape[2], size):
        queries = q[:, :, start : start + size]
        blocks = -(-queries.shape[2] // QUERIES_PER_BLOCK)
        keys = slice(first + start, first + start + blocks * QUERIES_PER_BLOCK + reach)
        pieces.append(_piece(queries, k[:, :, keys], v[:, :, keys], reach, real[:, keys], scale, dropout_p))
    total, weight, largest = (torch.cat(parts, 2) for parts in zip(*pieces, strict=True))
    return total, weight, largest


def _piece(
    q: Tensor, k: Tensor, v: Tensor, reach: int, real: Tensor, scale: float, dropout_p: float
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`local_softmax_terms` for consecutive queries ``q (B, H, n, D)``. ``k``, ``v`` and ``real`` are the keys
    of all blocks of these queries. reach: left + right."""
    # A block of queries sees a span of keys, (B, H, blocks, D, span); spans overlap.
    length, span = q.shape[2], reach + QUERIES_PER_BLOCK
    real = real.unfold(1, span, QUERIES_PER_BLOCK)
    keys, values = (x.unfold(2, span, QUERIES_PER_BLOCK) for x in (k, v))
    query = F.pad(q, (0, 0, 0, k.shape[2] - reach - length)).unflatten(2, (-1, QUERIES_PER_BLOCK))
    scores = (query @ keys) * scale
    offset = torch.arange(span, device=q.device) - torch.arange(QUERIES_PER_BLOCK, device=q.device)[:, None]
    seen = ((offset >= 0) & (offset <= reach)) & real[:, None, :, None, :]
    scores = scores.masked_fill(~seen, float("-inf"))
    largest = scores.amax(-1, keepdim=True)
    largest = torch.where(largest.isfinite(), largest, 0.0)
    weights = torch.where(seen, (scores - largest).exp(), 0.0)
    dropped = F.dropout(weights, dropout_p) if dropout_p else weights
    terms = (dropped @ values.mT, weights.sum(-1, keepdim=True), largest)
    total, weight, largest = (x.flatten(2, 3)[:, :, :length] for x in terms)
    return total, weight, largest
