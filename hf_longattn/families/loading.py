"""A short checkpoint's position table grows while ``from_pretrained`` reads it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.core_model_loading import ConversionOps, WeightConverter

from ..positions.tables import extend_table
from .registry import Family


class Unchanged(ConversionOps):
    """Passes tensors on: what saving does with a table that loading has extended."""

    def convert(self, input_dict: dict[str, Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
        return {key: value[0] if isinstance(value, list) else value for key, value in input_dict.items()}

    @property
    def reverse_op(self) -> ConversionOps:
        return self


class ExtendPositions(Unchanged):
    """Extends a position table ``(P, d)`` to ``config.max_position_embeddings`` rows by ``config.position_extension``."""

    def __init__(self, offset: int) -> None:
        self.offset = offset

    def convert(self, input_dict: dict[str, Any], *args: Any, config: Any = None, **kwargs: Any) -> dict[str, Any]:
        return {key: self._extended(table, config) for key, table in super().convert(input_dict).items()}

    def _extended(self, table: Tensor, config: Any) -> Tensor:
        rows = config.max_position_embeddings
        if table.shape[0] >= rows or table.device == torch.device("meta"):
            return table
        device = table.device
        return extend_table(table.cpu(), rows, offset=self.offset, strategy=config.position_extension).to(device)

    @property
    def reverse_op(self) -> ConversionOps:
        return Unchanged()


def register_loading(family: Family, base_class: type[Any], long_class: type[Any]) -> None:
    """Tell transformers, by the Long base model's class name, to pass the family's position tables through `ExtendPositions`.

    Registered by class name because a model inside another is looked up by it; what the plain base registers for old
    checkpoints is kept.
    """
    inherited = get_checkpoint_conversion_mapping(base_class.__name__) or get_checkpoint_conversion_mapping(family.base_model_type) or []
    tables = [
        WeightConverter(source, source, operations=[ExtendPositions(table.offset)])
        for table in family.position_tables
        for source in [table.pattern.replace("\\.", ".").rstrip("$")]
    ]
    register_checkpoint_conversion_mapping(long_class.__name__, [*inherited, *tables], overwrite=True)
