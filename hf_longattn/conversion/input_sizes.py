"""The sizes of inputs that are not texts, of any kind."""

from __future__ import annotations

from typing import Any

from ..modeling.family.definition import Family
from .audio_seconds import AudioDuration, AudioPlan
from .grid_sizes import GridPlan, GridSize

InputSize = GridSize | AudioDuration
"""The size of one input."""
InputSizes = GridPlan | AudioPlan
"""The largest inputs of source and result."""


def input_sizes(family: Family, config: Any) -> InputSizes | None:
    """The sizes for which a model was trained, and for which it was converted; ``None`` for a model of texts."""
    if family.grid is not None:
        return GridPlan.of(family.grid, config)
    return None if family.audio is None else AudioPlan.of(family.audio, config)
