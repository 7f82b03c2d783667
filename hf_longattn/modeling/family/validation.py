"""Checks of lengths against position tables, and of mechanisms in models that add terms to attention scores."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedConfig

from ...errors import OptionError, PositionError
from ...mechanisms.common.base import Mechanism
from .definition import Family, longest_input

POSITION_TABLE_NAME = "position_embeddings"
"""Name of the learned position table in transformers' encoders."""
UNLIMITED_LENGTH = 1 << 30
"""Lengths from here on mean no limit. A tokenizer without a maximum length has 1e30."""


def known_length(config: Any, tokenizer: Any | None, model: nn.Module | None = None) -> int | None:
    """Maximum number of tokens of an input, special ones included, by config and tokenizer; ``None`` if neither has one.

    model: may be of another architecture. Its position table may have a padding row, after which positions start (Longformer).
    """
    rows = (
        ()
        if model is None
        else (_rows_after_padding(module) for name, module in model.named_modules() if name.endswith(POSITION_TABLE_NAME))
    )
    lengths = longest_input(config), getattr(tokenizer, "model_max_length", None), *rows
    return min((int(length) for length in lengths if length and 0 < length < UNLIMITED_LENGTH), default=None)


def _rows_after_padding(table: nn.Module) -> int | None:
    """Number of rows of a position table after its padding row, as in RoBERTa's embeddings; ``None`` without a padding row."""
    if not isinstance(table, nn.Embedding) or table.padding_idx is None:
        return None
    return table.num_embeddings - table.padding_idx - 1


def check_tables(family: Family, source: Any, kwargs: dict[str, Any]) -> None:
    """Raise :class:`PositionError` if ``kwargs["config"]`` has fewer positions than the checkpoint at ``source``."""
    config = kwargs.get("config")
    learned = [table for table in family.position_tables if table.learned]
    if not learned or not isinstance(config, PreTrainedConfig) or source is None or kwargs.get("ignore_mismatched_sizes"):
        return
    passed_on = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
    try:
        values, _ = family.config_class.get_config_dict(source, **{key: kwargs[key] for key in passed_on if key in kwargs})
    except OSError:
        return  # weights without a config file, so of unknown length
    before: Any = None
    for table in learned:
        if not isinstance(rows := values.get(table.field), int):  # another name, or the base's default
            before = before or _config_of_lengths(family, values)
            rows = getattr(before, table.field)
        if rows > getattr(config, table.field):
            raise PositionError(
                f"The checkpoint has {rows} positions and the config asks for {getattr(config, table.field)}, "
                f"but a position table can only grow; give {table.field}={rows} or more."
            )


def _config_of_lengths(family: Family, values: dict[str, Any]) -> Any:
    """The config of a file's ``values``, without its attention, on which lengths do not depend."""
    apart = ("long_attention", "attn_implementation")
    return family.config_class(**{key: value for key, value in values.items() if not key.endswith(apart)})


def refuse_scoreless(model: nn.Module, why: str) -> None:
    """Raise :class:`OptionError` if a mechanism of ``model`` cannot add terms to its scores. ``why`` says how the model changes scores."""
    for module in model.modules():
        if isinstance(module, Mechanism) and not module.traits.takes_score_mod:
            raise OptionError(
                f"{type(model).__name__} {why}, but mechanism {module.name!r} has no scores of single "
                "tokens that could change; choose one that has, for example mechanism='window'."
            )
