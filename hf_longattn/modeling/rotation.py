"""Finds how layers rotate queries and keys by their positions, for relative positions that move them."""

from __future__ import annotations

import functools
import inspect
import re
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import nn

from ..errors import OptionError
from ..names import logger
from ..positions.relative import Rotation

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
BY_LENGTH = frozenset(("dynamic", "longrope"))
"""Types of rotary positions whose frequencies depend on the length of the text."""


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


def rotation_of_sinks(model: nn.Module, site: Any) -> ModelRotation | None:
    """:func:`rotation_of`; ``None`` if there is no rotation, or if it cannot be followed, which is logged."""
    with suppress(OptionError):
        rotation = rotation_of(model, site)
        if not any(hasattr(type(module), IMAGE_POSITIONS) for module in model.modules()):
            return rotation
    if getattr(getattr(site.module, "config", None), "rope_parameters", None):
        logger.warning_once(  # type: ignore[attr-defined]
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
    if isinstance(rotated, tuple):
        rotated = rotated[0]
    return planes if torch.allclose(rotated, expected, atol=1e-4) else None


def rotation_of(model: nn.Module, site: Any) -> ModelRotation:
    """The rotation of queries and keys in the layer ``site`` of ``model``, an :class:`AttentionSite`.

    Raises:
        OptionError: according to its code, the model does not rotate the first features of the heads in every layer.
    """
    path = list(accumulate(site.name.split("."), getattr, initial=model))
    near = (child for owner in reversed(path) for child in (owner, *owner.children()))
    names = _frequency_names(site.module, site.layer)
    frequencies = next(((child, name) for child in near for name in names if hasattr(child, name)), None)
    planes = _planes_of(site.module)
    if planes is None or frequencies is None:
        raise OptionError(
            f"{type(model).__name__} does not rotate queries and keys by their positions in a way that can be "
            f"followed in {site.name}; "
            "leave relative positions that move rotary ones (self_extend) out."
        )
    return ModelRotation(*frequencies, interleaved=planes == INTERLEAVED)


def rotation_by_config(attention: nn.Module) -> ModelRotation | None:
    """The rotation of queries and keys in an attention module whose model is not at hand, by the rotary class beside
    the module's and by the module's config. ``None`` if the config has no rotary positions.

    Raises:
        OptionError: the rotation cannot be followed, or depends on the length of the text.
    """
    config: Any = attention.config
    parameters = getattr(config, "rope_parameters", None)
    name = type(attention).__name__
    if not parameters:
        if any(hasattr(sys.modules[base.__module__], ROTATION) for base in type(attention).__mro__):
            raise OptionError(f"{name} rotates queries and keys, and its config does not say how")
        return None
    kinds = {part.get("rope_type") for part in (parameters, *parameters.values()) if isinstance(part, Mapping)}
    rotary_class = None
    for base in type(attention).__mro__:
        rotary = base.__name__.removesuffix("Attention") + "RotaryEmbedding"
        rotary_class = rotary_class or getattr(sys.modules[base.__module__], rotary, None)
    planes = _planes_of(attention)
    if not kinds.isdisjoint(BY_LENGTH):
        raise OptionError(f"The rotary positions of {name} depend on the length of the text")
    if planes is None or rotary_class is None:
        raise OptionError(f"{name} does not rotate queries and keys by rotate_half alone, alike in every layer")
    module = rotary_class(config)
    names = _frequency_names(attention, int(attention.layer_idx))  # type: ignore[arg-type]
    return ModelRotation(module, next(name for name in names if hasattr(module, name)), planes == INTERLEAVED)


def _frequency_names(attention: nn.Module, layer: int) -> list[str]:
    """Names that the frequencies of a layer may have in a rotary module."""
    types = getattr(getattr(attention, "config", None), "layer_types", None)
    if types is None or layer >= len(types):
        return [FREQUENCIES]
    return [f"{types[layer]}_{FREQUENCIES}", FREQUENCIES]


def _planes_of(attention: nn.Module) -> list[float] | None:
    """:func:`_right_angle` of a module that rotates the first features of its heads."""
    planes = _right_angle(type(attention))  # type: ignore[arg-type]  # a class is hashable
    return planes if planes in (HALVES, INTERLEAVED) and not hasattr(attention, LATER_FEATURES) else None
