"""Global tokens in the attention mask. For bases that pass no keyword arguments on to attention."""

from __future__ import annotations

import functools
import inspect
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ..engines.batch import in_graph
from .attach.attention_sites import layer_mechanisms
from .attach.custom_attention import OnTheBackend
from .family.config import runs_mechanisms
from .mixin import LongBaseModelMixin

GLOBALS, MASK = "global_attention_mask", "attention_mask"
MARKED = torch.int32
"""The dtype of a mask with 2 at global tokens, as in Longformer."""


class MaskOfLayers(NamedTuple):
    """The mask of attention modules.

    padding: ``(B, N)``, ``None`` if all tokens are real.
    tokens: ``(B, N)`` bool, True = global.
    """

    padding: Tensor | None
    tokens: Tensor


def unmarked(mask: Tensor) -> Tensor:
    """A mask of ones and zeros, with another dtype than :data:`MARKED`."""
    return mask.clamp(max=1).long() if mask.dtype == MARKED else mask


def _taken_apart(model: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a Long base model, with mask and global tokens separated. A head may have combined them."""
    mask = arguments.get(MASK)
    marked = isinstance(model, LongBaseModelMixin) and isinstance(mask, Tensor) and mask.dtype == MARKED and mask.dim() == 2
    if not marked or arguments.get(GLOBALS) is not None:
        return arguments
    assert isinstance(mask, Tensor)
    if in_graph():  # values cannot be read
        some_global = any(mechanism.capabilities.takes_globals for mechanism in layer_mechanisms(model))
    else:
        some_global = bool((mask > 1).any())
    return {**arguments, MASK: unmarked(mask), GLOBALS: mask > 1} if some_global else {**arguments, MASK: unmarked(mask)}


class GlobalsInTheMask(OnTheBackend):
    """Replaces modules of the base. Heads pass :data:`MARKED` masks to the base model, which separates padding from global tokens and
    passes a marked mask to its layers. Other code of the base that reads the mask gets an :func:`unmarked` one."""

    hands_globals_down = False
    marks_globals: ClassVar[bool] = True

    @classmethod
    def with_arguments(cls, base_forward: Any) -> Any:
        """``base_forward`` with the arguments of a Long model."""
        names = [name for name in inspect.signature(base_forward).parameters if name != "self"]

        @functools.wraps(base_forward)
        def with_marks(self: Any, **arguments: Any) -> Any:
            tokens, mask = arguments.pop(GLOBALS, None), arguments.get(MASK)
            if tokens is not None and runs_mechanisms(self):
                real = torch.ones_like(tokens) if mask is None else mask
                arguments[MASK] = ((real != 0) * (1 + (tokens.view(real.shape) != 0).to(MARKED))).to(MARKED)
            return base_forward(self, **arguments)

        long_forward = super().with_arguments(with_marks)

        @functools.wraps(long_forward)
        def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
            return long_forward(self, **_taken_apart(self, {**dict(zip(names, args, strict=False)), **kwargs}))

        return forward
