"""Interprets the masks of an attention call: padding, packed documents, query-key pairs, global tokens and score
terms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..engines import accelerator
from ..engines.batch import Batch, cached_on, documents_from, for_one_pass, in_graph, shape_in_words
from ..engines.byte_cache import BYTE_CACHE
from ..engines.dense_masks import (
    batch_of_mask,
    documents_in_mask,
    hidden_pairs,
    lowers_sequences,
    only_hides,
    shows_later_keys,
)
from ..engines.score_terms import ScoreMod, as_term, device_scalar
from ..errors import InputError
from ..mechanisms.common.base import Mechanism
from .keywords import DOCUMENTS


def filled_columns(batch: int, width: int, total: Tensor, attention_mask: Tensor | None) -> Tensor:
    """The padding mask ``(B, width)`` of a static cache with ``total`` tokens, False in empty slots.

    Raises:
        InputError: the text is longer than the cache.
    """
    filled = torch.arange(width, device=total.device) < total
    if attention_mask is None:
        return filled.expand(batch, -1)
    if attention_mask.shape[1] > width:
        raise InputError(
            f"The text has {attention_mask.shape[1]} tokens, but its static cache has room for {width}; "
            f"make it with StaticCache(config=model.config, max_cache_len={attention_mask.shape[1]}) or more."
        )
    return filled & nn.functional.pad(attention_mask.bool(), (0, width - attention_mask.shape[1]))


def padding_of_row(mask: Tensor) -> Tensor | None:
    """The padding ``(B, N)`` bool, True = real, of a mask ``(B, 1, 1, N)``. ``None`` if all tokens are real. Returns
    the mask itself if it does more than hide tokens. A graph cannot check this."""
    if not in_graph() and not only_hides(mask):
        return mask
    real = ~hidden_pairs(mask)[:, 0, 0]
    return None if not in_graph() and bool(real.all()) else for_one_pass(real)


def check_padding(
    mask: Tensor, batch: int, q_length: int, kv_length: int, q_offset: int | Tensor, kv_offset: int
) -> None:
    """Raise :class:`InputError` if a mask ``(B, N)`` is for other tokens than a call's: those in the cache and the new
    ones.

    Without a cache, transformers takes the mask's width as the number of keys, so the attention function compares it
    with the keys. The mask may be as wide as a static cache, and hide the slots after the last token. What only an
    accelerator or a graph knows is not checked.
    """
    width = mask.shape[-1]
    if width == kv_length + kv_offset or in_graph():
        check_size(mask, batch, width)
    elif not isinstance(q_offset, Tensor) or not accelerator.accelerated(q_offset):
        tokens = int(q_offset) + q_length
        hides_the_rest = width > tokens and not bool(mask[:, tokens:].any())
        check_size(mask, batch, width if hides_the_rest else tokens)


def check_size(mask: Tensor, batch: int, tokens: int) -> None:
    """Raise :class:`InputError` if a mask has rows or columns for another batch, or another number of ``tokens``."""
    if mask.shape[0] not in (1, batch):
        raise InputError(
            f"attention_mask has {mask.shape[0]} rows for a batch of {batch}; pass one row for each text, or one for "
            "all."
        )
    if mask.shape[-1] != tokens:
        raise InputError(
            f"attention_mask has {mask.shape[-1]} columns, but the call has {tokens} tokens, those in the cache "
            "included; pass one column for each token, with 1 for real tokens."
        )


def check_pairs(mask: Tensor, query: Tensor) -> None:
    """Raise :class:`InputError` if a four-dimensional mask does not fit ``query``, or has integers, which could mean
    bool or additive."""
    batch, heads, q_len = query.shape[:3]
    if (
        mask.shape[0] not in (batch, 1)
        or mask.shape[1] not in (heads, 1)
        or mask.shape[2] not in (q_len, 1)
        or not (mask.is_floating_point() or mask.dtype == torch.bool)
    ):
        raise InputError(
            f"The four-dimensional attention_mask {shape_in_words(mask)}, but must be (batch, 1 or heads, queries, "
            f"keys) for {batch} rows and {heads} heads, bool (True = visible) or floats that are added to the scores, "
            f"for {q_len} queries."
        )


def simplified_mask(mask: Tensor, batch: int, causal: bool, *, keeps_pairs: bool = False) -> Tensor | None:
    """A four-dimensional mask in a simpler form: padding ``(batch, N)`` if only padding and causality hide pairs, else
    a bool mask.

    Masks that do more than hide pairs are returned unchanged. With ``keeps_pairs``, only a mask with one row for all
    queries becomes padding.
    """

    def make() -> tuple[Tensor | None, ...]:
        """The result, or () for the mask itself: a cache that refers to it would keep it alive."""
        simplified: Tensor | None = mask
        if mask.shape[1:3] == (1, 1):
            simplified = padding_of_row(mask)
        elif only_hides(mask):
            as_batch = batch_of_mask(mask, None, causal)
            if as_batch is not None and (as_batch.mask is None or not keeps_pairs):
                simplified = as_batch.mask
            elif mask.dtype != torch.bool:
                simplified = for_one_pass(~hidden_pairs(mask))
        if simplified is mask:
            return ()
        if simplified is not None and simplified.dim() == 2:
            simplified = for_one_pass(simplified.expand(batch, -1))
        return (simplified,)

    # Models pass one mask to all layers. In inference mode, a change of its values would not be noticed.
    key = ("simplified", batch, causal, keeps_pairs)
    if mask.is_inference():
        result = cached_on(mask, key, make)
    else:
        result = BYTE_CACHE.of([mask], key, make, lambda _: 0)  # freed with the mask
    return next(iter(result), mask)


def documents_of(kwargs: dict[str, Any], shape: tuple[int, int]) -> Tensor | None:
    """Each token's document number ``(B, N)``, from ``documents``, ``seq_idx`` or FlashAttention's offsets; ``None``
    without these.

    Raises:
        InputError: the numbers or offsets do not fit the tokens.
    """
    documents = kwargs.get("documents")
    if documents is None:
        documents = kwargs.get("seq_idx")
    return documents_from(documents, kwargs.get("cu_seq_lens_q") if documents is None else None, shape)


def several_in_a_row(documents: Tensor) -> bool:
    """Whether a row of ``documents (B, N)`` has several. A graph cannot tell, so any row may."""
    return in_graph() or bool((documents[:, :1] != documents[:, -1:]).any())


def with_documents(
    mechanism: Mechanism,
    batch: Batch | None,
    dense_mask: Tensor | None,
    shape: tuple[int, int],
    causal: bool,
    kwargs: dict[str, Any],
) -> tuple[Batch | None, Tensor | None]:
    """The batch with its documents, and the mask; ``None`` if the documents replace it completely.

    Raises:
        InputError: documents do not fit the tokens, or only a mask separates them and that does not suffice for the
            mechanism.
    """
    if dense_mask is not None and not in_graph():
        if causal and cached_on(dense_mask, "ahead", lambda: shows_later_keys(dense_mask)):
            raise InputError(
                "The four-dimensional attention_mask shows later keys to earlier queries, but this layer is causal "
                "and hides them; hide them in the mask, too, or load the model without mechanisms."
            )
        documents = cached_on(dense_mask, "documents", lambda: documents_in_mask(dense_mask))
        if documents is not None:
            masked = cached_on(
                dense_mask, ("batch", causal), lambda: batch_of_mask(dense_mask, documents.expand(shape), causal)
            )
            if masked is not None:
                return masked, None
        if not takes_masked_documents(mechanism, shape[1], causal):
            if documents is not None:
                raise InputError(packing_refused(mechanism))
            if cached_on(dense_mask, ("lowered", causal), lambda: lowers_sequences(dense_mask, causal)):
                raise InputError(
                    "A four-dimensional attention_mask lowers the scores between documents, or to left padding, by "
                    "too little to hide them "
                    f"in every softmax, and mechanism {mechanism.name!r} with these options counts, chooses or "
                    "remembers along the whole row; fill the mask with torch.finfo(dtype).min, pass bool, or choose "
                    "for example window."
                )
    if dense_mask is not None and in_graph():  # the mask also separates the documents
        return batch, dense_mask
    return batch_of_documents(batch, shape, kwargs), dense_mask


def batch_of_documents(batch: Batch | None, shape: tuple[int, int], kwargs: dict[str, Any]) -> Batch | None:
    """``batch`` of ``shape (B, N)`` with the documents of a call's keywords, if there are several in a row.

    Raises:
        InputError: documents do not fit the tokens.
    """
    borders = next((value for name in DOCUMENTS if isinstance(value := kwargs.get(name), Tensor)), None)
    if borders is None:
        return batch
    padding = None if batch is None else batch.mask

    def make() -> Batch | None:
        documents = documents_of(kwargs, shape)
        several = documents is not None and several_in_a_row(documents)
        return Batch.of(padding, documents if several else None)

    return cached_on(borders, (shape, id(padding)), make)


def takes_masked_documents(mechanism: Mechanism, length: int, causal: bool) -> bool:
    """Whether a mask over pairs suffices to separate documents, because outputs depend only on distances and
    contents."""
    return mechanism.capabilities.takes_score_mod and (
        not mechanism.capabilities.position_dependent or mechanism.covers(length, causal)
    )


def packing_refused(mechanism: Mechanism) -> str:
    """The error message if ``mechanism`` cannot separate packed documents by a mask alone."""
    return (
        "Several documents are packed into one row and kept apart by a mask alone (a compiled graph, or a "
        "four-dimensional attention_mask "
        f"that does more), but mechanism {mechanism.name!r} with these options counts, chooses or remembers along the "
        "whole row; pass documents (batch, tokens) or position_ids that restart, without torch.compile, or choose for "
        "example window."
    )


def globals_of_keys(global_mask: Tensor, mask: Tensor | None, q_len: int, key: Tensor) -> Tensor:
    """A ``global_attention_mask (B, tokens seen)`` cut to the keys, ``(B, Nk)`` bool.

    Raises:
        InputError: it lacks columns for some tokens of ``mask``, or, without a mask, for some keys.
    """
    batch, kv_len = key.shape[0], key.shape[2]
    tokens = kv_len if mask is None else mask.shape[-1]
    fits = global_mask.dim() == 2 and global_mask.shape[0] == batch and global_mask.shape[1] >= kv_len
    exactly = mask is not None or q_len == kv_len  # otherwise a cache may have dropped keys
    if not fits or (exactly and global_mask.shape[1] != tokens):
        raise InputError(
            f"global_attention_mask has shape {tuple(global_mask.shape)}, "
            f"but must be (batch, tokens) = {(batch, tokens)} with 1 for global tokens."
        )
    first = global_mask.shape[1] - kv_len
    return cached_on(global_mask, ("globals", first), lambda: for_one_pass(global_mask[:, first:] != 0))


def score_terms(
    mask: Tensor | None, bias: Tensor | ScoreMod | None, softcap: float | None, query: Tensor, kv_len: int | Tensor
) -> ScoreMod | None:
    """The ``score_mod`` of a mask over pairs and of a model's position bias and softcap, for absolute positions.
    ``None`` without these.

    Args:
        mask: ``(B or 1, H or 1, Nq or 1, Nk)``, bool (True = visible) or additive.
        bias: a tensor like an additive mask, or a ``score_mod``. A ``score_mod`` is applied after ``softcap`` and
            before tensors.
        softcap: bound of the scores by tanh.
        kv_len: number of tokens up to the last query.
    """
    change = None if isinstance(bias, Tensor) else bias
    if mask is None and softcap is None and change is bias:
        return change
    q_len = query.shape[2]
    cap = None if softcap is None else device_scalar(softcap, query.device)
    # built once, because engines may call it repeatedly
    inner = None if change is None else as_term(change).written_out
    tensor_terms = [term for term in (mask, bias) if isinstance(term, Tensor)]

    def score_mod(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        if cap is not None:
            score = cap * torch.tanh(score / cap)
        if inner is not None:
            score = inner(score, b, h, q_idx, kv_idx)
        row = (q_idx - (kv_len - q_len)).clamp(0, q_len - 1)
        for term in tensor_terms:
            at = [
                index.clamp(max=size - 1)
                for index, size in zip((b, h, row, kv_idx.clamp(min=0)), term.shape, strict=True)
            ]
            change_of_pair = term[at[0], at[1], at[2], at[3]]
            if term.dtype == torch.bool:
                score = torch.where(change_of_pair, score, torch.finfo(score.dtype).min)
            else:
                score = score + change_of_pair
        return score

    return score_mod
