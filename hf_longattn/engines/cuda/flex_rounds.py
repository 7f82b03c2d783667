"""CUDA engine: rounds of buckets by one call of compiled flex_attention.

In every round the queries are put in the order of their buckets, and so are the keys; the rounds of a head are heads of one call. A block
of queries visits the blocks of keys in which the runs of its queries lie, and the mask looks up which of these keys a query sees: those of
its run that no earlier round has shown it. In a round no token is read twice, no pair is ever in memory, and no value is looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest

from ..common.bucket_tiles import Rounds
from ..common.call import AttentionCall
from ..common.derivatives import first_derivatives_only, one_gradient_at_a_time
from . import flex
from .flex import BAND_BLOCK, packed
from .flex_kernel import kind_of


def flex_rounds(q: Tensor, k: Tensor, v: Tensor, rounds: Rounds, count_duplicates: bool, call: AttentionCall) -> Tensor:
    """Softmax attention of ``q (B, H, N, D)`` over the keys that it meets in ``rounds``, without dropout; k and v have H heads.

    Args:
        count_duplicates: a key counts in every round in which it is met, not in the first one alone.
        call: its scale and its score term.
    Returns:
        ``(B, H, N, D)``; zeros where a query meets no key.

    Raises:
        NoKernel: this machine has no such kernel.
    """
    order, key_order = rounds.queries.order, rounds.keys.order
    queries, keys, values = _InOrder.apply(q, order), _InOrder.apply(k, key_order), _InOrder.apply(v, key_order)
    touched = rounds.touched(BAND_BLOCK).flatten(1, 2)
    rows, columns = (torch.arange(size, device=q.device) for size in touched.shape[2:])
    lists = {"by_query": (packed(touched, columns), None), "by_key": (packed(touched.mT, rows), None)}
    mask_mod, score_mod = _mods(rounds, count_duplicates, call)
    mask = flex.block_mask((q.shape[2], k.shape[2]), BAND_BLOCK, mask_mod, **lists)
    kind = "rounds", type(rounds), rounds.count, rounds.shared, count_duplicates, kind_of(call.score_mod)
    settings: dict[str, Any] = {"return_aux": AuxRequest(lse=True)} if rounds.count > 1 else {}
    out = flex.fused_flex(kind, queries, keys, values, score_mod=score_mod, block_mask=mask, scale=call.scale_for(q.shape[-1]), **settings)
    out, lse = (out[0], out[1].lse) if rounds.count > 1 else (out, None)
    merged: Tensor = _Merged.apply(out, lse, order)
    return merged


def _mods(rounds: Rounds, count_duplicates: bool, call: AttentionCall) -> tuple[Any, Any]:
    """The ``mask_mod`` and the ``score_mod`` of heads that are rounds, for places in the orders of queries and keys."""
    count, shared, inner = rounds.count, rounds.shared, call.score_mod
    order, key_order = (x.order.flatten(1, 2) for x in (rounds.queries, rounds.keys))
    in_round = rounds.sees_place()
    earlier = 0 if count_duplicates else count - 1
    met_in = rounds.meets_token() if earlier else None

    def mask_mod(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        seen = in_round(b, h, q_idx, kv_idx)
        if shared:
            seen = seen & (order[b, h, q_idx] != key_order[b, h, kv_idx])
        if met_in is not None:
            head, number, query, key = h // count, h % count, order[b, h, q_idx], key_order[b, h, kv_idx]
            for one in range(earlier):
                seen = seen & ((number <= one) | ~met_in(b, head * count + one, query, key))
        return seen

    def score_mod(score: Tensor, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Tensor:
        assert inner is not None
        return inner(score, b, h // count, order[b, h, q_idx], key_order[b, h, kv_idx])

    return mask_mod, None if inner is None else score_mod


def _slots(order: Tensor) -> Tensor:
    """Where each token stands in the rounds of its head, ``(B, H, N, R)``, in all ``order (B, H, R, N)`` one after the other."""
    batch, heads, count, length = order.shape
    slots = order.new_empty(batch, heads, length, count)
    slots.transpose(2, 3).scatter_(-1, order, torch.arange(order.numel(), device=order.device).view(order.shape))
    return slots


def _read(x: Tensor, order: Tensor) -> Tensor:
    """Tokens of ``x (B, H, N, D)`` in the order of every round, ``(B, H · R, N, D)``."""
    item, head = (torch.arange(size, device=x.device) for size in x.shape[:2])
    return x[item[:, None, None], head[:, None], order.flatten(2)].view(x.shape[0], -1, *x.shape[2:])


def _summed(x: Tensor, slots: Tensor, shares: Tensor | None) -> Tensor:
    """The sum over the rounds of each token, ``(B, H, N, D)``, of ``x (B, H · R, N, D)`` times its ``shares (B, H, N, R)``."""
    weights = None if shares is None else shares.to(x.dtype).flatten(0, 2)
    total = F.embedding_bag(slots.flatten(0, 2), x.reshape(-1, x.shape[3]), mode="sum", per_sample_weights=weights)
    return total.view(*slots.shape[:3], x.shape[3])


class _InOrder(torch.autograd.Function):
    """:func:`_read`, whose gradient is :func:`_summed`: no two rounds write to a token at the same time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor) -> Tensor:
        ctx.save_for_backward(order)
        return _read(x, order)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        with one_gradient_at_a_time():
            return first_derivatives_only([_summed(grads[0], _slots(*ctx.saved_tensors), None), None])


class _Merged(torch.autograd.Function):
    """One softmax over the rounds of each token, ``(B, H, N, D)``, from outputs ``(B, H · R, N, D)`` and their log-sum-exps
    ``(B, H · R, N)``, ``None`` for a single round."""

    @staticmethod
    def forward(ctx: Any, outs: Tensor, lses: Tensor | None, order: Tensor) -> Tensor:
        shares, slots = None, _slots(order)
        if lses is not None:
            shares = lses.flatten()[slots].clamp_(min=torch.finfo(lses.dtype).min).softmax(-1)  # equal where nothing is seen
        total = _summed(outs, slots, shares)
        if shares is None:
            ctx.save_for_backward(order)
        else:
            ctx.save_for_backward(order, outs, shares, total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        with one_gradient_at_a_time():
            return first_derivatives_only([*_gradients(grads[0], *ctx.saved_tensors), None])


def _gradients(grad: Tensor, order: Tensor, *saved: Tensor) -> Sequence[Tensor | None]:
    """Of outputs and log-sum-exps: with o = Σ_r p_r o_r, they are p_r g and p_r g·(o_r - o)."""
    in_rounds = _read(grad, order)
    if not saved:
        return in_rounds, None
    outs, shares, total = saved
    share = shares.transpose(2, 3).gather(-1, order).flatten(1, 2)
    common = _dot(grad, total)[:, :, None].expand(order.shape).gather(-1, order).flatten(1, 2)
    return in_rounds * share[..., None].to(grad.dtype), share * (_dot(in_rounds, outs) - common)


def _dot(x: Tensor, y: Tensor) -> Tensor:
    """Products of vectors, ``(…, D)`` -> ``(…)``, summed in fp32 at least."""
    return (x * y).sum(-1, dtype=torch.promote_types(x.dtype, torch.float32))
