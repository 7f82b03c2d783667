"""Synthesizer (Tay et al. 2020, Rethinking Self-Attention in Transformer Models, section 3): scores that no key takes part in.

    y = softmax(S) v,      S = Σ_p α_p S_p,  Σ_p α_p = 1

    dense               S_ij = F(q_i)_j, an MLP of two layers from the token to all positions          (section 3.1)
    factorized_dense    S_ij = F_A(q_i)_{⌊j/b⌋} · F_B(q_i)_{j mod b}                                  (section 3.2.2)
    random              S_ij = R_ij, learned or fixed                                                 (section 3.2.1)
    factorized_random   S_ij = (R1 R2ᵀ)_ij, of rank k                                                 (section 3.2.3)
    dot_product         S_ij = q_i · k_j · scale

Several kinds are mixed with learned weights α = softmax(mixing), the paper's D+V being ``dense+dot_product`` and its R+V
``random+dot_product``. The paper's F maps the layer's input X_i; here it maps the head's query q_i = X_i W_q, which is the same F with its
first layer factored through the head. Positions i and j are counted from the first real token, so padding changes nothing.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..engines.call import AttentionCall
from ..engines.dense import dense_attention, grid_of, index_grid, masked_softmax, products, repeat_heads
from ..errors import LengthError, OptionError
from .base import Mechanism, softmax_over, visible_to_all
from .options import Options, one_of, option, positive
from .registry import register_mechanism

UNPLACED = ("dot_product",)
"""Kinds that know no positions, and so take inputs of any length."""


@dataclasses.dataclass(frozen=True)
class SynthesizerOptions(Options):
    variant: tuple[str, ...] = option(
        ("dense",), "dense, factorized_dense, random, factorized_random or dot_product; several are mixed, as dense+dot_product"
    )
    max_length: int | None = option(None, "longest input; none takes the model's", "tokens")
    hidden: int | None = option(None, "units in the hidden layer of the dense kinds; none takes the head size", "units", most=65536)
    factor: int | None = option(None, "length b of the second factor of factorized_dense; none takes √max_length", "columns")
    rank: int = option(8, "rank k of factorized_random", "columns")
    trainable: bool = option(True, "whether the random kinds are learned, or stay as they were drawn")

    def check(self) -> None:
        if not self.variant:
            raise OptionError("Option 'variant' of mechanism 'synthesizer' is empty; for example variant=dense+dot_product.")
        for one in self.variant:
            one_of("synthesizer", "variant", one, tuple(KINDS))
        if len(set(self.variant)) < len(self.variant):
            raise OptionError(f"Option 'variant' of mechanism 'synthesizer' is {'+'.join(self.variant)!r}, but each kind counts once.")
        for name in ("max_length", "hidden", "factor", "rank"):
            if getattr(self, name) is not None:
                positive("synthesizer", name, self)


@register_mechanism("synthesizer")
class Synthesizer(Mechanism):
    """Attention weights from the token alone or from a learned matrix, mixed with dot products where asked for."""

    summary = "attention weights not from q·k: an MLP of the token, a learned or random matrix, their low-rank forms, and mixtures"
    paper = "Tay et al. 2020, Synthesizer: Rethinking Self-Attention, §3"
    engine = "dense"
    cost = "N²; without an N×N matrix for dense, factorized_random and dot_product"
    exact_when = "variant = dot_product"
    trains = True
    options_type = SynthesizerOptions
    sample: ClassVar[dict[str, Any]] = {"variant": ("dense", "factorized_random", "dot_product"), "max_length": 640}

    @classmethod
    def covering(cls, length: int, causal: bool) -> dict[str, Any]:
        return {"variant": ("dot_product",)}

    options: SynthesizerOptions

    def __init__(self, num_heads: int, head_dim: int, hidden_size: int, max_length: int | None, options: SynthesizerOptions) -> None:
        super().__init__(num_heads, head_dim, hidden_size, max_length, options)
        placed = any(kind not in UNPLACED for kind in options.variant)
        self.limit = (options.max_length or max_length) if placed else None
        if placed and self.limit is None:
            raise OptionError(
                f"Mechanism 'synthesizer' with variant={'+'.join(options.variant)} has parameters for every position, but no length was "
                "given; for example max_length=512."
            )
        length, hidden = self.limit or 1, options.hidden or head_dim
        factor = min(length, options.factor or math.isqrt(length))
        sizes = Sizes(num_heads, head_dim, length, hidden, options.rank, factor, options.trainable)
        self.kinds = nn.ModuleDict({kind: KINDS[kind](sizes) for kind in options.variant})
        self.mixing = nn.Parameter(torch.zeros(len(options.variant))) if len(options.variant) > 1 else None
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the kinds' values; all have the same weight in the mixture."""
        super().reset_parameters(generator)
        for kind in self.parts:
            kind.reset_parameters(generator)
        if self.mixing is not None:
            nn.init.zeros_(self.mixing)

    @property
    def parts(self) -> list[SyntheticScores]:
        """The kinds, in the order of the option."""
        return list(self.kinds.values())  # type: ignore[arg-type]

    def _weighted(self, dtype: torch.dtype) -> list[tuple[SyntheticScores, Tensor | float]]:
        """The kinds with their weights in the mixture."""
        shares: Any = [1.0] if self.mixing is None else self.mixing.softmax(0).to(dtype).unbind()
        return list(zip(self.parts, shares, strict=True))

    def _positions(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Positions of queries ``(1, Nq)`` and keys ``(1, Nk)``."""
        q_len, kv_len = q.shape[2], k.shape[2]
        if self.limit is not None and kv_len > self.limit:
            raise LengthError(
                f"The input has {kv_len} tokens, but mechanism 'synthesizer' has parameters for {self.limit}; shorten it, or build the "
                f"mechanism for longer inputs (max_length={kv_len})."
            )
        places = torch.arange(kv_len, device=q.device)[None]
        return places[:, kv_len - q_len :], places

    def forward(self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        (batch, heads, q_len, width), kv_len = q.shape, k.shape[2]
        scale = call.scale_for(self.head_dim)
        rows, columns = self._positions(q, k)
        features: list[tuple[Tensor, Tensor]] = []
        table: Tensor | float = 0.0
        for kind, share in self._weighted(q.dtype):
            found = kind.features(q, k, rows, columns, scale)
            if found is None:
                table = table + share * kind.scores(q, k, rows, columns, scale)
            else:
                features.append((share * found[0], found[1]))
        v = repeat_heads(v, heads)
        joined = _joined(features, batch, max(width, v.shape[-1])) if features else None
        if joined is not None and isinstance(table, float):
            padded = F.pad(v, (0, joined[0].shape[-1] - v.shape[-1]))
            return dense_attention(*joined, padded, call.replace(scale=1.0))[..., : v.shape[-1]]
        scores = table if joined is None else table + products(*joined)
        assert isinstance(scores, Tensor)
        scores = scores.expand(batch, heads, q_len, kv_len).to(torch.promote_types(q.dtype, torch.float32))
        if call.score_mod is not None:
            scores = call.score_mod(scores, *index_grid(batch, heads, q_len, kv_len, q.device))
        return F.dropout(masked_softmax(scores, visible_to_all(q, k, call)), call.dropout).to(v.dtype) @ v

    def dense_weights(self, q: Tensor, k: Tensor, call: AttentionCall) -> Tensor:
        rows, columns = self._positions(q, k)
        shape = (*q.shape[:3], k.shape[2])
        scores = q.new_zeros(shape)
        for kind, share in self._weighted(q.dtype):
            scores = scores + share * kind.scores(q, k, rows, columns, call.scale_for(self.head_dim))
        if call.score_mod is not None:
            scores = call.score_mod(scores, *grid_of(q, k))
        return softmax_over(scores, visible_to_all(q, k, call).expand(shape))

    def covers(self, length: int, causal: bool = False) -> bool:
        return self.options.variant == ("dot_product",)


def _joined(features: list[tuple[Tensor, Tensor]], batch: int, least: int) -> tuple[Tensor, Tensor]:
    """Feature vectors of several kinds as one, ``(B, H, N, F)``, at least ``least`` wide."""
    sides = []
    for side in range(2):
        side_features = [pair[side].expand(batch, -1, -1, -1) for pair in features]
        whole = torch.cat(side_features, -1)
        sides.append(F.pad(whole, (0, max(0, least - whole.shape[-1]))))
    return sides[0], sides[1]


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of one layer: heads, width of a head, most tokens, units of an MLP's hidden layer, rank, and length of the second factor."""

    heads: int
    width: int
    length: int
    hidden: int
    rank: int
    factor: int
    trainable: bool


class SyntheticScores(nn.Module, ABC):
    """One kind of scores of a layer: by the paper's formula and, where they are products of vectors, as features for a fused kernel.

    Positions are those of queries ``(B or 1, Nq)`` and keys ``(B or 1, Nk)``, counted from the first real token.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes

    @abstractmethod
    def scores(self, q: Tensor, k: Tensor, rows: Tensor, columns: Tensor, scale: float) -> Tensor:
        """The definition, ``(B or 1, H, Nq, Nk)``, for ``q (B, H, Nq, D)`` and ``k (B, H_kv, Nk, D)`` at positions rows and columns."""

    def features(self, q: Tensor, k: Tensor, rows: Tensor, columns: Tensor, scale: float) -> tuple[Tensor, Tensor] | None:
        """Vectors ``(B or 1, H, Nq, F)`` and ``(B or 1, H, Nk, F)`` whose products are the scores; ``None`` where there are none."""
        return None

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the initial values."""


class DotProduct(SyntheticScores):
    """``q · k · scale``."""

    def scores(self, q: Tensor, k: Tensor, rows: Tensor, columns: Tensor, scale: float) -> Tensor:
        return q @ repeat_heads(k, q.shape[1]).transpose(-1, -2) * scale

    def features(self, q: Tensor, k: Tensor, rows: Tensor, columns: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        return q * scale, repeat_heads(k, q.shape[1])


class TokenMLP(nn.Module):
    """``ReLU(x W1 + b1) W2 + b2`` of every head, from D to ``columns`` (section 3.1), in fp32 at least: rounding moves ReLU's kink."""

    def __init__(self, heads: int, width: int, hidden: int, columns: int) -> None:
        super().__init__()
        self.first, self.first_bias = nn.Parameter(torch.empty(heads, width, hidden)), nn.Parameter(torch.empty(heads, 1, hidden))
        self.second, self.second_bias = nn.Parameter(torch.empty(heads, columns, hidden)), nn.Parameter(torch.empty(heads, columns))

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Scores of about unit variance for queries of unit variance."""
        nn.init.normal_(self.first, std=self.first.shape[1] ** -0.5, generator=generator)
        nn.init.normal_(self.second, std=(self.second.shape[2] / 2) ** -0.5, generator=generator)
        nn.init.zeros_(self.first_bias)
        nn.init.zeros_(self.second_bias)

    def hidden(self, x: Tensor) -> Tensor:
        """``(B, H, N, hidden)``."""
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        return F.relu(x @ self.first.to(x.dtype) + self.first_bias.to(x.dtype))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.hidden(x)
        return hidden @ self.second.to(hidden.dtype).transpose(-1, -2) + self.second_bias.to(hidden.dtype)[:, None]


class Dense(SyntheticScores):
    """``B_i = F(x_i)``: token i alone determines the scores of all positions."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(sizes)
        self.mlp = TokenMLP(sizes.heads, sizes.width, sizes.hidden, sizes.length)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        self.mlp.reset_parameters(generator)

    def scores(self, q: Tensor, k: Tensor, rows: Tensor, columns: Tensor, scale: float) -> Tensor:
        return at_columns(self.mlp(q), columns)

    def features(self, q: Tensor, k: Tensor, rows: Tensor, columns: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        of_columns = torch.cat([self.mlp.second, self.mlp.second_bias[..., None]], -1).to(q.dtype)
        return F.pad(self.mlp.hidden(q).to(q.dtype), (0, 1), value=1.0), of_columns[:, columns].transpose(0, 1)


class FactorizedDense(SyntheticScores):
    """``B_ij = F_A(x_i)_{⌊j / b⌋} · F_B(x_i)_{j mod b}``: two short outputs, one repeated and one tiled."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(sizes)
        self.repeated = TokenMLP(sizes.heads, sizes.width, sizes.hidden, math.ceil(sizes.length / sizes.factor))
        self.tiled = TokenMLP(sizes.heads, sizes.width, sizes.hidden, sizes.factor)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        self.repeated.reset_parameters(generator)
        self.tiled.reset_parameters(generator)

    def scores(self, q: Tensor, k: Tensor, rows: Tensor, columns: Tensor, scale: float) -> Tensor:
        return at_columns(self.repeated(q), columns // self.sizes.factor) * at_columns(self.tiled(q), columns % self.sizes.factor)


class Random(SyntheticScores):
    """``R_ij``: a matrix of each head, whatever the input is; learned, or fixed as it was drawn."""

    matrix: Tensor

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(sizes)
        _held(self, "matrix", torch.empty(sizes.heads, sizes.length, sizes.length), sizes.trainable)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        nn.init.normal_(self.matrix, generator=generator)

    def scores(self, q: Tensor, k: Tensor, rows: Tensor, columns: Tensor, scale: float) -> Tensor:
        return self.matrix.to(q.dtype)[:, rows[:, :, None], columns[:, None, :]].transpose(0, 1)


class FactorizedRandom(SyntheticScores):
    """``R = R1 R2ᵀ`` with two matrices ``(length, rank)`` of each head."""

    rows: Tensor
    columns: Tensor

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(sizes)
        for name in ("rows", "columns"):
            _held(self, name, torch.empty(sizes.heads, sizes.length, sizes.rank), sizes.trainable)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        for factor in (self.rows, self.columns):
            nn.init.normal_(factor, std=self.sizes.rank**-0.25, generator=generator)

    def scores(self, q: Tensor, k: Tensor, rows: Tensor, columns: Tensor, scale: float) -> Tensor:
        matrix = self.rows.to(q.dtype) @ self.columns.to(q.dtype).transpose(-1, -2)
        return matrix[:, rows[:, :, None], columns[:, None, :]].transpose(0, 1)

    def features(self, q: Tensor, k: Tensor, rows: Tensor, columns: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        return self.rows.to(q.dtype)[:, rows].transpose(0, 1), self.columns.to(q.dtype)[:, columns].transpose(0, 1)


def at_columns(scores: Tensor, columns: Tensor) -> Tensor:
    """``(B, H, Nq, Nk)`` out of ``scores (B, H, Nq, L)`` at ``columns (B or 1, Nk)``."""
    return scores.gather(-1, columns[:, None, None, :].expand(*scores.shape[:-1], -1))


def _held(module: nn.Module, name: str, value: Tensor, trainable: bool) -> None:
    """A parameter, or a buffer of the checkpoint that no optimiser touches."""
    if trainable:
        module.register_parameter(name, nn.Parameter(value))
    else:
        module.register_buffer(name, value)


KINDS: dict[str, type[SyntheticScores]] = {
    "dense": Dense,
    "factorized_dense": FactorizedDense,
    "random": Random,
    "factorized_random": FactorizedRandom,
    "dot_product": DotProduct,
}
