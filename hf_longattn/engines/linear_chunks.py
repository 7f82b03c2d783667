"""Causal linear attention in chunks: quadratic inside, a running sum of φ(k)ᵀv between (Katharopoulos et al. 2020, eq. 9-12).

With ã = φ(q)·φ(k) over the visible pairs, o_i = Σ_j ã_ij v_j / d_i and d_i = Σ_j ã_ij. For a gradient g_i of o_i,

    ∂ã_ij = ĝ_i·v_j + c_i      ĝ_i = g_i / d_i      c_i = -ĝ_i·o_i

so that the backward pass is linear attention once more, forwards for φ(q) and backwards for φ(k) and v. Nothing of size N×chunk is kept
between the passes; the sums over earlier and later chunks are made anew.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

FEW = 16
"""Up to so many chunks their sums are added one by one, which is faster than a cumulative sum along a middle axis."""


def chunked_linear_attention(q: Tensor, k: Tensor, v: Tensor, kv: Tensor, z: Tensor, chunk: int, normalise: bool) -> tuple[Tensor, ...]:
    """Causal linear attention of features ``q (B, H, N, F)``, ``k (B, H_kv, N, F)`` to ``v (B, H_kv, N, D)``, all in one dtype.

    Args:
        kv, z: the sums ``(B, H_kv, F, D)`` and ``(B, H_kv, F)`` of φ(k)ᵀv and φ(k) over what came before.
        chunk: tokens per chunk.
        normalise: divide by the sum of the weights; rows without any are zeros.
    Returns:
        The output ``(B, H, N, D)`` and the sums after the last token.
    """
    length = q.shape[2]
    chunk = min(chunk, length)
    short = -length % chunk
    if short:
        q, k, v = (F.pad(x, (0, 0, 0, short)) for x in (q, k, v))
    with torch.autocast(q.device.type, enabled=False):
        out, kv, z = _Chunked.apply(q, k, v, kv, z, chunk, normalise)
    return (out[:, :, :length] if short else out), kv, z


class _Chunked(torch.autograd.Function):
    """Works on chunk-major tensors ``(B, H_kv, chunks, rows, ·)``; the heads of one key head are stacked along the rows."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, kv: Tensor, z: Tensor, chunk: int, normalise: bool) -> tuple[Tensor, ...]:
        group = q.shape[1] // k.shape[1]
        rows, keys, values = _rows(q, group, chunk), _rows(k, 1, chunk), _rows(v, 1, chunk)
        before, kv_after = _running(keys.mT @ values, kv)
        z_before, z_after = _running(keys.sum(-2), z)
        scores = _lower(rows @ keys.mT, group)
        out = (rows @ before).add_(scores @ values)
        if normalise:
            out.mul_(inverse_of(scores.sum(-1, keepdim=True).add_(rowwise(rows, z_before))))
        out = _back(out, group)
        ctx.save_for_backward(q, k, v, kv, z, out)
        ctx.chunk, ctx.normalise = chunk, normalise
        return out, kv_after, z_after

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad, grad_kv, grad_z = grads
        q, k, v, kv, z, out = ctx.saved_tensors
        group, chunk = q.shape[1] // k.shape[1], ctx.chunk
        with torch.autocast(q.device.type, enabled=False):
            rows, keys, values = _rows(q, group, chunk), _rows(k, 1, chunk), _rows(v, 1, chunk)
            before, _ = _running(keys.mT @ values, kv)
            z_before, _ = _running(keys.sum(-2), z)
            scores = _lower(rows @ keys.mT, group)
            grad, shift = _rows(grad, group, chunk), None
            if ctx.normalise:
                grad = grad * inverse_of(scores.sum(-1, keepdim=True) + rowwise(rows, z_before))
                shift = -(grad * _rows(out, group, chunk)).sum(-1, keepdim=True)
            d_scores = grad @ values.mT
            d_scores = _lower(d_scores if shift is None else d_scores + shift, group)
            later, d_kv = _remaining(rows.mT @ grad, grad_kv)
            d_q = d_scores @ keys + grad @ before.mT
            d_k = d_scores.mT @ rows + values @ later.mT
            d_z = grad_z
            if shift is None:
                d_k = d_k + grad_z[:, :, None, None, :]
            else:
                z_later, d_z = _remaining((rows.mT @ shift).squeeze(-1), grad_z)
                d_q = d_q + shift * z_before[..., None, :]
                d_k = d_k + z_later[..., None, :]
            d_v = scores.mT @ grad + keys @ later
        return _back(d_q, group), _back(d_k, 1), _back(d_v, 1), d_kv, d_z, None, None


def rowwise(rows: Tensor, z: Tensor) -> Tensor:
    """``rows (…, n, F)`` · ``z (…, F)``: ``(…, n, 1)``. A matrix product with one column is several times slower on the CPU."""
    return (rows * z.unsqueeze(-2)).sum(-1, keepdim=True)


def inverse_of(weight: Tensor) -> Tensor:
    """1 / weight, and 0 where the weight is 0 or so near to it that its inverse overflows."""
    empty = weight.abs() < torch.finfo(weight.dtype).tiny
    return torch.where(empty, 0.0, 1 / torch.where(empty, 1.0, weight))


def _rows(x: Tensor, group: int, chunk: int) -> Tensor:
    """``(B, H_kv·group, N, F)`` as ``(B, H_kv, N / chunk, group·chunk, F)``."""
    x = x.unflatten(2, (-1, chunk))
    return x if group == 1 else x.unflatten(1, (-1, group)).transpose(2, 3).flatten(3, 4)


def _back(x: Tensor, group: int) -> Tensor:
    """The inverse of :func:`_rows`."""
    return x.flatten(2, 3) if group == 1 else x.unflatten(3, (group, -1)).transpose(2, 3).flatten(1, 2).flatten(2, 3)


def _lower(scores: Tensor, group: int) -> Tensor:
    """Scores ``(B, H_kv, n, group·chunk, chunk)`` of the pairs that do not look ahead; the others become zeros."""
    return scores.tril_() if group == 1 else scores.unflatten(3, (group, -1)).tril_().flatten(3, 4)


def _running(sums: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
    """From each chunk's sum ``(B, H, n, …)`` and what came before ``(B, H, …)``: what stands before each chunk, and after the last."""
    if sums.shape[2] > FEW:
        total = torch.cat((first.unsqueeze(2), sums), 2).cumsum(2)
        return total[:, :, :-1], total[:, :, -1]
    steps = [first]
    for chunk in sums.unbind(2):
        steps.append(steps[-1] + chunk)
    return torch.stack(steps[:-1], 2), steps[-1]


def _remaining(sums: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """As :func:`_running` from the end: what stands behind each chunk, and behind all."""
    if sums.shape[2] > FEW:
        behind, total = _running(sums.flip(2), last)
        return behind.flip(2), total
    steps = [last]
    for chunk in reversed(sums.unbind(2)):
        steps.append(steps[-1] + chunk)
    return torch.stack(steps[-2::-1], 2), steps[-1]
