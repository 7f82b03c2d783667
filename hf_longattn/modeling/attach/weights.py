"""Loads weights of a Long model that differ from its checkpoint: extended position tables, and new parameters.

Position tables are extended while ``from_pretrained`` reads them. Missing parameters of mechanisms and memory tokens
are initialised by ``reset_parameters``. transformers would leave them out, because it initialises only layers that it
knows, and takes modules without direct tensors for initialised. Parameters that mechanisms share across layers are
tied, and saved once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, initialization
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.core_model_loading import ConversionOps, WeightConverter

from ...errors import OptionError
from ...mechanisms.common.base import Mechanism
from ...mechanisms.common.capabilities import projection_copies
from ...positions.tables import DROPPED, SINUSOIDAL, extend_table
from ..family.definition import Family, PositionTable
from .attention_sites import copy_projections, mechanisms_on
from .memory_tokens import MemoryTokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel as _Base
else:
    _Base = object


class ExtendPositions(ConversionOps):
    """Extends a position table ``(P, d)`` to the config's length while weights are loaded. A learned table is extended
    as ``config.position_extension`` says.

    table: the table; ``None`` passes tensors on unchanged, for saving.
    config_class: the family's config class.
    """

    def __init__(self, table: PositionTable | None, config_class: type[Any]) -> None:
        self.table = table
        self.config_class = config_class

    def convert(self, input_dict: dict[str, Any], *args: Any, config: Any = None, **kwargs: Any) -> dict[str, Any]:
        """The tensors of ``input_dict`` by name, extended if they have fewer rows than a model with ``config``."""
        tensors = {key: value[0] if isinstance(value, list) else value for key, value in input_dict.items()}
        table = self.table
        model_type = self.config_class.model_type
        if table is None:
            return tensors
        if config.model_type != model_type:  # the config of a model that has this one as a tower
            parts = (getattr(config, name) for name in config.sub_configs)
            config = next((part for part in parts if getattr(part, "model_type", None) == model_type), config)
        rows = table.rows(config)
        dropped = config.position_extension in DROPPED
        strategy = config.position_extension if table.learned or dropped else SINUSOIDAL
        for name, weight in tensors.items():
            if (weight.shape[0] < rows or dropped) and weight.device.type != "meta":
                extended = extend_table(weight.cpu(), rows, offset=table.offset_rows(config), strategy=strategy)
                tensors[name] = extended.to(weight.device)
        return tensors

    @property
    def reverse_op(self) -> ConversionOps:
        return ExtendPositions(None, self.config_class)


def check_tables(family: Family, source: Any, kwargs: dict[str, Any]) -> None:
    """Raise :class:`OptionError` if ``kwargs["config"]`` has fewer positions than the checkpoint at ``source``."""
    config = kwargs.get("config")
    learned = [table for table in family.position_tables if table.learned]
    if (
        not learned
        or not isinstance(config, PreTrainedConfig)
        or source is None
        or kwargs.get("ignore_mismatched_sizes")
    ):
        return
    passed_on = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
    try:
        values, _ = family.config_class.get_config_dict(
            source, **{key: kwargs[key] for key in passed_on if key in kwargs}
        )
    except OSError:
        return  # there is no config file, so the length of the checkpoint is unknown
    source_config: Any = None
    for table in learned:
        rows = values.get(table.field)
        if not isinstance(rows, int):
            # The length has another name in the file, or is the base's default: build a config to read it. Lengths do
            # not depend on attention.
            if source_config is None:
                left_out = ("long_attention", "attn_implementation")
                source_config = family.config_class(
                    **{key: value for key, value in values.items() if not key.endswith(left_out)}
                )
            rows = getattr(source_config, table.field)
        if rows > getattr(config, table.field):
            raise OptionError(
                f"The checkpoint has {rows} positions and the config asks for {getattr(config, table.field)}, "
                f"but a position table can only grow; give {table.field}={rows} or more."
            )


def drop_tables(model: PreTrainedModel, family: Family) -> None:
    """Set a model's position tables to zero if its ``position_extension`` leaves them out."""
    if family.position_tables and model.config.position_extension in DROPPED:
        for name, parameter in model.named_parameters():
            if family.table(name) is not None:
                initialization.zeros_(parameter)


def freeze_tables(model: PreTrainedModel, family: Family) -> None:
    """Make position tables that are computed (sinusoids) or left out untrainable."""
    tables = family.position_tables
    if not tables or (all(table.learned for table in tables) and model.config.position_extension not in DROPPED):
        return
    for name, parameter in model.named_parameters():
        table = family.table(name)
        if table is not None and (not table.learned or model.config.position_extension in DROPPED):
            parameter.requires_grad_(False)


def register_loading(family: Family, base_class: type[Any], long_class: type[Any], *, extends: bool) -> None:
    """Make transformers convert the weights of ``long_class`` while loading: rename them as for its base (GPT-NeoX:
    ``embed_out`` to ``lm_head``), and extend position tables.

    The conversions are registered by the name of the class, by which transformers also looks up inner models.

    Args:
        extends: whether the tables are extended for this class. False for a head, since transformers finds the
            extension for the model inside it.
    """
    inherited = get_checkpoint_conversion_mapping(base_class.__name__) or []
    if not extends:
        if inherited:
            register_checkpoint_conversion_mapping(long_class.__name__, inherited, overwrite=True)
        return
    inherited = inherited or get_checkpoint_conversion_mapping(family.base_model_type) or []
    tables = []
    for table in family.position_tables:
        name = table.pattern.replace("\\.", ".").rstrip("$")
        tables.append(WeightConverter(name, name, operations=[ExtendPositions(table, family.config_class)]))
    register_checkpoint_conversion_mapping(long_class.__name__, [*inherited, *tables], overwrite=True)
    # peft recognises models with renamed weights by an entry for the model type, which may be empty
    if get_checkpoint_conversion_mapping(family.base_model_type) is not None:
        register_checkpoint_conversion_mapping(family.config_class.model_type, [], overwrite=True)


INITIALISED = "_is_hf_initialized"
"""The attribute that transformers sets on loaded tensors and on initialised modules."""


def initialise_missing(module: nn.Module) -> None:
    """Initialise the parameters and buffers of a mechanism that were not loaded. Loaded tensors keep their values."""
    tensors = [*module.parameters(), *module.buffers()]
    loaded = [(tensor, tensor.clone()) for tensor in tensors if getattr(tensor, INITIALISED, False)]
    if len(loaded) == len(tensors):
        return
    module.reset_parameters()  # type: ignore[operator]
    for tensor, values in loaded:
        tensor.copy_(values)


class LoadsMechanisms(_Base):
    """Mixin before a base's model class that initialises parameters of mechanisms and memory tokens that a checkpoint
    lacks."""

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """Initialise missing weights: the base's, then those of mechanisms and memory tokens. Position tables that are
        left out become zero."""
        added = [module for module in self.modules() if isinstance(module, Mechanism | MemoryTokens)]
        # a mechanism initialises the mechanisms inside it
        inside = {part for module in added for part in module.modules() if part is not module}
        missing = [module for module in added if module not in inside and not getattr(module, INITIALISED, False)]
        super().initialize_weights()
        for module in missing:
            initialise_missing(module)
        family = getattr(self, "family", None)
        if family is not None:
            drop_tables(self, family)
        # parameters that start as copies of a layer's projections
        copying = [module for module in missing if isinstance(module, Mechanism) and projection_copies(module)]
        if not copying:
            return
        for attention in self.modules():
            for mechanism in mechanisms_on(attention):
                if mechanism in copying:
                    copy_projections(attention, mechanism)
