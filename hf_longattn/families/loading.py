"""A short checkpoint's position table grows while ``from_pretrained`` reads it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, initialization
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.core_model_loading import ConversionOps, WeightConverter

from ..positions.tables import DROPPED, SINUSOIDAL, extend_table
from .registry import Family, PositionTable


class Unchanged(ConversionOps):
    """Passes tensors on: what saving does with a table that loading has extended."""

    def convert(self, input_dict: dict[str, Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
        return {key: value[0] if isinstance(value, list) else value for key, value in input_dict.items()}

    @property
    def reverse_op(self) -> ConversionOps:
        return self


class ExtendPositions(Unchanged):
    """Extends a position table ``(P, d)`` to the length that the config says, by ``config.position_extension`` where it is learned."""

    def __init__(self, table: PositionTable) -> None:
        self.table = table

    def convert(self, input_dict: dict[str, Any], *args: Any, config: Any = None, **kwargs: Any) -> dict[str, Any]:
        return {key: self._extended(weight, config) for key, weight in super().convert(input_dict).items()}

    def _extended(self, weight: Tensor, config: Any) -> Tensor:
        rows = self.table.rows(config)
        if config.position_extension in DROPPED and weight.device != torch.device("meta"):
            return weight.new_zeros(rows, weight.shape[1])
        if weight.shape[0] >= rows or weight.device == torch.device("meta"):
            return weight
        strategy = config.position_extension if self.table.learned else SINUSOIDAL
        return extend_table(weight.cpu(), rows, offset=self.table.offset, strategy=strategy).to(weight.device)

    @property
    def reverse_op(self) -> ConversionOps:
        return Unchanged()


def drop_tables(model: PreTrainedModel, family: Family) -> None:
    """Zeros in the position tables of a new model that does without them."""
    if model.config.position_extension in DROPPED:
        for name, parameter in model.named_parameters():
            if family.table(name) is not None:
                initialization.zeros_(parameter)


def freeze_tables(model: PreTrainedModel, family: Family) -> None:
    """Position tables that are computed, or that the model does without, are not trained."""
    for name, parameter in model.named_parameters():
        table = family.table(name)
        if table is not None and (not table.learned or model.config.position_extension in DROPPED):
            parameter.requires_grad_(False)


def register_loading(family: Family, base_class: type[Any], long_class: type[Any]) -> None:
    """Tell transformers, by the Long class's name, to pass the family's position tables through `ExtendPositions`.

    Registered by class name because a model inside another is looked up by it; what the plain base registers for old
    checkpoints is kept.
    """
    inherited = get_checkpoint_conversion_mapping(base_class.__name__) or get_checkpoint_conversion_mapping(family.base_model_type) or []
    tables = [
        WeightConverter(source, source, operations=[ExtendPositions(table)])
        for table in family.position_tables
        for source in [table.pattern.replace("\\.", ".").rstrip("$")]
    ]
    register_checkpoint_conversion_mapping(long_class.__name__, [*inherited, *tables], overwrite=True)


def inherit_renaming(base_class: type[Any], long_class: type[Any]) -> None:
    """A head whose base class stores tensors under names of its own (GPT-NeoX: ``embed_out`` for ``lm_head``) does so as well."""
    inherited = get_checkpoint_conversion_mapping(base_class.__name__)
    if inherited:
        register_checkpoint_conversion_mapping(long_class.__name__, inherited, overwrite=True)
