"""The block-sparse engine: softmax attention over a band and global tokens, on every device."""

from __future__ import annotations

import torch
from torch import Tensor

from . import accelerator
from .blockwise import blockwise_attention
from .call import AttentionCall, DispatchContext, PathName, Pattern, clear_padding
from .cpu.distance_band import distance_attention
from .cpu.kernels import drops_in_tiles, masked_attention, shares_mask, visible_mask
from .cpu.softmax import attend_parts
from .cuda.flash_band import flash_band, flash_globals
from .cuda.flex import flex_band
from .dense import dense_attention, dtype_in_attention, repeat_heads, same_dtype
from .dispatch import first_path, try_path
from .score_terms import ColumnTerm, DistanceBias, DistanceTerm
from .sequences import split


def block_sparse_attention(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, call: AttentionCall) -> Tensor:
    """Softmax attention over the keys that are visible by ``pattern``.

    Args:
        q, k, v: ``(B, H, Nq, D)`` and ``(B, H_kv, Nk, D)``; the queries are the last Nq positions.
        call: the pattern's ``causal`` replaces the call's. ``global_mask`` is ignored if the pattern has no globals.
    Returns:
        ``(B, H, Nq, D)``. Outputs at padding are finite but meaningless.
    """
    q_len, kv_len = q.shape[2], k.shape[2]
    if not q.is_meta and torch.is_autocast_enabled(q.device.type):  # autocasts(q), without the cost of a call
        q, k, v = same_dtype(q, k, v)
    global_mask = call.global_mask if pattern.has_globals else None
    if call.causal != pattern.causal or global_mask is not call.global_mask:
        call = call.replace(causal=pattern.causal, global_mask=global_mask)
    context = DispatchContext.of(q, k, call, pattern=pattern)
    flash = flash_band if global_mask is None else flash_globals
    kernels = {
        "flash": lambda: flash(q, k, v, pattern, call),
        "flex": lambda: flex_band(q, k, v, pattern, call.written_out()),
    }
    # Packed documents: one kernel call for all of them, or one call of this function for each.
    if call.batch is not None and call.batch.documents is not None:
        out, _ = try_path("documents of a band", context, kernels)
        if out is not None:
            return out
        return split(lambda q, k, v, call: block_sparse_attention(q, k, v, pattern, call), q, k, v, call)
    # A kernel of the device runs the call as it is. The other paths take keys and values for each query head.
    out, path = try_path("band", context, kernels)
    if out is not None:
        return out
    if k.shape[1] != q.shape[1]:
        k, v = repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1])
    if path in ("cpu-band", "cpu-distances"):
        return _on_cpu(path, q, k, v, pattern, call)
    q, k, v, call = clear_padding(q, k, v, call)
    if call.score_mod is not None:
        call = call.written_out()
    if path == "dense":
        return dense_attention(q, k, v, call)
    if path == "plain":
        return blockwise_attention(q, k, v, pattern, call)
    # The path "dense-masked": with an additive mask that calls share, or with a mask for this call.
    if context.device == "cpu" and shares_mask(q_len, call):
        tokens = None if global_mask is None else global_mask[0].nonzero()[:, 0]
        dtype = torch.float32 if q.dtype == torch.float16 else q.dtype  # MASKED overflows float16
        mask = visible_mask(q_len, kv_len, kv_len - q_len, pattern, tokens, dtype)
        return masked_attention(q, k, v, mask, pattern.causal and q_len == kv_len, call.scale)
    return dense_attention(q, k, v, call, mask_mod=pattern.visible_mod(global_mask))


def _on_cpu(path: PathName, q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, call: AttentionCall) -> Tensor:
    """The output of a kernel for bands on the CPU. These kernels take padding as it is."""
    kv_len = k.shape[2]
    if path == "cpu-distances":
        distance_term = DistanceTerm.of(call.term, q, k)
        assert distance_term is not None
        return distance_attention(q, k, v, distance_term, pattern, call)
    term, learned, ahead = call.score_mod, [], 0
    if isinstance(term, DistanceBias | ColumnTerm):
        learned = [term.table]
    if isinstance(term, DistanceBias):
        ahead = term.ahead
    numbers = (
        min(pattern.left, kv_len),
        min(pattern.right, kv_len),
        int(pattern.causal),
        int(pattern.global_rows),
        ahead,
    )
    fixed = call.key_mask, call.global_mask
    return attend_parts(
        "band", q, k, v, call.scale_for(q.shape[-1]), learned, fixed, numbers, call.dropout, call.sink_scores
    )


def why_not_one_call(q: Tensor, k: Tensor, pattern: Pattern, call: AttentionCall) -> str | None:
    """Why no single kernel call computes a band within each of the packed documents. ``None`` if one does."""
    context = DispatchContext.of(q, k, call, dtype_in_attention(q), pattern=pattern)
    path, refused = first_path("documents of a band", context)
    return refused[-1][1] if path == "split" else None


def full_attention(q: Tensor, k: Tensor, v: Tensor, call: AttentionCall, cross: bool = False) -> Tensor:
    """Softmax attention over all keys. If a fused kernel supports the score term, memory is linear in N.

    cross: whether queries and keys come from different sequences.
    """
    pattern = Pattern.everything(call.causal)
    densely = "dense" in call.term.engines
    if torch.compiler.is_exporting() and not call.term.by_distance_alone:
        densely = True
    if call.batch is not None and call.score_mod is None and accelerator.accelerated(q):
        # For padding or documents, the flash-attention operator needs no N×N mask.
        context = DispatchContext.of(q, k, call, dtype_in_attention(q), pattern=pattern)
        densely = densely and call.batch.documents is None and first_path("band", context)[0] != "flash"
    if densely and (cross or not (call.dropout and drops_in_tiles(DispatchContext.of(q, k, call)))):
        q, k, v, call = clear_padding(q, k, v, call)
        return dense_attention(q, k, v, call.written_out())
    return block_sparse_attention(q, k, v, pattern, call.replace(global_mask=None))
