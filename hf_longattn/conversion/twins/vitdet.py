"""LongVitDet with windows or full attention becomes transformers' ViTDet. The windows have one size and are padded with zeros."""

from __future__ import annotations

import re
from typing import Any

from ...mechanisms.common.registry import prototype
from ...mechanisms.window2d import ZEROS, Window2d
from ..long_models.base import TensorRename
from .base import LongModel, NativeTwin, described, is_full, register_twin, tiled_refusal

RELATIVE_TABLE = re.compile(r"\.layer\.(\d+)\.attention\.rel_pos_[hw]$")


@register_twin("vitdet")
class VitDetTwin(NativeTwin):
    """ViTDet with the windows of the long model."""

    model_type = "vitdet"
    families = frozenset(("vitdet",))
    computes = (Window2d,)
    rank = 10

    def refusal(self, model: LongModel) -> str | None:
        reason, windows = _windows(model)
        return tiled_refusal(model) or reason or _relative_positions(model, windows)

    def config_values(self, model: LongModel) -> dict[str, Any]:
        windows = _windows(model)[1]
        fields: dict[str, Any] = {"window_size": next(iter(windows.values()), 0), "window_block_indices": list(windows)}
        read = getattr(model.config, "long_image_size", None)
        if model.config.use_relative_position_embeddings:  # their tables are interpolated from the config's image size
            read = None
        return {**model.values(), **fields, **({} if read is None else {"image_size": read})}

    def rename(self, name: str, model: LongModel) -> tuple[TensorRename, ...]:
        """Keep the name, and cut tables of relative positions to a smaller window's distances."""
        table, (_, windows) = RELATIVE_TABLE.search(name), _windows(model)
        surplus = 0 if table is None else model.config.window_size - windows.get(int(table[1]), model.config.window_size)
        return (TensorRename(name, (lambda rows: rows[surplus:-surplus]) if surplus else None),)


def _relative_positions(model: LongModel, windows: dict[int, int]) -> str | None:
    """Reason why the tables of relative positions do not fit a ViTDet with these windows. ``None`` if they do, or there are none. A layer's
    table is for its windows, or for the whole image."""
    config = model.config
    if not config.use_relative_position_embeddings:
        return None
    for index in range(config.num_hidden_layers):
        had = bool(config.window_size) and index in config.window_block_indices
        if had != (index in windows):
            now, before = ("full attention", "windows") if had else ("windows", "full attention")
            return f"Layer {index} has {now}, and its relative positions are those of a ViTDet with {before} there."
        if had and windows[index] > config.window_size:
            return (
                f"Layer {index} has windows of {windows[index]} cells, and its relative positions are those of a ViTDet with windows of "
                f"{config.window_size}."
            )
    return None


def _windows(model: LongModel) -> tuple[str | None, dict[int, int]]:
    """The windows as layer -> cells along each side: ``(None, windows)``. ``(reason, {})`` if ViTDet cannot compute a layer."""
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
