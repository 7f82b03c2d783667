"""Synthesizer (Tay et al. 2020, Rethinking Self-Attention in Transformer Models, section 3): attention scores without
keys.

    y = softmax(S) v

    dense       S_ij = F(q_i)_j,  F(x) = ReLU(x W1 + b1) W2 + b2, from the token to all positions     (section 3.1)
    random      S_ij = R_ij, a learned matrix per head that does not depend on the input              (section 3.2.1)

These are Syn (D) and Syn (R) of the paper's tables. The paper's F maps the layer's input X_i. Here F maps the head's
query q_i = X_i W_q, so that its first layer acts on each head separately. Positions i and j count from the first real
token. Padding therefore changes nothing.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..engines.call import AttentionCall
from ..engines.dense import at_least_fp32, dense_attention, grid_of, repeat_heads
from ..errors import InputError, OptionError
from .common.base import LayerSizes, Mechanism, softmax_over, visible_in_full_attention
from .common.capabilities import About
from .common.options import Options, option
from .common.registry import register_mechanism


@dataclasses.dataclass(frozen=True)
class SynthesizerOptions(Options):
    variant: str = option("dense", "where scores come from: 'dense' or 'random'", choices=("dense", "random"))
    max_length: int | None = option(None, "longest input; none uses the model's", "tokens", least=1, most=65536)


@register_mechanism("synthesizer")
class Synthesizer(Mechanism):
    about = About(
        summary="attention weights without q·k: an MLP of the token, or a learned matrix",
        paper="Tay et al. 2020, Synthesizer: Rethinking Self-Attention, §3.1 and §3.2.1",
        when="experiments with attention that does not compare tokens; inputs of a fixed maximum length",
        engine="dense",
        cost="N²; without an N×N matrix for dense",
        sample={"max_length": 640},
    )
    capabilities = Mechanism.capabilities.but(trains=True, images="any")
    options: SynthesizerOptions

    def __init__(self, sizes: LayerSizes, options: SynthesizerOptions) -> None:
        super().__init__(sizes, options)
        limit = options.max_length or sizes.max_length
        if limit is None:
            raise OptionError(
                "Mechanism 'synthesizer' has parameters for every position, but no length was given; give the longest "
                "input, for example max_length=512."
            )
        self.limit = limit
        if options.variant == "dense":
            part: nn.Module = nn.ModuleDict({"mlp": TokenMLP(self.num_heads, self.head_dim, limit)})
        else:
            part = nn.ParameterDict({"matrix": nn.Parameter(torch.empty(self.num_heads, limit, limit))})
        self.kinds: Any = nn.ModuleDict({options.variant: part})
        """The parameters, under the names that saved models have for them."""
        self.per_head_tensors = tuple(name for name, _ in self.named_parameters() if not name.startswith("relative."))
        self.reset_parameters()

    @property
    def mlp(self) -> TokenMLP:
        """F of the dense variant."""
        mlp: TokenMLP = self.kinds["dense"]["mlp"]
        return mlp

    @property
    def matrix(self) -> Tensor:
        """R of the random variant, ``(H, max_length, max_length)``."""
        matrix: Tensor = self.kinds["random"]["matrix"]
        return matrix

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        super().reset_parameters(generator)
        if self.options.variant == "dense":
            self.mlp.reset_parameters(generator)
        else:
            nn.init.normal_(self.matrix, generator=generator)

    def _positions(self, k: Tensor) -> Tensor:
        """Indices of the keys, ``(Nk,)``, to look up parameters. With slices, an exported graph would be correct for
        one length only."""
        length = k.shape[2]
        if length > self.limit:
            raise InputError(
                f"The input has {length} tokens, but mechanism 'synthesizer' has parameters for {self.limit}; shorten "
                f"the input, or build the mechanism with max_length={length}."
            )
        return torch.arange(length, device=k.device)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        """The output ``(B, H, Nq, D)``.

        The dense variant needs no N×N matrix, the random one has it as a parameter.
        """
        v = repeat_heads(v, q.shape[1])
        if self.options.variant == "random":
            weights = self.dense_weights(at_least_fp32(q), k, call)
            return F.dropout(weights, call.dropout).to(v.dtype) @ v
        # One fused call, in which hidden units are queries and rows of W2 are keys. All get the larger of both widths.
        hidden, rows = self.mlp.vectors(q, self._positions(v))
        rows = rows.expand(len(q), -1, -1, -1)
        width = max(v.shape[-1], hidden.shape[-1])
        hidden, rows, values = (F.pad(x, (0, width - x.shape[-1])) for x in (hidden, rows, v))
        out = dense_attention(hidden, rows, values.to(hidden.dtype), call.replace(scale=1.0))
        return out[..., : v.shape[-1]].to(v.dtype)

    def dense_weights(self, q: Tensor, k: Tensor, call: AttentionCall) -> Tensor:
        """The weights ``(B, H, Nq, Nk)``: softmax over the synthetic scores of the visible keys."""
        columns = self._positions(k)
        if self.options.variant == "dense":
            hidden, rows = self.mlp.vectors(q, columns)
            scores = hidden @ rows.mT
        else:
            rows = columns[len(columns) - q.shape[2] :]
            scores = at_least_fp32(self.matrix)[None, :, rows[:, None], columns]
        scores = scores.to(q.dtype).expand(*q.shape[:3], k.shape[2])
        if call.score_mod is not None:
            scores = call.score_mod(scores, *grid_of(q, k))
        return softmax_over(scores, visible_in_full_attention(q, k, call))


class TokenMLP(nn.Module):
    """``ReLU(x W1 + b1) W2 + b2`` per head, from D to D to ``columns`` units (section 3.1).

    Computed in at least fp32, since rounding in half precision would move ReLU's kink.
    """

    def __init__(self, heads: int, width: int, columns: int) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.empty(heads, width, width))
        self.first_bias = nn.Parameter(torch.empty(heads, 1, width))
        self.second = nn.Parameter(torch.empty(heads, columns, width))
        self.second_bias = nn.Parameter(torch.empty(heads, columns))

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw weights that give scores of about unit variance for queries of unit variance."""
        nn.init.normal_(self.first, std=self.first.shape[1] ** -0.5, generator=generator)
        nn.init.normal_(self.second, std=(self.second.shape[2] / 2) ** -0.5, generator=generator)
        nn.init.zeros_(self.first_bias)
        nn.init.zeros_(self.second_bias)

    def vectors(self, x: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Two lists of vectors whose products are the scores of ``x (B, H, N, D)`` at the positions ``columns``.

        The first, ``(B, H, N, D + 1)``, has the hidden units and a one. The second, ``(1, H, columns, D + 1)``, has
        the rows of W2 and b2.
        """
        x = at_least_fp32(x)
        hidden = F.relu(x @ self.first.to(x.dtype) + self.first_bias.to(x.dtype))
        rows = torch.cat([self.second, self.second_bias[..., None]], -1).to(x.dtype)
        return F.pad(hidden, (0, 1), value=1.0), rows[None, :, columns]
