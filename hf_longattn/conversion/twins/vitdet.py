"""LongVitDet with windows of one size, padded with zeros, in some layers and full attention in the others becomes transformers' ViTDet."""

from __future__ import annotations

from typing import Any

from ...mechanisms.common.registry import prototype
from ...mechanisms.window2d import ZEROS, Window2d
from .base import LongModel, NativeTwin, described, is_full, register_twin, tiled_refusal


@register_twin("vitdet")
class VitDetTwin(NativeTwin):
    """ViTDet with the windows of the long model."""

    model_type = "vitdet"
    families = frozenset(("vitdet",))
    computes = (Window2d,)
    rank = 10

    def refusal(self, model: LongModel) -> str | None:
        return tiled_refusal(model) or _windows(model)[0]

    def config_values(self, model: LongModel) -> dict[str, Any]:
        windows = _windows(model)[1]
        fields: dict[str, Any] = {"window_size": next(iter(windows.values()), 0), "window_block_indices": list(windows)}
        read = getattr(model.config, "long_image_size", None)
        return {**model.values(), **fields, **({} if read is None else {"image_size": read})}


def _windows(model: LongModel) -> tuple[str | None, dict[int, int]]:
    """Why a layer is not one of ViTDet's, and otherwise layer -> cells along each side of its windows, for those with windows."""
    windows: dict[int, int] = {}
    for index, mechanism in enumerate(model.layers):
        if is_full(mechanism, False):
            continue
        if not isinstance(mechanism, Window2d):
            return f"Layer {index} has {described(mechanism)}, and a ViTDet has windows or full attention.", {}
        sides = set(mechanism.options.window)
        if len(sides) > 1:
            cells = " × ".join(map(str, mechanism.options.window))
            return f"Layer {index} has windows of {cells} cells, and those of a ViTDet are square.", {}
        size = sides.pop()
        if mechanism.options != prototype("window2d", {"window": size, "padding": ZEROS}).options:
            return f"Layer {index} has {described(mechanism)}, and a ViTDet has window2d with window={size} and padding={ZEROS} alone.", {}
        first = next(iter(windows.items()), (index, size))
        if size != first[1]:
            return f"Layer {index} has another window than layer {first[0]}, and a ViTDet has one size for all windows.", {}
        windows[index] = size
    return None, windows
