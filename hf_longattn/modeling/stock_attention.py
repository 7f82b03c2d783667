"""Attention of a stock model's modules, which have no mechanism: to the keys that their mask shows."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..engines.batch import Batch, in_graph
from ..engines.block_sparse import block_sparse_attention
from ..engines.byte_cache import BYTE_CACHE, tensor_bytes
from ..engines.call import AttentionCall, Pattern
from ..engines.cpu.visible_blocks import BLOCK, VisibleBlocks, visible_block_attention
from ..engines.dense import fused_attention, masked_softmax, products, repeat_heads
from ..engines.dense_masks import hidden_pairs, only_hides
from ..engines.dispatch import OBSERVERS, choose
from ..errors import BackendError
from ..functional import check_trace, run_batch
from ..mechanisms.common.base import Mechanism
from ..mechanisms.common.options import LARGEST
from ..mechanisms.common.registry import mechanism_from
from .declared import BLOCK_PAIRS, PIECE_PAIRS, DeclaredMask, Region
from .keywords import DOCUMENTS, SINKS
from .masks import check_pairs, with_documents

FEW_QUERIES = 32
"""Maximum new tokens for one masked call over all keys. Untuned."""
MASK_EXTENDED_BY = "compressor"
"""The attribute of attention modules that append compressed keys, and scores for them to the mask (DeepSeek-V4)."""


def attend_as_declared(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | DeclaredMask | None,
    causal: bool,
    scaling: float | None,
    dropout: float,
    with_weights: bool,
    kwargs: dict[str, Any],
) -> tuple[Tensor, Tensor | None]:
    """The attention function of a stock model's ``module``: softmax attention to the keys that its mask shows.

    Without a mask, every query sees every key. Arguments, results and errors are those of
    ``longattn_attention_forward``.
    """
    q_len, kv_len = query.shape[2], key.shape[2]
    _check_mask(module, query, key, mask, causal)
    if isinstance(mask, DeclaredMask) and mask.shape[2:] != (q_len, kv_len):  # one row for all queries (BridgeTower)
        mask = mask.dense()
    region, documents = _region_of(mask, kv_len), None
    if not DOCUMENTS.isdisjoint(kwargs) and q_len == (kv_len if region is None else region.keys):
        packed, _ = with_documents(None, None, None, (query.shape[0], q_len), False, kwargs)
        if packed is not None and packed.documents is not None:
            documents = packed.documents
            if isinstance(mask, DeclaredMask):
                mask = mask.for_documents(documents)
            region = _region_of(mask, kv_len, packed)

    settings: dict[str, Any] = {"dropout_p": dropout, "scale": scaling, "sink_scores": kwargs.get(SINKS)}
    bias, softcap = kwargs.get("position_bias"), kwargs.get("softcap")
    over_pairs = bias is not None or softcap is not None or with_weights
    if torch.jit.is_tracing() and (over_pairs or region is None or region.pattern.bounded or documents is not None):
        check_trace(None, causal)
    if over_pairs:
        output, weights = _attend_pairs(query, key, value, mask, settings, documents, bias, softcap, with_weights)
    elif region is None:
        output, weights = _attend_mask(query, key, value, mask, settings, documents), None
    else:
        output, weights = _attend_region(query, key, value, mask, settings, documents, region), None
    return output.transpose(1, 2).contiguous(), weights


def in_words(module: nn.Module) -> str:
    """The class of an attention module for messages, with its layer number if known."""
    layer = getattr(module, "layer_idx", None)
    return f"{type(module).__name__} of layer {layer}" if isinstance(layer, int) else type(module).__name__


def _check_mask(
    module: nn.Module, query: Tensor, key: Tensor, mask: Tensor | DeclaredMask | None, causal: bool
) -> None:
    """Refuse masks whose meaning is unclear.

    Raises:
        BackendError: a causal module has no mask, or the mask is for other queries or keys, or would be added to
            scores although it is bool.
        InputError: the mask is for another batch, or consists of integers.
    """
    q_len, kv_len = query.shape[2], key.shape[2]
    if mask is None and q_len > 1 and causal:
        raise BackendError(
            f"{in_words(module)} is causal and got no mask, without which transformers' sdpa attention hides later "
            "keys, but its eager attention does not; pass an attention_mask, or load the model with the attention "
            "that you mean."
        )
    if mask is None or mask.ndim != 4:
        return
    if mask.shape[2] not in (1, q_len) or mask.shape[3] not in (1, kv_len):
        raise BackendError(
            f"{in_words(module)} attends from {q_len} queries to {kv_len} keys, but its mask is for {mask.shape[2]} "
            f"queries and {mask.shape[3]} keys; pass a mask that fits, or load the model with "
            "attn_implementation='eager'."
        )
    if not isinstance(mask, Tensor):
        return
    check_pairs(mask, query)
    if mask.dtype == torch.bool and getattr(module, MASK_EXTENDED_BY, None) is not None:
        raise BackendError(
            f"{in_words(module)} appends keys whose mask is added to the scores, so a bool attention_mask would "
            "show the keys that it hides; pass floats, 0 where a key is visible and torch.finfo(dtype).min "
            "elsewhere, or load the model with attn_implementation='eager'."
        )


def _region_of(mask: Tensor | DeclaredMask | None, kv_len: int, packed: Batch | None = None) -> Region | None:
    """The keys that a mask shows, within the documents of ``packed``. ``None`` if they have to be read from the mask
    itself, or if a graph would have to read the documents."""
    if packed is not None and in_graph():
        return None
    if isinstance(mask, DeclaredMask):
        return mask.region(None if packed is None else packed.documents)
    return Region(Pattern.everything(False), kv_len, packed) if mask is None else None


def _attend_region(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | DeclaredMask | None,
    settings: dict[str, Any],
    documents: Tensor | None,
    region: Region,
) -> Tensor:
    """Attention of a stock module to a band, padding and documents. Arguments as in :func:`_attend_pairs`.

    The cheapest way runs: one unmasked call, as in transformers' sdpa attention; one masked call, for few queries or
    for the padding of a different key sequence; or else an engine.
    """
    q_len, kv_len = query.shape[2], key.shape[2]
    pattern, batch, exporting = region.pattern, region.batch, torch.compiler.is_exporting()
    used = slice(region.keys)
    if not OBSERVERS:
        aligned = q_len in (1, region.keys) or not pattern.causal
        any_length = exporting and pattern.bounded  # no window covers every length
        one_call = batch is None and aligned and not any_length and pattern.covers(q_len, region.keys)
        if one_call and not (settings["dropout_p"] and query.device.type == "cpu"):
            is_causal = pattern.causal and q_len > 1
            return fused_attention(query, key[:, :, used], value[:, :, used], is_causal=is_causal, **settings)
        # an exported graph takes any number of queries
        few = not exporting and q_len <= FEW_QUERIES and (documents is None or region.keys == kv_len)
        if mask is not None and (few or (region.cross and batch is not None)):
            return _attend_pairs(query, key, value, mask, settings, documents)[0]
    return _attend_in_engine(query, key[:, :, used], value[:, :, used], settings, region)


def _attend_in_engine(query: Tensor, key: Tensor, value: Tensor, settings: dict[str, Any], region: Region) -> Tensor:
    """Attention to a region in an engine. ``key, value``: those in use."""
    pattern, width = region.pattern, value.shape[-1]
    query, key, value, scale = _of_one_width(query, key, value, settings["scale"])
    call = AttentionCall(
        pattern.causal, region.batch, scale=scale, dropout=settings["dropout_p"], sink_scores=settings["sink_scores"]
    )
    if in_graph():  # a graph cannot build a mechanism
        return block_sparse_attention(query, key, value, pattern, call)[..., :width]
    everything = not pattern.causal and not pattern.bounded
    cross = region.cross or (query.shape[2] != region.keys and everything)
    mechanism = _declared_mechanism(query.shape[1], query.shape[-1], pattern.left, pattern.right, cross)
    return run_batch(mechanism, query, key, value, call)[..., :width]


@functools.lru_cache(64)
def _declared_mechanism(heads: int, head_dim: int, left: int, right: int, cross: bool) -> Mechanism:
    """The mechanism that a stock model declares: a band from ``query - left`` to ``query + right``, or full
    attention."""
    bounded = left < LARGEST or 0 < right < LARGEST
    options = {"left": min(left, LARGEST), "right": min(right, LARGEST)} if bounded else {}
    mechanism = mechanism_from("window" if bounded else "full", options, num_heads=heads, head_dim=head_dim).eval()
    mechanism.is_cross_attention = cross
    return mechanism


def _of_one_width(
    query: Tensor, key: Tensor, value: Tensor, scaling: float | None
) -> tuple[Tensor, Tensor, Tensor, float]:
    """Queries, keys and values with as many features as the widest (latent attention, DeepSeek), and the scale of the
    scores. Zeros add nothing to scores or outputs."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    widest = max(query.shape[-1], value.shape[-1])
    if query.shape[-1] != value.shape[-1]:
        query, key, value = (F.pad(x, (0, widest - x.shape[-1])) for x in (query, key, value))
    return query, key, value, scale


def _blocks_of_tensor(mask: Tensor) -> VisibleBlocks | None:
    """A model's or user's mask ``(B, 1, Nq, Nk)`` reduced to blocks, once for all layers that get this tensor.

    ``None`` if a masked call costs less, or if the mask does more than hide pairs. An additive mask that lowers all
    scores of a query alike hides none of them.
    """
    if mask.is_inference():  # a change of its values would not be noticed
        return None
    size = max(BLOCK, PIECE_PAIRS // (mask.shape[0] * mask.shape[3]) // BLOCK * BLOCK)

    def make() -> VisibleBlocks | None:
        pieces = mask.split(size, 2)
        for piece in pieces:
            if mask.dtype != torch.bool and (not only_hides(piece) or bool(hidden_pairs(piece).all(-1).any())):
                return None
        return VisibleBlocks.of(
            mask.shape, ((number * size, 0, ~hidden_pairs(piece)[:, 0]) for number, piece in enumerate(pieces))
        )

    return BYTE_CACHE.of([mask], ("visible blocks",), make, lambda blocks: tensor_bytes(blocks) or 0)


def _attend_mask(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | DeclaredMask | None,
    settings: dict[str, Any],
    documents: Tensor | None,
) -> Tensor:
    """Attention of a stock module by a mask of any kind: over its visible blocks, or else over pairs.

    Arguments as in :func:`_attend_pairs`.
    """

    def blocks() -> VisibleBlocks | None:
        if isinstance(mask, DeclaredMask):
            return mask.visible_blocks(documents)
        if mask is None or documents is not None or mask.shape[1:] != (1, query.shape[2], key.shape[2]):
            return None
        return _blocks_of_tensor(mask)

    call = AttentionCall(scale=settings["scale"], dropout=settings["dropout_p"], sink_scores=settings["sink_scores"])
    if in_graph() or choose("mask", query, key, call, blocks=blocks) != "cpu-visible-blocks":
        return _attend_pairs(query, key, value, mask, settings, documents)[0]
    width = value.shape[-1]
    query, key, value, scale = _of_one_width(query, key, value, settings["scale"])
    output = visible_block_attention(query, key, value, blocks(), call.replace(scale=scale))  # type: ignore[arg-type]
    return output[..., :width]


def _attend_pairs(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | DeclaredMask | None,
    settings: dict[str, Any],
    documents: Tensor | None,
    bias: Tensor | None = None,
    softcap: float | None = None,
    with_weights: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Attention ``(B, H, Nq, D)`` of a stock module by a mask over query-key pairs. Many pairs are computed in blocks
    of queries.

    Args:
        mask: as in ``longattn_attention_forward``. Fewer axes broadcast.
        settings: dropout, scale and sinks for :func:`fused_attention`.
        documents: ``(B, Nk)``; pairs of different documents are hidden.
        bias: ``(B or 1, H or 1, Nq or 1, Nk)``, added to the scores.
        softcap: bound of the scores by tanh, before the bias and an additive mask are added.
        with_weights: whether to return the weights ``(B, H, Nq, Nk)`` too.
    """
    (batch, heads, q_len, width), kv_len = query.shape, key.shape[2]
    plain = softcap is not None or with_weights  # plain operations store all scores of a block

    def attend(
        q: Tensor, k: Tensor, v: Tensor, start: int, stop: int, first: int, last: int
    ) -> tuple[Tensor, Tensor | None]:
        visible, added = _terms_of_block(mask, documents, bias, (start, stop, first, last), q.dtype)
        if not plain:
            if visible is None or added is None:
                term = visible if added is None else added
            else:
                term = torch.where(visible, added, torch.finfo(added.dtype).min)
            return fused_attention(q, k, v, attn_mask=term, **settings), None
        scale = width**-0.5 if settings["scale"] is None else settings["scale"]
        scores = products(q, repeat_heads(k, heads)) * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        if added is not None:
            scores = scores + added
        weights = masked_softmax(scores, visible, settings["sink_scores"]).to(v.dtype)
        output = F.dropout(weights, settings["dropout_p"]) @ repeat_heads(v, heads)
        return output, weights if with_weights else None

    rows = 16 * batch * heads if plain else batch  # four bytes a score, and several copies at once
    if with_weights or rows * q_len * kv_len <= BLOCK_PAIRS:
        return attend(query, key, value, 0, q_len, 0, kv_len)
    if isinstance(mask, DeclaredMask):
        blocks = mask.blocks(rows)
    else:
        size = max(1, BLOCK_PAIRS // (rows * kv_len))
        blocks = [(start, min(start + size, q_len), 0, kv_len) for start in range(0, q_len, size)]
    outputs = []
    for start, stop, first, last in reversed(blocks):  # causal blocks grow, and memory is only reused for smaller ones
        inputs = (query[:, :, start:stop], key[:, :, first:last], value[:, :, first:last], start, stop, first, last)
        if len(blocks) > 1 and torch.is_grad_enabled():
            output, _ = checkpoint(attend, *inputs, use_reentrant=False)
        else:
            output, _ = attend(*inputs)
        outputs.append(output)
    return torch.cat(outputs[::-1], 2), None


def _terms_of_block(
    mask: Tensor | DeclaredMask | None,
    documents: Tensor | None,
    bias: Tensor | None,
    block: tuple[int, int, int, int],
    dtype: torch.dtype,
) -> tuple[Tensor | None, Tensor | None]:
    """The visible pairs (bool) of a block, and the sum that is added to its scores (``dtype``); ``None`` without any.

    block: queries ``start … stop - 1`` and keys ``first … last - 1``. Other arguments as in :func:`_attend_pairs`.
    """
    start, stop, first, last = block

    def rows_of(term: Tensor) -> Tensor:  # a mask or bias may have one row for all queries
        return term if term.dim() < 2 or term.shape[-2] == 1 else term[..., start:stop, :]

    terms: list[Tensor] = []
    if isinstance(mask, DeclaredMask):
        terms.append(mask.rows(*block))
    elif mask is not None:
        terms.append(rows_of(mask))
    if documents is not None:
        terms.append((documents[:, start:stop, None] == documents[:, None, first:last])[:, None])
    if bias is not None:
        terms.append(rows_of(bias)[..., first:last])
    visible = added = None
    for term in terms:
        if term.dtype == torch.bool:
            visible = term if visible is None else visible & term
        else:
            term = term.to(dtype)  # PyTorch's CPU kernel misreads masks of another dtype than the query's
            added = term if added is None else added + term
    return visible, added
