"""Reads a dense mask: which pairs it hides, and whether documents, padding and causality alone give it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .batch import Batch

HIDDEN = 1000.0
"""A pair is hidden if an additive mask lowers its score by this much more than another pair of its query. The softmax
weight is then zero in every dtype: exp(-1000) is zero in fp64, too. The usual fills are between -1e4 and the lowest
number of a dtype."""
LOWERED = 5.0
"""Minimum amount by which a mask lowers scores between documents that count as separate, even if not hidden.
Untuned."""


def hidden_pairs(mask: Tensor, least: float = HIDDEN) -> Tensor:
    """The pairs that a mask hides, bool, with the shape ``(…, Nq or 1, Nk)`` of the mask. No other code decides
    whether a pair is hidden.

    A pair is hidden if a softmax gives it no weight beside another pair of its row. A row with only low values is
    hidden completely, unless the values differ a little, as in a bias that is low everywhere. NaN hides nothing.

    Args:
        mask: bool (True = visible), or floats that are added to the scores.
        least: minimum amount by which a hidden pair is lowered.
    """
    if mask.dtype == torch.bool:
        return ~mask
    highest = mask.amax(-1, keepdim=True)
    near_highest = ~(mask <= highest - least)
    only_low = (highest <= -least) & ~(near_highest & (mask < highest)).any(-1, keepdim=True)
    return ~near_highest | only_low


def only_hides(mask: Tensor) -> bool:
    """Whether a mask hides pairs and leaves all other scores unchanged. False if the mask needs gradients. Waits for
    the device."""
    if mask.dtype == torch.bool:
        return True
    if mask.requires_grad:
        return False
    return not bool(((mask != 0) & ~hidden_pairs(mask)).any())


def documents_in_mask(mask: Tensor) -> Tensor | None:
    """The document of each token by a dense mask: numbers ``(B, N)`` from 0. Tokens of different documents do not see
    each other.

    For packed rows, whose ``position_ids`` restart, transformers passes such a mask to a model without a Long class.

    Args:
        mask: ``(B, 1 or H, Nq, Nk)``, bool (True = visible) or additive.
    Returns:
        ``None`` if every batch row is one document, or if Nq is not Nk.
    """
    if mask.shape[2] != mask.shape[3]:
        return None
    seen = ~hidden_pairs(mask).all(1)
    if bool(seen.diagonal(-1, 1, 2).all()):  # every token sees the one before it
        return None
    length = seen.shape[2]
    sees_any = seen.any(-1)
    # The first and the last key that each query sees, (B, N).
    first = torch.where(sees_any, seen.to(torch.uint8).argmax(-1), length)
    last = torch.where(sees_any, length - 1 - seen.flip(-1).to(torch.uint8).argmax(-1), -1)
    earliest = first.flip(-1).cummin(-1).values.flip(-1)[:, 1:]  # first key seen by any query at or after the border
    latest = last.cummax(-1).values[:, :-1]  # last key seen by any query before the border
    # A document begins at a token if no later query sees an earlier key, and no earlier query sees a later key.
    border = torch.arange(1, length, device=mask.device)
    borders = (earliest >= border) & (earliest < length) & (latest < border) & (latest >= 0)
    if not bool(borders.any()):
        return None
    return F.pad(borders.cumsum(1), (1, 0))


def batch_of_mask(mask: Tensor, documents: Tensor | None, causal: bool) -> Batch | None:
    """The batch whose documents and padding, with ``causal``, hide the same pairs as a dense mask. ``None`` if no
    batch does.

    documents: the result of :func:`documents_in_mask`.
    """
    if mask.shape[1] != 1 or mask.shape[2] != mask.shape[3] or not only_hides(mask):
        return None
    seen = ~hidden_pairs(mask)[:, 0]
    real = seen.any(1)
    expected = real[:, None, :].expand(seen.shape)
    if documents is not None:
        expected = expected & (documents[:, :, None] == documents[:, None, :])
    if causal:
        expected = expected.tril()
    if not bool(((seen == expected) | ~real[:, :, None]).all()):
        return None
    if bool(real.all()):
        return Batch(None, documents)
    if documents is not None:
        real = real.expand(documents.shape)
    return Batch(real, documents)


def shows_later_keys(mask: Tensor) -> bool:
    """Whether a mask ``(…, N, N)`` that only hides pairs lets a query see a later key, as in a bidirectional
    prefix."""
    return mask.shape[2] == mask.shape[3] and bool((~hidden_pairs(mask)).triu(1).any()) and only_hides(mask)


def lowers_sequences(mask: Tensor, causal: bool) -> bool:
    """Whether an additive mask lowers scores between documents, or to left padding, by at least :data:`LOWERED`,
    without hiding them."""
    if mask.dtype == torch.bool or mask.shape[2] != mask.shape[3]:
        return False
    pairs = ~hidden_pairs(mask, LOWERED)
    if documents_in_mask(pairs) is not None:
        return True
    batch = batch_of_mask(pairs, None, causal)
    return batch is not None and batch.mask is not None and any(span.start > 0 for span in batch.sequences)
