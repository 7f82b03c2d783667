"""Attach mechanisms to the attention modules of any architecture on transformers' AttentionInterface."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from transformers.integrations import is_deepspeed_zero3_enabled

from ...configuration import LongAttentionConfig
from ...errors import BackendError, OptionError
from ...mechanisms.common.base import Mechanism
from ...mechanisms.common.capabilities import projection_copies
from ...mechanisms.common.masked import SparseMechanism, leading_sinks
from ...mechanisms.common.registry import mechanism_from
from ...mechanisms.common.shared_options import check_form
from ...memory.attention_cache import SparseCacheLayer
from ...memory.decode_cache import READS_PROMPT, find_cache
from ...positions.relative import SelfExtend
from ..family.definition import attention_names
from ..family.long_config import keeps_own_attention
from ..keywords import CACHE_LAYER, LAYER_INPUT, TAKES_CACHE_LAYER
from ..rotation import rotation_of, rotation_of_sinks
from .attention_sites import (
    CROSS_MECHANISM,
    AttentionSite,
    Call,
    attention_sites,
    check_layers_found,
    copied_parameters,
    copy_projections,
    input_width,
    mechanisms_on,
)

# Usual names in attention modules or their configs.
HEAD_COUNTS = ("num_heads", "num_attention_heads", "n_heads")
HEAD_DIMS = ("head_dim", "attention_head_size")
WIDTHS = ("embed_dim", "hidden_size", "dim", "all_head_size")
SINKS = "sinks"
"""The attribute of attention modules with the scores of sinks, or None. Modules pass them to their attention function
as ``s_aux``."""


def attach_mechanisms(
    model: nn.Module, long_attention: LongAttentionConfig, decoder_attention: LongAttentionConfig | None = None
) -> list[AttentionSite]:
    """Set ``module.long_attention`` on every attention module of ``model``: the mechanism of its layer, or full
    attention for cross-attention. Returns the attention modules that were found.

    Args:
        model: any model of transformers.
        long_attention: the mechanism of each layer.
        decoder_attention: the mechanism of each decoder layer; ``None`` for ``long_attention``.

    Raises:
        BackendError: no attention module was found.
        OptionError: an override names a layer that does not exist, or a mechanism lacks the form (causal or
            bidirectional) of its layer.
    """
    sites = attention_sites(model)
    self_attention = [site for site in sites if not site.cross]
    if not self_attention:
        raise BackendError(
            f"{type(model).__name__} has no attention module on transformers' AttentionInterface, so no mechanism can "
            "be attached; see https://huggingface.co/docs/transformers/attention_interface for the architectures that "
            "are on it."
        )
    check_layers_found(model, [site.name for site in sites])
    # attention and maximum length of the encoder (False) and of the decoder (True)
    config = getattr(model, "config", None)
    encoder_length = getattr(config, "max_position_embeddings", None)
    decoder_length = getattr(config, "max_decoder_position_embeddings", encoder_length)
    stacks = {False: (long_attention, encoder_length), True: (decoder_attention or long_attention, decoder_length)}
    for attention, _ in stacks.values():
        layers = [site.layer for site in self_attention if stacks[site.decoding][0] is attention]
        if layers:
            attention.check_layers(1 + max(layers))
    for site in sites:
        attention, max_length = stacks[site.decoding]
        name, options = (CROSS_MECHANISM, {}) if site.cross else attention.for_layer(site.layer)
        _attach(site, _built(model, site, name, options, max_length), model)
    if is_deepspeed_zero3_enabled():
        mark_for_zero3(model)
    return sites


def _built(
    model: nn.Module, site: AttentionSite, name: str, options: Mapping[str, Any], max_length: int | None
) -> Mechanism:
    """A mechanism for the attention module of ``site``, with the sizes and the rotation of the module.

    Raises:
        OptionError: the mechanism lacks the form (causal or bidirectional) of the layer, does not take the model's
            sinks, or needs a rotation that cannot be followed.
    """
    heads = first_number(site.module, HEAD_COUNTS)
    head_dim = first_number(site.module, (attention_names(site.module).head_dim, *HEAD_DIMS))
    if not head_dim:
        head_dim = first_number(site.module, WIDTHS) // heads
    width = input_width(site.module) or first_number(site.module, WIDTHS)
    mechanism = mechanism_from(
        name, options, num_heads=heads, head_dim=head_dim, hidden_size=width, max_length=max_length
    )
    mechanism.layer = site.layer
    mechanism.is_cross_attention = site.cross
    check_form(mechanism, site.causal, f"{site.name} of {type(model).__name__}")
    if getattr(site.module, SINKS, None) is not None and not mechanism.capabilities.takes_sinks:
        raise OptionError(
            f"{type(model).__name__} has sinks, learned scores in every softmax of its attention, but mechanism "
            f"{mechanism.name!r} with these options is not one softmax over keys; choose one that is, for example "
            "mechanism='window'."
        )
    if isinstance(mechanism.relative, SelfExtend):
        mechanism.relative.rotation = rotation_of(model, site)
    if isinstance(mechanism, SparseMechanism) and site.causal and leading_sinks(mechanism) > 0:
        rotation = rotation_of_sinks(model, site)
        if rotation is not None:
            mechanism.turn_sinks(rotation)
    return mechanism


def _attach(site: AttentionSite, mechanism: Mechanism, model: nn.Module) -> None:
    """Set a mechanism on the attention module of ``site``, in the module's dtype and on its device. Adds the hooks
    that pass the mechanism what it needs."""
    module = site.module
    if mechanism.capabilities.takes_hidden_states:
        _check_projections(site, mechanism, model)
        hook_once(module, pass_layer_input)
    weight = next(module.parameters(), None)
    if weight is not None:
        mechanism = mechanism.to(device=None if weight.is_meta else weight.device, dtype=weight.dtype)
    if projection_copies(mechanism):
        copy_projections(module, mechanism)
    site.put(mechanism)
    if not site.shared and getattr(module, "layer_idx", None) is None:  # vLLM looks up a layer's attention by it
        module.layer_idx = site.layer  # type: ignore[assignment]
    if site.causal and not site.cross:
        hook_once(module, pass_cache_layer)
        setattr(module, TAKES_CACHE_LAYER, True)


def mark_for_zero3(model: nn.Module) -> None:
    """Make DeepSpeed's ZeRO-3 gather all weights of an attention module together.

    ZeRO-3 otherwise fetches weights in the order in which modules ran before. A mechanism may run once per document,
    so this order would differ between processes with different numbers of documents, which would wait for each other.
    """
    mark = importlib.import_module("deepspeed.utils").set_z3_leaf_module
    for module in model.modules():
        if isinstance(getattr(module, "long_attention", None), nn.Module):
            mark(module, True)


def hook_once(module: nn.Module, hook: Callable[..., Call | None]) -> None:
    """Register a forward pre-hook, unless the module has it already."""
    hooks = module.__dict__.setdefault("long_attention_hooks", set())
    if hook not in hooks:
        hooks.add(hook)
        module.register_forward_pre_hook(hook, with_kwargs=True)


def pass_cache_layer(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
    """Forward pre-hook that passes the module's cache layer to the attention function. It passes ``None`` if the keys
    are in the cache layer of another module (Gemma 3n)."""
    cache = find_cache((*args, *kwargs.values()))
    if cache is None:
        return None
    cache = getattr(cache, "self_attention_cache", cache)
    layers = cache.layers
    index = getattr(module, "layer_idx", None)
    layer = layers[index] if isinstance(index, int) and index < len(layers) else None
    if isinstance(layer, SparseCacheLayer):
        layer.share_step(layers)  # layers that retain the same keys compute a step's positions once
    return args, {**kwargs, CACHE_LAYER: layer, READS_PROMPT: getattr(cache, READS_PROMPT, False)}


def pass_layer_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
    """Forward pre-hook that passes the module's input, its hidden states, to a mechanism that needs them.

    Raises:
        BackendError: the module's input was not found.
    """
    if keeps_own_attention(module):
        return None
    hidden = args[0] if args else kwargs.get("hidden_states")
    if not isinstance(hidden, Tensor):
        raise BackendError(
            f"{type(module).__name__} gets its input neither as the first argument nor as hidden_states, and its "
            "mechanism needs it; choose a mechanism that does not."
        )
    if not any(mechanism.capabilities.takes_hidden_states for mechanism in mechanisms_on(module)):
        return None
    return args, {**kwargs, LAYER_INPUT: hidden}


def _check_projections(site: AttentionSite, mechanism: Mechanism, model: nn.Module) -> None:
    """Raise :class:`OptionError` if a mechanism needs copies of the layer's projections, and these cannot be found, or
    their results are rotated by position."""
    config = getattr(model, "config", None)
    copies = projection_copies(mechanism)
    if copies and getattr(config, "rope_parameters", None):
        raise OptionError(
            f"Mechanism {mechanism.name!r} needs copies of the query and key projections, but those of "
            f"{type(model).__name__} are rotated by position afterwards; leave the option out, it is for models with "
            "a position table."
        )
    copied = {copies[name] for name in copied_parameters(site.module, copies)}
    if missing := {name for name in copies.values() if name.endswith("weight")} - copied:
        raise OptionError(
            f"Mechanism {mechanism.name!r} is initialised with copies of the layer's projections, but "
            f"{type(site.module).__name__} in {site.name} has none that can be found ({', '.join(sorted(missing))}); "
            "leave the option out."
        )


def first_number(module: nn.Module, names: Iterable[str]) -> Any:
    """The first integer among the attributes ``names`` of the module, or else of its config; ``None`` without one."""
    for owner in (module, getattr(module, "config", None)):
        for name in names:
            value = getattr(owner, name, None)
            if isinstance(value, int):
                return value
    return None
