"""Attention of a stock model's modules. They have no mechanism, and attend to the keys that their mask shows."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

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
from ..engines.dispatch import OBSERVERS, choose, report, running
from ..errors import BackendError
from ..functional import check_trace, run_batch
from ..mechanisms.common.base import Mechanism
from ..mechanisms.common.options import LARGEST
from ..mechanisms.common.registry import mechanism_from
from .declared import BLOCK_PAIRS, PIECE_PAIRS, AnyMask, DeclaredMask, Region
from .keywords import DOCUMENTS, SINKS
from .masks import batch_of_documents, check_pairs

CHANGED = "scores are changed, or weights are returned"
"""The reason to compute all pairs that excludes every other route."""
FEW_QUERIES = 32
"""Maximum number of queries for which one masked call over all keys is made. Untuned."""
MASK_EXTENDED_BY = "compressor"
"""The attribute of attention modules that append compressed keys, and append scores for these keys to the mask
(DeepSeek-V4)."""


Attended = tuple[Tensor, Tensor | None]
"""The output of attention, and its weights if they are requested."""
Route = Literal["one call", "engine", "blocks", "pairs"]
"""How a stock module attends: by one fused call without a mask; in an engine for a band, padding and documents; over
the visible blocks of its mask; or over all query-key pairs."""


@dataclasses.dataclass  # not frozen, for decoding
class StockCall:
    """A call of a stock model's attention module.

    query: ``(B, H, Nq, D)``; the queries of the last Nq keys in use.
    key, value: ``(B, H_kv, Nk, D)``; the value's width may differ.
    mask: as in ``longattn_attention_forward``. A tensor may have fewer axes, which broadcast.
    documents: ``(B, Nk)``, given with the call; pairs of tokens from different documents are hidden.
    region: the visible keys as a band, padding and documents; ``None`` if only the mask itself describes them.
    scale, dropout, sinks: factor on q·k, dropout probability, and the scores ``(H,)`` of sinks.
    softcap: bound of the scores by tanh, before the bias and an additive mask are added.
    bias: ``(B or 1, H or 1, Nq or 1, Nk)``, added to the scores.
    with_weights: whether to return the weights ``(B, H, Nq, Nk)`` too.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: AnyMask
    documents: Tensor | None
    region: Region | None
    scale: float | None
    dropout: float
    sinks: Tensor | None
    softcap: float | None
    bias: Tensor | None
    with_weights: bool

    @property
    def settings(self) -> dict[str, Any]:
        """Keywords of :func:`fused_attention`."""
        return {"dropout_p": self.dropout, "scale": self.scale, "sink_scores": self.sinks}

    @property
    def factor(self) -> float:
        """The factor on q·k as a number."""
        return self.query.shape[-1] ** -0.5 if self.scale is None else self.scale

    def in_use(self) -> tuple[Tensor, Tensor]:
        """Keys and values without the empty slots of a static cache."""
        assert self.region is not None
        used = slice(self.region.keys)
        return self.key[:, :, used], self.value[:, :, used]

    def visible_blocks(self) -> VisibleBlocks | None:
        """The mask and the documents reduced to blocks; ``None`` if a masked call costs less."""
        if isinstance(self.mask, DeclaredMask):
            return self.mask.visible_blocks(self.documents)
        pairs = (1, self.query.shape[2], self.key.shape[2])
        if self.mask is None or self.documents is not None or self.mask.shape[1:] != pairs:
            return None
        return _blocks_of_tensor(self.mask)


def attend_as_declared(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: AnyMask,
    causal: bool,
    scaling: float | None,
    dropout: float,
    with_weights: bool,
    kwargs: dict[str, Any],
) -> Attended:
    """The attention function for a ``module`` of a stock model: softmax attention to the keys that ``mask`` shows.

    Without a mask, every query sees every key. Arguments, results and errors are those of
    ``longattn_attention_forward``.
    """
    _check_mask(module, query, key, mask, causal)
    mask, documents, region = _visible_keys(query, key, mask, kwargs)
    call = StockCall(
        query,
        key,
        value,
        mask,
        documents,
        region,
        scale=scaling,
        dropout=dropout,
        sinks=kwargs.get(SINKS),
        softcap=kwargs.get("softcap"),
        bias=kwargs.get("position_bias"),
        with_weights=with_weights,
    )
    route, reason = route_of(call)
    without_window = region is not None and not region.pattern.bounded and documents is None
    if torch.jit.is_tracing() and (reason == CHANGED or not without_window):
        check_trace(None, causal)
    if OBSERVERS and not torch.compiler.is_compiling():
        _report(call, route, reason)
    weights = None
    if route == "one call":  # as in transformers' sdpa attention
        assert region is not None
        is_causal = region.pattern.causal and query.shape[2] > 1
        output = fused_attention(query, *call.in_use(), is_causal=is_causal, **call.settings)
    elif route == "engine":
        output = _attend_in_engine(call)
    elif route == "blocks":
        output = _attend_blocks(call)
    else:
        output, weights = _attend_pairs(call)
    return output.transpose(1, 2).contiguous(), weights


def in_words(module: nn.Module) -> str:
    """The class of an attention module, with its layer number if known: "LlamaAttention of layer 3". For messages."""
    layer = getattr(module, "layer_idx", None)
    return f"{type(module).__name__} of layer {layer}" if isinstance(layer, int) else type(module).__name__


def _check_mask(module: nn.Module, query: Tensor, key: Tensor, mask: AnyMask, causal: bool) -> None:
    """Refuse masks with an unclear meaning.

    Raises:
        BackendError: a causal module has no mask, the mask is for other queries or keys, or the module would add a
            bool mask to scores.
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


def _visible_keys(
    query: Tensor, key: Tensor, mask: AnyMask, kwargs: dict[str, Any]
) -> tuple[AnyMask, Tensor | None, Region | None]:
    """The fields ``mask``, ``documents`` and ``region`` of a :class:`StockCall`."""
    q_len, kv_len = query.shape[2], key.shape[2]
    if isinstance(mask, DeclaredMask) and mask.shape[2:] != (q_len, kv_len):  # one row for all queries (BridgeTower)
        mask = mask.dense()
    region = _region_of(mask, kv_len)
    in_use = kv_len if region is None else region.keys
    # documents number the tokens of the call, so they are used only if queries and keys are the same tokens
    if DOCUMENTS.isdisjoint(kwargs) or q_len != in_use:
        return mask, None, region
    packed = batch_of_documents(None, (query.shape[0], q_len), kwargs)
    if packed is None or packed.documents is None:
        return mask, None, region
    if isinstance(mask, DeclaredMask):
        mask = mask.for_documents(packed.documents)
    return mask, packed.documents, _region_of(mask, kv_len, packed)


def _region_of(mask: AnyMask, kv_len: int, packed: Batch | None = None) -> Region | None:
    """The keys that a mask shows within the documents of ``packed``, as a :class:`Region`. ``None`` if a region cannot
    describe the mask, or if a graph would have to read the documents."""
    if packed is not None and in_graph():
        return None
    if isinstance(mask, DeclaredMask):
        return mask.region(None if packed is None else packed.documents)
    return Region(Pattern.everything(False), kv_len, packed) if mask is None else None


def route_of(call: StockCall) -> tuple[Route, str]:
    """The cheapest route of a call, and the reason why it is not one fused call; "" without a reason."""
    region, q_len = call.region, call.query.shape[2]
    if call.with_weights or call.softcap is not None or call.bias is not None:
        return "pairs", CHANGED
    if region is None:  # only the mask itself describes the visible keys
        path = "dense-masked"
        if not in_graph():
            path = choose("mask", call.query, call.key, _attention_call(call), blocks=call.visible_blocks)
        return "pairs" if path == "dense-masked" else "blocks", ""
    pattern, exporting = region.pattern, torch.compiler.is_exporting()
    # the flag is_causal of a fused call aligns the first query with the first key
    aligned = q_len in (1, region.keys) or not pattern.causal
    any_length = exporting and pattern.bounded  # no window covers every length
    one_call = region.batch is None and aligned and not any_length and pattern.covers(q_len, region.keys)
    if one_call and not (call.dropout and call.query.device.type == "cpu"):
        return "one call", ""
    if call.mask is None:
        return "engine", ""
    if region.cross and region.batch is not None:
        return "pairs", "keys are padded"
    # an exported graph has no few queries, because it takes any number of them
    if not exporting and q_len <= FEW_QUERIES and (call.documents is None or region.keys == call.key.shape[2]):
        return "pairs", "keys are hidden, and there are few queries"
    return "engine", ""


def _report(call: StockCall, route: Route, reason: str) -> None:
    """Report the path of a call to observers. Nothing to do for an engine, and for a choice of :func:`choose`, which
    report their path themselves."""
    if route == "engine" or (call.region is None and not reason):
        return
    mechanism = None if call.region is None else _mechanism_of(call, call.region)
    with running(mechanism):
        if route == "one call":
            report("dense")
        else:
            report("dense-masked", [("dense", reason)])


def _attention_call(call: StockCall, causal: bool = False, batch: Batch | None = None) -> AttentionCall:
    """The settings of a call as an engine takes them."""
    return AttentionCall(causal, batch, scale=call.factor, dropout=call.dropout, sink_scores=call.sinks)


def _attend_in_engine(call: StockCall) -> Tensor:
    """The output ``(B, H, Nq, D)`` of attention to the band, padding and documents of ``call.region``."""
    region = call.region
    assert region is not None
    pattern, width = region.pattern, call.value.shape[-1]
    attention = _attention_call(call, pattern.causal, region.batch)
    query, key, value = _of_one_width(call.query, *call.in_use())
    if in_graph():  # a graph cannot build a mechanism
        return block_sparse_attention(query, key, value, pattern, attention)[..., :width]
    return run_batch(_mechanism_of(call, region), query, key, value, attention)[..., :width]


def _mechanism_of(call: StockCall, region: Region) -> Mechanism:
    """The mechanism ``window`` or ``full`` that computes attention to the region of a call."""
    pattern, q_len = region.pattern, call.query.shape[2]
    everything = not pattern.causal and not pattern.bounded
    cross = region.cross or (q_len != region.keys and everything)
    width = max(call.query.shape[-1], call.value.shape[-1])
    return _declared_mechanism(call.query.shape[1], width, pattern.left, pattern.right, cross)


@functools.lru_cache(64)
def _declared_mechanism(heads: int, head_dim: int, left: int, right: int, cross: bool) -> Mechanism:
    """Mechanism ``window`` with a band from ``query - left`` to ``query + right``; ``full`` if it is unbounded."""
    bounded = left < LARGEST or 0 < right < LARGEST
    options = {"left": min(left, LARGEST), "right": min(right, LARGEST)} if bounded else {}
    mechanism = mechanism_from("window" if bounded else "full", options, num_heads=heads, head_dim=head_dim).eval()
    mechanism.is_cross_attention = cross
    return mechanism


def _attend_blocks(call: StockCall) -> Tensor:
    """The output ``(B, H, Nq, D)`` of attention over the visible blocks of the mask."""
    blocks = call.visible_blocks()
    assert blocks is not None
    tensors = _of_one_width(call.query, call.key, call.value)
    output = visible_block_attention(*tensors, blocks, _attention_call(call))
    return output[..., : call.value.shape[-1]]


def _of_one_width(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, padded with zeros to the same number of features. They differ in latent attention
    (DeepSeek). Zeros add nothing to scores or outputs."""
    if query.shape[-1] == value.shape[-1]:
        return query, key, value
    widest = max(query.shape[-1], value.shape[-1])
    query, key, value = (F.pad(x, (0, widest - x.shape[-1])) for x in (query, key, value))
    return query, key, value


def _blocks_of_tensor(mask: Tensor) -> VisibleBlocks | None:
    """The mask ``(B, 1, Nq, Nk)`` of a model or user as :class:`VisibleBlocks`, made once for all layers that get this
    tensor.

    ``None`` if a masked call costs less, or if the mask does more than hide pairs. An additive mask that lowers all
    scores of a query by the same number hides none of them.
    """
    if mask.is_inference():  # such a tensor has no version, by which the cache notices changed values
        return None
    size = max(BLOCK, PIECE_PAIRS // (mask.shape[0] * mask.shape[3]) // BLOCK * BLOCK)  # queries per piece

    def make() -> VisibleBlocks | None:
        pieces = mask.split(size, 2)
        if mask.dtype != torch.bool:
            for piece in pieces:
                if not only_hides(piece) or bool(hidden_pairs(piece).all(-1).any()):
                    return None
        visible = ((number * size, 0, ~hidden_pairs(piece)[:, 0]) for number, piece in enumerate(pieces))
        return VisibleBlocks.of(mask.shape, visible)

    return BYTE_CACHE.of([mask], ("visible blocks",), make, lambda blocks: tensor_bytes(blocks) or 0)


def _attend_pairs(call: StockCall) -> Attended:
    """Attention ``(B, H, Nq, D)`` over all query-key pairs, and the weights if requested. If there are many pairs, one
    block of queries is computed after another."""
    query, key, value = call.query, call.key, call.value
    (batch, heads, q_len, _), kv_len = query.shape, key.shape[2]
    plain = call.softcap is not None or call.with_weights  # plain operations store all scores of a block

    def attend(q: Tensor, k: Tensor, v: Tensor, *block: int) -> Attended:
        """Output and weights for a block ``(start, stop, first, last)`` of queries and keys."""
        visible, added = _terms_of_block(call, *block)
        if not plain:
            if visible is None or added is None:
                term = visible if added is None else added
            else:
                term = torch.where(visible, added, torch.finfo(added.dtype).min)
            return fused_attention(q, k, v, attn_mask=term, **call.settings), None
        scores = products(q, repeat_heads(k, heads)) * call.factor
        if call.softcap is not None:
            scores = call.softcap * torch.tanh(scores / call.softcap)
        if added is not None:
            scores = scores + added
        weights = masked_softmax(scores, visible, call.sinks).to(v.dtype)
        output = F.dropout(weights, call.dropout) @ repeat_heads(v, heads)
        return output, weights if call.with_weights else None

    rows = 16 * batch * heads if plain else batch  # four bytes a score, and several copies at once
    if call.with_weights or rows * q_len * kv_len <= BLOCK_PAIRS:
        return attend(query, key, value, 0, q_len, 0, kv_len)
    if isinstance(call.mask, DeclaredMask):
        blocks = call.mask.blocks(rows)
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
    call: StockCall, start: int, stop: int, first: int, last: int
) -> tuple[Tensor | None, Tensor | None]:
    """The visible pairs (bool) of queries ``start … stop - 1`` and keys ``first … last - 1``, and the terms to add to
    their scores. ``None`` in place of either if there is nothing to hide or to add. Both broadcast to
    ``(B, H, queries, keys)``."""

    def rows_of(term: Tensor) -> Tensor:  # a mask or bias may have one row for all queries
        return term if term.dim() < 2 or term.shape[-2] == 1 else term[..., start:stop, :]

    terms: list[Tensor] = []
    if isinstance(call.mask, DeclaredMask):
        terms.append(call.mask.rows(start, stop, first, last))
    elif call.mask is not None:
        terms.append(rows_of(call.mask))
    if call.documents is not None:
        terms.append((call.documents[:, start:stop, None] == call.documents[:, None, first:last])[:, None])
    if call.bias is not None:
        terms.append(rows_of(call.bias)[..., first:last])
    visible = added = None
    for term in terms:
        if term.dtype == torch.bool:
            visible = term if visible is None else visible & term
        else:
            term = term.to(call.query.dtype)  # PyTorch's CPU kernel misreads masks of another dtype than the query's
            added = term if added is None else added + term
    return visible, added
