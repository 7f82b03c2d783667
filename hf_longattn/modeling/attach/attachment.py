"""Attach mechanisms to the attention modules of any architecture on transformers' AttentionInterface."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations import is_deepspeed_zero3_enabled

from ...configuration import LongAttentionConfig
from ...engines.batch import differentiated
from ...errors import BackendError, OptionError
from ...mechanisms.common.base import Mechanism
from ...mechanisms.common.registry import mechanism_from
from ...mechanisms.common.shared_options import check_form
from ...memory.cache_argument import find_cache
from ...positions.relative import SelfExtend
from ..backend import BACKEND, CACHE_LAYER, DETACHED_KV, LAYER_INPUT, PROJECT_ONLY, TAKES_CACHE_LAYER
from ..family.config import attention_implementation
from ..family.definition import attention_names
from .attention_sites import (
    CROSS_MECHANISM,
    AttentionSite,
    Call,
    attention_sites,
    copied_parameters,
    copy_projections,
    input_width,
    mechanisms_on,
)
from .rotations import rotation_of
from .weights import share_parameters

HEAD_COUNTS = ("num_heads", "num_attention_heads", "n_heads")
HEAD_DIMS = ("head_dim", "attention_head_size")
SINKS = "sinks"
"""The attribute of attention modules with the scores of sinks, or None. Modules pass them as ``s_aux``."""
WIDTHS = ("embed_dim", "hidden_size", "dim", "all_head_size")


def attach_mechanisms(
    model: nn.Module, long_attention: LongAttentionConfig, decoder_attention: LongAttentionConfig | None = None
) -> list[AttentionSite]:
    """Set ``module.long_attention`` on every attention module of ``model``. The layer's mechanism, or full attention for cross-attention.

    Args:
        model: any model of transformers.
        long_attention: the mechanism of each layer.
        decoder_attention: the mechanism of each decoder layer; ``None`` for ``long_attention``.

    Raises:
        BackendError: no attention module was found.
        OptionError: an override names a layer that does not exist, or a mechanism lacks the form (causal or bidirectional) of its layer.
    """
    sites = attention_sites(model)
    stacks = [(decoder_attention if decoder_attention is not None and site.in_decoder else long_attention, site) for site in sites]
    self_attention = [(attention, site) for attention, site in stacks if not site.cross]
    if not self_attention:
        raise BackendError(
            f"{type(model).__name__} has no attention module on transformers' AttentionInterface, so no mechanism can be attached; "
            "see https://huggingface.co/docs/transformers/attention_interface for the architectures that are on it."
        )
    for attention, _ in self_attention:
        attention.check_layers(1 + max(site.layer for attention_of_site, site in self_attention if attention_of_site is attention))
    config = getattr(model, "config", None)
    encoder_length = getattr(config, "max_position_embeddings", None)
    decoder_length = getattr(config, "max_decoder_position_embeddings", encoder_length)
    for attention, site in stacks:
        name, options = (CROSS_MECHANISM, {}) if site.cross else attention.for_layer(site.layer)
        max_length = decoder_length if site.decoding else encoder_length
        heads = _first(site.module, HEAD_COUNTS)
        head_dim = (
            _first(site.module, (attention_names(site.module).head_dim or HEAD_DIMS[0], *HEAD_DIMS)) or _first(site.module, WIDTHS) // heads
        )
        width = input_width(site.module) or _first(site.module, WIDTHS)
        mechanism = mechanism_from(name, options, num_heads=heads, head_dim=head_dim, hidden_size=width, max_length=max_length)
        mechanism.layer, mechanism.is_cross_attention = site.layer, site.cross
        causal = site.causal
        check_form(mechanism, causal, f"{site.name} of {type(model).__name__}")
        if getattr(site.module, SINKS, None) is not None and not mechanism.capabilities.takes_sinks:
            raise OptionError(
                f"{type(model).__name__} has sinks, learned scores in every softmax of its attention, but mechanism {mechanism.name!r} "
                "with these options is not one softmax over keys; choose one that is, for example mechanism='window'."
            )
        if isinstance(mechanism.relative, SelfExtend):
            mechanism.relative.rotation = rotation_of(model, site)
        if mechanism.capabilities.takes_hidden_states:
            _check_projections(site, mechanism, model)
        if mechanism.capabilities.takes_hidden_states or mechanism.capabilities.stops_gradients(sys.maxsize):
            _hook_once(site.module, pass_layer_input)
        weight = next(site.module.parameters(), None)
        if weight is not None:
            mechanism = mechanism.to(device=None if weight.is_meta else weight.device, dtype=weight.dtype)
        copy_projections(site.module, mechanism)
        site.put(mechanism)
        if causal and not site.cross:
            _hook_once(site.module, pass_cache_layer)
            setattr(site.module, TAKES_CACHE_LAYER, True)
    share_parameters(model)
    mark_for_zero3(model)
    return sites


def mark_for_zero3(model: nn.Module) -> None:
    """If DeepSpeed's ZeRO-3 is configured, make it gather all weights of an attention module together.

    A mechanism runs once for each of several documents. ZeRO-3 fetches weights in the order in which modules ran before. This order, and
    so the communication, would differ between processes whose batches hold different numbers of documents.
    """
    if not is_deepspeed_zero3_enabled():
        return
    mark = importlib.import_module("deepspeed.utils").set_z3_leaf_module
    for module in model.modules():
        if isinstance(getattr(module, "long_attention", None), nn.Module):
            mark(module, True)


def _hook_once(module: nn.Module, hook: Callable[..., Call | None]) -> None:
    hooks = module.__dict__.setdefault("long_attention_hooks", set())
    if hook not in hooks:
        hooks.add(hook)
        module.register_forward_pre_hook(hook, with_kwargs=True)


def pass_cache_layer(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
    """Forward pre-hook: pass the layer's cache to the attention function. ``None`` if another layer's cache has its keys (Gemma 3n)."""
    cache = find_cache((*args, *kwargs.values()))
    if cache is None:
        return None
    layers = getattr(cache, "self_attention_cache", cache).layers
    index = getattr(module, "layer_idx", None)
    return args, {**kwargs, CACHE_LAYER: layers[index] if isinstance(index, int) and index < len(layers) else None}


def pass_layer_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
    """Forward pre-hook: pass inputs of a module to mechanisms that need them. The module's input, or keys and values computed from the
    detached input.

    Raises:
        BackendError: the module's input was not found.
    """
    if attention_implementation(getattr(module, "config", None)) not in (None, BACKEND):
        return None
    hidden = args[0] if args else kwargs.get("hidden_states")
    if not isinstance(hidden, Tensor):
        raise BackendError(
            f"{type(module).__name__} gets its input neither as the first argument nor as hidden_states, and its mechanism needs it; "
            "choose a mechanism that does not, or the option stop_gradient=keys_values where gradients are to stop at the input."
        )
    mechanisms = mechanisms_on(module).values()
    added: dict[str, Any] = {}
    if any(mechanism.capabilities.takes_hidden_states for mechanism in mechanisms):
        added[LAYER_INPUT] = hidden
    if torch.is_grad_enabled() and not torch.compiler.is_exporting():
        cache = find_cache((*args, *kwargs.values()))
        seen = 0 if cache is None else int(cache.get_seq_length(getattr(module, "layer_idx", 0)))
        if any(mechanism.capabilities.stops_gradients(seen + hidden.shape[1]) for mechanism in mechanisms):
            added[DETACHED_KV] = _stopped_projections(module, hidden, args, kwargs)
    return (args, {**kwargs, **added}) if added else None


def _stopped_projections(module: nn.Module, hidden: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """Keys and values computed from ``hidden.detach()``; empty if ``hidden`` needs no gradients.

    The module computes them in a run that ends before attention. They therefore include everything that its architecture does to keys
    and values (rotary positions, norms, fused projections).
    """
    projected: list[Tensor] = []
    if differentiated(hidden):
        cache = find_cache((*args, *kwargs.values()))
        detached = hidden.detach()

        def instead(value: Any) -> Any:
            return detached if value is hidden else None if value is cache else value

        arguments = {**{name: instead(value) for name, value in kwargs.items()}, PROJECT_ONLY: projected}
        type(module).forward(module, *map(instead, args), **arguments)
    return projected


def _check_projections(site: AttentionSite, mechanism: Mechanism, model: nn.Module) -> None:
    """Raise :class:`OptionError` if the layer's projections cannot be copied. They are not found, or rotated by position afterwards."""
    config = getattr(model, "config", None)
    if mechanism.capabilities.copies and getattr(config, "rope_parameters", None):
        raise OptionError(
            f"Mechanism {mechanism.name!r} needs copies of the query and key projections, but those of {type(model).__name__} are "
            "rotated by position afterwards; leave the option out, it is for models with a position table."
        )
    copied = {mechanism.capabilities.copies[name] for name in copied_parameters(site.module, mechanism.capabilities.copies)}
    if missing := {name for name in mechanism.capabilities.copies.values() if name.endswith("weight")} - copied:
        raise OptionError(
            f"Mechanism {mechanism.name!r} is initialised with copies of the layer's projections, but {type(site.module).__name__} in "
            f"{site.name} has none that can be found ({', '.join(sorted(missing))}); leave the option out."
        )


def _first(module: nn.Module, names: tuple[str, ...]) -> Any:
    """First integer among the attributes ``names`` of the module, or else of its config. ``None`` if there is none."""
    for owner in (module, getattr(module, "config", None)):
        for name in names:
            if isinstance(value := getattr(owner, name, None), int):
                return value
    return None
