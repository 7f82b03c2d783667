"""The path ``dense-masked`` on the CPU: one fused kernel call over all keys. Band and global tokens are its mask."""

from __future__ import annotations

import torch
from torch import Tensor

from ..common.batch import in_graph
from ..common.byte_cache import BYTE_CACHE
from ..common.call import AttentionCall, Pattern
from ..common.dense import unit_stride
from ..common.derivatives import no_fused_kernels, refuse_second_derivatives
from .flash import additive_mask, flash


def kept_mask(q_len: int, kv_len: int, pattern: Pattern, call: AttentionCall, dtype: torch.dtype) -> Tensor | None:
    """The cached mask of a dense call. ``None`` where it depends on more than the band and the global tokens."""
    tokens = call.global_mask
    if q_len == 1 or in_graph() or no_fused_kernels() is not None:
        return None
    if call.key_mask is not None or call.score_mod is not None or call.dropout:
        return None
    if tokens is not None and len(tokens) > 1 and not bool((tokens == tokens[:1]).all()):
        return None
    index = None if tokens is None else tokens[0].nonzero()[:, 0]
    dtype = torch.float32 if dtype == torch.float16 else dtype  # float16 has too small a range
    return visible_mask(q_len, kv_len, kv_len - q_len, pattern, index, dtype)


def masked_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, causal: bool, scale: float | None) -> Tensor:
    """One call of the CPU's fused kernel, with the mask of :func:`visible_mask`. ``causal`` lets it skip keys after a query."""
    q, k, v = (unit_stride(x) for x in (q, k, v))
    return refuse_second_derivatives(flash(q, k, v, 0.0, causal, attn_mask=mask, scale=scale)[0])


def visible_mask(q_len: int, kv_len: int, shift: int, pattern: Pattern, index: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Cached additive mask ``(1, 1, Nq, Nk)`` of the band and the global tokens at ``index``. Queries begin at position ``shift``."""
    tokens = () if index is None else tuple(index.tolist())

    def make() -> Tensor:
        chosen = torch.zeros(1, kv_len, dtype=torch.bool)
        chosen[0, list(tokens)] = True
        rows = torch.arange(shift, shift + q_len)[:, None]
        return additive_mask(~pattern.visible_mod(chosen)(0, 0, rows, torch.arange(kv_len)), dtype)[None, None]

    return BYTE_CACHE.get(("visible", q_len, kv_len, shift, pattern, tokens, dtype), make)
