"""Finds how layers rotate queries and keys by their positions.

Sinks at the positions of a cache, and relative positions such as ``self_extend``, move tokens to other positions. They
have to rotate queries and keys a second time, in the same planes and by the same frequencies as the model.
"""

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
"""The buffer of rotary modules with the frequencies. Models with several layer types have a buffer for each type, such
as ``full_attention_inv_freq``."""
ROTATES = re.compile(r"^ {8}\w.* = apply_rotary_pos_emb\(", re.MULTILINE)
"""Matches a line of ``forward`` that rotates in every layer. Bases that rotate in some layers only have the line under
an ``if``, further indented (SmolLM3, Cohere 2)."""
SCALES_FEATURES = re.compile(r"^ {8}query_states = (self\.\w+\(|query_states \* query_scale)", re.MULTILINE)
"""Matches a line that scales features of rotated queries, by a norm's weights (HunYuan) or a vector (Dory). After such
a line, queries cannot be rotated a second time."""
ROTATION = "apply_rotary_pos_emb"
"""Name of the functions in transformers that rotate queries and keys, given cosines and sines of their angles."""
RIGHT_ANGLE = "rotate_half"
"""Name of the functions in transformers that rotate a vector by a right angle, in the planes of a model's rotation."""
HALVES, INTERLEAVED = [-2.0, -3.0, 0.0, 1.0], [-1.0, 0.0, -3.0, 2.0]
"""Results of ``rotate_half`` for the features 0, 1, 2, 3. ``HALVES``: each plane has a feature from either half.
``INTERLEAVED``: each plane has two neighbouring features."""
IMAGE_POSITIONS = "get_rope_index"
"""A method of models in which tokens of images have positions in space, so that positions do not count tokens
(Qwen2-VL)."""
LATER_FEATURES = "qk_rope_head_dim"
"""An attribute of attention modules that rotate the last features of a head (latent attention)."""
BY_LENGTH = frozenset(("dynamic", "longrope"))
"""Types of rotary positions whose frequencies depend on the length of the text."""


@dataclass(frozen=True)
class ModelRotation:
    """The rotation of a layer. A call reads the frequencies from the base's rotary module, since they may change with
    the length of a text.

    This class is no ``nn.Module``, so that the layer's mechanism does not register ``module`` as a submodule.

    module: the rotary module.
    name: its buffer with the frequencies.
    interleaved: whether a plane has two neighbouring features, not one from either half.
    """

    module: nn.Module
    name: str
    interleaved: bool

    def __call__(self) -> Rotation:
        return Rotation(getattr(self.module, self.name), self.interleaved)


def rotation_of_sinks(model: nn.Module, site: Any) -> ModelRotation | None:
    """:func:`rotation_of` for a layer with sinks. ``None`` if the layer does not rotate queries and keys, or if the
    rotation cannot be followed, with a warning."""
    with suppress(OptionError):  # raised if there is no rotation, or none that can be followed
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
    """The planes in which an attention class rotates, as the result of ``rotate_half`` for the features 0, 1, 2, 3.
    ``None`` if the class does not rotate in every layer, or rotates otherwise than :class:`Rotation`."""
    for base in attention_class.__mro__:
        functions = sys.modules[base.__module__]
        turn, apply = getattr(functions, RIGHT_ANGLE, None), getattr(functions, ROTATION, None)
        if turn is None or apply is None:
            continue
        source = inspect.getsource(base)
        rotates = ROTATES.search(source)
        if rotates is not None and SCALES_FEATURES.search(source, rotates.end()) is None:
            # in a thread, because a FakeTensorMode of the calling thread would hide numbers
            with ThreadPoolExecutor(1) as thread:
                return thread.submit(_planes, turn, apply).result()
    return None


def _planes(turn: Any, apply: Any) -> list[float] | None:
    """The features 0, 1, 2, 3 after a rotation by a right angle, from which the planes can be seen.

    ``None`` if ``apply`` and :class:`Rotation` rotate a vector by two positions to different results.

    Args:
        turn: transformers' ``rotate_half``.
        apply: transformers' ``apply_rotary_pos_emb``.
    """
    x = torch.arange(4.0, device="cpu")
    planes: list[float] = turn(x).tolist()
    frequencies, positions = torch.full((2,), 0.3, device="cpu"), torch.full((1, 1), 2, device="cpu")
    angles = torch.full((1, 1, 4), 0.6, device="cpu")  # 2 * 0.3 for every feature, so their order does not matter
    expected = Rotation(frequencies, planes == INTERLEAVED).turned(x.view(1, 1, 1, 4), positions)
    # some functions rotate queries and keys together, others one vector
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
    # the rotary module is a child of the attention module, or of the nearest module around it
    path = list(accumulate(site.name.split("."), getattr, initial=model))
    near = (child for owner in reversed(path) for child in (owner, *owner.children()))
    names = _frequency_names(site.module, site.layer)
    frequencies = next(((child, name) for child in near for name in names if hasattr(child, name)), None)
    planes = _planes_of(site.module)
    if planes is None or frequencies is None:
        raise OptionError(
            f"{type(model).__name__} does not rotate queries and keys by their positions in a way that can be "
            f"followed in {site.name}; leave relative positions that move rotary ones (self_extend) out."
        )
    return ModelRotation(*frequencies, interleaved=planes == INTERLEAVED)


def rotation_by_config(attention: nn.Module) -> ModelRotation | None:
    """The rotation of queries and keys in an attention module, if its model is unknown. ``None`` if the config has no
    rotary positions.

    A rotary module is built from the config. Its class is in the same file as the attention module's: for
    ``LlamaAttention``, ``LlamaRotaryEmbedding``.

    Raises:
        OptionError: the rotation cannot be followed, or depends on the length of the text. The message is the start of
            a sentence.
    """
    config: Any = attention.config
    parameters = getattr(config, "rope_parameters", None)
    name = type(attention).__name__
    if not parameters:
        if any(hasattr(sys.modules[base.__module__], ROTATION) for base in type(attention).__mro__):
            raise OptionError(f"{name} rotates queries and keys, and its config does not say how")
        return None
    # one set of parameters, or one for each layer type
    kinds = {part.get("rope_type") for part in (parameters, *parameters.values()) if isinstance(part, Mapping)}
    rotary_class = None
    for base in type(attention).__mro__:
        rotary_name = base.__name__.removesuffix("Attention") + "RotaryEmbedding"
        rotary_class = rotary_class or getattr(sys.modules[base.__module__], rotary_name, None)
    planes = _planes_of(attention)
    if not kinds.isdisjoint(BY_LENGTH):
        raise OptionError(f"The rotary positions of {name} depend on the length of the text")
    if planes is None or rotary_class is None:
        raise OptionError(f"{name} does not rotate queries and keys by rotate_half alone, alike in every layer")
    module = rotary_class(config)
    names = _frequency_names(attention, int(attention.layer_idx))  # type: ignore[arg-type]
    buffer = next(name for name in names if hasattr(module, name))
    return ModelRotation(module, buffer, planes == INTERLEAVED)


def _frequency_names(attention: nn.Module, layer: int) -> list[str]:
    """Names that a layer's frequencies may have in a rotary module, the most special one first."""
    types = getattr(getattr(attention, "config", None), "layer_types", None)
    if types is None or layer >= len(types):
        return [FREQUENCIES]
    return [f"{types[layer]}_{FREQUENCIES}", FREQUENCIES]


def _planes_of(attention: nn.Module) -> list[float] | None:
    """:data:`HALVES` or :data:`INTERLEAVED`: the planes in which an attention module rotates the first features of its
    heads. ``None`` for other rotations, or without any."""
    planes = _right_angle(type(attention))  # type: ignore[arg-type]  # a class is hashable
    return planes if planes in (HALVES, INTERLEAVED) and not hasattr(attention, LATER_FEATURES) else None
