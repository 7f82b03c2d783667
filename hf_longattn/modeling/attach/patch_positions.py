"""Positions of patches for vision towers without a Long class. Hooks pass them to the attention modules.

A tower whose images have one size (CLIP, SigLIP) runs on one grid. Others pack images of different sizes into one row
and pass the number of patches of each image (Qwen-VL, Pixtral). Qwen-VL's attention modules run every image
separately, with patches in the order in which they are merged. Pixtral's attention modules take a mask of all pairs.
Here, images become documents of one call, each in raster order on its own grid.
"""

from __future__ import annotations

import inspect
import itertools
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...engines.batch import for_one_pass
from ...engines.token_grid import RUNNING_GRID, Grid
from ...errors import InputError
from ...mechanisms.common.capabilities import reads_grid
from ..family.definition import known_family
from ..family.grid_spec import PIXELS
from ..family.long_config import runs_mechanisms
from ..keywords import GRID
from .attention_sites import Call, attention_sites, mechanisms_on
from .global_mask import arguments_by_name

POSITIONS = "patch_positions"
"""Keyword for the :class:`PatchPositions` of packed images, from a tower to its attention modules."""
OFFSETS, PACKED_OFFSETS = "cu_seqlens", "cu_seq_lens_q"
"""Keywords for the first token of each sequence, of attention modules that run sequences separately and of attention
functions."""
GRIDS_ARGUMENT, SIZES_ARGUMENT = "grid_thw", "image_sizes"


class PatchPositions:
    """The positions of the patches of packed images.

    Args:
        coordinates: ``(N, axes)``: frame, row and column of every patch in its image, in the order of the patches.
        offsets: ``(images + 1,)``, the first patch of each image, and the total.
    """

    def __init__(self, coordinates: Tensor, offsets: Tensor) -> None:
        self.coordinates, self.offsets = coordinates, offsets
        self._known: dict[tuple[int, ...], tuple[Tensor, Tensor | None, tuple[Grid, ...]]] = {}

    def layout(self, offsets: Tensor) -> tuple[Tensor, Tensor | None, tuple[Grid, ...]]:
        """The layout of rows whose sequences (images, or windows in them) start at ``offsets``.

        Returns:
            The offsets for all layers; the indices that bring each sequence into raster order, or ``None``; and each
            sequence's grid.

        Raises:
            InputError: the patches of a sequence are not a rectangle.
        """
        borders = tuple(offsets.tolist())
        if borders not in self._known:
            grids, orders = [], []
            for start, stop in itertools.pairwise(borders):
                positions = self.coordinates[start:stop]
                first, last = positions.amin(0), positions.amax(0)
                sizes = tuple((last - first + 1).tolist())
                grid = Grid(sizes[1:] if sizes[0] == 1 else sizes)
                grid.check(stop - start)
                strides = torch.tensor([sizes[1] * sizes[2], sizes[2], 1])
                grids.append(grid)
                orders.append(((positions - first) * strides).sum(1).argsort() + start)
            order = torch.cat(orders).to(offsets.device)
            sorted_already = bool((order == torch.arange(len(order), device=order.device)).all())
            self._known[borders] = for_one_pass(offsets), None if sorted_already else order, tuple(grids)
        return self._known[borders]


def packs_images(stack: PreTrainedModel) -> bool:
    """Whether a stack is a tower that packs images of different sizes into one row."""
    taken = inspect.signature(type(stack).forward).parameters
    return GRIDS_ARGUMENT in taken or (SIZES_ARGUMENT in taken and hasattr(stack.config, "patch_size"))


def hook_patch_positions(stack: PreTrainedModel) -> None:
    """Make a stack that reads images pass patch positions to its attention modules. Other stacks do not change."""
    taken, packs = inspect.signature(type(stack).forward).parameters, packs_images(stack)
    family = known_family(stack.config)
    if not packs and (family is None or not family.spec.on_grid or PIXELS not in taken):
        return
    if vars(stack).get("passes_patch_positions"):
        return
    stack.passes_patch_positions = True
    stack.register_forward_pre_hook(_pass_positions if packs else _pass_grid, with_kwargs=True)
    for site in attention_sites(stack):
        if packs:
            site.module.register_forward_pre_hook(pack_images, with_kwargs=True)
            site.module.register_forward_hook(restore_order, with_kwargs=True)
        else:
            site.module.register_forward_pre_hook(_enter_grid, with_kwargs=True)
            site.module.register_forward_hook(_leave_grid, always_call=True)


def _pass_grid(stack: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
    """Forward pre-hook of a tower for images of one size: passes the grid on."""
    family: Any = known_family(stack.config)
    if not runs_mechanisms(stack) or GRID in kwargs:
        return None
    arguments = arguments_by_name(stack, args, kwargs)
    return args, {**kwargs, GRID: family.spec.of_input(stack.config, arguments)}


def _enter_grid(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Forward pre-hook of an attention module that passes no keywords to its attention function (SigLIP): sets the
    grid."""
    if GRID in kwargs and not torch.compiler.is_dynamo_compiling():
        RUNNING_GRID.set(kwargs[GRID])


def _leave_grid(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    if not torch.compiler.is_dynamo_compiling():
        RUNNING_GRID.set(None)


def _pass_positions(tower: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
    """Forward pre-hook of a tower that packs images: passes patch positions on."""
    if not runs_mechanisms(tower):
        return None
    arguments = arguments_by_name(tower, args, kwargs)
    if (grids := arguments.get(GRIDS_ARGUMENT)) is not None:
        return args, {**kwargs, POSITIONS: _merged_positions(tower, grids)}

    # Padded images (B, channels, height, width); each fills `image_sizes` from the top left.
    pixels, sizes = arguments[PIXELS], arguments.get(SIZES_ARGUMENT)
    sizes = [tuple(pixels.shape[-2:])] * len(pixels) if sizes is None else [tuple(map(int, size)) for size in sizes]
    cells = [(height // tower.patch_size, width // tower.patch_size) for height, width in sizes]
    if any(0 in size for size in cells):
        raise InputError(
            f"An image is smaller than a patch of {tower.patch_size} × {tower.patch_size} pixels; resize it."
        )
    coordinates = torch.cat(
        [torch.cartesian_prod(torch.arange(1), torch.arange(h), torch.arange(w)) for h, w in cells]
    )
    offsets = _offsets(torch.tensor([h * w for h, w in cells])).to(pixels.device)
    return args, {**kwargs, POSITIONS: PatchPositions(coordinates, offsets)}


def _merged_positions(tower: Any, grids: Tensor) -> PatchPositions:
    """Positions of the patches of images. ``grids (images, 3)``: numbers of frames, rows and columns.

    Frames are separate sequences. Patches are in merge order, or in the order of windows."""
    # older versions have no such module
    from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

    grids = grids.cpu()
    coordinates = get_vision_position_ids(grids, tower.spatial_merge_size, include_temporal=True)
    if hasattr(tower, "permute_input_for_window_attn"):
        windows, _ = get_vision_window_index(grids, tower.spatial_merge_size, tower.window_size, tower.patch_size)
        coordinates = tower.permute_input_for_window_attn(coordinates, windows, seq_len=len(coordinates))
    lengths = (grids[:, 1] * grids[:, 2]).repeat_interleave(grids[:, 0])
    return PatchPositions(coordinates, _offsets(lengths))


def _offsets(lengths: Tensor) -> Tensor:
    return torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)


def pack_images(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
    """Forward pre-hook for packed images: make one attention call. Each image is a document in raster order.

    A module that runs every image separately is left to do so if no mechanism reads a grid.
    """
    positions: PatchPositions | None = kwargs.get(POSITIONS)
    runs_alone = OFFSETS in kwargs
    if positions is None or (
        runs_alone and not any(reads_grid(mechanism) for mechanism in mechanisms_on(module).values())
    ):
        return None
    offsets, order, grids = positions.layout(kwargs[OFFSETS] if runs_alone else positions.offsets)
    changes: dict[str, Any] = {PACKED_OFFSETS: offsets, GRID: grids}
    if runs_alone:
        changes[OFFSETS] = offsets[[0, -1]]
    elif "attention_mask" in kwargs:  # this mask only separates images
        changes["attention_mask"] = None
    kwargs = {**kwargs, **changes}
    if order is None:
        return args, kwargs
    kwargs["position_embeddings"] = tuple(table[order] for table in kwargs["position_embeddings"])
    if args:
        return (args[0][order], *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": kwargs["hidden_states"][order]}


def restore_order(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """Forward hook for packed images: return outputs in the order of the attention module's inputs."""
    if POSITIONS not in kwargs or PACKED_OFFSETS not in kwargs:
        return None
    order = kwargs[POSITIONS].layout(kwargs[PACKED_OFFSETS])[1]
    return None if order is None else output[order.argsort()]
