"""How a base rotates its queries and keys, for rules that move rotary positions; and layers that do without rotation."""

from __future__ import annotations

import inspect
import re
import sys
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import nn

from ...constants import BACKEND
from ...errors import BackendError, PositionError
from ...positions.relative import Dropped, Rotation
from ..family.config import attention_implementation
from ..family.definition import family_of
from .attention_sites import AttentionSite, Call, mechanisms_on

ROTATION = "position_embeddings"
"""The argument of attention modules with the cosines and sines of their rotation."""
FREQUENCIES = "inv_freq"
"""The buffer of rotary modules with the frequencies. Models with several kinds of layers have one for each: ``full_attention_inv_freq``."""
ROTATES = re.compile(r"^ {8}\w.* = apply_rotary_pos_emb\(", re.MULTILINE)
"""Matches a line of ``forward`` that rotates in every layer. Some bases do so under an ``if``, for some layers only (SmolLM3, Cohere 2)."""
RIGHT_ANGLE = "rotate_half"
"""The name of transformers' functions that turn ``x`` by a right angle, in the planes of a model's rotation."""
HALVES, INTERLEAVED = [-2.0, -3.0, 0.0, 1.0], [-1.0, 0.0, -3.0, 2.0]
"""The features 0, 1, 2, 3 after such a function, for planes of features of both halves, and of neighbouring features."""
LATER_FEATURES = "qk_rope_head_dim"
"""An attribute of attention modules that rotate the last features of a head (latent attention)."""


@dataclass(frozen=True)
class ModelRotation:
    """The rotation of a layer, read from the base's rotary module at every call, since some kinds change their frequencies with the length.

    module: in a plain object, so that the layer's mechanism does not own it.
    """

    module: nn.Module
    name: str
    interleaved: bool

    def __call__(self) -> Rotation:
        return Rotation(getattr(self.module, self.name), self.interleaved)


def rotation_of(model: nn.Module, site: AttentionSite) -> ModelRotation:
    """How ``model`` rotates the queries and keys of a layer.

    Raises:
        PositionError: it does not rotate the first features of every layer's heads, as far as its code says.
    """
    planes = _planes(site.module)
    kinds = getattr(getattr(site.module, "config", None), "layer_types", None)
    names = ([] if kinds is None or site.layer >= len(kinds) else [f"{kinds[site.layer]}_{FREQUENCIES}"]) + [FREQUENCIES]
    path = list(accumulate(site.name.split("."), getattr, initial=model))
    near = (child for owner in reversed(path) for child in (owner, *owner.children()))
    frequencies = next(((child, name) for child in near for name in names if hasattr(child, name)), None)
    if planes is None or frequencies is None or hasattr(site.module, LATER_FEATURES):
        raise PositionError(
            f"{type(model).__name__} does not rotate queries and keys by their positions in a way that can be followed in {site.name}; "
            "leave relative positions that move rotary ones (self_extend, dual_chunk) out."
        )
    return ModelRotation(*frequencies, interleaved=planes == INTERLEAVED)


def _planes(attention: nn.Module) -> list[float] | None:
    """0, 1, 2, 3 turned by the function :data:`RIGHT_ANGLE` beside the base's attention class; ``None`` if that class does not use it."""
    for kind in type(attention).__mro__:
        turn = getattr(sys.modules[kind.__module__], RIGHT_ANGLE, None)
        if turn is not None and ROTATES.search(inspect.getsource(kind)):
            turned = turn(torch.arange(4.0, device="cpu")).tolist()
            return turned if turned in (HALVES, INTERLEAVED) else None
    return None


def check_unrotated(model: nn.Module, site: AttentionSite) -> None:
    """Raise :class:`PositionError` if ``model`` rotates queries and keys itself: by its family, or in a layer that shows it."""
    config: Any = getattr(model, "config", None)
    if _planes(site.module) is not None or (hasattr(config, "base_model_type") and family_of(config).rotary(config)):
        raise PositionError(f"{type(model).__name__} rotates queries and keys already; leave relative=rotary and rotary_self_extend out.")


def check_droppable(site: AttentionSite) -> None:
    """Raise :class:`PositionError` unless a layer gets its rotation as an argument, which :func:`drop_rotation` can replace."""
    if ROTATION not in inspect.signature(site.module.forward).parameters:
        raise PositionError(
            f"{type(site.module).__name__} in {site.name} gets no {ROTATION}, so relative=dropped cannot leave its rotation out; "
            "choose other positions."
        )


def drop_rotation(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
    """Forward pre-hook: a rotation by no angle, if the mechanism of the layer drops positions and runs."""
    mechanisms, chosen = mechanisms_on(module).values(), attention_implementation(getattr(module, "config", None))
    if chosen not in (None, BACKEND) or not any(isinstance(mechanism.relative, Dropped) for mechanism in mechanisms):
        return None
    if not isinstance(rotation := kwargs.get(ROTATION), tuple):
        raise BackendError(f"{type(module).__name__} was called without {ROTATION}=(cos, sin), which relative=dropped has to replace.")
    cos, sin = rotation
    return args, {**kwargs, ROTATION: (torch.ones_like(cos), torch.zeros_like(sin))}
