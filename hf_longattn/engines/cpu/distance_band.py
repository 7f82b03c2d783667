"""The path ``cpu-distances``: a band whose scores have a term of the query and the distance, by PyTorch's fused kernel for the CPU.

With w = left + right + 1 keys in the band of a query, a block of n queries has the products M = p·rᵀ ``(n, w)`` of its vectors p with the
rows r of the distances. Row i of M holds the terms of the keys i, …, i + w - 1 of the block's slice. Stored in rows of w + n numbers, the
last n of which hide pairs, and read in rows of w + n - 1, it is the block's additive mask ``(n, n + w - 1)``: each row begins one number
later than the row before. So the mask is a view, and takes the memory of the products of one call's blocks. The backward pass writes the
gradients of the scores in rows of w + n - 1, and reads those of M in rows of w + n.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...naming import OPERATORS
from ..common.derivatives import first_derivatives_only, one_gradient_at_a_time
from .band import Group, Item, groups, items
from .flash import MASKED, empty_results, flash, score_gradient, token_major

QUERIES_PER_BLOCK, QUERIES_PER_CALL = 64, 512
"""Blocks of 64 queries are the fastest of 32 to 256 with windows of 256 keys; more queries in a call are no faster."""


class _Terms(NamedTuple):
    """The rows of distances that the blocks of a group need, and where the masks of the blocks begin."""

    group: Group
    first: int
    """The first of the rows, of all in the order of keys."""
    rows: int
    """How many they are."""
    skipped: int
    """Numbers between the beginning of a block's products and its mask."""

    @classmethod
    def of(cls, group: Group, shift: int, left: int, right: int) -> _Terms:
        """Of a group of the queries that begin at position ``shift`` of the keys."""
        before = left - (group.first + shift - group.start)  # rows before that of the first pair
        first = max(0, before - group.block + 1)
        return cls(group, first, min(left + right + 1, before + group.width) - first, before - first)

    @property
    def stored(self) -> int:
        """Numbers in a stored row: the terms, and as many as there are queries that hide pairs."""
        return self.rows + self.group.block

    def new(self, p: Tensor, value: float) -> Tensor:
        """Stored rows ``(b, H, block, stored)`` for blocks ``p (b, H, block, F)``, all ``value``."""
        return p.new_full((*p.shape[:3], self.stored), value)

    def table(self, rows: Tensor) -> Tensor:
        """These of ``rows (H or 1, w, F)``."""
        return rows[:, self.first : self.first + self.rows]

    def masks(self, stored: Tensor) -> Tensor:
        """The pairs ``(b, H, block, width)`` of stored rows, a view."""
        of_block, of_head, row, _ = stored.stride()
        return stored.as_strided((*stored.shape[:3], self.group.width), (of_block, of_head, row - 1, 1), self.skipped)


def _calls(item: Item, left: int, right: int) -> Iterator[_Terms]:
    for group in groups(item.q_len, item.kv_len, item.shift, left, right, QUERIES_PER_BLOCK):
        for part in group.parts(QUERIES_PER_CALL // QUERIES_PER_BLOCK):
            yield _Terms.of(part, item.shift, left, right)


def _mask(terms: _Terms, item: Item, p: Tensor, rows: Tensor) -> Tensor:
    """The additive masks of the blocks ``p (b, H, block, F)`` of one call, ``(b, H, block, width)``."""
    stored = terms.new(p, MASKED)
    stored[..., : terms.rows].copy_(p @ terms.table(rows).transpose(-1, -2))
    mask = terms.masks(stored)
    return mask if item.hole is None else mask + terms.group.keys(item.hole)[:, :, None]


def _items(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None) -> Iterator[Item]:
    return items(q, k, v, key_mask, None, lambda item: item.q_len > QUERIES_PER_BLOCK)


def distances_forward(
    q: Tensor, k: Tensor, v: Tensor, p: Tensor, rows: Tensor, key_mask: Tensor | None, left: int, right: int, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention over ``i - left … i + right`` with a term p_i · r_{i-j} added to the scaled scores.

    Args:
        q, k, v: ``(B, H, Nq, D)``, ``(B, H, Nk, D)``; the queries are the last Nq positions.
        p: ``(B, H, Nq, F)``, in fp32 (in float64 with q).
        rows: r, ``(H or 1, left + right + 1, F)``, for the distances ``left, …, -right``, in p's dtype.
        key_mask: ``(B, Nk)`` bool, True = real token, or None.
    Returns:
        output ``(B, H, Nq, D)``, stored token-major, and log-sum-exp ``(B, H, Nq)``.
    """
    out, lse = empty_results(q)
    if key_mask is not None:
        out.zero_()
        lse.zero_()
    for item in _items(q, k, v, key_mask):
        of_item = out[item.by_query], lse[item.by_query]
        for terms in _calls(item, left, right):
            group = terms.group
            mask = _mask(terms, item, group.queries(p[item.by_query]), rows)
            parts = flash(group.queries(item.q), group.keys(item.k), group.keys(item.v), attn_mask=mask, scale=scale)
            for result, part in zip(of_item, parts, strict=True):
                group.queries(result).copy_(part)
        if item.hole is not None:
            of_item[0].masked_fill_(item.padding_rows(item.hole), 0)
    return out, lse


cpu_distances = torch.library.custom_op(f"{OPERATORS}::cpu_distances", distances_forward, mutates_args=(), device_types="cpu")


@torch.library.custom_op(f"{OPERATORS}::cpu_distances_backward", mutates_args=(), device_types="cpu")
def cpu_distances_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, p: Tensor, rows: Tensor, out: Tensor, lse: Tensor, key_mask: Tensor | None,
    left: int, right: int, scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of :func:`cpu_distances` with respect to q, k, v, p and rows, in time and memory linear in the number of tokens."""
    dq, dk, dv, dp = (x.zero_() for x in (*token_major(q.dtype, q), *token_major(lse.dtype, k, v), *token_major(p.dtype, p)))
    drows = rows.new_zeros(p.shape[1], *rows.shape[1:])
    for item in _items(q, k, v, key_mask):
        at, keys = item.by_query, item.by_key
        of_out = grad[at] if item.hole is None else grad[at].masked_fill(item.padding_rows(item.hole), 0)
        for terms in _calls(item, left, right):
            group, of_p = terms.group, terms.group.queries(p[at])
            of_block, queries, keys_of_block = group.queries(of_out), group.queries(item.q), group.keys(item.k)
            inputs = of_block, queries, keys_of_block, group.keys(item.v), group.queries(out[at]), group.queries(lse[at])
            gradient, weights = score_gradient(_mask(terms, item, of_p, rows), scale, *inputs)
            stored, dtype = terms.new(of_p, 0.0), gradient.dtype
            of_scores, of_terms = terms.masks(stored).copy_(gradient), stored[..., : terms.rows]
            group.queries(dp[at]).copy_(of_terms @ terms.table(rows))
            terms.table(drows).add_((of_terms.mT @ of_p).sum(0))
            group.queries(dq[at]).copy_((of_scores @ keys_of_block.to(dtype)).mul_(scale))
            group.add_to_keys(dk[keys], of_scores.mT @ queries.to(dtype))
            group.add_to_keys(dv[keys], weights.mT @ of_block.to(dtype))
    drows = drows if len(rows) == len(drows) else drows.sum(0, keepdim=True)
    return dq, dk.mul_(scale).to(k.dtype), dv.to(v.dtype), dp, drows


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, p, rows, key_mask, *ctx.settings = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(q, k, v, p, rows, *output, key_mask)


@one_gradient_at_a_time()
def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return first_derivatives_only((*cpu_distances_backward(grad, *ctx.saved_tensors, *ctx.settings), None, None, None, None))


cpu_distances.register_fake(lambda q, *_, **__: empty_results(q))
cpu_distances_backward.register_fake(
    lambda _grad, q, k, v, p, rows, *_: (*token_major(q.dtype, q, k, v), *token_major(p.dtype, p), rows.new_empty(rows.shape))
)
cpu_distances.register_autograd(_backward, setup_context=_setup_context)
