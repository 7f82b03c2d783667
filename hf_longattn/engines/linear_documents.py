"""Linear attention over batch rows of several sequences, in one call. On a GPU, one call per sequence would cost more.

Every token has a label, and queries see only keys with the same label. Labels never decrease along a row (or never increase). A key has the
label of the query at its position, or an earlier label. So if a query sees a key of an earlier chunk, the query has the first label of its
own chunk, and the key has the last label of the key's chunk. Let U_c sum the keys with chunk c's last label. Then chunk c starts with

    S_c = Σ_{c' < c, last label of c' = first label of c} U_c'

This sum is one product with a matrix of zeros and ones, or three products for many chunks. Nothing is subtracted, so no sequence loses
digits to earlier ones. Without causality, queries with their chunk's last label also see keys of later chunks that begin with this label.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .common.batch import no_fused_kernels
from .common.dense import divided
from .linear import CHUNK, filled, from_rows, in_rows

CHUNKS_PER_GROUP = 64
"""Maximum chunks in a group. One matrix adds up the chunks of a group, another adds up groups."""


class Links(NamedTuple):
    """Which chunks' sums enter the sum S_c at the start of each of n chunks, as 0/1 matrices split by groups of chunks."""

    inside: Tensor
    """``(B, 1, groups, chunks, chunks)`` bool, the earlier chunks that contribute to each chunk of the same group."""
    summed: Tensor | None
    """``(B, 1, groups, 1, chunks)`` bool, the chunks that contribute to later groups; ``None`` for a single group."""
    groups: Tensor | None
    """``(B, 1, n, groups)`` bool, the earlier groups that contribute to each chunk; ``None`` for a single group."""

    @classmethod
    def of(cls, first: Tensor, last: Tensor) -> Links:
        """The links of chunks, given each chunk's ``first`` query label and ``last`` key label, ``(B, n)``."""
        count, device = first.shape[1], first.device
        size = min(CHUNKS_PER_GROUP, count)
        groups = -(-count // size)
        places = torch.arange(groups * size, device=device).clamp(max=count - 1)
        wanted, held = (x[:, places].unflatten(1, (groups, size)) for x in (first, last))
        inside = (wanted[..., :, None] == held[..., None, :]).tril(-1)[:, None]
        if groups == 1:
            return cls(inside, None, None)
        earlier = torch.arange(groups, device=device) < (torch.arange(count, device=device) // size)[:, None]
        return cls(
            inside, (held == held[..., -1:])[:, None, :, None], ((first[..., None] == held[:, None, :, -1]) & earlier)[:, None]
        )  # fmt: skip

    def added(self, sums: Tensor, *, transposed: bool) -> Tensor:
        """The sums S at the start of chunks, from the chunks' sums U ``(B, H, n, F, D)``. ``transposed``: over later chunks instead."""
        count, (groups, size) = sums.shape[2], self.inside.shape[2:4]
        flat = F.pad(sums.flatten(3), (0, 0, 0, groups * size - count)).unflatten(2, (groups, size))
        inside = self.inside.to(sums.dtype)
        out = ((inside.mT if transposed else inside) @ flat).flatten(2, 3)[:, :, :count]
        if self.summed is not None and self.groups is not None:
            summed, from_groups = self.summed.to(sums.dtype), self.groups.to(sums.dtype)
            if transposed:
                of_groups = from_groups.mT @ flat.flatten(2, 3)[:, :, :count]
                out = out + (summed.mT @ of_groups.unsqueeze(3)).flatten(2, 3)[:, :, :count]
            else:
                out = out + from_groups @ (summed @ flat).squeeze(3)
        return out.unflatten(-1, sums.shape[3:])


class Side(NamedTuple):
    """The contribution of earlier chunks, or of later ones, to a chunk."""

    rows: Tensor
    """``(B, 1, n, g·chunk, 1)`` bool, True for queries that see no key of those chunks."""
    keys: Tensor
    """``(B, 1, n, chunk, 1)`` bool, True for keys that no other chunk sees."""
    transposed: bool
    """True for later chunks, False for earlier ones."""


class Layout(NamedTuple):
    """The visible query-key pairs, for all heads and layers."""

    chunk: int
    hidden: Tensor
    """``(B, 1, n, g·chunk, chunk)`` bool, the hidden pairs of a chunk."""
    links: Links
    sides: tuple[Side, ...]

    @classmethod
    def of(cls, queries: Tensor, keys: Tensor, group: int, causal: bool, chunk: int = CHUNK) -> Layout:
        """The layout for rows of tokens.

        Args:
            queries, keys: labels of queries and keys, ``(B, N)`` integers, in the order of the module docstring.
            group: query heads for each key head.
            causal: position i sees no key after i. Without it, queries and keys must have the same labels.
            chunk: tokens per chunk.
        """
        length = queries.shape[1]
        chunk = min(chunk, length)
        places = torch.arange(-(-length // chunk) * chunk, device=queries.device).clamp(max=length - 1).view(-1, chunk)
        queries, keys = queries[:, places], keys[:, places]
        hidden = queries[..., :, None] != keys[..., None, :]
        if causal:
            hidden = hidden | torch.ones(chunk, chunk, dtype=torch.bool, device=hidden.device).triu(1)

        def side(row: int, key: int) -> Side:
            rows, others = queries != queries[..., row, None], keys != keys[..., key, None]
            return Side(rows[:, None, :, :, None].repeat(1, 1, 1, group, 1), others[:, None, :, :, None], row != 0)

        sides = (side(0, -1),) if causal else (side(0, -1), side(-1, 0))
        return cls(chunk, hidden[:, None].repeat(1, 1, 1, group, 1), Links.of(queries[..., 0], keys[..., -1]), sides)


def segmented_linear_attention(phi_q: Tensor, phi_k: Tensor, v: Tensor, layout: Layout, *, normalise: bool = True) -> Tensor:
    """Σ_j (φ(q_i)·φ(k_j)) v_j over the keys visible in the layout, divided by Σ_j φ(q_i)·φ(k_j).

    Args:
        phi_q: ``(B, H, N, F)``.
        phi_k: ``(B, H_kv, N, F)``, H_kv dividing H; zeros at padding.
        v: ``(B, H_kv, N, D)``, finite.
        normalise: divide by the sum of the weights; queries whose sum is 0 give zeros.
    Returns:
        ``(B, H, N, D)`` in fp32 (fp64 for fp64 inputs).
    """
    dtype, (length, width) = torch.promote_types(phi_q.dtype, torch.float32), v.shape[2:]
    v = v.to(dtype)
    if normalise:
        v = F.pad(v, (0, 1), value=1.0)  # a column that sums the weights
    with torch.autocast(v.device.type, enabled=False):
        q, k, v = (filled(x.to(dtype), layout.chunk) for x in (phi_q, phi_k, v))
        out = (_Summed.apply(q, k, v, layout) if no_fused_kernels() is None else _summed(q, k, v, layout))[:, :, :length]
        return divided(out[..., :width], out[..., width:]) if normalise else out


class _Summed(torch.autograd.Function):
    """The function :func:`_summed` with its backward pass, which recomputes everything within and between chunks."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.layout = layout
        return _summed(q, k, v, layout)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v = ctx.saved_tensors
        return *_summed_backward(q, k, v, grads[0], ctx.layout), None


def _summed(q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    """The unnormalised output of whole chunks, ``(B, H, N, D)``."""
    group = q.shape[1] // k.shape[1]
    rows, keys, values = in_rows(q, group, layout.chunk), in_rows(k, 1, layout.chunk), in_rows(v, 1, layout.chunk)
    out = (rows @ keys.mT).masked_fill_(layout.hidden, 0.0) @ values
    for side in layout.sides:
        sums = layout.links.added(keys.mT @ values.masked_fill(side.keys, 0.0), transposed=side.transposed)
        out = out + (rows @ sums).masked_fill_(side.rows, 0.0)
    return from_rows(out, group)


def _summed_backward(q: Tensor, k: Tensor, v: Tensor, grad: Tensor, layout: Layout) -> tuple[Tensor, ...]:
    """Gradients of q, k and v."""
    group = q.shape[1] // k.shape[1]
    with torch.autocast(q.device.type, enabled=False):
        rows, keys, values = in_rows(q, group, layout.chunk), in_rows(k, 1, layout.chunk), in_rows(v, 1, layout.chunk)
        grad = in_rows(grad, group, layout.chunk)
        scores = (rows @ keys.mT).masked_fill_(layout.hidden, 0.0)
        d_scores = (grad @ values.mT).masked_fill_(layout.hidden, 0.0)
        d_q, d_k, d_v = d_scores @ keys, d_scores.mT @ rows, scores.mT @ grad
        for side in layout.sides:
            seen, seeing = values.masked_fill(side.keys, 0.0), grad.masked_fill(side.rows, 0.0)
            sums = layout.links.added(keys.mT @ seen, transposed=side.transposed)
            d_sums = layout.links.added(rows.mT @ seeing, transposed=not side.transposed)
            d_q = d_q + seeing @ sums.mT
            d_k = d_k + seen @ d_sums.mT
            d_v = d_v + (keys @ d_sums).masked_fill_(side.keys, 0.0)
    return from_rows(d_q, group), from_rows(d_k, 1), from_rows(d_v, 1)
