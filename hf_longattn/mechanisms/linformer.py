"""Linformer (Wang et al. 2020, equation 7): keys and values projected along the length of the text to a few rows.

    output = softmax(Q (Eᵀ K)ᵀ · scale) (Fᵀ V)          E, F of shape N × rank

E and F are learned, with one row per position, counted from the first real token. All heads share E and F, which the
paper calls headwise sharing. A shorter text uses the first rows; a longer text is refused. E and F are initialised
with variance 1 / max_length, so that projected values have the variance of the values. (The paper's theorem has
1 / rank, which preserves inner products.)

Padding is masked before projecting. There is no causal form: a projected key mixes several tokens, and later ones
cannot be hidden.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from ..engines.call import AttentionCall
from ..engines.dense import dense_attention, repeat_heads
from ..engines.dispatch import choose
from ..errors import InputError, OptionError
from .common.base import LayerSizes, Mechanism
from .common.capabilities import About
from .common.options import Options, option
from .common.registry import register_mechanism


@dataclasses.dataclass(frozen=True)
class LinformerOptions(Options):
    rank: int = option(256, "k, rows to which keys and values are projected", "rows", least=1)
    max_length: int | None = option(
        None, "longest text of the projection; none uses the model's", "tokens", least=1, most=1 << 20
    )

    def sample_length(self) -> int:
        return self.max_length or self.rank

    def check(self, length: int | None = None) -> None:
        """Refuse more rows than tokens of the longest text: ``length`` or, by default, the option ``max_length``.
        Without either, do nothing."""
        length = self.max_length if length is None else length
        if length is not None and self.rank > length:
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
    )
    causal = False
    capabilities = Mechanism.capabilities.but(trains=True, takes_score_mod=False, images="any")
    per_head_tensors = ()
    options: LinformerOptions

    def __init__(self, sizes: LayerSizes, options: LinformerOptions) -> None:
        super().__init__(sizes, options)
        longest = options.max_length or sizes.max_length
        if longest is None:
            raise OptionError(
                "Mechanism 'linformer' learns a projection for every position, but neither the model nor the option "
                "max_length says how many there are; give max_length=4096."
            )
        options.check(longest)
        self.longest = longest
        self.key_projection = nn.Parameter(torch.empty(1, longest, options.rank))
        """E, ``(1, max_length, rank)``."""
        self.value_projection = nn.Parameter(torch.empty(1, longest, options.rank))
        """F, ``(1, max_length, rank)``."""
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the projections from N(0, 1 / max_length), so that rows of Eᵀ have a norm of about 1."""
        super().reset_parameters(generator)
        for parameter in (self.key_projection, self.value_projection):
            nn.init.normal_(parameter, std=self.longest**-0.5, generator=generator)

    def _check_length(self, length: int) -> None:
        if length > self.longest:
            raise InputError(
                f"The input has {length} tokens, but the learned projection of mechanism 'linformer' has rows for "
                f"{self.longest}; shorten the input, or build the mechanism with max_length={length}."
            )

    def dense_weights(self, q: Tensor, k: Tensor, call: AttentionCall) -> Tensor:
        """The weights ``(B, H, Nq, Nk)`` on the values: softmax over the projected keys, times Fᵀ."""
        self._check_length(k.shape[2])
        down_k, down_v = (
            self._real_rows(projection, k, call).mT[:, None].to(k.dtype)
            for projection in (self.key_projection, self.value_projection)
        )
        scores = q @ (down_k @ repeat_heads(k, q.shape[1])).mT * call.scale_for(q.shape[3])
        # A sequence without real tokens has zeros in down_v, and therefore no weights.
        return scores.softmax(-1) @ down_v

    def forward(self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        self._check_length(k.shape[2])
        choose("pairs", q, k, call, maskable=False)  # names the path of this mechanism for `explain`
        rows_k = project_length(self._real_rows(self.key_projection, k, call), k)
        rows_v = project_length(self._real_rows(self.value_projection, v, call), v)
        return dense_attention(q, rows_k, rows_v, call.with_mask(None))

    def _real_rows(self, projection: Tensor, x: Tensor, call: AttentionCall) -> Tensor:
        """The rows of a projection for the tokens of ``x``, ``(B or 1, N, rank)``; zeros at padding."""
        rows = projection[:, : x.shape[2]]
        return rows if call.key_mask is None else rows * call.key_mask[:, :, None]

    def pairs(self, length: int, causal: bool = False) -> int:
        return length * self.options.rank


def project_length(projection: Tensor, x: Tensor) -> Tensor:
    """``Σ_n projection[b, n, r] x[b, h, n, d]``: ``(B or 1, N, R)`` and ``(B, H, N, D)`` to ``(B, H, R, D)``."""
    batch, heads, length, width = x.shape
    # All heads have the same projection: one product for all of them.
    side_by_side = x.transpose(1, 2).reshape(batch, length, heads * width)
    shared = projection.to(x.dtype).mT.expand(batch, -1, -1)
    return torch.bmm(shared, side_by_side).unflatten(2, (heads, width)).transpose(1, 2)
