"""Softmax attention with dropout on the CPU, in tiles that stay in the CPU cache.

PyTorch's fused kernel for the CPU has no dropout. Here a weight is dropped with probability p, if its 16 random bits are below
round(65,536 p). The other weights are divided by the keep probability, so that the expected output equals the output without dropout. The
bits are a hash of seed, tile and pair. The backward pass recomputes them, so memory is linear in the number of tokens. PyTorch's
`bernoulli_` takes several times as long.

Let w_j be a weight, m_j its dropout mask (0 or 1), and s the keep probability. For a gradient g of the output o = Σ_j w_j m_j v_j / s, the
gradient of a score is w_j (m_j g·v_j / s - g·o). This has the form of the gradient in :mod:`.flash`, so parts are merged in the same way.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..call import DispatchContext
from .flash import Gradients, mask_dtype

BITS = 16
MAX_TILE_PAIRS = 1 << 20
"""Maximum query-key pairs in a tile, so that several arrays of this size fit into the CPU cache."""


class Dropout(NamedTuple):
    """Dropout of the weights in one forward pass and its backward pass."""

    probability: float
    seed: int

    @property
    def threshold(self) -> int:
        """A weight is dropped if its random bits are below this number."""
        return round(self.probability * (1 << BITS))

    @property
    def keep_probability(self) -> float:
        """Probability that a weight is not dropped."""
        return 1 - self.threshold / (1 << BITS)

    def mask(self, like: Tensor, place: tuple[int, ...]) -> Tensor:
        """The dropout mask of one tile, shaped as ``like``: 0 for dropped weights, 1 for the others."""
        bits = random_bits(like.numel(), self.seed, place).view(like.shape)
        return torch.ge(bits, self.threshold - (1 << (BITS - 1)), out=torch.empty_like(like))

    def forward(
        self, place: tuple[int, ...], q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Output ``(b, H, n, D)`` and log-sum-exp ``(b, H, n)`` of a part of a softmax.

        Args:
            place: numbers that identify the part within the pass. They seed its random bits.
            q, k, v: ``(b, H, n, D)`` and ``(b, H, w, D)``.
            mask: additive, broadcastable to ``(b, H, n, w)``.
        """
        out, lse = torch.empty_like(q, memory_format=torch.contiguous_format), q.new_empty(q.shape[:3], dtype=mask_dtype(q))
        for number, (at, hidden) in enumerate(_tiles(q, k, mask)):
            weights, lse[at] = _softmax(q[at], k[at], hidden, scale, lse.dtype)
            weights.mul_(self.mask(weights, (*place, number)))
            out[at] = (weights @ v[at].to(weights.dtype)).div_(self.keep_probability)
        return out, lse

    def backward(
        self, place: tuple[int, ...], grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, mask: Tensor | None,
        scale: float,
    ) -> Gradients:  # fmt: skip
        """The gradients of q, k, v in :meth:`forward`. ``grad``, ``out`` and ``lse`` belong to the whole softmax."""
        dq, dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
        dtype = lse.dtype
        for number, (at, hidden) in enumerate(_tiles(q, k, mask)):
            weights, of_tile = _softmax(q[at], k[at], hidden, scale, dtype)
            share = (of_tile - lse[at]).exp_()[..., None]  # fraction of the whole softmax that this tile has
            keep = self.mask(weights, (*place, number))
            of_out = grad[at].to(dtype)
            of_sum = (of_out * out[at].to(dtype)).sum(-1, keepdim=True)
            of_out = of_out / self.keep_probability
            of_scores = (of_out @ v[at].to(dtype).transpose(-1, -2)).mul_(keep).sub_(of_sum).mul_(weights)
            dv[at] = weights.mul_(keep).transpose(-1, -2) @ (of_out * share)
            share *= scale
            dq[at] = (of_scores @ k[at].to(dtype)).mul_(share)
            dk[at] = of_scores.transpose(-1, -2) @ (q[at].to(dtype) * share)
        return dq, dk, dv


def drops_some(probability: float) -> bool:
    """Whether the probability, rounded to 16 bits, is neither 0 nor 1."""
    return 0 < Dropout(probability, 0).threshold < 1 << BITS


def drops_in_tiles(context: DispatchContext) -> bool:
    """Whether the CPU's engines draw the dropout of this call in tiles.

    They do for tensors on the CPU with more than a few pairs, if fused kernels may run. Exported graphs and score terms are excluded.
    """
    call = context.call
    if not call.dropout or context.device != "cpu" or torch.compiler.is_exporting() or call.score_mod is not None:
        return False
    if not drops_some(call.dropout):
        return False
    return not context.few_pairs and (torch.compiler.is_compiling() or context.plain_only is None)


def random_bits(count: int, seed: int, place: tuple[int, ...]) -> Tensor:
    """``count`` random int16, determined by ``seed`` and ``place``.

    Computed as a hash of counters: MurmurHash3's finalizer with two keys.
    """
    for number in place:
        seed = _mixed(seed + number)
    first, second = (_signed(_mixed(seed + number) >> 32) for number in (1, 2))
    size = -(-count // 2)
    x = _counters(1 << (size - 1).bit_length())[:size] ^ first
    shifted = torch.empty_like(x)
    for shift, factor, key in ((16, 0x85EBCA6B, second), (13, 0xC2B2AE35, 0), (16, 1, 0)):
        x ^= torch.bitwise_right_shift(x, shift, out=shifted).bitwise_and_((1 << (32 - shift)) - 1)
        if factor > 1:
            x.mul_(_signed(factor)).add_(key)
    return x.view(torch.int16)[:count]


def _mixed(number: int) -> int:
    """A 64-bit hash of ``number`` (Steele et al. 2014, SplitMix)."""
    number += 0x9E3779B97F4A7C15
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        number = (number % (1 << 64) ^ number % (1 << 64) >> shift) * factor
    return number


@functools.lru_cache(8)
def _counters(count: int) -> Tensor:
    return torch.arange(count, dtype=torch.int32).mul_(_signed(0x9E3779B1))


def _signed(number: int) -> int:
    """The signed 32-bit integer with the same bits as ``number``."""
    return (number + (1 << 31)) % (1 << 32) - (1 << 31)


def _tiles(q: Tensor, k: Tensor, mask: Tensor | None) -> Iterator[tuple[tuple[slice, slice], Tensor | None]]:
    """Index and additive mask of every tile: some heads of a batch item, or several batch items."""
    batch, heads, rows, columns = *q.shape[:3], k.shape[2]
    fitting = max(1, MAX_TILE_PAIRS // (rows * columns))
    for item in range(0, batch, step := max(1, fitting // heads)):
        for head in range(0, heads, fitting):
            at = slice(item, item + step), slice(head, head + fitting)
            yield (
                at,
                None if mask is None else mask[tuple(slice(None) if n == 1 else part for n, part in zip(mask.shape, at, strict=False))],
            )


def _softmax(q: Tensor, k: Tensor, mask: Tensor | None, scale: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Softmax weights and log-sum-exp of a tile. The largest score and its weight give the log-sum-exp."""
    scores = ((q * scale) @ k.transpose(-1, -2)).to(dtype)
    scores = scores if mask is None else scores.add_(mask)
    weights = scores.softmax(-1)
    return weights, scores.amax(-1) - weights.amax(-1).log_()
