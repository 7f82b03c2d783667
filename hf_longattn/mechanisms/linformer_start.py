"""A linear Linformer projection from the queries, keys and values that a trained layer was seen to compute.

The leading left singular vectors of the measured keys and values say which combinations of places matter, but as E and F themselves they
are of no use: softmax over coefficients of global modes is no attention. What they are used for is to choose places, by pivoted
Gram–Schmidt over their rows (the interpolation points of DEIM, Chaturantabut and Sorensen 2010): the tokens at those places span the
leading subspace best. E keeps the keys of the chosen places. F keeps their values, or is fitted: the F that minimises
Σ |softmax(Q Kᵀ) − softmax(Q K̄ᵀ) Fᵀ|². Beside these stands pooling, E = F = means of equal runs. Of the three, the one whose outputs are
nearest to the layer's on sequences kept aside is taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .segments import segment_matrix

RIDGE = 1e-3
"""Added to the normal equations of F, relative to their mean diagonal."""


class Measured(NamedTuple):
    """``q, k, v (S, H, N, D)`` of S sequences."""

    q: Tensor
    k: Tensor
    v: Tensor

    def only(self, rows: Tensor) -> Measured:
        """Some of the sequences."""
        return Measured(self.q[rows], self.k[rows], self.v[rows])

    @property
    def scale(self) -> float:
        """The factor on q·k."""
        return float(self.q.shape[-1] ** -0.5)


def fitted_projections(measured: Measured, rank: int, *, apart: bool) -> tuple[Tensor, Tensor]:
    """E and F, ``(N, rank)`` each, from at least two sequences; equal unless ``apart``.

    Every fourth sequence, one at least, is kept aside to choose by.
    """
    aside = torch.zeros(measured.q.shape[0], dtype=torch.bool)
    aside[-max(1, len(aside) // 4) :] = True
    judged = measured.only(aside)
    return min(_candidates(measured.only(~aside), rank, apart=apart), key=lambda pair: output_error(pair[0], pair[1], judged))


def _candidates(measured: Measured, rank: int, *, apart: bool) -> Iterator[tuple[Tensor, Tensor]]:
    q, k, v = measured
    length = k.shape[2]
    pooled = segment_matrix(torch.ones(1, length, dtype=torch.bool, device=k.device), rank, k.dtype)[0].T
    yield pooled, pooled
    chosen = torch.zeros_like(pooled)
    chosen[spanning_places(torch.cat([k / k.norm(), v / v.norm()], -1), rank), torch.arange(min(rank, length))] = 1
    yield chosen, chosen
    if apart:
        yield chosen, fitted_values(chosen, q, k, measured.scale)


def spanning_places(x: Tensor, rank: int) -> Tensor:
    """The places of the text whose rows of the leading left singular vectors span them best, sorted.

    x: ``(S, H, N, D)``, whose sequences, heads and channels are columns of one matrix of N rows.
    """
    gram = torch.einsum("shnd,shmd->nm", x, x).double()
    left = torch.linalg.eigh(gram).eigenvectors[:, -rank:]
    places = []
    for _ in range(left.shape[1]):
        place = int(left.square().sum(1).argmax())
        places.append(place)
        direction = left[place] / left[place].norm().clamp(min=torch.finfo(left.dtype).tiny)
        left = left - (left @ direction)[:, None] * direction
        left[place] = 0
    return torch.tensor(sorted(places), device=x.device)


def fitted_values(e: Tensor, q: Tensor, k: Tensor, scale: float) -> Tensor:
    """F for keys projected by ``e (N, R)``, by least squares on the attention weights of all sequences and heads."""
    rows, length = e.shape[1], e.shape[0]
    normal = torch.zeros(rows, rows, dtype=torch.float64, device=e.device)
    right = torch.zeros(rows, length, dtype=torch.float64, device=e.device)
    for queries, keys in zip(q.flatten(0, 1), k.flatten(0, 1), strict=True):
        weights = torch.softmax(queries @ keys.T * scale, -1).double()
        few = torch.softmax(queries @ (e.T @ keys).T * scale, -1).double()
        normal += few.T @ few
        right += few.T @ weights
    normal.diagonal().add_(RIDGE * normal.diagonal().mean())
    return torch.linalg.solve(normal, right).T.to(e.dtype)


def output_error(e: Tensor, f: Tensor, measured: Measured) -> float:
    """|output − softmax attention| / |softmax attention| over all that was measured."""
    q, k, v = measured
    scale = measured.scale
    full = torch.softmax(q @ k.transpose(-1, -2) * scale, -1) @ v
    few = torch.softmax(q @ (e.T @ k).transpose(-1, -2) * scale, -1) @ (f.T @ v)
    return float((few - full).norm() / full.norm())
