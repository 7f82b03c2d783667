"""Synthesizer (Tay et al. 2020, Rethinking Self-Attention in Transformer Models, section 3): attention scores without
keys.

    y = softmax(S) v,      S = Σ_p α_p S_p,  Σ_p α_p = 1

    dense               S_ij = F(q_i)_j, an MLP of two layers from the token to all positions          (section 3.1)
    factorized_dense    S_ij = F_A(q_i)_{⌊j/b⌋} · F_B(q_i)_{j mod b}                                  (section 3.2.2)
    random              S_ij = R_ij, learned or fixed                                                 (section 3.2.1)
    factorized_random   S_ij = (R1 R2ᵀ)_ij, of rank k                                                 (section 3.2.3)
    dot_product         S_ij = q_i · k_j · scale

Several kinds are mixed with learned weights α = softmax(mixing): the paper's D+V is ``dense+dot_product``, its R+V
``random+dot_product``. The paper's F maps the layer's input X_i. Here F maps the head's query q_i = X_i W_q: its first
layer acts on each head separately. Positions i and j count from the first real token, so padding changes nothing.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..engines.call import AttentionCall
from ..engines.dense import at_least_fp32, dense_attention, grid_of, masked_softmax, products, repeat_heads
from ..errors import InputError, OptionError
from .common.base import Mechanism, reset, softmax_over, visible_to_all
from .common.capabilities import About
from .common.options import Options, option
from .common.registry import register_mechanism


@dataclasses.dataclass(frozen=True)
class SynthesizerOptions(Options):
    variant: tuple[str, ...] = option(
        ("dense",),
        "dense, factorized_dense, random, factorized_random or dot_product, or a mixture such as dense+dot_product",
        choices=("dense", "factorized_dense", "random", "factorized_random", "dot_product"),
    )
    max_length: int | None = option(None, "longest input; none uses the model's", "tokens", least=1, most=65536)
    hidden: int | None = option(
        None, "units in the hidden layer of the dense kinds; none uses the head size", "units", least=1, most=4096
    )
    factor: int | None = option(
        None, "length b of the second factor of factorized_dense; none uses √max_length", "columns", least=1
    )
    rank: int = option(8, "rank k of factorized_random; no more than max_length is used", "columns", least=1)
    trainable: bool = option(True, "whether the random kinds are learned or stay as drawn")

    def check(self) -> None:
        if not self.variant:
            raise OptionError(
                "Option 'variant' of mechanism 'synthesizer' is empty; for example variant=dense+dot_product."
            )
        if len(set(self.variant)) < len(self.variant):
            raise OptionError(
                f"Option 'variant' of mechanism 'synthesizer' is {'+'.join(self.variant)!r}, but must name each kind "
                "once."
            )


@register_mechanism("synthesizer")
class Synthesizer(Mechanism):
    about = About(
        summary="attention weights without q·k: an MLP of the token, a learned or random matrix, their low-rank "
        "forms, and mixtures",
        paper="Tay et al. 2020, Synthesizer: Rethinking Self-Attention, §3",
        when="experiments with attention that does not compare tokens; inputs of a fixed maximum length",
        engine="dense",
        cost="N²; without an N×N matrix for dense, factorized_random and dot_product",
        sample={"variant": ("dense", "factorized_random", "dot_product"), "max_length": 640},
        covering=lambda length, causal: {"variant": ("dot_product",)},
    )
    capabilities = Mechanism.capabilities.but(trains=True, images="any")
    options: SynthesizerOptions

    def __init__(
        self, num_heads: int, head_dim: int, hidden_size: int, max_length: int | None, options: SynthesizerOptions
    ) -> None:
        super().__init__(num_heads, head_dim, hidden_size, max_length, options)
        positional = options.variant != ("dot_product",)
        self.limit = (options.max_length or max_length) if positional else None
        if positional and self.limit is None:
            raise OptionError(
                f"Mechanism 'synthesizer' with variant={'+'.join(options.variant)} has parameters for every position, "
                "but no length was given; for example max_length=512."
            )
        length, hidden = self.limit or 1, options.hidden or head_dim
        factor = min(length, options.factor or math.isqrt(length))
        sizes = Sizes(num_heads, head_dim, length, hidden, min(length, options.rank), factor, options.trainable)
        self.kinds = nn.ModuleDict({kind: KINDS[kind](sizes) for kind in options.variant})
        self.mixing = nn.Parameter(torch.zeros(len(options.variant))) if len(options.variant) > 1 else None
        self.per_head_tensors = tuple(
            f"kinds.{name}" for name, _ in (*self.kinds.named_parameters(), *self.kinds.named_buffers())
        )
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the parameters of each kind, and give all kinds the same weight in the mixture."""
        super().reset_parameters(generator)
        for kind in self.kinds.values():
            reset(kind, generator)
        if self.mixing is not None:
            nn.init.zeros_(self.mixing)

    def _weighted(self, dtype: torch.dtype) -> Iterator[tuple[Any, Tensor | float]]:
        """The modules of all kinds, with their weights in the mixture, in at least fp32."""
        dtype = torch.promote_types(dtype, torch.float32)
        shares: Any = [1.0] if self.mixing is None else self.mixing.softmax(0).to(dtype).unbind()
        return zip(self.kinds.values(), shares, strict=True)

    def _check_length(self, length: int) -> None:
        if self.limit is not None and length > self.limit:
            raise InputError(
                f"The input has {length} tokens, but mechanism 'synthesizer' has parameters for {self.limit}; shorten "
                "it, or build the "
                f"mechanism for longer inputs (max_length={length})."
            )

    def forward(self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        (batch, heads, q_len, width), kv_len, scale = q.shape, k.shape[2], call.scale_for(self.head_dim)
        self._check_length(kv_len)
        if self.options.variant == ("dot_product",):
            return dense_attention(q, k, v, call)
        features: list[tuple[Tensor, Tensor]] = []
        table: Tensor | float = 0.0
        for kind, share in self._weighted(q.dtype):
            vectors = kind.features(q, k, scale)
            if vectors is None:
                table = table + share * kind.scores(q, k, scale)
            else:
                features.append((share * vectors[0], vectors[1]))
        v = repeat_heads(v, heads)
        scores = table
        if features:  # the vectors of all kinds side by side
            left, right = (
                torch.cat([x.expand(batch, -1, -1, -1) for x in side], -1) for side in zip(*features, strict=True)
            )
            missing = max(0, max(width, v.shape[-1]) - left.shape[-1])
            left, right = F.pad(left, (0, missing)), F.pad(right, (0, missing))
            if isinstance(table, float):  # all kinds have vectors, so that a fused kernel computes the softmax
                padded = F.pad(v, (0, left.shape[-1] - v.shape[-1]))
                out = dense_attention(left, right, padded.to(left.dtype), call.replace(scale=1.0))
                return out[..., : v.shape[-1]].to(v.dtype)
            scores = table + products(left, right)
        assert isinstance(scores, Tensor)
        scores = scores.expand(batch, heads, q_len, kv_len).to(torch.promote_types(q.dtype, torch.float32))
        if call.score_mod is not None:
            scores = call.score_mod(scores, *grid_of(q, k))
        return F.dropout(masked_softmax(scores, visible_to_all(q, k, call)), call.dropout).to(v.dtype) @ v

    def dense_weights(self, q: Tensor, k: Tensor, call: AttentionCall) -> Tensor:
        self._check_length(k.shape[2])
        scores = q.new_zeros(*q.shape[:3], k.shape[2])
        for kind, share in self._weighted(q.dtype):
            scores = scores + share * kind.scores(q, k, call.scale_for(self.head_dim))
        if call.score_mod is not None:
            scores = call.score_mod(scores, *grid_of(q, k))
        return softmax_over(scores, visible_to_all(q, k, call).expand(scores.shape))

    def covers(self, length: int, causal: bool = False) -> bool:
        return self.options.variant == ("dot_product",)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of a layer. ``width``: head size; ``length``: longest input; ``hidden``: units of an MLP; ``factor``: b of
    factorized_dense."""

    heads: int
    width: int
    length: int
    hidden: int
    rank: int
    factor: int
    trainable: bool


class SyntheticScores(nn.Module, ABC):
    """One kind of scores. ``q (B, H, Nq, D)`` has the last Nq positions of ``k (B, H_kv, Nk, D)``.

    Args:
        sizes: of the layer.
        mlps: name -> number of columns of a :class:`TokenMLP`.
        tables: name -> shape of a table per head. Tables are drawn from N(0, std²), and learned if
            ``sizes.trainable``.
    """

    def __init__(
        self,
        sizes: Sizes,
        mlps: Mapping[str, int] | None = None,
        tables: Mapping[str, tuple[int, int]] | None = None,
        std: float = 1.0,
    ) -> None:
        super().__init__()
        self.sizes, self.tables, self.std = sizes, tuple(tables or ()), std
        for name, columns in (mlps or {}).items():
            self.add_module(name, TokenMLP(sizes.heads, sizes.width, sizes.hidden, columns))
        for name, shape in (tables or {}).items():
            table = torch.empty(sizes.heads, *shape)
            if sizes.trainable:
                self.register_parameter(name, nn.Parameter(table))
            else:
                self.register_buffer(name, table)

    @abstractmethod
    def scores(self, q: Tensor, k: Tensor, scale: float) -> Tensor:
        """The scores by definition, ``(B or 1, H, Nq, Nk)``."""

    def features(self, q: Tensor, k: Tensor, scale: float) -> tuple[Tensor, Tensor] | None:
        """Vectors in at least fp32 whose products are the scores, for a fused kernel; ``None`` if there are none.

        Their shapes are ``(B or 1, H, Nq, F)`` and ``(B or 1, H, Nk, F)``.
        """
        return None

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        for child in self.children():
            reset(child, generator)
        for name in self.tables:
            nn.init.normal_(getattr(self, name), std=self.std, generator=generator)


def positions(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Indices ``(Nq,)`` of queries and ``(Nk,)`` of keys. (Slices would make an exported graph correct for one length
    only.)"""
    indices = torch.arange(k.shape[2], device=q.device)
    return indices[k.shape[2] - q.shape[2] :], indices


def at_columns(x: Tensor, columns: Tensor) -> Tensor:
    """``x[..., columns]`` by ``gather``, in 0.7 times the time of indexing on the CPU."""
    return x.gather(-1, columns.expand(*x.shape[:-1], -1))


class DotProduct(SyntheticScores):
    """``q · k · scale``."""

    def scores(self, q: Tensor, k: Tensor, scale: float) -> Tensor:
        return products(q, repeat_heads(k, q.shape[1])) * scale

    def features(self, q: Tensor, k: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        return at_least_fp32(q) * scale, at_least_fp32(repeat_heads(k, q.shape[1]))


class TokenMLP(nn.Module):
    """``ReLU(x W1 + b1) W2 + b2`` per head, from D to ``columns`` (section 3.1). In at least fp32: rounding would move
    ReLU's kink."""

    def __init__(self, heads: int, width: int, hidden: int, columns: int) -> None:
        super().__init__()
        self.first, self.first_bias = (
            nn.Parameter(torch.empty(heads, width, hidden)),
            nn.Parameter(torch.empty(heads, 1, hidden)),
        )
        self.second, self.second_bias = (
            nn.Parameter(torch.empty(heads, columns, hidden)),
            nn.Parameter(torch.empty(heads, columns)),
        )

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw weights that give scores of about unit variance for queries of unit variance."""
        nn.init.normal_(self.first, std=self.first.shape[1] ** -0.5, generator=generator)
        nn.init.normal_(self.second, std=(self.second.shape[2] / 2) ** -0.5, generator=generator)
        nn.init.zeros_(self.first_bias)
        nn.init.zeros_(self.second_bias)

    def hidden(self, x: Tensor) -> Tensor:
        """The hidden units ``(B, H, N, hidden)``."""
        x = at_least_fp32(x)
        return F.relu(x @ self.first.to(x.dtype) + self.first_bias.to(x.dtype))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.hidden(x)
        return hidden @ self.second.to(hidden.dtype).transpose(-1, -2) + self.second_bias.to(hidden.dtype)[:, None]


class Dense(SyntheticScores):
    """``S_ij = F(q_i)_j``: token i alone determines the scores of all positions."""

    mlp: TokenMLP

    def scores(self, q: Tensor, k: Tensor, scale: float) -> Tensor:
        return at_columns(self.mlp(q), positions(q, k)[1])

    def features(self, q: Tensor, k: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        hidden = self.mlp.hidden(q)
        of_columns = torch.cat([self.mlp.second, self.mlp.second_bias[..., None]], -1).to(hidden.dtype)
        return F.pad(hidden, (0, 1), value=1.0), of_columns[None, :, positions(q, k)[1]]


class FactorizedDense(SyntheticScores):
    """``S_ij = F_A(q_i)_{⌊j / b⌋} · F_B(q_i)_{j mod b}``: two short outputs, one repeated and one tiled."""

    repeated: TokenMLP
    tiled: TokenMLP

    def scores(self, q: Tensor, k: Tensor, scale: float) -> Tensor:
        _, columns = positions(q, k)
        return at_columns(self.repeated(q), columns // self.sizes.factor) * at_columns(
            self.tiled(q), columns % self.sizes.factor
        )


class Random(SyntheticScores):
    """``S_ij = R_ij``: a matrix per head that does not depend on the input. Learned, or fixed as drawn."""

    matrix: Tensor

    def scores(self, q: Tensor, k: Tensor, scale: float) -> Tensor:
        rows, columns = positions(q, k)
        return at_least_fp32(self.matrix)[None, :, rows[:, None], columns]


class FactorizedRandom(SyntheticScores):
    """``S = R1 R2ᵀ`` with two matrices ``(length, rank)`` per head."""

    rows: Tensor
    columns: Tensor

    def scores(self, q: Tensor, k: Tensor, scale: float) -> Tensor:
        left, right = self.features(q, k, scale)
        return left @ right.transpose(-1, -2)

    def features(self, q: Tensor, k: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        rows, columns = positions(q, k)
        dtype = torch.promote_types(q.dtype, torch.float32)
        return self.rows.to(dtype)[None, :, rows], self.columns.to(dtype)[None, :, columns]


KINDS: dict[str, Callable[[Sizes], SyntheticScores]] = {
    "dense": lambda sizes: Dense(sizes, mlps={"mlp": sizes.length}),
    "factorized_dense": lambda sizes: FactorizedDense(
        sizes, mlps={"repeated": math.ceil(sizes.length / sizes.factor), "tiled": sizes.factor}
    ),
    "random": lambda sizes: Random(sizes, tables={"matrix": (sizes.length, sizes.length)}),
    "factorized_random": lambda sizes: FactorizedRandom(
        sizes, tables=dict.fromkeys(("rows", "columns"), (sizes.length, sizes.rank)), std=sizes.rank**-0.25
    ),
    "dot_product": DotProduct,
}
