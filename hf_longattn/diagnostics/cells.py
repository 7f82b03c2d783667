"""Inputs that are cut into cells, one for each place of the features: patches of a picture, stretches of a sound."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from ..errors import BackendError
from ..inputs.common.base import kind_of, kind_of_model
from ..inputs.common.cells import InputCells
from ..inputs.common.sized import SizedKind
from ..modeling.family.definition import without_head
from ..modeling.grids import family_of


def stack_of_layers(model: Any) -> Any:
    """The model of pictures or of sound below its head.

    Raises:
        BackendError: it is not a model of transformers.
    """
    if not isinstance(model, PreTrainedModel):
        raise BackendError(f"A {type(model).__name__} is not a model of transformers; load one with AutoModel.from_pretrained.")
    kind = kind_of_model(model.config)
    return without_head(model) if kind is None else kind.base(model)


def sized_kind_of(model: Any) -> SizedKind:
    """What a model in memory reads; raises :class:`BackendError` where that is neither pictures nor sound."""
    stack, kind = stack_of_layers(model), kind_of_model(model.config)
    found: Any = kind if isinstance(kind, SizedKind) else kind_of(family_of(stack, of_pixels=False))
    return found


def cells_of(model: Any, values: Tensor) -> InputCells:
    """How the inputs ``values (B, …)`` of a model are cut into cells.

    Raises:
        BackendError: it reads neither pictures nor sound, or is a backbone.
        GridError: a picture whose size does not fit.
    """
    kind = sized_kind_of(model)
    return kind.cells(kind.rule, stack_of_layers(model), values)
