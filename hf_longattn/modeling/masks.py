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
    """The padding mask ``(B, N)`` bool, True = real, of a mask ``(B, 1, 1, N)`` with one row for all queries.

    ``None`` if all tokens are real. The mask itself if it does more than hide tokens; a graph cannot check this, and
    takes it to hide tokens only.
    """
    if not in_graph() and not only_hides(mask):
        return mask
    real = ~hidden_pairs(mask)[:, 0, 0]
    return None if not in_graph() and bool(real.all()) else for_one_pass(real)


def check_padding(
    mask: Tensor, batch: int, q_length: int, kv_length: int, q_offset: int | Tensor, kv_offset: int
) -> None:
    """Raise :class:`InputError` if a padding mask ``(B, N)`` does not have a column for each token of the call,
    including tokens in the cache.

    The mask may also be as wide as a static cache, if it hides the slots after the last token. Without a cache,
    transformers takes the mask's width for the number of keys, so nothing can be compared here; the attention function
    compares the mask with the keys. Numbers that only an accelerator or a graph knows are not checked.
    """
    width = mask.shape[-1]
    if width == kv_length + kv_offset or in_graph():
        check_size(mask, batch, width)
    elif not isinstance(q_offset, Tensor) or not accelerator.accelerated(q_offset):
        tokens = int(q_offset) + q_length
        hides_the_rest = width > tokens and not bool(mask[:, tokens:].any())
        check_size(mask, batch, width if hides_the_rest else tokens)


def check_size(mask: Tensor, batch: int, tokens: int) -> None:
    """Raise :class:`InputError` if a mask does not have one row, or ``batch`` rows, of ``tokens`` columns."""
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
    """Raise :class:`InputError` if a four-dimensional mask does not fit ``query (B, H, Nq, D)``, or consists of
    integers, which could mean visible pairs or terms of the scores."""
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
    """A four-dimensional mask in its simplest form: a padding mask ``(batch, N)`` bool if only padding and causality
    hide pairs, ``None`` if causality alone does, otherwise a bool mask over pairs.

    A mask that does more than hide pairs is returned unchanged.

    Args:
        mask: ``(B or 1, H or 1, Nq or 1, Nk)``, bool or additive.
        batch: number of rows of the call.
        causal: whether the layer hides later keys by itself.
        keeps_pairs: whether to convert only a mask with one row for all queries to padding.
    """

    def make() -> tuple[Tensor | None, ...]:
        """A tuple with the result, empty if that is the mask itself. A cache that refers to its own key would keep the
        key alive."""
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

    # Models pass one mask to all layers, so the result is cached.
    key = ("simplified", batch, causal, keeps_pairs)
    if mask.is_inference():  # such a tensor has no version, by which BYTE_CACHE notices changed values
        result = cached_on(mask, key, make)
    else:
        result = BYTE_CACHE.of([mask], key, make, lambda _: 0)  # counts no bytes, since it is freed with the mask
    return next(iter(result), mask)


def documents_of(kwargs: dict[str, Any], shape: tuple[int, int]) -> Tensor | None:
    """Each token's document number ``(B, N)``, from the keyword ``documents``, ``seq_idx`` or ``cu_seq_lens_q``
    (FlashAttention's offsets). ``None`` without these keywords.

    Raises:
        InputError: the numbers or offsets do not fit the tokens.
    """
    documents = kwargs.get("documents")
    if documents is None:
        documents = kwargs.get("seq_idx")
    return documents_from(documents, kwargs.get("cu_seq_lens_q") if documents is None else None, shape)


def several_in_a_row(documents: Tensor) -> bool:
    """Whether some row of ``documents (B, N)`` has more than one document. True in a graph, which cannot tell."""
    return in_graph() or bool((documents[:, :1] != documents[:, -1:]).any())


def with_documents(
    mechanism: Mechanism,
    batch: Batch | None,
    dense_mask: Tensor | None,
    shape: tuple[int, int],
    causal: bool,
    kwargs: dict[str, Any],
) -> tuple[Batch | None, Tensor | None]:
    """The batch with its documents, and the mask over pairs, or ``None`` in place of a mask that only separates
    documents.

    Args:
        batch: the padding of the call.
        dense_mask: the mask over pairs ``(B or 1, H or 1, Nq or 1, Nk)``.
        shape: ``(B, N)``.
        causal: whether the layer hides later keys.
        kwargs: the keywords of the attention function.

    Raises:
        InputError: documents do not fit the tokens, or only a mask separates them and that does not suffice for the
            mechanism.
    """
    # documents that the mask separates
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
                    f"too little to hide them in every softmax, and mechanism {mechanism.name!r} with these options "
                    "counts, chooses or remembers along the whole row; fill the mask with torch.finfo(dtype).min, "
                    "pass bool, or choose for example window."
                )
    # documents that the call names
    if dense_mask is not None and in_graph():  # a graph leaves their separation to the mask
        return batch, dense_mask
    return batch_of_documents(batch, shape, kwargs), dense_mask


def batch_of_documents(batch: Batch | None, shape: tuple[int, int], kwargs: dict[str, Any]) -> Batch | None:
    """``batch`` of ``shape (B, N)``, with the documents that a call's keywords name if a row has several of them.

    Raises:
        InputError: documents do not fit the tokens.
    """
    tensors = [value for name in DOCUMENTS if isinstance(value := kwargs.get(name), Tensor)]
    if not tensors:
        return batch
    padding = None if batch is None else batch.mask

    def make() -> Batch | None:
        documents = documents_of(kwargs, shape)
        several = documents is not None and several_in_a_row(documents)
        return Batch.of(padding, documents if several else None)

    return cached_on(tensors[0], (shape, id(padding)), make)


def takes_masked_documents(mechanism: Mechanism, length: int, causal: bool) -> bool:
    """Whether a mask over pairs suffices to separate packed documents for ``mechanism``. It does if outputs depend on
    distances and contents of tokens, but not on their places in a row of ``length`` tokens."""
    return mechanism.capabilities.takes_score_mod and (
        not mechanism.capabilities.position_dependent or mechanism.covers(length, causal)
    )


def packing_refused(mechanism: Mechanism) -> str:
    """The error message if ``mechanism`` cannot separate packed documents by a mask alone."""
    return (
        "Several documents are packed into one row and kept apart by a mask alone (a compiled graph, or a "
        f"four-dimensional attention_mask that does more), but mechanism {mechanism.name!r} with these options "
        "counts, chooses or remembers along the whole row; pass documents (batch, tokens) or position_ids that "
        "restart, without torch.compile, or choose for example window."
    )


def globals_of_keys(global_mask: Tensor, mask: Tensor | None, q_len: int, key: Tensor) -> Tensor:
    """The global tokens among the keys, ``(B, Nk)`` bool. A sliding cache has dropped the first tokens.

    Args:
        global_mask: the ``global_attention_mask (B, tokens seen)``.
        mask: the call's mask, whose last axis is the tokens seen.
        q_len: number of queries.
        key: ``(B, H_kv, Nk, D)``.

    Raises:
        InputError: ``global_mask`` does not have one column for each token of ``mask``, or lacks columns for keys.
    """
    batch, kv_len = key.shape[0], key.shape[2]
    tokens = kv_len if mask is None else mask.shape[-1]
    covers_keys = global_mask.dim() == 2 and global_mask.shape[0] == batch and global_mask.shape[1] >= kv_len
    # without a mask, a call with a cache does not say how many tokens were seen
    tokens_known = mask is not None or q_len == kv_len
    if not covers_keys or (tokens_known and global_mask.shape[1] != tokens):
        raise InputError(
            f"global_attention_mask has shape {tuple(global_mask.shape)}, "
            f"but must be (batch, tokens) = {(batch, tokens)} with 1 for global tokens."
        )
    first = global_mask.shape[1] - kv_len
    return cached_on(global_mask, ("globals", first), lambda: for_one_pass(global_mask[:, first:] != 0))


def score_terms(
    mask: Tensor | None, bias: Tensor | ScoreMod | None, softcap: float | None, query: Tensor, kv_len: int | Tensor
) -> ScoreMod | None:
    """One ``score_mod`` that applies ``softcap``, then a ``bias`` that is itself a ``score_mod``, then ``mask``, then
    a ``bias`` that is a tensor. ``None`` without any of them.

    Args:
        mask: over pairs, ``(B or 1, H or 1, Nq or 1, Nk)``, bool (True = visible) or additive.
        bias: the position bias of a model: a tensor like an additive mask, or a ``score_mod``.
        softcap: bound of the scores by tanh.
        query: ``(B, H, Nq, D)``.
        kv_len: number of tokens up to the last query. The result's ``q_idx`` and ``kv_idx`` count all of them.
    """
    bias_mod = None if isinstance(bias, Tensor) else bias
    if mask is None and softcap is None and bias_mod is bias:
        return bias_mod
    q_len = query.shape[2]
    cap = None if softcap is None else device_scalar(softcap, query.device)
    # built once, because engines may call it repeatedly
    inner = None if bias_mod is None else as_term(bias_mod).written_out
    tensor_terms = [term for term in (mask, bias) if isinstance(term, Tensor)]

    def score_mod(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        if cap is not None:
            score = cap * torch.tanh(score / cap)
        if inner is not None:
            score = inner(score, b, h, q_idx, kv_idx)
        row = (q_idx - (kv_len - q_len)).clamp(0, q_len - 1)  # the query's row in a tensor
        for term in tensor_terms:
            # an axis of size 1 has one entry for all indices
            at = [
                index.clamp(max=size - 1)
                for index, size in zip((b, h, row, kv_idx.clamp(min=0)), term.shape, strict=True)
            ]
            value = term[at[0], at[1], at[2], at[3]]
            if term.dtype == torch.bool:
                score = torch.where(value, score, torch.finfo(score.dtype).min)
            else:
                score = score + value
        return score

    return score_mod
