"""The attention function and the mask function that transformers knows as ``longattn``.

A model's attention modules call :func:`longattn_attention_forward` in place of scaled_dot_product_attention. The function passes q, k, v to
the mechanism ``module.long_attention``, which the Long* classes or :func:`hf_longattn.enable_long_attention` set. A module of a stock model
has none, and attends to the keys that its mask declares. :func:`longattn_mask` builds nothing of size N×N for padding and windows.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Collection, Mapping
from contextlib import nullcontext
from typing import Any

import torch
import transformers.masking_utils as masking
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import DynamicSlidingWindowLayer, StaticLayer, StaticSlidingWindowLayer

from ..engines.accelerator import accelerated
from ..engines.batch import Batch, cached_on, documents_from, for_one_pass, in_graph, on_host, shape_in_words
from ..engines.block_sparse import block_sparse_attention
from ..engines.byte_cache import tensor_version
from ..engines.call import AttentionCall, Pattern
from ..engines.cpu.kernels import masked_attention
from ..engines.dense import fused_attention, masked_softmax, products, repeat_heads
from ..engines.dense_masks import (
    batch_of_mask,
    documents_in_mask,
    hidden_pairs,
    lowers_sequences,
    only_hides,
    shows_later_keys,
)
from ..engines.dispatch import OBSERVERS, PathChoice, notify, running
from ..engines.score_terms import ScoreMod, as_term, device_scalar
from ..engines.token_grid import RUNNING_GRID
from ..errors import BackendError, InputError
from ..functional import run_batch
from ..mechanisms.common.base import Mechanism
from ..mechanisms.common.capabilities import keys_per_query
from ..mechanisms.common.masked import Columns, SparseMechanism
from ..mechanisms.common.options import LARGEST
from ..mechanisms.common.registry import mechanism_from
from ..mechanisms.common.shared_options import for_length
from ..memory import AttentionCacheLayer
from ..memory.attention_cache import unread_cache
from ..memory.key_cache import GrowingWindowLayer, StaticWindowLayer, in_text_order, slot_columns, tokens_in
from ..names import BACKEND, warn_missing
from .declared import BLOCK_PAIRS, DeclaredMask, Region

PLAIN_MASKS = (masking.causal_mask_function, masking.bidirectional_mask_function)
CACHE_LAYER = "long_cache_layer"
"""The keyword for the module's layer of the decode cache. A pre-hook passes it."""
TAKES_CACHE_LAYER = "takes_cache_layer"
"""The attribute of attention modules that have this pre-hook."""
LAYER_INPUT = "layer_input"
"""The keyword for a module's hidden states, for mechanisms that take them."""
DETACHED_KV = "detached_kv"
"""The keyword for ``(key, value)`` of detached hidden states, for mechanisms that stop gradients; ``()``: the call's own key and value."""
PROJECT_ONLY = "project_only"
"""The keyword for a list. The attention function then appends its keys and values to the list instead of attending."""
FEW_QUERIES = 32
"""Maximum number of new tokens that attend over all slots of a static cache on an accelerator. Untuned."""
COLLECT_WEIGHTS = "attention_weights"
"""The keyword that requests attention weights, for layers that are recomputed in the backward pass and cannot see the collector."""
GRID = "grid"
"""The keyword for the grid on which the tokens lie."""
LAYER_INDEX = "long_layer"
"""The keyword for the layer's index, if layers share an attention module."""
DOCUMENTS = frozenset(("documents", "seq_idx", "cu_seq_lens_q"))
"""Keywords for the documents of a packed row: of this package, of state-space models and of FlashAttention."""
SINKS = "s_aux"
"""The keyword for the scores ``(H,)`` of sinks, one more column of the softmax (gpt-oss)."""
NOT_COMPUTED = {"sinks": "sinks of each query", "indices": "keys chosen by an indexer", "block_indices": "blocks chosen by an indexer"}
"""Keywords of attention that no mechanism computes (Inkling 2, DeepSeek-V3.2, MiniMax-M3), mapped to their meaning."""
ADDITIONAL_KEYWORDS = DOCUMENTS.union(
    (SINKS, PROJECT_ONLY, DETACHED_KV, LAYER_INPUT, COLLECT_WEIGHTS),
    ("position_bias", "softcap", "global_attention_mask", "output_attentions"),
)
"""Keywords for anything besides plain attention of queries to keys."""


EAGER_MASKS = ("gemma4_audio", "informer")
"""Model types that add the mask to scores themselves, although their file also has modules on transformers' AttentionInterface."""


def longattn_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Any = masking.causal_mask_function,
    attention_mask: Tensor | DeclaredMask | None = None,
    config: Any = None,
    **kwargs: Any,
) -> Tensor | DeclaredMask | None:
    """The mask that reaches :func:`longattn_attention_forward`, made once per forward pass.

    Returns:
        For a model with mechanisms :func:`mechanism_mask`. For a stock model a :class:`DeclaredMask`; in a decoding step with a static
        cache, the bool tensor ``(B, 1, 1, Nk)`` of sdpa attention. Models outside the AttentionInterface get the float tensor of eager
        attention.
    """
    if isinstance(attention_mask, DeclaredMask):  # made by ``generate`` for a static cache
        return attention_mask
    if attention_mask is not None and attention_mask.dim() != 2:
        raise InputError(
            f"attention_mask has shape {tuple(attention_mask.shape)}, but must be (batch, tokens) with 1 for real tokens, "
            "or (batch, 1 or heads, queries, keys) to restrict single pairs."
        )
    arguments = {
        "batch_size": batch_size, "q_length": q_length, "kv_length": kv_length, "q_offset": q_offset, "kv_offset": kv_offset,
        "mask_function": mask_function, "attention_mask": attention_mask, **kwargs,
    }  # fmt: skip
    if getattr(config, "long_attention", None) is not None:
        return mechanism_mask(**arguments)
    config_class: Any = type(config)
    if not _on_the_interface(config_class):
        return masking.eager_mask(**arguments)
    if q_length == 1 and isinstance(q_offset, Tensor):  # for a compiled decoding step, whose graph takes tensors
        return masking.sdpa_mask(**{**arguments, "allow_is_causal_skip": False})
    return DeclaredMask(config=config, **arguments)


def mechanism_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Any = masking.causal_mask_function,
    attention_mask: Tensor | None = None,
    **kwargs: Any,
) -> Tensor | None:
    """:func:`longattn_mask` for mechanisms, which replace the window of a model's own sliding layers (``local_size``).

    Returns:
        ``None`` when every token is real; the padding mask ``(B, tokens seen so far)`` bool, True = real; or ``(B, 1, Nq, Nk)`` bool
        where the model asks for more than padding and causality (packed sequences, prefix blocks), which costs N×N memory.
    """
    skippable = kwargs.get("allow_is_causal_skip") or kwargs.get("allow_is_bidirectional_skip") or q_length == 1
    own_window = kwargs.get("local_size") is not None and skippable
    if mask_function not in PLAIN_MASKS and not own_window:
        kwargs |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
        return for_one_pass(
            masking.sdpa_mask(
                batch_size, q_length, kv_length, q_offset, kv_offset, mask_function=mask_function, attention_mask=attention_mask, **kwargs
            )
        )
    causal = mask_function is not masking.bidirectional_mask_function
    if causal and isinstance(q_offset, Tensor):
        return for_one_pass(filled_columns(batch_size, kv_length, q_offset + q_length, attention_mask))
    total: int = q_offset + q_length  # type: ignore[assignment]
    if causal and kv_length + kv_offset > total:  # a static cache has reserved slots after the last token
        if attention_mask is None:
            return for_one_pass(torch.ones(batch_size, total, dtype=torch.bool, device=kwargs.get("device")))
        return for_one_pass(attention_mask[:, :total])
    if attention_mask is None or in_graph():
        return attention_mask
    real = on_host(attention_mask != 0).numpy()
    if real.all():
        return None
    return for_one_pass(attention_mask, {0: Batch(attention_mask.bool(), host_mask=real)})  # the batch of all keys, see _batch


@functools.cache
def _on_the_interface(config_class: type[Any]) -> bool:
    """Whether the modeling file beside a config takes its attention from transformers' AttentionInterface."""
    if getattr(config_class, "model_type", None) in EAGER_MASKS:
        return False
    for base in config_class.__mro__:
        package, beside, name = base.__module__.rpartition(".configuration_")
        modeling = sys.modules.get(f"{package}.modeling_{name}")
        if beside and modeling is not None:
            return hasattr(modeling, "ALL_ATTENTION_FUNCTIONS")
    return False


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


def longattn_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention of ``module.long_attention``, or what a stock model declares, with the signature of transformers' attention functions.

    Args:
        module: the attention module; ``module.is_causal`` says whether later keys are hidden, if no :class:`DeclaredMask` says it.
        query: ``(B, H, Nq, D)``; the last Nq positions of the keys' sequence.
        key, value: ``(B, H_kv, Nk, D)``; with a cache, what the cache returned.
        attention_mask: the result of :func:`longattn_mask`, or the caller's own mask ``(B, 1 or H, Nq, Nk)`` (bool, True = visible, or
            additive). Such a mask restricts the mechanism's pattern further. If it says no more than padding, causality and
            documents, it is read as these.
        scaling: factor on q·k.
        dropout: dropout probability on the weights.
        is_causal: overrides ``module.is_causal`` (CLIP's text model).
        kwargs: ``global_attention_mask (B, tokens)``, 1 = global; ``position_bias``, a tensor that is added to the scores, or a
            ``score_mod``; ``softcap``, the bound that a tanh puts on the scores (Gemma 2); ``s_aux (H,)``, the scores of sinks
            (gpt-oss); ``layer_input (B, Nq, d)``, the module's hidden states, for mechanisms that take them.

    Returns:
        ``(B, Nq, H, D)``, and the weights ``(B, H, Nq, Nk)`` if attentions are requested, otherwise ``None``.

    Raises:
        BackendError: the module asks for something that is not computed, lacks the mechanism of its model, or is causal without a mask.
        InputError: a mask of the wrong shape or dtype, or with documents that are only nearly hidden from each other.
    """
    projected = kwargs.get(PROJECT_ONLY)
    if projected is not None:
        projected += [key, value]
        return query.transpose(1, 2).contiguous(), None
    mechanism = _mechanism(module, kwargs)
    causal = bool(getattr(module, "is_causal", False) if is_causal is None else is_causal)
    if mechanism is None:
        if attention_mask is None and query.shape[2] > 1 and causal:
            raise BackendError(
                f"{_in_words(module)} is causal and got no mask, by which transformers' sdpa attention hides later keys and its eager "
                "attention hides none; pass an attention_mask, or load the model with the attention that you mean."
            )
        return _attend_as_declared(module, query, key, value, attention_mask, scaling, dropout, kwargs)
    if isinstance(attention_mask, DeclaredMask):  # of a tower's config, which does not name its mechanisms
        declared = attention_mask
        attention_mask = declared.cached("for mechanisms", lambda: mechanism_mask(**declared.arguments))
    if (narrower := key.shape[-1] - value.shape[-1]) > 0:  # latent attention (DeepSeek); zeros add nothing to an output
        wide = nn.functional.pad(value, (0, narrower))
        output, weights = longattn_attention_forward(
            module, query, key, wide, attention_mask, scaling=scaling, dropout=dropout, is_causal=is_causal, **kwargs
        )
        return output[..., : value.shape[-1]], weights
    if CACHE_LAYER not in kwargs and key.shape[2] > query.shape[2] and getattr(module, TAKES_CACHE_LAYER, False):
        raise unread_cache(type(module).__name__)  # the keys may be in another order, or followed by empty slots
    layer = kwargs.pop(CACHE_LAYER, None)
    own_window = layer is not None and isinstance(layer, (DynamicSlidingWindowLayer, StaticSlidingWindowLayer))
    if own_window and not isinstance(layer, GrowingWindowLayer):
        _check_own_window(layer, mechanism, key.shape[2])
    if attention_mask is not None and attention_mask.dim() == 4:
        _check_pairs(attention_mask, query)
        if query.shape[2] > 1 and not in_graph():  # a mask over pairs stays one if the mechanism can use it
            keeps_pairs = takes_masked_documents(mechanism, attention_mask.shape[3], causal)
            attention_mask = simplified_mask(attention_mask, query.shape[0], causal, keeps_pairs=keeps_pairs)
    computes_itself = layer is not None and isinstance(layer, (AttentionCacheLayer, StaticLayer))
    if attention_mask is None and query.shape[2] == key.shape[2] and not computes_itself and _is_plain(mechanism, query, kwargs):
        attending = for_length(mechanism, key.shape[2], causal)
        mask = isinstance(attending, SparseMechanism) and attending.fused_mask(key, causal)
        if mask is True and not (dropout and query.device.type == "cpu"):  # what transformers' sdpa attention does, at the same cost
            output = fused_attention(query, key, value, dropout_p=dropout, is_causal=causal and key.shape[2] > 1, scale=scaling)
            return output.transpose(1, 2).contiguous(), None
        if isinstance(mask, Tensor) and not dropout:
            heads = query.shape[1]
            output = masked_attention(query, repeat_heads(key, heads), repeat_heads(value, heads), mask, causal, scaling)
            return output.transpose(1, 2).contiguous(), None
    hidden = kwargs.get(LAYER_INPUT) if mechanism.capabilities.takes_hidden_states else None
    grid = kwargs.get(GRID)
    if grid is None and not torch.compiler.is_dynamo_compiling():
        grid = RUNNING_GRID.get()
    call = AttentionCall(causal=causal, scale=scaling, dropout=dropout, hidden_states=hidden, grid=grid, sink_scores=kwargs.get(SINKS))
    padding = attention_mask
    if layer is None:
        pass
    elif isinstance(layer, AttentionCacheLayer):
        cached = _attend_by_cache(layer, mechanism, query, key, value, attention_mask, call, kwargs)
        if cached is not None:
            return cached
    elif isinstance(layer, StaticLayer):
        over_slots = _attend_static(layer, mechanism, query, key, value, attention_mask, call, kwargs)
        if over_slots is not None:
            return over_slots, None
        key, value, padding = _filled(layer, query, key, value, attention_mask)
    key, value, batch, dense_mask = _align(padding, query.shape[2], key, value)
    if dense_mask is not None or not DOCUMENTS.isdisjoint(kwargs):
        batch, dense_mask = _with_documents(mechanism, batch, dense_mask, (key.shape[0], key.shape[2]), causal, kwargs)
    score_mod = _score_terms(dense_mask, query, key.shape[2], kwargs)
    if score_mod is not None and not mechanism.capabilities.takes_score_mod:
        terms = {"four-dimensional attention_mask": dense_mask, "position bias": kwargs.get("position_bias")}
        term_name = next((name for name, term in terms.items() if term is not None), "cap on the scores")
        raise InputError(
            f"A {term_name} was given, but mechanism {mechanism.name!r} has no scores that it could change; "
            "pass a padding mask (batch, tokens), or choose a mechanism over scores, for example window."
        )
    if dense_mask is not None and in_graph() and not causal and for_length(mechanism, 0) is not for_length(mechanism, key.shape[2]):
        raise InputError(
            "A four-dimensional attention_mask in a compiled graph may keep documents apart, and exact_length cannot tell which are short; "
            "give each document its own row with padding, leave torch.compile out, or set exact_length=0."
        )
    tokens = _global_mask(mechanism, kwargs.get("global_attention_mask"), padding, query.shape[2], key)
    call = call.replace(batch=batch, global_mask=tokens, score_mod=score_mod)
    if (detached_kv := kwargs.get(DETACHED_KV)) is not None and mechanism.capabilities.stops_gradients(key.shape[2]):
        call = call.replace(detached_kv=tuple(detached_kv) or (key, value))
    if query.shape[2] == 1 and score_mod is None and _steps_by_mask(mechanism, call, kwargs):
        return _step(mechanism, query, key, value, call), None
    defined = torch.compiler.is_exporting() and mechanism.handling.exports_definition
    output = run_batch(mechanism, query, key, value, call, mechanism.defined if defined else None)
    weights = mechanism.weights(query, key, call.replace(dropout=0.0, detached_kv=None)) if _weights_wanted(kwargs) else None
    return output.transpose(1, 2).contiguous(), weights


def _check_own_window(layer: DynamicSlidingWindowLayer | StaticSlidingWindowLayer, mechanism: Mechanism, kv_len: int) -> None:
    """Raise :class:`BackendError` if a base's own sliding cache has dropped keys that ``mechanism`` sees."""
    width = layer.sliding_window if isinstance(layer, DynamicSlidingWindowLayer) else layer.max_cache_len
    seen, reach = layer.get_seq_length(), keys_per_query(mechanism)
    if (reach is None or reach > width) and (in_graph() or int(seen) > kv_len):
        raise BackendError(
            f"The model's own cache keeps the last {width} tokens of this layer (sliding_window), but mechanism {mechanism.name!r} sees "
            f"more; load the checkpoint with a Long class, choose a window of at most {width}, or pass use_cache=False."
        )


def _is_plain(mechanism: Mechanism, query: Tensor, kwargs: dict[str, Any]) -> bool:
    """Whether the call is plain attention without observers and collected weights, outside of graphs and autocast."""
    return (
        ADDITIONAL_KEYWORDS.isdisjoint(kwargs)
        and not OBSERVERS
        and not in_graph()
        and not torch.is_autocast_enabled(query.device.type)
        and not attentions_collected()
    )


def _with_mask(call: AttentionCall, mask: Tensor | None, query: Tensor, kv_len: int | Tensor, kwargs: dict[str, Any]) -> AttentionCall:
    """The call with score terms and a ``mask``: padding ``(B, N)`` or pairs ``(B, 1 or H, Nq, Nk)``."""
    padding, pairs = (mask, None) if mask is None or mask.dim() == 2 else (None, mask)
    batch = None if padding is None else _batch(padding, padding.shape[1])
    return call.replace(batch=batch, score_mod=_score_terms(pairs, query, kv_len, kwargs))


def _attend_by_cache(
    cache: AttentionCacheLayer,
    mechanism: Mechanism,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    call: AttentionCall,
    kwargs: dict[str, Any],
) -> tuple[Tensor, Tensor | None] | None:
    """Output ``(B, Nq, H, D)`` and weights of a step that the cache layer computes itself; ``None`` for other steps."""
    call = _with_mask(call, attention_mask, query, key.shape[2], kwargs)
    cache.note_padding(call.key_mask)
    if not cache.computes_attention:
        return None
    observed = OBSERVERS and not torch.compiler.is_compiling()
    with running(mechanism) if observed else nullcontext():
        if observed:
            notify(PathChoice(f"cache of {cache.keeps}"))
        output, weights = cache.attend(mechanism, query, key, value, call, _weights_wanted(kwargs))
    return output.transpose(1, 2).contiguous(), weights


def _attend_static(
    layer: StaticLayer,
    mechanism: Mechanism,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    call: AttentionCall,
    kwargs: dict[str, Any],
) -> Tensor | None:
    """Output ``(B, Nq, H, D)`` of new tokens over all slots of a static cache.
    Shapes do not depend on the number of tokens. ``None`` if a call over the filled slots costs less, or is the only possible one.

    Raises:
        BackendError: in a compiled graph, if the mechanism cannot compute this step: a call over the filled slots is impossible there.
    """
    q_len, kv_len = query.shape[2], key.shape[2]
    if kv_len == q_len:  # the first tokens
        return None
    if not in_graph() and not isinstance(layer, StaticWindowLayer) and (not accelerated(query) or q_len > FEW_QUERIES):
        return None
    if not _steps_by_mask(mechanism, call, kwargs):
        if torch.compiler.is_compiling() and not torch.compiler.is_exporting():
            raise BackendError(
                f"With these options, mechanism {mechanism.name!r} decodes from this static cache with shapes that change at every token, "
                "so one compiled graph cannot run all steps; do not compile (disable_compile=True in generate), or choose a mechanism such "
                "as window or linear."
            )
        return None
    call = _with_mask(call, attention_mask, query, tokens_in(layer), kwargs)
    tokens = kwargs.get("global_attention_mask")
    if tokens is not None and mechanism.capabilities.takes_globals:
        width = kv_len if call.key_mask is None else call.key_mask.shape[1]
        call = call.replace(global_mask=nn.functional.pad(tokens != 0, (0, width - tokens.shape[1])))
    return _step(mechanism, query, key, value, call, slot_columns(layer, q_len, kv_len))


def _steps_by_mask(mechanism: Mechanism, call: AttentionCall, kwargs: dict[str, Any]) -> bool:
    """Whether new tokens use :meth:`Mechanism.attend_step` instead of ``forward``."""
    return (
        mechanism.attend_step is not None
        and call.causal
        and call.dropout == 0
        and (call.batch is None or call.batch.documents is None)
        and not _weights_wanted(kwargs)
        and not torch.compiler.is_exporting()
    )


def _step(mechanism: Mechanism, query: Tensor, key: Tensor, value: Tensor, call: AttentionCall, columns: Columns | None = None) -> Tensor:
    """The output ``(B, Nq, H, D)`` of :meth:`Mechanism.attend_step`."""
    if OBSERVERS and not torch.compiler.is_compiling():
        with running(mechanism):
            notify(PathChoice("dense-masked"))
    assert mechanism.attend_step is not None
    return mechanism.attend_step(query, key, value, call, columns).transpose(1, 2).contiguous()


def _filled(layer: StaticLayer, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Keys, values and mask of a static cache's filled slots.
    A padding mask becomes ``(B, tokens)``. Waits for the device; with a mask, once per forward pass."""
    if key.shape[2] == query.shape[2]:
        total: Any = key.shape[2]
    else:
        total = tokens_in(layer)
        if isinstance(total, Tensor):
            tensor = total
            total = int(tensor) if mask is None else cached_on(mask, "tokens", lambda: int(tensor))
    if isinstance(layer, StaticWindowLayer) and key.shape[2] != query.shape[2]:
        key, value = in_text_order(layer, key, value, query.shape[2])
    elif key.shape[2] > total:
        key, value = key[:, :, :total], value[:, :, :total]
    if mask is None or mask.dim() == 4:
        return key, value, mask if mask is None else mask[..., :total]
    wide = mask
    return key, value, cached_on(wide, ("filled", total), lambda: for_one_pass(wide[:, :total]))


def check_computed(module: nn.Module, kwargs: Mapping[str, Any]) -> None:
    """Raise :class:`BackendError` if ``module`` asks for something that is not computed."""
    if (name := next((name for name in NOT_COMPUTED if kwargs.get(name) is not None), None)) is not None:
        raise BackendError(
            f"{_in_words(module)} attends with {NOT_COMPUTED[name]} ({name!r}), which {BACKEND!r} does not compute; "
            "load the model with attn_implementation='eager'."
        )


def _mechanism(module: nn.Module, kwargs: dict[str, Any]) -> Mechanism | None:
    """The mechanism of a call; ``None`` for a module of a stock model.

    Raises:
        BackendError: the module asks for something that is not computed, or belongs to a model with mechanisms and has none.
    """
    check_computed(module, kwargs)
    mechanism = getattr(module, "long_attention", None)
    if isinstance(mechanism, nn.ModuleDict):
        mechanism = mechanism[str(kwargs[LAYER_INDEX])]
    if not isinstance(mechanism, Mechanism):
        if vars(getattr(module, "config", module)).get("long_attention") is not None:
            raise BackendError(
                f"{type(module).__name__} of a model with mechanisms carries no mechanism; call "
                'hf_longattn.enable_long_attention(model, {"mechanism": "window", "window": 512}) again, or load a Long… class.'
            )
        return None
    if kwargs.get(SINKS) is not None and not mechanism.capabilities.takes_sinks:
        raise BackendError(
            f"{type(module).__name__} has sinks, learned scores in every softmax ({SINKS!r}), but mechanism {mechanism.name!r} with these "
            "options is not one softmax over keys; choose for example window."
        )
    return mechanism


def _in_words(module: nn.Module) -> str:
    """The class of an attention module, with the number of its layer if it has one."""
    layer = getattr(module, "layer_idx", None)
    return f"{type(module).__name__} of layer {layer}" if isinstance(layer, int) else type(module).__name__


def _attend_as_declared(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | DeclaredMask | None,
    scaling: float | None,
    dropout: float,
    kwargs: dict[str, Any],
) -> tuple[Tensor, Tensor | None]:
    """:func:`longattn_attention_forward` of a stock model: softmax attention to the keys that its mask shows.

    Without a mask, every query sees every key.
    """
    batch_size, heads, q_len, _ = query.shape
    kv_len, width = key.shape[2], value.shape[-1]
    if mask is not None and mask.ndim == 4 and not (mask.shape[2] in (1, q_len) and mask.shape[3] in (1, kv_len)):
        raise BackendError(
            f"{_in_words(module)} attends from {q_len} queries to {kv_len} keys, but its mask is for {mask.shape[2]} queries and "
            f"{mask.shape[3]} keys; pass a mask that fits, or load the model with attn_implementation='eager'."
        )
    if isinstance(mask, Tensor) and mask.ndim == 4:
        _check_pairs(mask, query)
    if isinstance(mask, DeclaredMask) and mask.shape[2:] != (q_len, kv_len):  # one row for all queries (BridgeTower)
        mask = mask.dense()
    region = mask.region() if isinstance(mask, DeclaredMask) else Region(Pattern.everything(False), kv_len) if mask is None else None
    documents = None
    if not DOCUMENTS.isdisjoint(kwargs) and q_len == (kv_len if region is None else region.keys):
        batch, _ = _with_documents(None, None, None, (batch_size, q_len), False, kwargs)
        documents = None if batch is None else batch.documents
        if documents is not None and isinstance(mask, DeclaredMask):
            region = None if in_graph() else mask.region(documents)
        elif documents is not None and region is not None:
            region = None if in_graph() else region._replace(batch=batch)
    terms: dict[str, Any] = {"documents": documents, "bias": kwargs.get("position_bias"), "softcap": kwargs.get("softcap")}
    settings: dict[str, Any] = {"dropout_p": dropout, "scale": scaling, "sink_scores": kwargs.get(SINKS)}
    if region is None or terms["bias"] is not None or terms["softcap"] is not None or _weights_wanted(kwargs):
        return _attend_pairs(query, key, value, mask, settings, **terms, with_weights=_weights_wanted(kwargs))
    if region.is_one_call(q_len) and not OBSERVERS and not (dropout and query.device.type == "cpu"):
        key, value = key[:, :, : region.keys], value[:, :, : region.keys]  # what transformers' sdpa attention does, at the same cost
        output = fused_attention(query, key, value, is_causal=region.pattern.causal and q_len > 1, **settings)
        return output.transpose(1, 2).contiguous(), None
    # A mask costs least for few queries. One of padding serves queries of another sequence, about which padding says nothing.
    few = not torch.compiler.is_exporting() and q_len <= FEW_QUERIES  # an exported graph takes any number of queries
    few = few and (documents is None or region.keys == kv_len)
    if mask is not None and not OBSERVERS and (few or (region.cross and region.batch is not None)):
        return _attend_pairs(query, key, value, mask, settings, **terms)
    pattern = region.pattern
    scale, widest = query.shape[-1] ** -0.5 if scaling is None else scaling, max(query.shape[-1], width)
    key, value = key[:, :, : region.keys], value[:, :, : region.keys]
    if query.shape[-1] != width:  # latent attention (DeepSeek); zeros add nothing to scores or outputs
        query, key, value = (nn.functional.pad(x, (0, widest - x.shape[-1])) for x in (query, key, value))
    call = AttentionCall(pattern.causal, region.batch, scale=scale, dropout=dropout, sink_scores=kwargs.get(SINKS))
    if in_graph():  # which cannot build a mechanism
        output = block_sparse_attention(query, key, value, pattern, call)
    else:
        cross = region.cross or (q_len != region.keys and not pattern.causal and not pattern.bounded)
        output = run_batch(_declared_mechanism(heads, widest, pattern.left, pattern.right, cross), query, key, value, call)
    return output[..., :width].transpose(1, 2).contiguous(), None


@functools.lru_cache(64)
def _declared_mechanism(heads: int, head_dim: int, left: int, right: int, cross: bool) -> Mechanism:
    """The mechanism that a stock model declares: a band from ``query - left`` to ``query + right``, or full attention."""
    bounded = left < LARGEST or 0 < right < LARGEST
    options = {"left": min(left, LARGEST), "right": min(right, LARGEST)} if bounded else {}
    mechanism = mechanism_from("window" if bounded else "full", options, num_heads=heads, head_dim=head_dim).eval()
    mechanism.is_cross_attention = cross
    return mechanism


def _attend_pairs(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | DeclaredMask | None, settings: dict[str, Any], *, documents: Tensor | None,
    bias: Tensor | None, softcap: float | None, with_weights: bool = False,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Attention of a stock module by a mask over pairs, in blocks of queries where there are many pairs.

    Args:
        mask: as in :func:`longattn_attention_forward`, or with fewer axes, which broadcast.
        settings: dropout, scale and sinks of :func:`fused_attention`.
        documents: ``(B, Nk)``; pairs of different documents are hidden.
        bias: ``(B or 1, H or 1, Nq or 1, Nk)``, added to the scores.
        softcap: the bound that a tanh puts on the scores, before the bias and an additive mask are added.
        with_weights: whether the weights ``(B, H, Nq, Nk)`` are returned, too.
    """
    (batch, heads, q_len, width), kv_len = query.shape, key.shape[2]
    plain = softcap is not None or with_weights  # operations that hold all scores of a block

    def attend(q: Tensor, k: Tensor, v: Tensor, start: int, stop: int, first: int, last: int) -> tuple[Tensor, Tensor | None]:
        terms = [mask.rows(start, stop, first, last) if isinstance(mask, DeclaredMask) else _part(mask, start, stop)]
        if documents is not None:
            terms.append((documents[:, start:stop, None] == documents[:, None, first:last])[:, None])
        if bias is not None:
            terms.append(_part(bias, start, stop)[..., first:last])
        hidden = [term for term in terms if term is not None and term.dtype == torch.bool]
        # PyTorch's CPU kernel misreads masks of another dtype than the query's.
        added = [term.to(q.dtype) for term in terms if term is not None and term.dtype != torch.bool]
        visible = functools.reduce(torch.logical_and, hidden) if hidden else None
        total = sum(added[1:], added[0]) if added else None
        if not plain:
            if total is not None:
                visible = total if visible is None else torch.where(visible, total, torch.finfo(total.dtype).min)
            return fused_attention(q, k, v, attn_mask=visible, **settings), None
        scores = products(q, repeat_heads(k, heads)) * (width**-0.5 if settings["scale"] is None else settings["scale"])
        scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
        weights = masked_softmax(scores if total is None else scores + total, visible, settings["sink_scores"]).to(v.dtype)
        return nn.functional.dropout(weights, settings["dropout_p"]) @ repeat_heads(v, heads), weights if with_weights else None

    rows = 16 * batch * heads if plain else batch  # four bytes a score, and several copies at once
    if with_weights or rows * q_len * kv_len <= BLOCK_PAIRS:
        blocks = [(0, q_len, 0, kv_len)]
    elif isinstance(mask, DeclaredMask):
        blocks = mask.blocks(rows)
    else:
        size = max(1, BLOCK_PAIRS // (rows * kv_len))
        blocks = [(start, min(start + size, q_len), 0, kv_len) for start in range(0, q_len, size)]
    run = functools.partial(checkpoint, use_reentrant=False) if len(blocks) > 1 and torch.is_grad_enabled() else lambda call, *x: call(*x)
    results = [
        run(attend, query[:, :, start:stop], key[:, :, first:last], value[:, :, first:last], start, stop, first, last)
        for start, stop, first, last in reversed(blocks)  # causal blocks grow, and memory is only reused for smaller tensors
    ]
    output = torch.cat([out for out, _ in reversed(results)], 2) if len(results) > 1 else results[0][0]
    return output.transpose(1, 2).contiguous(), results[0][1]


def _part(term: Tensor | None, start: int, stop: int) -> Any:
    """Rows of queries of a mask or bias, which may have one row for all."""
    return term if term is None or term.dim() < 2 or term.shape[-2] == 1 else term[..., start:stop, :]


def padding_of_row(mask: Tensor) -> Tensor | None:
    """The padding ``(B, N)`` bool, True = real, of a mask ``(B, 1, 1, N)``. ``None`` if all tokens are real; the mask itself if it does
    more than hide tokens, which a graph cannot know."""
    if not in_graph() and not only_hides(mask):
        return mask
    real = ~hidden_pairs(mask)[:, 0, 0]
    return None if not in_graph() and bool(real.all()) else for_one_pass(real)


def _check_pairs(mask: Tensor, query: Tensor) -> None:
    """Raise :class:`InputError` if a four-dimensional mask has integers, which may be meant as either kind, or does not fit ``query``."""
    batch, heads = query.shape[:2]
    if mask.shape[0] not in (batch, 1) or mask.shape[1] not in (heads, 1) or not (mask.is_floating_point() or mask.dtype == torch.bool):
        raise InputError(
            f"The four-dimensional attention_mask {shape_in_words(mask)}, but must be (batch, 1 or heads, queries, keys) for {batch} rows "
            f"and {heads} heads, bool (True = visible) or floats that are added to the scores."
        )


def simplified_mask(mask: Tensor, batch: int, causal: bool, *, keeps_pairs: bool = False) -> Tensor | None:
    """A four-dimensional mask as padding ``(batch, N)`` if it says no more than padding and causality, or as bool if it only hides pairs.

    Other masks are returned unchanged. The result is stored on the mask until that changes, because models make one for all layers.
    With ``keeps_pairs``, only a mask of one row for all queries becomes padding.
    """
    version = None if mask.is_inference() else tensor_version(mask)
    known: tuple[Any, dict[Any, Any]] = getattr(mask, "_long_simplified", (None, {}))
    results = known[1] if known[0] == version and (version is not None or hasattr(mask, "_long_attention")) else {}
    if (causal, keeps_pairs) not in results:
        simplified = _simplified(mask, causal, keeps_pairs)
        if isinstance(simplified, Tensor) and simplified.dim() == 2:
            simplified = for_one_pass(simplified.expand(batch, -1))
        results[causal, keeps_pairs] = () if simplified is mask else (simplified,)  # a mask that held itself would not be freed
        mask._long_simplified = version, results  # type: ignore[attr-defined]
    return next(iter(results[causal, keeps_pairs]), mask)


def _simplified(mask: Tensor, causal: bool, keeps_pairs: bool) -> Tensor | None:
    if mask.shape[1:3] == (1, 1) or not only_hides(mask):
        return padding_of_row(mask) if mask.shape[1:3] == (1, 1) else mask
    batch = batch_of_mask(mask, None, causal)
    if batch is not None and (batch.mask is None or not keeps_pairs):
        return batch.mask
    return mask if mask.dtype == torch.bool else for_one_pass(~hidden_pairs(mask))


def _align(mask: Tensor | None, q_len: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Batch | None, Tensor | None]:
    """Bring keys and mask to the same length. Returns keys, values, the batch of sequences, and a dense mask."""
    if mask is None:
        return key, value, None, None
    kv_len = key.shape[2]
    if mask.dim() == 4:
        if mask.shape[2] not in (1, q_len) or mask.shape[3] < kv_len:
            raise InputError(
                f"The four-dimensional attention_mask has shape {tuple(mask.shape)}, "
                f"but must be (batch, 1 or heads, {q_len} queries, {kv_len} keys)."
            )
        return key, value, None, mask if mask.shape[3] == kv_len else mask[..., mask.shape[3] - kv_len :]
    if mask.dim() != 2:
        raise InputError(f"attention_mask has shape {tuple(mask.shape)}, but must be (batch, tokens) with 1 for real tokens.")
    batch = _batch(mask, kv_len)
    if mask.shape[1] < kv_len:  # a static cache returns its reserved slots as well
        return key[:, :, : mask.shape[1]], value[:, :, : mask.shape[1]], batch, None
    return key, value, batch, None


def _batch(mask: Tensor, kv_len: int) -> Batch:
    """The sequences of a padding mask at the last ``kv_len`` keys, cached for all layers."""
    first = max(0, mask.shape[1] - kv_len)  # a sliding cache has dropped the first tokens
    return cached_on(mask, first, lambda: Batch(mask[:, first:].bool()))


def documents_of(kwargs: dict[str, Any], shape: tuple[int, int]) -> Tensor | None:
    """Each token's document number ``(B, N)``, from ``documents``, ``seq_idx`` or FlashAttention's offsets; ``None`` without these.

    Raises:
        InputError: the numbers or offsets do not fit the tokens.
    """
    documents = kwargs.get("documents")
    documents = kwargs.get("seq_idx") if documents is None else documents
    if documents is not None:
        return documents_from(documents, None, shape) if isinstance(documents, Tensor) else None
    offsets = kwargs.get("cu_seq_lens_q")
    return documents_from(None, offsets, shape) if isinstance(offsets, Tensor) else None


def _with_documents(
    mechanism: Mechanism | None,
    batch: Batch | None,
    dense_mask: Tensor | None,
    shape: tuple[int, int],
    causal: bool,
    kwargs: dict[str, Any],
) -> tuple[Batch | None, Tensor | None]:
    """The batch with its documents, and the mask; ``None`` if the documents replace it completely.

    Raises:
        InputError: documents do not fit the tokens, or only a mask separates them, which is not enough for the mechanism.
    """
    if dense_mask is not None and not in_graph():
        if causal and cached_on(dense_mask, "ahead", lambda: shows_later_keys(dense_mask)):
            raise InputError(
                "The four-dimensional attention_mask shows later keys to earlier queries, but this layer is causal and hides them; hide "
                "them in the mask, too, or load the model without mechanisms."
            )
        documents = cached_on(dense_mask, "documents", lambda: documents_in_mask(dense_mask))
        if documents is not None:
            masked = cached_on(dense_mask, ("batch", causal), lambda: batch_of_mask(dense_mask, documents.expand(shape), causal))
            if masked is not None:
                return masked, None
        if mechanism is not None and not takes_masked_documents(mechanism, shape[1], causal):
            if documents is not None:
                raise InputError(packing_refused(mechanism))
            if cached_on(dense_mask, ("lowered", causal), lambda: lowers_sequences(dense_mask, causal)):
                raise InputError(
                    "A four-dimensional attention_mask lowers the scores between documents, or to left padding, by too little to hide them "
                    f"in every softmax, and mechanism {mechanism.name!r} with these options counts, chooses or remembers along the whole "
                    "row; fill the mask with torch.finfo(dtype).min, pass bool, or choose for example window."
                )
    borders = next((value for name in DOCUMENTS if isinstance(value := kwargs.get(name), Tensor)), None)
    if borders is None or (dense_mask is not None and in_graph()):  # the mask has the documents, too
        return batch, dense_mask
    padding = None if batch is None else batch.mask

    def make() -> Batch | None:
        documents = documents_of(kwargs, shape)
        several = in_graph() or (documents is not None and bool((documents[:, :1] != documents[:, -1:]).any()))
        return Batch.of(padding, documents if several else None)

    return cached_on(borders, (shape, id(padding)), make), dense_mask


def takes_masked_documents(mechanism: Mechanism, length: int, causal: bool) -> bool:
    """Whether a mask over pairs is enough to separate documents: if outputs depend only on distances and contents."""
    return mechanism.capabilities.takes_score_mod and (not mechanism.handling.position_dependent or mechanism.covers(length, causal))


def packing_refused(mechanism: Mechanism) -> str:
    """The error message if ``mechanism`` cannot separate packed documents by a mask alone."""
    return (
        "Several documents are packed into one row and kept apart by a mask alone (a compiled graph, or a four-dimensional attention_mask "
        f"that does more), but mechanism {mechanism.name!r} with these options counts, chooses or remembers along the whole row; pass "
        "documents (batch, tokens) or position_ids that restart, without torch.compile, or choose for example window."
    )


def _global_mask(mechanism: Mechanism, global_mask: Tensor | None, mask: Tensor | None, q_len: int, key: Tensor) -> Tensor | None:
    """The global mask ``(B, tokens seen)`` cut to the keys, ``(B, Nk)`` bool; ``None`` for mechanisms without global tokens."""
    if global_mask is None or not mechanism.capabilities.takes_globals:
        return None
    batch, kv_len = key.shape[0], key.shape[2]
    seen = mask.shape[-1] if mask is not None else (kv_len if q_len == kv_len else None)
    fits = global_mask.dim() == 2 and global_mask.shape[0] == batch and global_mask.shape[1] >= kv_len
    if not fits or (seen is not None and global_mask.shape[1] != seen):
        raise InputError(
            f"global_attention_mask has shape {tuple(global_mask.shape)}, "
            f"but must be (batch, tokens) = {(batch, seen or kv_len)} with 1 for global tokens."
        )
    first = global_mask.shape[1] - kv_len
    return cached_on(global_mask, ("globals", first), lambda: for_one_pass(global_mask[:, first:] != 0))


def _score_terms(mask: Tensor | None, query: Tensor, kv_len: int | Tensor, kwargs: dict[str, Any]) -> ScoreMod | None:
    """The ``score_mod`` of a mask over pairs, and of the model's position bias and softcap."""
    softcap = None if (cap := kwargs.get("softcap")) is None else device_scalar(cap, query.device)
    return _score_mod(mask, kwargs.get("position_bias"), query.shape[2], kv_len, softcap)


def _score_mod(
    mask: Tensor | None, bias: Tensor | ScoreMod | None, q_len: int, kv_len: int | Tensor, softcap: float | Tensor | None
) -> ScoreMod | None:
    """The ``score_mod`` of a mask and a bias ``(B or 1, H or 1, Nq or 1, Nk)``, or None.
    It takes absolute positions. It applies ``softcap`` first, then a bias that is a ``score_mod`` itself, then the tensors."""
    change = None if isinstance(bias, Tensor) else bias
    if mask is None and softcap is None and change is bias:
        return change
    inner = None if change is None else as_term(change).written_out  # built once, because engines may call it repeatedly
    tensor_terms = [term for term in (mask, bias) if isinstance(term, Tensor)]

    def score_mod(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        if softcap is not None:
            score = softcap * torch.tanh(score / softcap)
        if inner is not None:
            score = inner(score, b, h, q_idx, kv_idx)
        row = (q_idx - (kv_len - q_len)).clamp(0, q_len - 1)
        for term in tensor_terms:
            at = [index.clamp(max=size - 1) for index, size in zip((b, h, row, kv_idx.clamp(min=0)), term.shape, strict=True)]
            change_of_pair = term[at[0], at[1], at[2], at[3]]
            if term.dtype == torch.bool:
                score = torch.where(change_of_pair, score, torch.finfo(score.dtype).min)
            else:
                score = score + change_of_pair
        return score

    return score_mod


def _weights_wanted(kwargs: dict[str, Any]) -> bool:
    """Whether this call returns attention weights. Not every model passes ``output_attentions`` to its attention modules."""
    return bool(kwargs.get("output_attentions") or kwargs.get(COLLECT_WEIGHTS)) or attentions_collected()


AttentionInterface.register(BACKEND, longattn_attention_forward)
AttentionMaskInterface.register(BACKEND, longattn_mask)


def attentions_collected() -> bool:
    """Whether the running model's attentions are collected."""
    return any("attentions" in key for key in outputs_collected())


def outputs_collected() -> Collection[str]:
    """The layer outputs that are collected from the running model: hidden_states, attentions …"""
    from transformers.utils import output_capturing

    active = getattr(output_capturing, "_active_collector", None)
    if active is None:
        if not torch.compiler.is_compiling():
            warn_missing("attentions_collected")
        return ()
    collector = active.global_var if torch.compiler.is_compiling() else active.get()
    return () if collector is None else tuple(collector)
