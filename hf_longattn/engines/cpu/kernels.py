"""Kernels for one part of a softmax on the CPU: PyTorch's fused kernel, plain products, and products with dropout.

**Merging.** A softmax is computed in several calls over disjoint sets of keys. Call p gives output o_p and log-sum-exp
l_p. The merged results are l = log Σ_p exp(l_p) and o = Σ_p exp(l_p - l) o_p. For a gradient g of o, the gradient of a
score is exp(s_ij - l_i) (g_i·v_j - g_i·o_i) (Dao 2023, FlashAttention-2, section 3.1). It depends only on the merged o
and l, so the backward pass of a kernel runs separately for each p. The path ``dense-masked`` is a single call over all
keys. Its mask combines the band and the global tokens (:func:`visible_mask`).

**Dropout.** The fused kernel has none, so weights are computed in tiles that stay in the CPU cache. A weight is
dropped with probability p, if its 16 random bits are below round(65,536 p). The other weights are divided by the keep
probability, so that the expected output equals the output without dropout. The bits are a hash of seed, tile and pair.
The backward pass recomputes them, so memory is linear in the number of tokens. PyTorch's `bernoulli_` takes several
times as long. Let w_j be a weight, m_j its dropout mask (0 or 1), and s the keep probability. For a gradient g of the
output o = Σ_j w_j m_j v_j / s, the gradient of a score is w_j (m_j g·v_j / s - g·o). This has the form of the gradient
above, so parts are merged in the same way.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ...names import look_up
from ..batch import TRANSFORMED, in_graph, no_fused_kernels, transformed
from ..byte_cache import BYTE_CACHE
from ..call import ELSEWHERE, NOT_IN_AN_EXPORTED_GRAPH, AttentionCall, DispatchContext, Pattern, precise_dtype
from ..dense import products, unit_stride

MASKED = -1e30
"""Additive mask value of hidden pairs. It is finite, so that queries without a visible key have finite outputs."""
MAX_SHARED_CELLS = 1 << 17
"""Maximum entries of a mask that tiles of equal shape share in the cache."""
MAX_PLAIN_KEYS = 8
"""Maximum keys for plain operations. For more keys, the kernel is faster."""
BITS = 16
"""Random bits per weight that dropout draws."""
MAX_TILE_PAIRS = 1 << 20
"""Maximum query-key pairs in a tile with dropout, so that several arrays of this size fit into the CPU cache."""
NO_DROPOUT = "the fused kernel has no dropout"
flash, flash_backward = look_up("cpu_flash", when_called=True), look_up("cpu_flash", 1, when_called=True)
"""PyTorch's fused attention kernel for the CPU, and its backward pass."""
Gradients = tuple[Tensor, Tensor, Tensor]
"""The gradients of q, k and v."""


def why_not(context: DispatchContext) -> str | None:
    """Why a path with the fused kernel and :class:`Dropout` does not run, as a clause. It does not look at score
    terms."""
    if context.device != "cpu":
        return ELSEWHERE
    if context.exporting:
        return NOT_IN_AN_EXPORTED_GRAPH
    if not torch.compiler.is_compiling() and transformed():
        return TRANSFORMED
    if context.call.dropout and not drops_in_tiles(context):
        return NO_DROPOUT
    return None


def why_not_tiles(context: DispatchContext) -> str | None:
    """Why the fused kernel does not run tiles of listed queries and keys, as a clause."""
    why = why_not(context)
    if why is not None:
        return why
    if context.call.score_mod is not None:
        return "the fused kernel adds no score term"
    if context.learned_bias:
        return "the bias of its tiles needs gradients"
    return None


def additive_mask(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive mask: :data:`MASKED` where ``hidden`` (bool) is True, else 0."""
    return torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, MASKED)


def padding_of(key_mask: Tensor | None, item: int, dtype: torch.dtype) -> Tensor | None:
    """The additive mask ``(N,)`` of one batch item from ``key_mask (B, N)``, or ``None`` without padding."""
    if key_mask is None or bool(key_mask[item].all()):
        return None
    return additive_mask(~key_mask[item], dtype)


def token_major(dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Uninitialised tensors of the same shapes ``(B, H, N, D)``, stored as ``(B, N, H, D)``. Merging the heads is then
    free."""
    return tuple(x.new_empty(x.transpose(1, 2).shape, dtype=dtype).transpose(1, 2) for x in tensors)


def empty_results(q: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Uninitialised output ``(B, H, N, D)`` and log-sum-exp ``(B, H, N)`` in ``dtype``, for ``q (B, H, N, D)``. Both
    are stored token-major."""
    batch, heads, length, width = q.shape
    lse = q.new_empty(batch, length, heads, dtype=dtype).transpose(1, 2)
    return q.new_empty(batch, length, heads, width).transpose(1, 2), lse


def merge_into(out: Tensor, lse: Tensor, part: Tensor, part_lse: Tensor) -> None:
    """Merge a part's output ``(…, N, D)`` and log-sum-exp ``(…, N)`` into the result of earlier parts, in place."""
    merged = torch.logaddexp(lse, part_lse)
    out.lerp_(part, (part_lse - merged).exp_()[..., None].to(out.dtype))
    lse.copy_(merged)


def merge_sinks(out: Tensor, lse: Tensor, sink_scores: Tensor) -> None:
    """Merge sinks with scores ``(H,)`` and no value into output ``(B, H, N, D)`` and log-sum-exp ``(B, H, N)``, in
    place."""
    merged = torch.logaddexp(lse, sink_scores.to(lse.dtype)[:, None])
    out.mul_((lse - merged).exp_()[..., None].to(out.dtype))
    lse.copy_(merged)


def few_keys(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Output ``(b, H, n, D)`` and log-sum-exp ``(b, H, n)`` for a few keys ``(b, H, g, D)``, by plain operations."""
    scores = products(q, k).mul_(scale)
    if mask is not None:
        scores.add_(mask)
    lse = scores.logsumexp(-1)
    if k.shape[2] == 1:
        return v.expand_as(q), lse
    return scores.sub_(lse[..., None]).exp_().to(v.dtype) @ v, lse


def plain_gradients(
    mask: Tensor | None,
    scale: float,
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    memory: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The gradient of the scores and the weights, each ``(n, H, rows, columns)``, by plain matrix products.

    Args:
        grad, q, out, lse: ``(n, H, rows, D)``, and lse without D. grad, out and lse belong to the whole softmax.
        k, v: ``(n, H, columns, D)``.
        memory: buffer for the gradient. With it, the mask ``(n, H, rows, columns)`` may be overwritten.
    """
    if mask is not None and memory is not None and len(q) == 1:
        scores = mask[0].baddbmm_(q[0], k[0].mT, alpha=scale)[None]
    else:
        scores = (q * scale) @ k.mT
        if mask is not None:
            scores.add_(mask)
    weights = (scores - lse[..., None]).exp_()
    factors = (grad @ v.mT).sub_((grad * out).sum(-1, keepdim=True))
    return torch.mul(factors, weights, out=memory), weights


def shares_mask(q_len: int, call: AttentionCall) -> bool:
    """Whether calls with equal lengths can share one dense mask (:func:`visible_mask`): it consists of a band, and of
    global tokens that are equal in all batch rows."""
    tokens = call.global_mask
    if q_len == 1 or in_graph() or no_fused_kernels() is not None:
        return False
    if call.key_mask is not None or call.score_mod is not None or call.dropout or call.sink_scores is not None:
        return False
    return tokens is None or len(tokens) == 1 or bool((tokens == tokens[:1]).all())


def masked_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, causal: bool, scale: float | None) -> Tensor:
    """One call of the CPU's fused kernel with the mask of :func:`visible_mask`. If ``causal``, the kernel skips keys
    after a query."""
    q, k, v = (unit_stride(x) for x in (q, k, v))
    return flash(q, k, v, 0.0, causal, attn_mask=mask, scale=scale)[0]


def visible_mask(
    q_len: int, kv_len: int, shift: int, pattern: Pattern, index: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """The additive mask ``(1, 1, Nq, Nk)`` of the band and the global tokens at positions ``index``, cached. The first
    query is at key ``shift``."""
    tokens: tuple[int, ...] = ()
    if index is not None:
        tokens = tuple(index.tolist())

    def make() -> Tensor:
        chosen = torch.zeros(1, kv_len, dtype=torch.bool)
        chosen[0, list(tokens)] = True
        rows = torch.arange(shift, shift + q_len)[:, None]
        return additive_mask(~pattern.visible_mod(chosen)(0, 0, rows, torch.arange(kv_len)), dtype)[None, None]

    return BYTE_CACHE.get(("visible", q_len, kv_len, shift, pattern, tokens, dtype), make)


class Dropout(NamedTuple):
    """Dropout of the weights in one forward pass and its backward pass."""

    probability: float
    seed: int

    @property
    def threshold(self) -> int:
        """A weight is dropped if its random bits are below this number."""
        return round(self.probability * (1 << BITS))

    def mask(self, like: Tensor, label: tuple[int, ...]) -> Tensor:
        """The dropout mask of one tile, shaped as ``like``: 0 for dropped weights, 1 for the others."""
        bits = random_bits(like.numel(), self.seed, label).view(like.shape)  # signed, so the threshold is shifted
        return torch.ge(bits, self.threshold - (1 << (BITS - 1)), out=torch.empty_like(like))

    def forward(
        self, label: tuple[int, ...], q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float
    ) -> tuple[Tensor, Tensor]:
        """Output ``(b, H, n, D)`` and log-sum-exp ``(b, H, n)`` of a part of a softmax.

        Args:
            label: numbers that identify the part within the pass. They seed its random bits.
            q, k, v: ``(b, H, n, D)`` and ``(b, H, w, D)``.
            mask: additive, broadcastable to ``(b, H, n, w)``.
        """
        out, lse = q.new_empty(q.shape), q.new_empty(q.shape[:3], dtype=precise_dtype(q))
        keep_probability = 1 - self.threshold / (1 << BITS)
        for number, (tile, tile_mask) in enumerate(_tiles(q, k, mask)):
            weights, lse[tile] = _softmax(q[tile], k[tile], tile_mask, scale, lse.dtype)
            weights.mul_(self.mask(weights, (*label, number)))
            out[tile] = (weights @ v[tile].to(weights.dtype)).div_(keep_probability)
        return out, lse

    def backward(
        self,
        label: tuple[int, ...],
        grad: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        lse: Tensor,
        mask: Tensor | None,
        scale: float,
    ) -> Gradients:
        """The gradients of q, k, v in :meth:`forward`. ``grad``, ``out`` and ``lse`` belong to the whole softmax."""
        dq, dk, dv = (x.new_empty(x.shape) for x in (q, k, v))
        dtype, keep_probability = lse.dtype, 1 - self.threshold / (1 << BITS)
        for number, (tile, tile_mask) in enumerate(_tiles(q, k, mask)):
            weights, tile_lse = _softmax(q[tile], k[tile], tile_mask, scale, dtype)
            share = (tile_lse - lse[tile]).exp_()[..., None]  # fraction of the whole softmax that this tile has
            keep = self.mask(weights, (*label, number))
            d_out = grad[tile].to(dtype)
            out_product = (d_out * out[tile].to(dtype)).sum(-1, keepdim=True)  # g·o in the module's docstring
            d_out = d_out / keep_probability
            d_scores = (d_out @ v[tile].to(dtype).transpose(-1, -2)).mul_(keep).sub_(out_product).mul_(weights)
            dv[tile] = weights.mul_(keep).transpose(-1, -2) @ (d_out * share)
            share *= scale
            dq[tile] = (d_scores @ k[tile].to(dtype)).mul_(share)
            dk[tile] = d_scores.transpose(-1, -2) @ (q[tile].to(dtype) * share)
        return dq, dk, dv


def drops_in_tiles(context: DispatchContext) -> bool:
    """Whether the CPU's engines draw the dropout of this call in tiles.

    They do for tensors on the CPU with more than a few pairs, if fused kernels may run. They do not in exported
    graphs, with score terms, or for a probability that :data:`BITS` bits round to 0 or 1.
    """
    call = context.call
    if not call.dropout or context.device != "cpu" or context.exporting or call.score_mod is not None:
        return False
    if not 0 < Dropout(call.dropout, 0).threshold < 1 << BITS:
        return False
    return not context.few_pairs and no_fused_kernels() is None


def random_bits(count: int, seed: int, label: tuple[int, ...]) -> Tensor:
    """``count`` random int16, determined by ``seed`` and ``label``.

    They are a hash of counters: MurmurHash3's finalizer with two keys.
    """
    for number in label:
        seed = _mixed(seed + number)
    first_key, second_key = (_signed(_mixed(seed + number) >> 32) for number in (1, 2))
    size = -(-count // 2)  # each int32 gives two int16
    x = _counters(1 << (size - 1).bit_length())[:size] ^ first_key
    shifted = torch.empty_like(x)
    for shift, factor, key in ((16, 0x85EBCA6B, second_key), (13, 0xC2B2AE35, 0), (16, 1, 0)):
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
    max_heads = max(1, MAX_TILE_PAIRS // (rows * columns))
    max_items = max(1, max_heads // heads)
    if mask is not None:
        mask = mask.expand(batch, heads, -1, -1)
    for item in range(0, batch, max_items):
        for head in range(0, heads, max_heads):
            tile = slice(item, item + max_items), slice(head, head + max_heads)
            yield tile, None if mask is None else mask[tile]


def _softmax(q: Tensor, k: Tensor, mask: Tensor | None, scale: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Softmax weights and log-sum-exp of a tile: the largest score minus the logarithm of its weight."""
    scores = (q.to(dtype) * scale) @ k.to(dtype).transpose(-1, -2)
    if mask is not None:
        scores.add_(mask)
    weights = scores.softmax(-1)
    return weights, scores.amax(-1) - weights.amax(-1).log_()
