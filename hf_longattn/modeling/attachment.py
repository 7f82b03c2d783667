"""Put mechanisms on the attention modules of any architecture on transformers' AttentionInterface."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn

from ..backend import BACKEND, CACHE_LAYER, LAYER_INPUT, PROJECT_ONLY, STOPPED
from ..configuration import LongAttentionConfig
from ..errors import BackendError, OptionError
from ..mechanisms.base import Mechanism
from ..mechanisms.registry import mechanism_from
from ..memory import AttendingLayer
from .attention_sites import (
    CROSS_MECHANISM,
    AttentionSite,
    attention_sites,
    copied_parameters,
    copy_projections,
    input_width,
    mechanisms_on,
)
from .weights import share_parameters

HEAD_COUNTS = ("num_heads", "num_attention_heads", "n_heads")
HEAD_DIMS = ("head_dim", "attention_head_size")
WIDTHS = ("embed_dim", "hidden_size", "dim", "all_head_size")


def attach_mechanisms(
    model: nn.Module, long_attention: LongAttentionConfig, decoder_attention: LongAttentionConfig | None = None
) -> list[AttentionSite]:
    """Put the mechanism of its layer on every self-attention module below ``model`` as ``module.long_attention``, and full attention
    on cross-attention modules. What is attached already is replaced.

    Args:
        model: any model of transformers.
        long_attention: which mechanism in which layer.
        decoder_attention: the same for the modules of a decoder, where those are to have their own.

    Raises:
        BackendError: no attention module was found.
        OptionError: an override for a layer that the model does not have, or a mechanism that has no causal (bidirectional) form
            in a model that needs it.
    """
    sites = attention_sites(model)
    stacks = [(decoder_attention if decoder_attention is not None and site.decoding else long_attention, site) for site in sites]
    own = [(attention, site) for attention, site in stacks if not site.cross]
    if not own:
        raise BackendError(
            f"{type(model).__name__} has no attention module on transformers' AttentionInterface, so no mechanism can be attached; "
            "see https://huggingface.co/docs/transformers/attention_interface for the architectures that are on it."
        )
    for attention, _ in own:
        attention.check_layers(1 + max(site.layer for other, site in own if other is attention))
    config = getattr(model, "config", None)
    encoder_length = getattr(config, "max_position_embeddings", None)
    decoder_length = getattr(config, "max_decoder_position_embeddings", encoder_length)
    for attention, site in stacks:
        name, options = (CROSS_MECHANISM, {}) if site.cross else attention.for_layer(site.layer)
        max_length = decoder_length if site.decoding else encoder_length
        heads = _first(site.module, HEAD_COUNTS)
        head_dim = _first(site.module, HEAD_DIMS) or _first(site.module, WIDTHS) // heads
        width = input_width(site.module) or _first(site.module, WIDTHS)
        mechanism = mechanism_from(name, options, num_heads=heads, head_dim=head_dim, hidden_size=width, max_length=max_length)
        mechanism.layer = site.layer
        causal = bool(site.module.is_causal)
        mechanism.check_form(causal, f"{site.name} of {type(model).__name__}")
        if mechanism.takes_hidden_states:
            _check_projections(site, mechanism, model)
            if _hand_over_input not in site.module._forward_pre_hooks.values():
                site.module.register_forward_pre_hook(_hand_over_input, with_kwargs=True)
        if mechanism.stops_gradients(sys.maxsize) and _stop_at_input not in site.module._forward_pre_hooks.values():
            site.module.register_forward_pre_hook(_stop_at_input, with_kwargs=True)
        mechanism = _placed_like(mechanism, site.module)
        copy_projections(site.module, mechanism)
        site.put(mechanism)
        if causal and not site.cross and pass_cache_layer not in site.module._forward_pre_hooks.values():
            site.module.register_forward_pre_hook(pass_cache_layer, with_kwargs=True)
    share_parameters(model)
    return sites


def pass_cache_layer(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Hand the cache layer of an attention module to its attention function, where it keeps only what the mechanism needs."""
    layers = getattr(kwargs.get("past_key_values", kwargs.get("layer_past")), "layers", None)
    index = getattr(module, "layer_idx", None)
    if layers is None or not isinstance(index, int) or index >= len(layers) or not isinstance(layers[index], AttendingLayer):
        return None
    return args, {**kwargs, CACHE_LAYER: layers[index]}


def _hand_over_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Forward pre-hook: the module's input goes along as a keyword, which flows down to the attention function."""
    takes = any(mechanism.takes_hidden_states for mechanism in mechanisms_on(module).values())
    if not takes or getattr(getattr(module, "config", None), "_attn_implementation", BACKEND) != BACKEND:
        return None
    return args, {**kwargs, LAYER_INPUT: args[0] if args else kwargs["hidden_states"]}


def _stop_at_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Forward pre-hook: for a mechanism that stops gradients at hidden states, keys and values of the module's input as a constant.

    The module itself computes them, by a run that ends before attention, so that whatever its architecture does to keys and values
    (rotary positions, norms, fused projections) is done to these.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_exporting():
        return None
    hidden = args[0] if args else kwargs.get("hidden_states")
    if not isinstance(hidden, Tensor):
        raise BackendError(
            f"{type(module).__name__} gets its input neither as the first argument nor as hidden_states: gradients cannot stop there; "
            "stop them at keys and values, with the mechanism's option stop_gradient=keys_values."
        )
    caches = {name: kwargs[name] for name in ("past_key_values", "layer_past") if kwargs.get(name) is not None}
    seen = sum(int(cache.get_seq_length(getattr(module, "layer_idx", 0))) for cache in caches.values())
    stops = any(mechanism.stops_gradients(seen + hidden.shape[1]) for mechanism in mechanisms_on(module).values())
    if not stops or getattr(getattr(module, "config", None), "_attn_implementation", BACKEND) != BACKEND:
        return None
    projected: list[Tensor] = []
    if hidden.requires_grad:
        given = {**kwargs, **dict.fromkeys(caches), PROJECT_ONLY: projected}
        if "hidden_states" in given:
            given["hidden_states"] = hidden.detach()
        type(module).forward(module, *(x.detach() if x is hidden else x for x in args), **given)
    return args, {**kwargs, STOPPED: projected}


def _check_projections(site: AttentionSite, mechanism: Mechanism, model: nn.Module) -> None:
    """Projections of hidden states of the mechanism's own can stand in for the layer's only where those are all there is."""
    config = getattr(model, "config", None)
    if mechanism.copies and getattr(config, "rope_parameters", None):
        raise OptionError(
            f"Mechanism {mechanism.name!r} was asked for query and key projections of its own, but those of {type(model).__name__} are "
            "rotated by their positions afterwards; leave the option out, it is meant for models with a position table."
        )
    missing = {name for name in mechanism.copies.values() if name.endswith("weight")} - copied_sources(site.module, mechanism)
    if missing:
        raise OptionError(
            f"Mechanism {mechanism.name!r} begins with copies of the layer's own projections, but {type(site.module).__name__} in "
            f"{site.name} has none that is known ({', '.join(sorted(missing))}); leave the option out."
        )


def copied_sources(attention: nn.Module, mechanism: Mechanism) -> set[str]:
    """Which of the parameters that the mechanism copies the attention module has."""
    return {mechanism.copies[name] for name in copied_parameters(attention, mechanism.copies)}


def _first(module: nn.Module, names: tuple[str, ...]) -> Any:
    """The first of these attributes that the module, or else its config, has."""
    for owner in (module, getattr(module, "config", None)):
        for name in names:
            if isinstance(value := getattr(owner, name, None), int):
                return value
    return None


def _placed_like(mechanism: Mechanism, module: nn.Module) -> Mechanism:
    """A module without storage says nothing about the device: its mechanism is wherever things are made."""
    weight = next(module.parameters(), None)
    if weight is None:
        return mechanism
    return mechanism.to(dtype=weight.dtype) if weight.is_meta else mechanism.to(device=weight.device, dtype=weight.dtype)
