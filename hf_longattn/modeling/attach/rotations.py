"""How a base rotates its queries and keys, for rules that move rotary positions."""

from __future__ import annotations

import inspect
import re
import sys
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import nn

from ...errors import OptionError
from ...positions.relative import Rotation
from .attention_sites import AttentionSite

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
        OptionError: it does not rotate the first features of every layer's heads, as far as its code says.
    """
    planes = _planes(site.module)
    kinds = getattr(getattr(site.module, "config", None), "layer_types", None)
    names = ([] if kinds is None or site.layer >= len(kinds) else [f"{kinds[site.layer]}_{FREQUENCIES}"]) + [FREQUENCIES]
    path = list(accumulate(site.name.split("."), getattr, initial=model))
    near = (child for owner in reversed(path) for child in (owner, *owner.children()))
    frequencies = next(((child, name) for child in near for name in names if hasattr(child, name)), None)
    if planes is None or frequencies is None or hasattr(site.module, LATER_FEATURES):
        raise OptionError(
            f"{type(model).__name__} does not rotate queries and keys by their positions in a way that can be followed in {site.name}; "
            "leave relative positions that move rotary ones (self_extend) out."
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
