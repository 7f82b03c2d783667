"""Dense engine: PyTorch's scaled_dot_product_attention with padding, causality and an optional score term."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .batch import autocasts, no_fused_kernels, without_autocast
from .call import AttentionCall, MaskMod, precise_dtype

MAX_SCORES = 1 << 24
"""Maximum scores of a score term's call in one piece, over all heads and batch items. Untuned."""
SLOW_FOR_ONE_QUERY = (torch.bfloat16, torch.float16)
"""Dtypes in which the CPU's fused kernel takes twice as long for one query as for two."""


def dense_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    call: AttentionCall,
    *,
    mask_mod: MaskMod | None = None,
    q_idx: Tensor | None = None,
) -> Tensor:
    """Softmax attention ``(B, H, Nq, D)`` with ``mask_mod``, causality and padding. Heads may be grouped.

    Without ``mask_mod`` and score term, the same kernel runs as in transformers' sdpa attention. Queries without a
    visible key give zeros. With a score term, more than :data:`MAX_SCORES` scores are computed in blocks of queries,
    and the eager backward pass computes each block again.

    q_idx: the queries' positions, broadcastable to ``(B, 1, Nq, 1)``; by default the last Nq positions of the keys.
    """
    causal, key_mask, score_mod = call.causal, call.key_mask, call.score_mod
    batch, _, q_len, _ = q.shape
    kv_len = k.shape[2]
    last = q_idx is None  # the queries are the last positions
    settings: dict[str, Any] = {"dropout_p": call.dropout, "scale": call.scale, "sink_scores": call.sink_scores}
    if causal and last and q_len == kv_len > 1 and key_mask is None and mask_mod is None and score_mod is None:
        return fused_attention(q, k, v, is_causal=True, **settings)
    visible = index = None
    if key_mask is not None:
        visible = key_mask[:, None, None, :]
    if last and q_len == 1:  # the last position sees every key
        causal = False
    if causal or mask_mod is not None or score_mod is not None:
        b, h, rows, kv_idx = grid_of(q, k)
        if q_idx is not None:
            rows = q_idx
        index = b, h, rows, kv_idx
        if causal:
            visible = both(visible, kv_idx <= rows)
        if mask_mod is not None:
            visible = both(visible, mask_mod(*index))
    # With q_idx, Nq is data-dependent. The fused kernel is chosen by Nq, so torch.export would fail.
    if score_mod is None and (last or not torch.compiler.is_exporting()):
        # a graph keeps a mask of one row for all queries
        if visible is not None and not torch.compiler.is_exporting():
            visible = visible.expand(batch, -1, q_len, kv_len)
        return fused_attention(q, k, v, attn_mask=visible, **settings)
    return _by_products(q, k, v, call, mask_mod, index, visible, at_once=not last)


def _by_products(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    call: AttentionCall,
    mask_mod: MaskMod | None,
    index: tuple[Tensor, ...] | None,
    visible: Tensor | None,
    at_once: bool,
) -> Tensor:
    """:func:`dense_attention` with scores in memory, at most :data:`MAX_SCORES` at a time. The backward pass
    recomputes them.

    index: b, h, q_idx and kv_idx, if there is a score term.
    visible: bool, broadcastable to ``(B, H, Nq, Nk)``; ``None`` if every pair is.
    at_once: compute all scores at once. Graphs and ``torch.func`` always do.
    """
    at_once = at_once or torch.compiler.is_compiling() or no_fused_kernels() is not None
    scores_per_query = q.shape[0] * q.shape[1] * k.shape[2]
    if index is not None and not at_once and q.shape[2] * scores_per_query > MAX_SCORES:
        size = max(1, MAX_SCORES // scores_per_query)
        outs = []
        for queries, at in zip(q.split(size, 2), index[2].split(size, 2), strict=True):
            run = functools.partial(dense_attention, call=call, mask_mod=mask_mod, q_idx=at)
            if torch.is_grad_enabled():
                outs.append(checkpoint(run, queries, k, v, use_reentrant=False))
            else:
                outs.append(run(queries, k, v))
        return torch.cat(outs, 2)
    k, v = repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1])
    scores = products(q, k) * call.scale_for(q.shape[3])
    if call.score_mod is not None and index is not None:
        scores = call.score_mod(scores, *index)
    weights = masked_softmax(scores, visible, call.sink_scores)
    return F.dropout(weights, call.dropout).to(v.dtype) @ v


def both(visible: Tensor | None, more: Tensor) -> Tensor:
    """The pairs that both masks show; ``None`` shows all."""
    if visible is None:
        return more
    return visible & more


def fused_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    attn_mask: Tensor | None = None,
    sink_scores: Tensor | None = None,
    **settings: Any,
) -> Tensor:
    """scaled_dot_product_attention of ``q (B, H, Nq, D)`` and ``k, v (B, H_kv, Nk, D)``, in a way that avoids its
    unfused N×N kernel.

    On CUDA, only cuDNN's fused kernel supports grouped heads with a mask, or grouped heads wider than 256. In these
    cases keys and values are repeated, as in transformers' sdpa attention. For a single query, the heads of a group
    become query rows instead. If :func:`no_fused_kernels` gives a reason, plain operations run.

    Args:
        attn_mask: ``(B, 1 or H, Nq, Nk)``, bool (True = visible) or additive.
        sink_scores: ``(H,)``, see :class:`~.call.AttentionCall`.
        settings: the other arguments of scaled_dot_product_attention.
    """
    if sink_scores is not None:
        return _with_sink_key(q, k, v, attn_mask, sink_scores, **settings)
    heads, groups = q.shape[1], k.shape[1]
    if no_fused_kernels() is not None:
        return _plain_attention(q, k, v, attn_mask, **settings)
    if (
        q.shape[2] == 1
        and q.device.type == "cpu"
        and q.dtype in SLOW_FOR_ONE_QUERY
        and not torch.compiler.is_compiling()
    ):
        return fused_attention(q.expand(-1, -1, 2, -1), k, v, attn_mask=attn_mask, **settings)[:, :, :1]
    if heads != groups:
        if groups_are_fused(k, v, attn_mask):
            settings["enable_gqa"] = True  # `heads != groups` would be symbolic for symbolic heads
        elif q.shape[2] == 1 and not torch.compiler.is_compiling():
            if attn_mask is not None and attn_mask.shape[1] == heads:
                attn_mask = attn_mask[:, :, 0].unflatten(1, (groups, -1))
            out = F.scaled_dot_product_attention(
                q[:, :, 0].unflatten(1, (groups, -1)), k, v, attn_mask=attn_mask, **settings
            )
            return out.flatten(1, 2)[:, :, None]
        else:
            k, v = repeat_heads(k, heads), repeat_heads(v, heads)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, **settings)


SINK_FEATURES = 8
"""Features that :func:`_with_sink_key` adds to a head. Only one is needed, but kernels on GPUs take widths in
multiples of 8."""


def _with_sink_key(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None,
    sink_scores: Tensor,
    is_causal: bool = False,
    scale: float | None = None,
    **settings: Any,
) -> Tensor:
    """:func:`fused_attention` with a sink as one more key, whose value is zeros.

    An added feature gives the key the sink's score: it is sink score / scale in each query, 1 in the sink's key, and 0
    in the other keys.
    """
    width, out_width = q.shape[-1], v.shape[-1]
    if scale is None:
        scale = width**-0.5
    if q.shape[2] == 1 and not is_causal:  # a decoding step, for which float32 keys and values are not copied
        return _plain_attention(q, k, v, attn_mask, sink_scores=sink_scores, scale=scale, **settings)
    feature = (sink_scores.to(torch.promote_types(q.dtype, sink_scores.dtype)) / scale).to(q.dtype)
    feature = F.pad(feature[:, None, None], (0, SINK_FEATURES - 1))
    q = torch.cat([q, feature.expand(*q.shape[:3], -1)], -1)
    sink_key = F.pad(k.new_ones(1), (width, SINK_FEATURES - 1)).expand(*k.shape[:2], 1, -1)
    k = F.pad(k, (0, SINK_FEATURES))
    v = F.pad(v, (0, SINK_FEATURES))
    # The sink comes last. If causal, it comes first, since the kernel hides later keys, and so does an unused query.
    ahead = int(is_causal)
    q = F.pad(q, (0, 0, ahead, 0))
    v = F.pad(v, (0, 0, ahead, 1 - ahead))
    k = torch.cat([sink_key, k] if is_causal else [k, sink_key], 2)
    if attn_mask is not None:
        attn_mask = F.pad(attn_mask, (0, 1), value=float(attn_mask.dtype == torch.bool))  # the sink is visible
    out = fused_attention(q, k, v, attn_mask=attn_mask, is_causal=is_causal, scale=scale, **settings)
    return out[:, :, ahead:, :out_width]


def _plain_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None,
    is_causal: bool = False,
    dropout_p: float = 0.0,
    scale: float | None = None,
    sink_scores: Tensor | None = None,
) -> Tensor:
    """:func:`fused_attention` in plain operations. Queries without a visible key give zeros."""
    grouped = q.unflatten(1, (k.shape[1], -1)).flatten(2, 3)  # the queries of all heads that share a key head
    if scale is None:
        scale = q.shape[-1] ** -0.5
    scores = products(grouped, k).view(*q.shape[:3], k.shape[2]) * scale
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if attn_mask is not None and attn_mask.dtype != torch.bool:
        scores, attn_mask = scores + attn_mask, None
    weights = F.dropout(masked_softmax(scores, attn_mask, sink_scores), dropout_p).to(v.dtype)
    return (weights.view(*grouped.shape[:3], k.shape[2]) @ v).view(*q.shape[:3], v.shape[3])


def groups_are_fused(k: Tensor, v: Tensor, attn_mask: Tensor | None) -> bool:
    """Whether a fused kernel supports grouped heads. The CPU's does; for other devices, the rule is that of
    transformers' ``use_gqa_in_sdpa``."""
    return k.device.type == "cpu" or (attn_mask is None and k.shape[-1] == v.shape[-1] <= 256)


def index_grid(
    batch: int, heads: int, q_len: int, kv_len: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Broadcastable ``b, h, q_idx, kv_idx`` for mask and score functions. The queries are the last ``q_len``
    positions."""
    b, h = torch.arange(batch, device=device), torch.arange(heads, device=device)
    q_idx = torch.arange(kv_len - q_len, kv_len, device=device)
    return (
        b.view(-1, 1, 1, 1),
        h.view(1, -1, 1, 1),
        q_idx.view(1, 1, -1, 1),
        torch.arange(kv_len, device=device).view(1, 1, 1, -1),
    )


def grid_of(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """:func:`index_grid` of ``q (B, H, Nq, D)`` and ``k (B, ·, Nk, D)``."""
    return index_grid(q.shape[0], q.shape[1], q.shape[2], k.shape[2], q.device)


def repeat_heads(x: Tensor, num_heads: int) -> Tensor:
    """Repeat grouped key/value heads ``(B, H_kv, N, D)`` to ``(B, num_heads, N, D)``."""
    if x.shape[1] == num_heads:
        return x
    return x.repeat_interleave(num_heads // x.shape[1], dim=1)


def products(q: Tensor, k: Tensor) -> Tensor:
    """``q kᵀ`` in at least fp32, as in fused kernels. Half precision would round large scores to whole numbers."""
    precise = precise_dtype(q)
    with without_autocast(q):
        return q.to(precise) @ k.to(precise).transpose(-1, -2)


def masked_softmax(scores: Tensor, visible: Tensor | None, sink_scores: Tensor | None = None) -> Tensor:
    """Softmax over the last axis of ``scores (B, H, …)``, restricted to ``visible`` (broadcastable bool).

    Rows without a visible entry are zeros. The weight of a sink with ``sink_scores (H,)`` is left out of the result.
    """
    if visible is None:
        return softmax_beside(scores, sink_scores)
    lowest = torch.finfo(scores.dtype).min
    if torch.compiler.is_exporting():  # in other runtimes, adding a mask is faster than selecting
        scores = scores + torch.zeros((), dtype=scores.dtype, device=scores.device).masked_fill(~visible, lowest)
    else:
        scores = scores.masked_fill(~visible, lowest)
    return softmax_beside(scores, sink_scores) * visible


def softmax_beside(scores: Tensor, sink_scores: Tensor | None) -> Tensor:
    """Softmax over the last axis of ``scores (B, H, …)`` and the sinks, without the weights of the sinks."""
    if sink_scores is None:
        return scores.softmax(-1)
    sinks = sink_scores.to(scores.dtype).view(-1, *[1] * (scores.dim() - 2))
    return torch.cat([scores, sinks.expand(*scores.shape[:-1], 1)], -1).softmax(-1)[..., :-1]


def unit_stride(x: Tensor) -> Tensor:
    """``x`` with stride 1 in its last axis, which kernels assume. Copied only if necessary."""
    return x if x.stride(-1) == 1 else x.contiguous()


def at_least_fp32(x: Tensor) -> Tensor:
    """``x`` in fp32, or in fp64 if it is."""
    return x.to(precise_dtype(x))


def dtype_in_attention(x: Tensor) -> torch.dtype:
    """The dtype of ``x`` within scaled_dot_product_attention, which casts under autocast."""
    if not x.is_floating_point() or x.dtype == torch.float64 or x.is_meta:
        return x.dtype
    if not torch.is_autocast_enabled(x.device.type):  # autocasts(x), without the cost of a call
        return x.dtype
    return torch.get_autocast_dtype(x.device.type)


def same_dtype(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in the dtype that autocast gives attention; unchanged without autocast."""
    if not autocasts(tensors[0]):
        return tensors
    return tuple(x.to(dtype_in_attention(x)) for x in tensors)


def merged(outs: Sequence[Tensor], lses: Sequence[Tensor], sink_scores: Tensor | None = None) -> Tensor:
    """Log-sum-exp merge: the average of ``outs (…, N, D)`` with weights ``exp(lses) (…, N)``. Zeros where all ``lses``
    are -inf.

    sink_scores: ``(H,)`` for ``outs (B, H, N, D)``: scores of one more part, whose output is 0.
    """
    all_lses = [*lses]
    if sink_scores is not None:
        all_lses.append(sink_scores.to(lses[0].dtype)[:, None].expand_as(lses[0]))
    lse = torch.stack(all_lses)
    highest = lse.detach().amax(0).clamp(min=torch.finfo(lse.dtype).min)
    shares = (lse - highest).exp()
    shares = (shares / shares.sum(0).clamp(min=torch.finfo(lse.dtype).tiny)).to(outs[0].dtype)[..., None]
    total = shares[0] * outs[0]
    for share, out in zip(shares[1 : len(outs)], outs[1:], strict=True):
        total = torch.addcmul(total, share, out)
    return total


def divided(total: Tensor, weight: Tensor) -> Tensor:
    """``total / weight``, or 0 where ``|weight|`` is below the smallest normal number."""
    if no_fused_kernels() is not None:
        return total * inverse_of(weight)
    return _Divided.apply(total, weight)


class _Divided(torch.autograd.Function):
    """:func:`divided` with a backward pass that needs only the quotient and the weight."""

    @staticmethod
    def forward(ctx: Any, total: Tensor, weight: Tensor) -> Tensor:
        out = total * inverse_of(weight)
        ctx.save_for_backward(out, weight)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        out, weight = ctx.saved_tensors
        grad = grads[0] * inverse_of(weight)
        return grad, -(grad * out).sum(-1, keepdim=True)


def inverse_of(weight: Tensor) -> Tensor:
    """``1 / weight``, or 0 where ``|weight|`` is below the smallest normal number."""
    empty = weight.abs() < torch.finfo(weight.dtype).tiny
    return weight.masked_fill(empty, 1.0).reciprocal().masked_fill(empty, 0.0)
