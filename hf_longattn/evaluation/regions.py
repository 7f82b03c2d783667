"""Features of the patches of an image that is read whole, from which regions are pooled: late pooling, as :mod:`.late_chunking` for text.

Regions that are cut out and read alone lose their surroundings, and cost one pass each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..errors import BackendError
from ..modeling.family.definition import without_head
from ..modeling.family.grid_rule import INTERPOLATE_ARGUMENT, PIXELS
from ..modeling.grids import grid_rule
from ..modeling.inference.optimize import evaluating


@torch.no_grad()
def dense_features(model: PreTrainedModel, inputs: Mapping[str, Tensor] | Tensor) -> Tensor:
    """The features of the patches of each image, ``(B, rows, columns, D)`` in the model's dtype.

    Args:
        model: a vision model, long or not, with or without a head; or a backbone, whose last feature map is used.
        inputs: ``pixel_values (B, channels, height, width)``, or the image processor's result.
    Raises:
        BackendError: the model does not read images on a single grid of patches.
        GridError: a size that is not a multiple of the patch.
    """
    base: Any = without_head(model)
    rule = grid_rule(base)
    arguments = {PIXELS: inputs} if isinstance(inputs, Tensor) else dict(inputs)
    pixels = arguments[PIXELS].to(base.device, base.dtype)
    grid = rule.of_size(base.config, tuple(pixels.shape[-2:]))
    if len(set(rule.layer_grids(base.config, grid))) > 1:
        raise BackendError(
            f"The layers of a {type(base).__name__} are on different grids, so that its patches have no features in the last one; take a "
            "model whose layers are on one grid, such as a ViT."
        )
    resized = {INTERPOLATE_ARGUMENT: True} if rule.interpolates and not hasattr(base, "out_features") else {}
    with evaluating(base):
        outputs = base(**{PIXELS: pixels}, **resized)
    maps = getattr(outputs, "feature_maps", None)
    if maps is None:
        return rule.features(outputs.last_hidden_state, grid)
    if tuple(maps[-1].shape[-2:]) != grid.sizes:
        raise BackendError(
            f"The last feature map of {type(base).__name__} is not one of its {' × '.join(map(str, grid.sizes))} patches; load it with "
            "reshape_hidden_states=True and its last stage in out_features."
        )
    return maps[-1].movedim(1, -1)
