"""What definitions share that are no softmax under a mask: one head of one sequence at a time, in float64."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import torch
from torch import Tensor


@dataclasses.dataclass
class Head:
    """One head ``h`` of one sequence ``b``: ``q`` (Nq, D), ``k`` and ``v`` (Nk, D) in float64.

    Row i of q is the token at ``queries[i]`` of the keys: queries are the last Nq tokens. ``real`` are the indices of the tokens that are
    no padding, in order; positions count from ``first``, the first of them.
    """

    b: int
    h: int
    q: Tensor
    k: Tensor
    v: Tensor
    queries: list[int]
    real: list[int]

    @property
    def first(self) -> int:
        return self.real[0] if self.real else 0

    @property
    def length(self) -> int:
        """Positions from the first to the last real token."""
        return self.real[-1] + 1 - self.real[0] if self.real else 0

    def seen(self, index: int, causal: bool) -> list[int]:
        """The real keys that the token at ``index`` may see."""
        return [j for j in self.real if j <= index or not causal]


def heads(q: Tensor, k: Tensor, v: Tensor, padding_mask: Tensor | None) -> Iterator[Head]:
    """Every head of every sequence, in order; with fewer key heads than heads, consecutive heads share one."""
    q, k, v = q.double(), k.double(), v.double()
    batch, num_heads, num_queries, _ = q.shape
    num_keys, group = k.shape[2], num_heads // k.shape[1]
    for b in range(batch):
        real = [j for j in range(num_keys) if padding_mask is None or bool(padding_mask[b, j])]
        for h in range(num_heads):
            yield Head(b, h, q[b, h], k[b, h // group], v[b, h // group], list(range(num_keys - num_queries, num_keys)), real)


def together(outputs: list[list[Tensor]], q: Tensor) -> Tensor:
    """The rows of all heads, in the order of :func:`heads`, as (B, H, Nq, D)."""
    return torch.stack([torch.stack(rows) for rows in outputs]).unflatten(0, q.shape[:2])


def average(weights: Tensor, values: Tensor) -> Tensor:
    """Σ_j w_j v_j / Σ_j w_j; zeros where nothing has any weight."""
    if not bool(weights.sum() != 0):
        return values.new_zeros(values.shape[1])
    return (weights[:, None] * values).sum(0) / weights.sum()


def kernel_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    padding_mask: Tensor | None,
    causal: bool,
    features: Callable[[Head], tuple[Tensor, Tensor]],
) -> Tensor:
    """o_i = Σ_j φ(q_i)·φ(k_j) v_j / Σ_j φ(q_i)·φ(k_j), with ``features`` giving φ of a head's queries and keys."""
    outputs = []
    for head in heads(q, k, v, padding_mask):
        phi_q, phi_k = features(head)
        rows = []
        for i, index in enumerate(head.queries):
            seen = head.seen(index, causal)
            rows.append(average(phi_k[seen] @ phi_q[i], head.v[seen]))
        outputs.append(rows)
    return together(outputs, q)


def share(scaling: float | None, width: int) -> float:
    """The factor of q, and of k, for kernels without a product to scale: 1 at the usual D^-½; elsewhere the two multiply to the rest."""
    return 1.0 if scaling is None else (scaling * width**0.5) ** 0.5
