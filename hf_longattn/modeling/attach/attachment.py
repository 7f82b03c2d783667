"""Attach mechanisms to the attention modules of any architecture on transformers' AttentionInterface."""

from __future__ import annotations

import functools
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.utils import logging

from ...configuration import LongAttentionConfig
from ...engines.batch import Batch, in_graph
from ...errors import BackendError, OptionError
from ...mechanisms.common.base import Mechanism
from ...mechanisms.common.capabilities import projection_copies
from ...mechanisms.common.masked import SparseMechanism, leading_sinks
from ...mechanisms.common.registry import mechanism_from
from ...mechanisms.common.shared_options import check_form
from ...memory.attention_cache import SparseCacheLayer
from ...memory.decode_cache import READS_PROMPT, find_cache
from ...names import LOGGER
from ...positions.relative import Rotation, SelfExtend
from ..backend import BACKEND
from ..family.definition import attention_names
from ..family.long_config import attention_implementation
from ..keywords import CACHE_LAYER, LAYER_INPUT, TAKES_CACHE_LAYER
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

logger = logging.get_logger(LOGGER)

HEAD_COUNTS = ("num_heads", "num_attention_heads", "n_heads")
HEAD_DIMS = ("head_dim", "attention_head_size")
SINKS = "sinks"
"""The attribute of attention modules with the scores of sinks, or None. Modules pass them as ``s_aux``."""
WIDTHS = ("embed_dim", "hidden_size", "dim", "all_head_size")
FREQUENCIES = "inv_freq"
"""The buffer of rotary modules with the frequencies. Models with several layer types have one for each:
``full_attention_inv_freq``."""
ROTATES = re.compile(r"^ {8}\w.* = apply_rotary_pos_emb\(", re.MULTILINE)
"""Matches a line of ``forward`` that rotates in every layer. Some bases do so under an ``if``, for some layers only
(SmolLM3, Cohere 2)."""
SCALES_FEATURES = re.compile(r"^ {8}query_states = (self\.\w+\(|query_states \* query_scale)", re.MULTILINE)
"""Matches a line that scales features of rotated queries, by a norm's weights (HunYuan) or a vector (Dory). A further
rotation would have to come before it."""
ROTATION = "apply_rotary_pos_emb"
"""Name of the functions in transformers that rotate queries and keys, given cosines and sines of their angles."""
RIGHT_ANGLE = "rotate_half"
"""Name of the functions in transformers that rotate ``x`` by a right angle, in the planes of a model's rotation."""
HALVES, INTERLEAVED = [-2.0, -3.0, 0.0, 1.0], [-1.0, 0.0, -3.0, 2.0]
"""Result of ``rotate_half`` for features 0, 1, 2, 3, if planes pair the two halves, and if they pair neighbouring
features."""
IMAGE_POSITIONS = "get_rope_index"
"""A method of models in which tokens of images have positions in space, so that positions do not count tokens
(Qwen2-VL)."""
LATER_FEATURES = "qk_rope_head_dim"
"""An attribute of attention modules that rotate the last features of a head (latent attention)."""


def attach_mechanisms(
    model: nn.Module, long_attention: LongAttentionConfig, decoder_attention: LongAttentionConfig | None = None
) -> list[AttentionSite]:
    """Set ``module.long_attention`` on every attention module of ``model``: its layer's mechanism, or full attention
    across stacks.

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
    stacks = [
        (decoder_attention if decoder_attention is not None and site.decoding else long_attention, site)
        for site in sites
    ]
    self_attention = [(attention, site) for attention, site in stacks if not site.cross]
    if not self_attention:
        raise BackendError(
            f"{type(model).__name__} has no attention module on transformers' AttentionInterface, so no mechanism can "
            "be attached; see https://huggingface.co/docs/transformers/attention_interface for the architectures that "
            "are on it."
        )
    check_layers_found(model, [site.name for site in sites])
    for attention, _ in self_attention:
        attention.check_layers(
            1 + max(site.layer for attention_of_site, site in self_attention if attention_of_site is attention)
        )
    config = getattr(model, "config", None)
    encoder_length = getattr(config, "max_position_embeddings", None)
    decoder_length = getattr(config, "max_decoder_position_embeddings", encoder_length)
    for attention, site in stacks:
        name, options = (CROSS_MECHANISM, {}) if site.cross else attention.for_layer(site.layer)
        max_length = decoder_length if site.decoding else encoder_length
        _attach(site, _built(model, site, name, options, max_length), model)
    if is_deepspeed_zero3_enabled():
        mark_for_zero3(model)
    return sites


def _built(
    model: nn.Module, site: AttentionSite, name: str, options: Mapping[str, Any], max_length: int | None
) -> Mechanism:
    """The mechanism for an attention module, with its sizes and rotary embedding.

    Raises:
        OptionError: the mechanism lacks the form of the layer, or does not take the model's sinks.
    """
    heads = _first(site.module, HEAD_COUNTS)
    head_dim = (
        _first(site.module, (attention_names(site.module).head_dim or HEAD_DIMS[0], *HEAD_DIMS))
        or _first(site.module, WIDTHS) // heads
    )
    width = input_width(site.module) or _first(site.module, WIDTHS)
    mechanism = mechanism_from(
        name, options, num_heads=heads, head_dim=head_dim, hidden_size=width, max_length=max_length
    )
    mechanism.layer, mechanism.is_cross_attention = site.layer, site.cross
    check_form(mechanism, site.causal, f"{site.name} of {type(model).__name__}")
    if getattr(site.module, SINKS, None) is not None and not mechanism.capabilities.takes_sinks:
        raise OptionError(
            f"{type(model).__name__} has sinks, learned scores in every softmax of its attention, but mechanism "
            f"{mechanism.name!r} "
            "with these options is not one softmax over keys; choose one that is, for example mechanism='window'."
        )
    if isinstance(mechanism.relative, SelfExtend):
        mechanism.relative.rotation = rotation_of(model, site)
    if isinstance(mechanism, SparseMechanism) and site.causal and leading_sinks(mechanism) > 0:
        rotation = _rotation_of_sinks(model, site)
        if rotation is not None:
            mechanism.turn_sinks(rotation)
    return mechanism


def _attach(site: AttentionSite, mechanism: Mechanism, model: nn.Module) -> None:
    """Put a mechanism on an attention module, with the module's dtype and device and the hooks that it needs."""
    module = site.module
    if mechanism.capabilities.takes_hidden_states:
        _check_projections(site, mechanism, model)
        _hook_once(module, pass_layer_input)
    weight = next(module.parameters(), None)
    if weight is not None:
        mechanism = mechanism.to(device=None if weight.is_meta else weight.device, dtype=weight.dtype)
    if projection_copies(mechanism):
        copy_projections(module, mechanism)
    site.put(mechanism)
    if not site.shared and getattr(module, "layer_idx", None) is None:  # vLLM finds a layer's attention by it
        module.layer_idx = site.layer  # type: ignore[assignment]
    if site.causal and not site.cross:
        _hook_once(module, pass_cache_layer)
        setattr(module, TAKES_CACHE_LAYER, True)


def mark_for_zero3(model: nn.Module) -> None:
    """Make DeepSpeed's ZeRO-3 gather all weights of an attention module together.

    A mechanism may run once per document. ZeRO-3 fetches weights in the order in which modules ran before. This order
    would differ between processes with different numbers of documents in their batches, and so would the
    communication.
    """
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
    """Forward pre-hook: pass the layer's cache to the attention function, or ``None`` if another layer's cache has its
    keys (Gemma 3n).

    Cache layers that retain equal keys share what the first of them computes in a step.
    """
    cache = find_cache((*args, *kwargs.values()))
    if cache is None:
        return None
    cache = getattr(cache, "self_attention_cache", cache)
    layers = cache.layers
    index = getattr(module, "layer_idx", None)
    layer = layers[index] if isinstance(index, int) and index < len(layers) else None
    if isinstance(layer, SparseCacheLayer):
        alike = (
            other for other in layers if isinstance(other, SparseCacheLayer) and other.mechanism == layer.mechanism
        )
        first = next(other for other in alike if other.options == layer.options)
        layer.step = Batch() if first is layer and not in_graph() else first.step
    added = {CACHE_LAYER: layer, READS_PROMPT: True} if getattr(cache, READS_PROMPT, False) else {CACHE_LAYER: layer}
    return args, {**kwargs, **added}


def pass_layer_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
    """Forward pre-hook: pass a module's input to mechanisms that need it.

    Raises:
        BackendError: the module's input was not found.
    """
    if attention_implementation(getattr(module, "config", None)) not in (None, BACKEND):
        return None
    hidden = args[0] if args else kwargs.get("hidden_states")
    if not isinstance(hidden, Tensor):
        raise BackendError(
            f"{type(module).__name__} gets its input neither as the first argument nor as hidden_states, and its "
            "mechanism needs it; choose a mechanism that does not."
        )
    if not any(mechanism.capabilities.takes_hidden_states for mechanism in mechanisms_on(module).values()):
        return None
    return args, {**kwargs, LAYER_INPUT: hidden}


def _check_projections(site: AttentionSite, mechanism: Mechanism, model: nn.Module) -> None:
    """Raise :class:`OptionError` if the layer's projections cannot be found, or are rotated by position afterwards."""
    config = getattr(model, "config", None)
    copies = projection_copies(mechanism)
    if copies and getattr(config, "rope_parameters", None):
        raise OptionError(
            f"Mechanism {mechanism.name!r} needs copies of the query and key projections, but those of "
            f"{type(model).__name__} are "
            "rotated by position afterwards; leave the option out, it is for models with a position table."
        )
    copied = {copies[name] for name in copied_parameters(site.module, copies)}
    if missing := {name for name in copies.values() if name.endswith("weight")} - copied:
        raise OptionError(
            f"Mechanism {mechanism.name!r} is initialised with copies of the layer's projections, but "
            f"{type(site.module).__name__} in {site.name} has none that can be found ({', '.join(sorted(missing))}); "
            "leave the option out."
        )


def _first(module: nn.Module, names: tuple[str, ...]) -> Any:
    """The first integer among the attributes ``names`` of the module, or else of its config; ``None`` without one."""
    for owner in (module, getattr(module, "config", None)):
        for name in names:
            if isinstance(value := getattr(owner, name, None), int):
                return value
    return None


# ---- rotary positions, for relative positions that move them


@dataclass(frozen=True)
class ModelRotation:
    """The rotation of a layer, read from the base's rotary module at every call, since frequencies may depend on the
    length.

    Not a module itself, so that the layer's mechanism does not register ``module`` as a submodule.
    """

    module: nn.Module
    name: str
    interleaved: bool

    def __call__(self) -> Rotation:
        return Rotation(getattr(self.module, self.name), self.interleaved)


def _rotation_of_sinks(model: nn.Module, site: AttentionSite) -> ModelRotation | None:
    """:func:`rotation_of`; ``None`` if there is no rotation, or if it cannot be followed, which is logged."""
    with suppress(OptionError):
        rotation = rotation_of(model, site)
        if not any(hasattr(type(module), IMAGE_POSITIONS) for module in model.modules()):
            return rotation
    if getattr(getattr(site.module, "config", None), "rope_parameters", None):
        logger.warning_once(
            f"The rotation of queries and keys cannot be followed in every layer of {type(model).__name__}, so sinks "
            "keep their positions in the text there, as with sink_positions='text'."
        )
    return None


@functools.cache
def _right_angle(attention_class: type[Any]) -> list[float] | None:
    """The features 0, 1, 2, 3 after a rotation by a right angle; ``None`` if the class does not rotate in every
    layer, or otherwise than :class:`Rotation`."""
    for base in attention_class.__mro__:
        functions = sys.modules[base.__module__]
        turn, apply = getattr(functions, RIGHT_ANGLE, None), getattr(functions, ROTATION, None)
        source = "" if turn is None or apply is None else inspect.getsource(base)
        if (rotates := ROTATES.search(source)) and SCALES_FEATURES.search(source, rotates.end()) is None:
            # a FakeTensorMode of the caller hides numbers, but only in the caller's thread
            with ThreadPoolExecutor(1) as thread:
                return thread.submit(_planes, turn, apply).result()
    return None


def _planes(turn: Any, apply: Any) -> list[float] | None:
    """The features 0, 1, 2, 3 after ``turn``, a rotation by a right angle. ``None`` if ``apply`` does not rotate as
    :class:`Rotation` does in these planes; the test rotates by two positions."""
    x = torch.arange(4.0, device="cpu")
    planes: list[float] = turn(x).tolist()
    frequencies, positions = torch.full((2,), 0.3, device="cpu"), torch.full((1, 1), 2, device="cpu")
    angles = torch.full((1, 1, 4), 0.6, device="cpu")  # 2 * 0.3 for every feature, so their order does not matter
    expected = Rotation(frequencies, planes == INTERLEAVED).turned(x.view(1, 1, 1, 4), positions)
    vectors = [x.view(1, 1, 1, 4)] * (2 if "k" in inspect.signature(apply).parameters else 1)
    try:
        rotated = apply(*vectors, cos=angles.cos(), sin=angles.sin())
    except (RuntimeError, TypeError):  # a function with other arguments
        return None
    rotated = rotated[0] if isinstance(rotated, tuple) else rotated
    return planes if torch.allclose(rotated, expected, atol=1e-4) else None


def rotation_of(model: nn.Module, site: AttentionSite) -> ModelRotation:
    """The rotation of queries and keys in a layer of ``model``.

    Raises:
        OptionError: according to its code, the model does not rotate the first features of the heads in every layer.
    """
    planes = _right_angle(type(site.module))  # type: ignore[arg-type]  # a class is hashable
    types = getattr(getattr(site.module, "config", None), "layer_types", None)
    names = ([] if types is None or site.layer >= len(types) else [f"{types[site.layer]}_{FREQUENCIES}"]) + [
        FREQUENCIES
    ]
    path = list(accumulate(site.name.split("."), getattr, initial=model))
    near = (child for owner in reversed(path) for child in (owner, *owner.children()))
    frequencies = next(((child, name) for child in near for name in names if hasattr(child, name)), None)
    if planes not in (HALVES, INTERLEAVED) or frequencies is None or hasattr(site.module, LATER_FEATURES):
        raise OptionError(
            f"{type(model).__name__} does not rotate queries and keys by their positions in a way that can be "
            f"followed in {site.name}; "
            "leave relative positions that move rotary ones (self_extend) out."
        )
    return ModelRotation(*frequencies, interleaved=planes == INTERLEAVED)
