"""Grids of patches for vision towers without a Long class. Hooks pass a grid to the attention modules.

A tower for images of one size (CLIP, SigLIP) runs on one grid. A tower that packs images of different sizes into one
row (Qwen-VL, Pixtral) has no grid. Each of its images is a separate sequence, for mechanisms on texts.
"""

from __future__ import annotations

import inspect
from typing import Any

from transformers import PreTrainedModel

from ...errors import OptionError
from ..family.definition import known_family
from ..family.grid_spec import PIXELS
from ..family.long_config import runs_mechanisms
from ..keywords import GRID
from .attachment import hook_once
from .attention_sites import Call, attention_sites, layer_mechanisms
from .custom_attention import HandsKeywordsDown
from .global_mask import arguments_by_name


def packs_images(stack: PreTrainedModel) -> bool:
    """Whether a stack is a tower that packs images of different sizes into one row."""
    taken = inspect.signature(type(stack).forward).parameters
    return "grid_thw" in taken or ("image_sizes" in taken and hasattr(stack.config, "patch_size"))


def hook_grid(stack: PreTrainedModel) -> None:
    """Make ``stack`` pass the grid of its images to its attention modules, if all its images have one size. Other
    stacks do not change.

    Raises:
        OptionError: a mechanism needs a grid, but the stack packs images of different sizes into one row.
    """
    if packs_images(stack):
        for mechanism in layer_mechanisms(stack):
            if mechanism.capabilities.needs_grid:
                raise OptionError(
                    f"{type(stack).__name__} packs images of different sizes into one row, and mechanism "
                    f"{mechanism.name!r} needs one grid for all; choose a mechanism without a grid, for example "
                    "'window' or 'block_top_k'."
                )
        return
    family = known_family(stack.config)
    reads_images = PIXELS in inspect.signature(type(stack).forward).parameters
    if family is None or not family.spec.on_grid or not reads_images:
        return
    hook_once(stack, _pass_grid)
    replaced = getattr(family.mixin, "replaced", {})
    for site in attention_sites(stack):
        long_class = replaced.get(type(site.module), object)
        if issubclass(long_class, HandsKeywordsDown):  # the base's modules would not pass the grid on (SigLIP)
            site.module.__class__ = long_class


def _pass_grid(stack: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
    """Forward pre-hook of a tower for images of one size. Adds the grid of its images to the arguments."""
    family: Any = known_family(stack.config)
    if not runs_mechanisms(stack) or GRID in kwargs:
        return None
    arguments = arguments_by_name(stack, args, kwargs)
    return args, {**kwargs, GRID: family.spec.of_input(stack.config, arguments)}
