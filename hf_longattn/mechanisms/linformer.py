"""Linformer (Wang et al. 2020, equation 7): keys and values projected along the length of the text to a few rows.

    output = softmax(Q (Eᵀ K)ᵀ · scale) (Fᵀ V)          E, F of shape N × rank

    linear        E and F are learned, with one row per position, counted from the first real token. A shorter text
                  uses the first rows; a longer one is refused. E and F are drawn with variance 1 / max_length, so that
                  projected values have the variance of the values. (The paper's theorem has 1 / rank, which preserves
                  inner products.)
    convolution   one learned kernel of width max_length / rank with stride = width: row i of Eᵀ K is Σ_t w_t
                  k_{i·width+t}. A longer text has more rows.
    pooling       row i is the mean of the i-th of `rank` segments of nearly equal length; nothing is learned.

Padding is masked before projecting. There is no causal form: a projected key mixes several tokens, and later ones
cannot be hidden.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..engines.call import AttentionCall
from ..engines.dense import dense_attention, repeat_heads
from ..engines.dispatch import choose
from ..errors import InputError, OptionError
from .common.base import Mechanism, softmax_over
from .common.capabilities import About
from .common.options import Options, option
from .common.registry import register_mechanism

SHARINGS = ("none", "headwise", "key-value", "layerwise")


@dataclasses.dataclass(frozen=True)
class LinformerOptions(Options):
    rank: int = option(256, "k, rows to which keys and values are projected", "rows", least=1)
    projection: str = option("linear", "linear, convolution or pooling", choices=("linear", "convolution", "pooling"))
    sharing: str = option(
        "headwise",
        "what shares one projection: none (each head has its own), headwise (all heads), key-value (all heads, and "
        "keys with values) or layerwise (all layers and heads, and keys with values)",
        choices=SHARINGS,
    )
    max_length: int | None = option(
        None, "longest text of a learned projection; none uses the model's", "tokens", least=1, most=1 << 20
    )

    def sample_length(self) -> int:
        return self.max_length or self.rank

    def check(self, length: int | None = None) -> None:
        """Refuse more rows than tokens, where the longest text is known: ``length``, or the option ``max_length``."""
        length = self.max_length if length is None else length
        if length is not None and self.rank > length and self.projection != "pooling":
            raise OptionError(
                f"Option 'rank' of mechanism 'linformer' is {self.rank}, but must be at most the longest text, "
                f"{length} tokens; for example rank={max(1, length // 4)}."
            )


@register_mechanism("linformer")
class Linformer(Mechanism):
    about = About(
        summary="keys and values projected along the length to a fixed number of rows",
        paper="Wang et al. 2020, Linformer, eq. 7",
        when="an encoder of a fixed maximum length that you train; not for decoders",
        engine="low_rank",
        cost="N·rank",
        sample={"rank": 16, "max_length": 640},
        covering=lambda length, causal: {"projection": "pooling", "rank": length},
    )
    causal = False
    capabilities = Mechanism.capabilities.but(trains=True, takes_score_mod=False, images="any")
    per_head_tensors: tuple[str, ...] | None = ()
    shared_by_layers: tuple[str, ...] = ()
    """Names of parameters that all layers with equal options share."""
    options: LinformerOptions

    def __init__(
        self, num_heads: int, head_dim: int, hidden_size: int, max_length: int | None, options: LinformerOptions
    ) -> None:
        super().__init__(num_heads, head_dim, hidden_size, max_length, options)
        if options.projection == "pooling":
            self.capabilities = self.capabilities.but(position_dependent=False)
            return
        longest = options.max_length or max_length
        if longest is None:
            raise OptionError(
                "Mechanism 'linformer' learns a projection for every position, but neither the model nor the option "
                "max_length says how many there are; give max_length=4096, or projection='pooling'."
            )
        options.check(longest)
        self.longest = longest
        projections = num_heads if options.sharing == "none" else 1
        shape = (
            (projections, longest, options.rank)
            if options.projection == "linear"
            else (projections, -(-longest // options.rank))
        )
        self.key_projection = nn.Parameter(torch.empty(shape))
        """E, ``(H or 1, max_length, rank)``; for a convolution, its kernel ``(H or 1, width)``."""
        if options.sharing in ("none", "headwise"):
            self.value_projection = nn.Parameter(torch.empty(shape))
            """F, with the shape of E."""
        if options.sharing == "none":
            self.per_head_tensors = ("key_projection", "value_projection")
        if options.sharing == "layerwise":
            self.shared_by_layers = ("key_projection",)
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw linear projections from N(0, 1 / max_length), so that rows of Eᵀ have a norm of about 1. Convolutions
        start as the mean."""
        super().reset_parameters(generator)
        for parameter in self.parameters(recurse=False):
            if self.options.projection == "linear":
                nn.init.normal_(parameter, std=self.longest**-0.5, generator=generator)
            else:
                nn.init.constant_(parameter, 1 / parameter.shape[-1])

    @property
    def projections(self) -> tuple[nn.Parameter, nn.Parameter]:
        """E and F. Both are the same parameter if keys and values share their projection."""
        return self.key_projection, getattr(self, "value_projection", self.key_projection)

    def _check_length(self, length: int) -> None:
        if self.options.projection == "linear" and length > self.longest:
            raise InputError(
                f"The input has {length} tokens, but the learned projection of mechanism 'linformer' has rows for "
                f"{self.longest}; shorten it, or build the mechanism with max_length={length} or projection='pooling'."
            )

    def dense_weights(self, q: Tensor, k: Tensor, call: AttentionCall) -> Tensor:
        self._check_length(k.shape[2])
        real = call.real(k)
        down = [self._matrix(number, real).to(k.dtype) * real[:, None, None, :] for number in range(2)]
        filled = real.any(-1)[:, None] if self.options.projection == "linear" else (down[0] != 0).any(-1).any(1)
        scores = q @ (down[0] @ repeat_heads(k, q.shape[1])).transpose(-1, -2) * call.scale_for(q.shape[3])
        return softmax_over(scores, filled[:, None, None, :].expand(scores.shape)) @ down[1]

    def _matrix(self, number: int, real: Tensor) -> Tensor:
        """Eᵀ (number 0) or Fᵀ (1) as a matrix ``(B or 1, H or 1, rows, N)``, before padding is masked."""
        if self.options.projection == "pooling":
            return segment_matrix(real, self.options.rank, torch.float64)[:, None]
        parameter = self.projections[number]
        position = torch.arange(real.shape[1], device=real.device)
        if self.options.projection == "linear":
            return parameter[:, position].transpose(1, 2)[None]
        width = parameter.shape[1]
        rows = torch.arange((real.shape[1] + width - 1) // width, device=real.device)
        return (parameter[:, None, position % width] * (position // width == rows[:, None]))[None]

    def forward(self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        self._check_length(k.shape[2])
        if choose("pairs", q, k, call, covered=self.covers(k.shape[2]), maskable=False) == "dense":
            return dense_attention(q, k, v, call)
        if self.options.sharing == "none" and self.options.projection != "pooling":
            k, v = repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1])
        rows_k, rows_v, filled = self._projected(k, v, call.key_mask)
        return dense_attention(q, rows_k, rows_v, call.with_mask(filled))

    def _projected(self, k: Tensor, v: Tensor, real: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Eᵀ K, Fᵀ V, and a mask ``(B, rows)`` of the projected rows with real tokens (``None`` if all of them
        count)."""
        if self.options.projection == "pooling":
            if real is None:
                return segment_means(k, self.options.rank), segment_means(v, self.options.rank), None
            means = segment_matrix(real, self.options.rank, k.dtype).transpose(1, 2)[:, None]
            return project_length(means, k), project_length(means, v), (means > 0).any(2)[:, 0]
        if self.options.projection == "linear":
            rows = [parameter[None, :, : k.shape[2]] for parameter in self.projections]
            if real is not None:
                rows = [parameter * real[:, None, :, None] for parameter in rows]
            return project_length(rows[0], k), project_length(rows[1], v), None
        (kernel_k, kernel_v), filled = self.projections, None
        if real is not None:
            k, v = k * real[:, None, :, None], v * real[:, None, :, None]
            width = kernel_k.shape[1]
            filled = nn.functional.pad(real, (0, -real.shape[1] % width)).unflatten(1, (-1, width)).any(-1)
        return convolve_blocks(kernel_k, k), convolve_blocks(kernel_v, v), filled

    def covers(self, length: int, causal: bool = False) -> bool:
        return self.options.projection == "pooling" and self.options.rank >= length

    def pairs(self, length: int, causal: bool = False) -> int:
        rows = self.options.rank
        if self.options.projection == "convolution":
            rows = -(-length // self.key_projection.shape[1])
        return (
            length * min(rows, length) if self.covers(length) or self.options.projection != "linear" else length * rows
        )


def project_length(projection: Tensor, x: Tensor) -> Tensor:
    """``Σ_n projection[b, h, n, r] x[b, h, n, d]``: ``(B or 1, H or 1, N, R)`` and ``(B, H, N, D)`` to
    ``(B, H, R, D)``."""
    projection = projection.to(x.dtype)
    batch, heads, length, width = x.shape
    if projection.shape[1] == 1:  # one product, with the heads side by side
        flat = x.transpose(1, 2).reshape(batch, length, heads * width)
        shared = projection[:, 0].transpose(1, 2).expand(batch, -1, -1)
        return torch.bmm(shared, flat).unflatten(2, (heads, width)).transpose(1, 2)
    return projection.transpose(2, 3) @ x


def convolve_blocks(kernel: Tensor, x: Tensor) -> Tensor:
    """Sum each block of S tokens, weighted by ``kernel (H or 1, S)``: ``(B, H, N, D)`` to ``(B, H, ⌈N/S⌉, D)``."""
    size = kernel.shape[1]
    blocks = F.pad(x, (0, 0, 0, -x.shape[2] % size)).unflatten(2, (-1, size))
    weights = kernel.to(x.dtype)[None, :, None, None, :]
    return (weights.expand(*blocks.shape[:3], 1, size) @ blocks).squeeze(3)


def segment_matrix(real: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """Matrix ``(B, M, N)`` that averages M = ``count`` nearly equal runs (segments) of each sequence's real tokens.

    A token's entry in the row of its segment is 1 / (tokens of the segment). Entries of padding (``real (B, N)`` is
    False) are 0. Segments of n real tokens have ⌊n/M⌋ tokens or one more, the shorter ones first. If n < M, each token
    is a segment, and the others are empty.
    """
    number = real.sum(-1, keepdim=True)
    token = real.long().cumsum(-1) - 1
    size = number // count
    shorter = (size + 1) * count - number
    boundary = shorter * size
    segment = torch.where(token < boundary, token // size.clamp(min=1), shorter + (token - boundary) // (size + 1))
    within = (segment[:, None] == torch.arange(count, device=real.device)[:, None]) & real[:, None]
    return within.to(dtype) / within.sum(-1, keepdim=True).clamp(min=1)


def segment_means(x: Tensor, count: int) -> Tensor:
    """Means ``(B, H, M, D)`` of M = ``count`` segments of ``x (B, H, N, D)``, which has no padding. If N <= M, ``x``
    itself."""
    length = x.shape[2]
    if length <= count:
        return x
    size = length // count
    shorter = (size + 1) * count - length
    means = [x[:, :, : shorter * size].unflatten(2, (shorter, size)).mean(3)]
    if shorter < count:
        means.append(x[:, :, shorter * size :].unflatten(2, (count - shorter, size + 1)).mean(3))
    return torch.cat(means, 2)
