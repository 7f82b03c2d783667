"""CUDA engine: attention to selected blocks of keys by one call of compiled flex_attention.

A block of :data:`BAND_BLOCK` queries visits every key block that any of its queries selects. The mask looks up which queries select it.
Neighbouring queries select similar blocks, so most queries see the blocks that are visited. A visited block costs no more than in full
attention. The selection is a boolean table ``(N, blocks)`` for each head. The host reads no values from the device.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..common.call import AttentionCall, DispatchContext, selection_mask
from ..common.dense import same_dtype
from . import flex
from .flex import BAND_BLOCK, in_blocks, packed
from .flex_kernel import NoKernel, kind_of
from .flex_kernel import why_not as why_no_kernel

MAX_TABLE_TOKENS = 1 << 15
"""Maximum number of keys for this path. Longer sequences visit many blocks in which no pair is visible. Untuned."""


def why_not(context: DispatchContext) -> str | None:
    """Why this path does not run, as a clause. ``None`` if it may run."""
    if context.kv_len > MAX_TABLE_TOKENS:
        return f"beyond {MAX_TABLE_TOKENS:,} tokens it visits many blocks without a visible pair"
    if context.call.sink_scores is not None:
        return "it merges no sinks"
    return why_no_kernel(context) or ("its block lists need values, which a graph lacks" if torch.compiler.is_compiling() else None)


def flex_block_selected(q: Tensor, k: Tensor, v: Tensor, chosen: Tensor, block_size: int, call: AttentionCall) -> Tensor:
    """The output of :func:`hf_longattn.engines.block_selected.block_selected_attention`, without dropout.

    Raises:
        NoKernel: ``block_size`` does not fit the kernel's blocks, or this machine has no such kernel.
    """
    if BAND_BLOCK % block_size and block_size % BAND_BLOCK:
        raise NoKernel(f"blocks of {block_size} tokens do not fit the kernel's blocks of {BAND_BLOCK}")
    q, k, v = same_dtype(q, k, v)
    length, key_mask, score_mod, causal = q.shape[2], call.key_mask, call.score_mod, call.causal
    own_block = torch.arange(length, device=q.device)[:, None] // block_size
    selected = selection_mask(chosen, own_block, -(-length // block_size))  # (B, H, N, blocks)
    touched = _touched(selected, block_size, causal, key_mask)
    places = torch.arange(touched.shape[3], device=q.device)
    by_query, by_key = ((packed(x, places), None) for x in (touched, touched.mT))

    def mask_mod(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        seen = selected[b, h, q_idx, kv_idx // block_size]
        if causal:
            seen = seen & (kv_idx <= q_idx)
        return seen if key_mask is None else seen & key_mask[b, kv_idx]

    mask = flex.block_mask((length, length), BAND_BLOCK, mask_mod, by_query=by_query, by_key=by_key)
    kind = "chosen blocks", causal, key_mask is None, kind_of(score_mod)
    out: Tensor = flex.fused_flex(kind, q, k, v, score_mod=score_mod, block_mask=mask, scale=call.scale_for(q.shape[-1]))
    return out


def _touched(selected: Tensor, block_size: int, causal: bool, key_mask: Tensor | None) -> Tensor:
    """Whether any pair of a query block and a key block of the kernel may be visible, ``(B, H, n, n)`` bool for n blocks."""
    touched = F.pad(selected, (0, 0, 0, -selected.shape[2] % BAND_BLOCK)).unflatten(2, (-1, BAND_BLOCK)).any(3)
    if block_size < BAND_BLOCK:
        parts = BAND_BLOCK // block_size
        touched = F.pad(touched, (0, -touched.shape[3] % parts)).unflatten(3, (-1, parts)).any(-1)
    else:
        touched = touched.repeat_interleave(block_size // BAND_BLOCK, 3)[..., : touched.shape[2]]
    touched = touched.tril() if causal else touched
    return touched if key_mask is None else touched & in_blocks(key_mask).any(-1)[:, None, None]
