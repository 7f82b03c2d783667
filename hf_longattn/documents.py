"""Packed documents in a call's arguments: numbers, offsets, or a dense mask."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .engines.common.batch import Batch, in_graph
from .errors import MaskError


def documents_from(documents: Tensor | None, cu_seqlens: Tensor | None, shape: tuple[int, int]) -> Tensor | None:
    """Return ``documents (B, N)``, checked, or build them from the offsets ``cu_seqlens``. ``None`` without either.

    Args:
        cu_seqlens: ``(documents + 1,)``, where each document begins in one row of N tokens, from 0 to N, as in flash-attn.
        shape: ``(B, N)``.
    Raises:
        MaskError: they do not fit the tokens, ``cu_seqlens`` does not ascend, or both are given.
    """
    if documents is None and cu_seqlens is None:
        return None
    if documents is not None and cu_seqlens is not None:
        raise MaskError("documents and cu_seqlens say the same thing; pass one of them.")
    if documents is not None:
        if not isinstance(documents, Tensor) or tuple(documents.shape) != shape or documents.is_floating_point():
            raise MaskError(
                f"documents {shape_in_words(documents)}, but must be integers "
                f"(batch, tokens) = {shape}, the number of each token's document, ascending along each row."
            )
        return documents.long()
    assert cu_seqlens is not None
    batch, length = shape
    fits = isinstance(cu_seqlens, Tensor) and cu_seqlens.dim() == batch == 1 < len(cu_seqlens) and not cu_seqlens.is_floating_point()
    ends = cu_seqlens.tolist() if fits and not in_graph() else None
    if not fits or (ends is not None and (ends[0] != 0 or ends[-1] != length or sorted(ends) != ends)):
        raise MaskError(
            f"cu_seqlens must be ascending offsets from 0 to the number of tokens, {length}, in a batch of one row, for example "
            f"[0, {length // 2}, {length}], but {shape_in_words(cu_seqlens) if ends is None else f'is {ends}'} for a batch of {batch}; "
            "for several rows pass documents (batch, tokens)."
        )
    places = torch.arange(length, device=cu_seqlens.device)
    return torch.bucketize(places, cu_seqlens[1:-1].long(), right=True)[None]


def shape_in_words(x: Any) -> str:
    """A clause with the shape and dtype of a tensor, or another argument's type."""
    return f"has shape {tuple(x.shape)} and dtype {x.dtype}" if isinstance(x, Tensor) else f"is a {type(x).__name__}"


def documents_in_mask(mask: Tensor) -> Tensor | None:
    """The documents ``(B, N)`` in a dense mask, numbered from 0. Tokens of different documents do not see each other.

    For packed rows (``position_ids`` that restart), transformers passes such a mask to a model without a Long class.

    Args:
        mask: ``(B, 1 or H, Nq, Nk)``, bool (True = visible) or additive.
    Returns:
        ``None`` if every row is one document, or if Nq is not Nk.
    """
    if mask.shape[2] != mask.shape[3]:
        return None
    seen = _visible_pairs(mask)
    if bool(seen.diagonal(-1, 1, 2).all()):  # every token sees the one before it
        return None
    length, sees_any = seen.shape[2], seen.any(-1)
    first = torch.where(sees_any, seen.to(torch.uint8).argmax(-1), length)
    last = torch.where(sees_any, length - 1 - seen.flip(-1).to(torch.uint8).argmax(-1), -1)
    earliest = first.flip(-1).cummin(-1).values.flip(-1)[:, 1:]  # first key seen by any query at or after the border
    latest = last.cummax(-1).values[:, :-1]  # last key seen by any query before the border
    border = torch.arange(1, length, device=mask.device)
    borders = (earliest >= border) & (earliest < length) & (latest < border) & (latest >= 0)
    return F.pad(borders.cumsum(1), (1, 0)) if bool(borders.any()) else None


def batch_of_mask(mask: Tensor, documents: Tensor, causal: bool) -> Batch | None:
    """The batch equivalent to a dense mask, given its :func:`documents_in_mask`. ``None`` if documents, padding and causality alone do not
    give this mask."""
    seen = _visible_pairs(mask)
    if mask.shape[1] != 1 or (mask.dtype != torch.bool and bool((seen[:, None] & (mask != 0)).any())):
        return None
    real = seen.any(1)
    expected = (documents[:, :, None] == documents[:, None, :]) & real[:, None, :]
    expected = expected.tril() if causal else expected
    if not bool(((seen == expected) | ~real[:, :, None]).all()):
        return None
    return Batch(None if bool(real.all()) else real, documents)


def _visible_pairs(mask: Tensor) -> Tensor:
    """Pairs that a dense mask leaves visible in some head, ``(B, N, N)`` bool."""
    return (mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2).any(1)


def positions_in(documents: Tensor) -> Tensor:
    """Position of every token in its document, for ``documents (B, N)``."""
    places = torch.arange(documents.shape[1], device=documents.device).expand(documents.shape)
    begins = F.pad(documents[:, 1:] != documents[:, :-1], (1, 0), value=True)
    return places - torch.where(begins, places, 0).cummax(1).values
