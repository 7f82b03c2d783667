"""The kinds of scores that a synthesizer mixes: of the token itself, of a matrix, or of queries and keys.

Each kind says its scores twice: by the formula of the paper, ``(B, H, Nq, Nk)``, and as products of feature vectors where they are such,
so that a fused attention kernel runs them without an N×N matrix. Positions are those of queries ``(B or 1, Nq)`` and keys ``(B or 1, Nk)``,
counted from the first real token.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..engines.dense import repeat_heads


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
    """One kind of scores of a layer."""

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
    """``B_i = F(x_i)``: token i alone says the scores of all positions."""

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
