"""The attention function and the mask function registered in transformers as ``longattn``.

A model's attention modules call :func:`longattn_attention_forward` in place of scaled_dot_product_attention. The
function passes q, k, v to the mechanism ``module.long_attention``, which the Long* classes or
:func:`hf_longattn.enable_long_attention` set. A module of a stock model has no mechanism; it attends to the keys that
its mask shows. For padding and windows, :func:`longattn_mask` builds nothing of size N×N.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from typing import Any, Literal

import torch
import transformers.masking_utils as masking
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import DynamicSlidingWindowLayer, StaticLayer, StaticSlidingWindowLayer
from transformers.utils import output_capturing

from ..engines.accelerator import accelerated
from ..engines.batch import Batch, cached_on, fake_mode, for_one_pass, has_values, in_graph, on_host
from ..engines.call import AttentionCall
from ..engines.dispatch import OBSERVERS, report, running
from ..engines.score_terms import ScoreMod
from ..errors import BackendError, InputError
from ..functional import check_trace, run_batch
from ..mechanisms.common.base import Mechanism, attention_weights
from ..mechanisms.common.capabilities import keys_per_query
from ..mechanisms.common.masked import NO_TOKEN, Columns, MaskedMechanism, steps_by_mask
from ..mechanisms.common.shared_options import for_length
from ..memory.attention_cache import AttentionCacheLayer, unread_cache
from ..memory.decode_cache import READS_PROMPT
from ..memory.key_cache import GrowingWindowLayer, StaticWindowLayer, slot_columns, tokens_in
from ..names import BACKEND, warn_missing
from .declared import AnyMask, DeclaredMask
from .keywords import (
    CACHE_LAYER,
    COLLECT_WEIGHTS,
    DOCUMENTS,
    GRID,
    LAYER_INDEX,
    LAYER_INPUT,
    NOT_COMPUTED,
    SCORE_TERMS,
    SINKS,
    TAKES_CACHE_LAYER,
    TENSORS,
    VALUES_NEEDED,
)
from .masks import (
    check_padding,
    check_pairs,
    check_size,
    filled_columns,
    globals_of_keys,
    score_terms,
    simplified_mask,
    takes_masked_documents,
    with_documents,
)
from .stock_attention import FEW_QUERIES, Attended, attend_as_declared, in_words
from .streaming import StreamedKeys
from .upstream import check_masks, problems

PLAIN_MASKS = (masking.causal_mask_function, masking.bidirectional_mask_function)
EAGER_MASKS = ("gemma4_audio", "informer")
"""Model types with attention modules that add the mask to their scores by themselves. They need a float mask, although
other modules of their file use transformers' AttentionInterface."""


def longattn_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Any = masking.causal_mask_function,
    attention_mask: AnyMask = None,
    config: Any = None,
    **kwargs: Any,
) -> AnyMask:
    """The mask for :func:`longattn_attention_forward`, made once per forward pass from the arguments that
    transformers gives every mask function.

    Returns:
        For a model with mechanisms, the result of :func:`mechanism_mask`. For a stock model, a :class:`DeclaredMask`,
        or, in a decoding step with a static cache, the bool tensor ``(B, 1, 1, Nk)`` of sdpa attention. For models
        outside the AttentionInterface, the float tensor of eager attention.

    Raises:
        BackendError: the masks of the installed transformers mean something else than this package reads.
        InputError: ``attention_mask`` has another shape, or is for other tokens.
    """
    if problems:
        raise BackendError(problems[0])
    if isinstance(attention_mask, DeclaredMask):  # with a static cache, ``generate`` makes the mask before the call
        return attention_mask
    if attention_mask is not None and attention_mask.dim() != 2:
        raise InputError(
            f"attention_mask has shape {tuple(attention_mask.shape)}, but must be (batch, tokens) with 1 for real "
            "tokens, or (batch, 1 or heads, queries, keys) to restrict single pairs."
        )
    if attention_mask is not None and not has_values(attention_mask):  # a tensor of shape only: all tokens are real
        attention_mask = None
    arguments = {
        "batch_size": batch_size,
        "q_length": q_length,
        "kv_length": kv_length,
        "q_offset": q_offset,
        "kv_offset": kv_offset,
        "mask_function": mask_function,
        "attention_mask": attention_mask,
        **kwargs,
    }
    has_mechanisms = getattr(config, "long_attention", None) is not None
    config_class: Any = type(config)
    if not has_mechanisms and not _on_the_interface(config_class):
        return masking.eager_mask(**arguments)
    if attention_mask is not None and attention_mask.shape != (batch_size, kv_length + kv_offset):
        check_padding(attention_mask, batch_size, q_length, kv_length, q_offset, kv_offset)
    if has_mechanisms:
        return mechanism_mask(**arguments)
    if q_length == 1 and isinstance(q_offset, Tensor):  # the graph of a compiled decoding step takes tensors only
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
    """:func:`longattn_mask` for layers with mechanisms. A mechanism replaces the window of the base's sliding layers
    (``local_size``), so this window does not appear in the mask.

    Returns:
        ``None`` if every token is real. Otherwise the padding mask ``(B, tokens seen so far)`` bool, True = real. If
        the model masks more than padding and causality (packed sequences, prefix blocks), ``(B, 1, Nq, Nk)`` bool,
        which costs N×N memory.
    """
    # transformers sets one of the two unless documents, blocks or a function of the model hide pairs as well; in a
    # decoding step with a static cache it sets neither
    skippable = kwargs.get("allow_is_causal_skip") or kwargs.get("allow_is_bidirectional_skip") or q_length == 1
    own_window = kwargs.get("local_size") is not None and skippable
    if mask_function not in PLAIN_MASKS and not own_window:
        kwargs |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
        return for_one_pass(
            masking.sdpa_mask(
                batch_size,
                q_length,
                kv_length,
                q_offset,
                kv_offset,
                mask_function=mask_function,
                attention_mask=attention_mask,
                **kwargs,
            )
        )
    causal = mask_function is not masking.bidirectional_mask_function
    if causal and isinstance(q_offset, Tensor):
        return for_one_pass(filled_columns(batch_size, kv_length, q_offset + q_length, attention_mask))
    total: int = q_offset + q_length  # type: ignore[assignment]
    if causal and kv_length + kv_offset > total:  # a static cache has reserved slots after the last token
        if attention_mask is None:
            return for_one_pass(torch.ones(batch_size, total, dtype=torch.bool, device=kwargs.get("device")))
        return for_one_pass(attention_mask)  # a layer with the cache cuts it to the tokens, others refuse it
    if attention_mask is None or in_graph():
        return attention_mask
    real = on_host(attention_mask != 0)
    if real.all():
        if kv_length + kv_offset == total:
            return None
        # The keys are an encoder's, or the mask is for another text. The attention function checks the mask's width.
        return for_one_pass(attention_mask, {0: None})
    # _with_keys looks up the batch of all keys under 0
    return for_one_pass(attention_mask, {0: Batch(attention_mask.bool(), host_mask=real)})


def mask_of_encoder(padding: Tensor) -> Tensor | None:
    """The result of :func:`mechanism_mask` for an encoder whose base passes the mask ``(B, N)``, 1 = real, to its
    layers as it is (WavLM, DeBERTa-v2)."""
    batch, length = padding.shape
    return mechanism_mask(
        batch, length, length, mask_function=masking.bidirectional_mask_function, attention_mask=padding != 0
    )


def _on_the_interface(config_class: type[Any]) -> bool:
    """Whether the modeling file of a config class uses transformers' AttentionInterface."""
    if getattr(config_class, "model_type", None) in EAGER_MASKS:
        return False
    for base in config_class.__mro__:
        # modeling_bert.py, for example, stands beside configuration_bert.py
        package, separator, name = base.__module__.rpartition(".configuration_")
        modeling = sys.modules.get(f"{package}.modeling_{name}")
        if separator and modeling is not None:
            return hasattr(modeling, "ALL_ATTENTION_FUNCTIONS")
    return False


def longattn_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: AnyMask,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> Attended:
    """Attention with the mechanism ``module.long_attention``; for a stock model, attention to the keys that its mask
    shows. The signature is that of transformers' attention functions.

    Args:
        module: the attention module; ``module.is_causal`` says whether later keys are hidden, unless the mask is a
            :class:`DeclaredMask`.
        query: ``(B, H, Nq, D)``; the last Nq positions of the keys' sequence.
        key, value: ``(B, H_kv, Nk, D)``; with a cache, what the cache returned.
        attention_mask: the result of :func:`longattn_mask`, or a mask ``(B, 1 or H, Nq, Nk)`` from the caller (bool,
            True = visible, or additive). A caller's mask restricts the mechanism's pattern further. If it consists of
            padding, causality and documents, it is converted to these.
        scaling: factor on q·k.
        dropout: dropout probability on the weights.
        is_causal: overrides ``module.is_causal`` (CLIP's text model).
        kwargs: ``global_attention_mask (B, tokens)``, 1 = global; ``position_bias``, a tensor that is added to the
            scores, or a ``score_mod``; ``softcap``, the bound of the scores by tanh (Gemma 2); ``s_aux (H,)``, the
            scores of sinks (gpt-oss); ``layer_input (B, Nq, d)``, the module's hidden states, for mechanisms that take
            them.

    Returns:
        The output ``(B, Nq, H, D)``, and the weights ``(B, H, Nq, Nk)`` if they are requested, otherwise ``None``.

    Raises:
        BackendError: the module requests an unsupported computation, has no mechanism in a model with mechanisms, or
            is causal and gets no mask.
        InputError: the mask has the wrong shape or dtype, or does not hide documents from each other completely.
    """
    mechanism = mechanism_of(module, kwargs)
    if isinstance(key, StreamedKeys):
        mechanism, key, cache_layer = key.for_module(module, attention_mask, kwargs)
        if cache_layer is not None:
            kwargs = {**kwargs, CACHE_LAYER: cache_layer}
    if not torch.compiler.is_compiling() and (query.is_meta or fake_mode() is not None):
        # tensors have shapes only, so arguments whose values decide what is visible are ignored
        if mechanism is not None and isinstance(attention_mask, Tensor) and not has_values(attention_mask):
            attention_mask = None
        kwargs = {name: value for name, value in kwargs.items() if name not in VALUES_NEEDED}
    with_weights = weights_requested(kwargs)
    if is_causal is None:
        is_causal = getattr(module, "is_causal", False)
    causal = bool(is_causal)
    if mechanism is None:
        return attend_as_declared(
            module, query, key, value, attention_mask, causal, scaling, dropout, with_weights, kwargs
        )
    call = _read(module, mechanism, query, key, value, attention_mask, causal, scaling, dropout, with_weights, kwargs)
    route = _route_of(call)
    width = value.shape[-1]  # mechanisms get values padded to the width of keys
    weights = None
    if route == "cache":
        output, weights = _attend_by_cache(call)
    elif route == "slots":
        output = _step_over_slots(call)
    else:
        key, value, arguments = _with_keys(call)
        if query.shape[2] == 1 and not with_weights and _steps_by_mask(call.mechanism, arguments):
            output = _step(call.mechanism, query, key, value, arguments)
        else:
            output = run_batch(call.mechanism, query, key, value, arguments)
        if with_weights:
            weights = attention_weights(call.mechanism, query, key, arguments.replace(dropout=0.0))
    return output[..., :width].transpose(1, 2).contiguous(), weights


@dataclasses.dataclass  # not frozen, for decoding
class LayerCall:
    """A call of an attention module with a mechanism.

    query, key, value: as in :func:`longattn_attention_forward`, with values as wide as keys.
    mask: a padding mask ``(B, tokens)`` bool, a mask over pairs ``(B, 1 or H, Nq, Nk)``, or ``None``.
    layer: the module's cache layer; ``None`` without a cache.
    arguments: the arguments of the mechanism, without batch, global tokens and score terms. These depend on the route.
    with_weights: whether to return the attention weights.
    kwargs: the keywords of :func:`longattn_attention_forward`.
    """

    mechanism: Mechanism
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    layer: Any
    arguments: AttentionCall
    with_weights: bool
    kwargs: dict[str, Any]

    @property
    def padding(self) -> Tensor | None:
        """The padding mask ``(B, tokens)``; ``None`` if the call has no mask, or a mask over pairs."""
        return self.mask if self.mask is not None and self.mask.dim() == 2 else None

    def score_terms(self, pairs: Tensor | None, kv_len: int | Tensor) -> ScoreMod | None:
        """The score terms of the mask ``pairs (B, 1 or H, Nq, Nk)`` and of the call's keywords.

        kv_len: number of tokens up to the last query.
        """
        return score_terms(pairs, self.kwargs.get("position_bias"), self.kwargs.get("softcap"), self.query, kv_len)

    def over_columns(self, kv_len: int | Tensor) -> AttentionCall:
        """The mechanism's arguments with the whole mask, including columns of empty cache slots."""
        padding = self.padding
        if padding is None:
            return self.arguments.replace(score_mod=self.score_terms(self.mask, kv_len))
        batch = cached_on(padding, 0, lambda: Batch(padding.bool()))
        return self.arguments.replace(batch=batch, score_mod=self.score_terms(None, kv_len))


def mechanism_of(module: nn.Module, kwargs: dict[str, Any]) -> Mechanism | None:
    """The mechanism of a call; ``None`` for a module of a stock model.

    Raises:
        BackendError: the module requests an unsupported computation, passes a tensor under an unknown keyword, or has
            no mechanism in a model with mechanisms.
    """
    for name, value in kwargs.items():
        if name in NOT_COMPUTED and value is not None:
            raise BackendError(
                f"{in_words(module)} attends with {NOT_COMPUTED[name]} ({name!r}), which {BACKEND!r} does not "
                "compute; load the model with attn_implementation='eager'."
            )
        if name not in TENSORS and isinstance(value, Tensor):
            raise BackendError(
                f"{in_words(module)} got the tensor {name!r}, which may change attention, and which {BACKEND!r} does "
                "not know; leave it out of the model's call, or, if the model passes it, load the model with "
                "attn_implementation='eager'."
            )
    mechanism = getattr(module, "long_attention", None)
    if isinstance(mechanism, nn.ModuleDict):  # layers share the module, and each has its own mechanism
        mechanism = mechanism[str(kwargs[LAYER_INDEX])]
    if not isinstance(mechanism, Mechanism):
        if vars(getattr(module, "config", module)).get("long_attention") is not None:
            raise BackendError(
                f"{type(module).__name__} of a model with mechanisms carries no mechanism; call "
                'hf_longattn.enable_long_attention(model, {"mechanism": "window", "window": 512}) again, or load a '
                "Long… class."
            )
        return None
    if kwargs.get(SINKS) is not None and not mechanism.capabilities.takes_sinks:
        raise BackendError(
            f"{type(module).__name__} has sinks, learned scores in every softmax ({SINKS!r}), but mechanism "
            f"{mechanism.name!r} with these options is not one softmax over keys; choose for example window."
        )
    return mechanism


def weights_requested(kwargs: dict[str, Any], by_default: bool = False) -> bool:
    """Whether a call returns attention weights, because a keyword requests them, or because transformers collects them
    from the running model, as it collects hidden_states and other outputs of layers.

    by_default: whether the model's config requests weights in calls without the keyword ``output_attentions``.
    """
    requested = kwargs.get("output_attentions")
    if requested is None:
        requested = by_default
    if requested or kwargs.get(COLLECT_WEIGHTS):
        return True
    active = getattr(output_capturing, "_active_collector", None)
    if active is None:
        if not torch.compiler.is_compiling():
            warn_missing("attentions_collected")
        return False
    collector = active.global_var if torch.compiler.is_compiling() else active.get()
    return bool(collector) and any("attentions" in name for name in collector)


def _read(
    module: nn.Module,
    mechanism: Mechanism,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Any,
    causal: bool,
    scaling: float | None,
    dropout: float,
    with_weights: bool,
    kwargs: dict[str, Any],
) -> LayerCall:
    """The :class:`LayerCall` of a module, with the mechanism for this number of keys and the mask in its simplest
    form.

    Raises:
        BackendError: the cache layer did not reach the module, or has dropped keys that ``mechanism`` sees.
        InputError: the mask is for other queries or keys.
    """
    if torch.jit.is_tracing():
        check_trace(mechanism if SCORE_TERMS.isdisjoint(kwargs) else None, causal)
    if causal:
        new_tokens = 0 if kwargs.get(READS_PROMPT, False) else query.shape[2]
        mechanism = for_length(mechanism, key.shape[2], causal, new_tokens)
    if isinstance(mask, DeclaredMask):  # the mask of a tower with a config of its own, which names no mechanism
        declared = mask
        mask = declared.cached("for mechanisms", lambda: mechanism_mask(**declared.arguments))
    # check the mask and the cache against the keys
    has_cache = CACHE_LAYER in kwargs
    layer = kwargs.get(CACHE_LAYER)
    if not has_cache and key.shape[2] > query.shape[2] and getattr(module, TAKES_CACHE_LAYER, False):
        raise unread_cache(type(module).__name__)  # the keys may be in another order, or followed by empty slots
    if mask is not None and mask.shape != (key.shape[0], key.shape[2]):
        _check_keys(mask, query, key, has_cache, layer)
    if isinstance(layer, DynamicSlidingWindowLayer) and not isinstance(layer, GrowingWindowLayer):
        _check_window(mechanism, layer, layer.sliding_window, key)
    elif isinstance(layer, StaticSlidingWindowLayer):
        _check_window(mechanism, layer, layer.max_cache_len, key)
    if mask is not None and mask.dim() == 4 and query.shape[2] > 1 and not in_graph():
        # a mechanism that can use a mask over pairs keeps it
        keeps_pairs = takes_masked_documents(mechanism, mask.shape[3], causal)
        mask = simplified_mask(mask, query.shape[0], causal, keeps_pairs=keeps_pairs)
    if value.shape[-1] < key.shape[-1]:  # latent attention (DeepSeek); zeros add nothing to an output
        value = nn.functional.pad(value, (0, key.shape[-1] - value.shape[-1]))
    hidden_states = kwargs.get(LAYER_INPUT) if mechanism.capabilities.takes_hidden_states else None
    arguments = AttentionCall(
        causal=causal,
        scale=scaling,
        dropout=dropout,
        hidden_states=hidden_states,
        grid=kwargs.get(GRID),
        sink_scores=kwargs.get(SINKS),
    )
    return LayerCall(mechanism, query, key, value, mask, layer, arguments, with_weights, kwargs)


def _check_window(mechanism: Mechanism, layer: Any, width: int, key: Tensor) -> None:
    """Raise :class:`BackendError` if a sliding ``layer`` of the base's cache has dropped keys that ``mechanism`` sees.
    The layer keeps ``width`` tokens. In a graph, whether it has dropped keys is unknown, so a wider mechanism is
    refused."""
    seen = layer.get_seq_length()
    reach = keys_per_query(mechanism)
    if (reach is None or reach > width) and (in_graph() or int(seen) > key.shape[2]):
        raise BackendError(
            f"The model's own cache keeps the last {width} tokens of this layer (sliding_window), but mechanism "
            f"{mechanism.name!r} sees more tokens; load the checkpoint with a Long class, choose a window of at most "
            f"{width}, or pass use_cache=False."
        )


def _check_keys(mask: Tensor, query: Tensor, key: Tensor, has_cache: bool, layer: Any) -> None:
    """Raise :class:`InputError` if a mask is for other queries or keys than those of the module's call. No check waits
    for the device.

    has_cache: whether the call has a cache. With a cache, ``layer`` is ``None`` if the keys are in the cache layer of
        another module.
    """
    if mask.dim() == 4:
        check_pairs(mask, query)
    if mask.shape[-1] == key.shape[2]:
        return
    may_have_empty_slots = mask.dim() == 2 and isinstance(layer, StaticLayer)
    if not has_cache:
        check_size(mask, key.shape[0], key.shape[2])
    elif layer is not None and not may_have_empty_slots and not in_graph():
        check_size(mask, key.shape[0], int(layer.get_seq_length()))  # counts keys that the cache has dropped, too


def _with_keys(call: LayerCall) -> tuple[Tensor, Tensor, AttentionCall]:
    """Keys and values ``(B, H_kv, Nk, D)`` without empty slots, and the arguments of the mechanism with batch, global
    tokens and score terms.

    Raises:
        InputError: the mask or another argument does not fit the keys, or the mechanism cannot use it.
    """
    mechanism, query, key, value, mask = call.mechanism, call.query, call.key, call.value, call.mask
    q_len = query.shape[2]
    if isinstance(call.layer, StaticLayer) and not isinstance(call.layer, AttentionCacheLayer):
        key, value, mask = _filled(call.layer, query, key, value, mask)
    # a padding mask becomes the batch, a mask over pairs a score term
    batch: Batch | None = None
    pairs: Tensor | None = None
    if mask is not None and mask.dim() == 2:
        padding = mask
        first = max(0, mask.shape[1] - key.shape[2])  # a sliding cache has dropped the first tokens
        batch = cached_on(mask, first, lambda: Batch(padding[:, first:].bool()))
        if mask.shape[1] < key.shape[2]:  # a static cache returns its reserved slots as well
            key, value = key[:, :, : mask.shape[1]], value[:, :, : mask.shape[1]]
    elif mask is not None:
        if mask.dim() != 4 or mask.shape[3] < key.shape[2]:
            raise InputError(
                f"attention_mask has shape {tuple(mask.shape)}, but must be (batch, tokens) with 1 for real tokens, "
                f"or four-dimensional (batch, 1 or heads, {q_len} queries, {key.shape[2]} keys)."
            )
        pairs = mask
        if mask.shape[3] > key.shape[2]:  # a sliding cache has dropped the first keys
            pairs = mask[..., mask.shape[3] - key.shape[2] :]
    kv_len, causal = key.shape[2], call.arguments.causal
    if pairs is not None or not DOCUMENTS.isdisjoint(call.kwargs):
        batch, pairs = with_documents(mechanism, batch, pairs, (key.shape[0], kv_len), causal, call.kwargs)
    score_mod = None
    if pairs is not None or not SCORE_TERMS.isdisjoint(call.kwargs):
        score_mod = call.score_terms(pairs, kv_len)
        _check_terms(mechanism, pairs, score_mod, kv_len, causal, call.kwargs)
    global_mask = call.kwargs.get("global_attention_mask")
    if not mechanism.capabilities.takes_globals:
        global_mask = None
    if global_mask is not None:
        global_mask = globals_of_keys(global_mask, mask, q_len, key)
    return key, value, call.arguments.replace(batch=batch, global_mask=global_mask, score_mod=score_mod)


def _check_terms(
    mechanism: Mechanism,
    pairs: Tensor | None,
    score_mod: ScoreMod | None,
    kv_len: int,
    causal: bool,
    kwargs: dict[str, Any],
) -> None:
    """Refuse score terms that ``mechanism`` cannot use.

    Raises:
        InputError: the mechanism has no scores to which terms could be added; or a mask in a graph may separate
            documents, and the mechanism would treat documents of up to ``exact_length`` tokens differently.
    """
    if score_mod is not None and not mechanism.capabilities.takes_score_mod:
        terms = {"four-dimensional attention_mask": pairs, "position bias": kwargs.get("position_bias")}
        term_name = next((name for name, term in terms.items() if term is not None), "cap on the scores")
        raise InputError(
            f"A {term_name} was given, but mechanism {mechanism.name!r} has no scores that it could change; "
            "pass a padding mask (batch, tokens), or choose a mechanism over scores, for example window."
        )
    if pairs is None or causal or not in_graph():
        return
    for_short_documents, for_whole_row = for_length(mechanism, 0), for_length(mechanism, kv_len)
    if for_short_documents is not for_whole_row:
        raise InputError(
            "A four-dimensional attention_mask in a compiled graph may keep documents apart, and the graph cannot "
            "tell which of them are short enough for exact_length; give each document its own row with padding, leave "
            "torch.compile out, or set exact_length=0."
        )


Route = Literal["cache", "slots", "keys"]
"""How a call is computed: ``cache``, by its cache layer, from a state or from the keys in the layer; ``slots``, over
all slots of a static cache, filled or empty; ``keys``, over the keys of the call."""


def _route_of(call: LayerCall) -> Route:
    """The route of a call. Stores the padding in a cache layer of this package, for later steps."""
    layer = call.layer
    if isinstance(layer, AttentionCacheLayer):
        layer.note_padding(call.padding)
        return "cache" if layer.computes_attention else "keys"
    if isinstance(layer, StaticLayer) and _runs_over_slots(layer, call):
        return "slots"
    return "keys"


def _attend_by_cache(call: LayerCall) -> Attended:
    """Output ``(B, H, Nq, D)`` and weights of a step that the cache layer computes."""
    layer, mechanism = call.layer, call.mechanism
    arguments = call.over_columns(call.key.shape[2])
    attend = functools.partial(layer.attend, mechanism, call.query, call.key, call.value, arguments, call.with_weights)
    if OBSERVERS and not torch.compiler.is_compiling():
        with running(mechanism):
            report(f"cache of {layer.keeps}")
            return attend()
    return attend()


def _step_over_slots(call: LayerCall) -> Tensor:
    """The output ``(B, H, Nq, D)`` of a step over all slots of a static cache. Shapes do not depend on the number of
    tokens in the cache, so that one graph computes every step."""
    q_len, kv_len = call.query.shape[2], call.key.shape[2]
    arguments = call.over_columns(tokens_in(call.layer))
    global_mask = call.kwargs.get("global_attention_mask")
    if global_mask is not None and call.mechanism.capabilities.takes_globals:
        # later slots are not global
        width = kv_len if call.padding is None else call.padding.shape[1]
        missing = width - global_mask.shape[1]
        globals_of_slots = cached_on(
            global_mask, ("slots", missing), lambda: for_one_pass(nn.functional.pad(global_mask != 0, (0, missing)))
        )
        arguments = arguments.replace(global_mask=globals_of_slots)
    columns = slot_columns(call.layer, q_len, kv_len)
    return _step(call.mechanism, call.query, call.key, call.value, arguments, columns)


def _runs_over_slots(layer: StaticLayer, call: LayerCall) -> bool:
    """Whether a step runs over all slots of a static cache, filled or empty.

    Raises:
        BackendError: in a compiled graph, which cannot select the filled slots, the mechanism cannot use all slots.
    """
    q_len = call.query.shape[2]
    if call.key.shape[2] == q_len:  # the first call, whose keys are those of its own tokens
        return False
    few_on_device = accelerated(call.query) and q_len <= FEW_QUERIES
    if not in_graph() and not isinstance(layer, StaticWindowLayer) and not few_on_device:
        return False
    if not call.with_weights and _steps_by_mask(call.mechanism, call.arguments):
        return True
    if torch.compiler.is_compiling() and not torch.compiler.is_exporting():
        raise BackendError(
            f"With these options, mechanism {call.mechanism.name!r} decodes from this static cache with shapes that "
            "change at every token, so one compiled graph cannot run all steps; do not compile (disable_compile=True "
            "in generate), or choose a mechanism such as window or linear."
        )
    return False


def _steps_by_mask(mechanism: Mechanism, call: AttentionCall) -> bool:
    """Whether ``attend_rows`` (mechanisms/common/masked.py) can compute new tokens in place of ``forward``. It returns
    no weights."""
    return (
        steps_by_mask(mechanism)
        and call.causal
        and call.dropout == 0
        and call.score_mod is None
        and (call.batch is None or call.batch.documents is None)
        and not torch.compiler.is_exporting()
    )


def _step(
    mechanism: Mechanism,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    call: AttentionCall,
    columns: Columns | None = None,
) -> Tensor:
    """The output ``(B, H, Nq, D)`` of :meth:`MaskedMechanism.attend_rows`."""
    if OBSERVERS and not torch.compiler.is_compiling():
        with running(mechanism):
            report("dense-masked")
    assert isinstance(mechanism, MaskedMechanism)
    return mechanism.attend_rows(query, key, value, call, columns)


def _filled(
    layer: StaticLayer, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Keys, values and mask of the filled slots of a static cache.

    A padding mask becomes ``(B, tokens)``. Reading the number of tokens waits for the device. With a mask, it is read
    once per forward pass, otherwise in every layer."""
    q_len, kv_len = query.shape[2], key.shape[2]
    total: Any = kv_len if kv_len == q_len else tokens_in(layer)
    if isinstance(total, Tensor):
        on_device = total
        total = int(on_device) if mask is None else cached_on(mask, "tokens", lambda: int(on_device))
    if isinstance(layer, StaticWindowLayer) and kv_len != q_len:
        # a ring: keys and values in text order, without empty slots
        _, columns = slot_columns(layer, q_len, kv_len).find()
        order = columns.argsort()[: int((columns < NO_TOKEN).sum())]
        key, value = key[:, :, order], value[:, :, order]
    elif kv_len > total:
        key, value = key[:, :, :total], value[:, :, :total]
    if mask is None:
        return key, value, None
    if mask.dim() == 4:
        return key, value, mask[..., :total]
    return key, value, cached_on(mask, ("filled", total), lambda: for_one_pass(mask[:, :total]))


AttentionInterface.register(BACKEND, longattn_attention_forward)
AttentionMaskInterface.register(BACKEND, longattn_mask)
check_masks(mechanism_mask)
