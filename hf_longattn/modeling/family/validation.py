"""Refuses a text that is longer than the position table, a config that is shorter than the checkpoint, and a mechanism without scores
where the model changes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedConfig

from ...errors import LengthError, OptionError, PositionError
from ...mechanisms.common.base import Mechanism
from .definition import Family, PositionTable, longest_input

POSITION_TABLE_NAME = "position_embeddings"
"""How transformers' encoders call their learned position table."""
UNLIMITED_LENGTH = 1 << 30
"""A tokenizer without a length says 1e30."""


def known_length(config: Any, tokenizer: Any | None, model: nn.Module | None = None) -> int | None:
    """The most tokens of one input, special ones included, by the config's positions and the tokenizer; ``None`` if neither tells.

    model: one of an architecture that may not be ours. Its position table may hold a padding row, after which positions count (Longformer).
    """
    rows = (
        ()
        if model is None
        else (_rows_after_padding(module) for name, module in model.named_modules() if name.endswith(POSITION_TABLE_NAME))
    )
    lengths = longest_input(config), getattr(tokenizer, "model_max_length", None), *rows
    return min((int(length) for length in lengths if length and 0 < length < UNLIMITED_LENGTH), default=None)


def _rows_after_padding(table: nn.Module) -> int | None:
    """The rows of a position table that are left after that of padding, where it has one, as RoBERTa's embeddings do."""
    if not isinstance(table, nn.Embedding) or table.padding_idx is None:
        return None
    return table.num_embeddings - table.padding_idx - 1


def input_of(arguments: Mapping[str, Any]) -> Tensor | None:
    """The ``input_ids`` or ``inputs_embeds`` of a forward pass."""
    tokens = arguments.get("input_ids")
    tokens = arguments.get("inputs_embeds") if tokens is None else tokens
    return tokens if isinstance(tokens, Tensor) else None


def check_length(table: PositionTable, config: Any, arguments: Mapping[str, Any]) -> None:
    """Raise :class:`LengthError` if the tokens of this forward pass, with those in the cache, need more positions than ``table`` has.

    Padding that takes no position (RoBERTa's, or with ``position_ids`` that say so) does not count.
    """
    limit, tokens = table.tokens(config), input_of(arguments)
    if tokens is None:
        return
    past = arguments.get("past_key_values")
    past = past if isinstance(past, Cache) else None
    seen = past.get_seq_length() if past is not None else 0
    needed = tokens.shape[1] + (int(seen) if not torch.compiler.is_compiling() or isinstance(seen, int) else 0)
    if needed <= limit:
        return
    if arguments.get("position_ids") is not None:
        needed = int(arguments["position_ids"].max()) + 1 - table.first_id(config)
    elif table.added and table.skips_padding and isinstance(mask := arguments.get("attention_mask"), Tensor):
        needed = int(mask.sum(1).max())
    elif table.skips_padding and not table.added and tokens.dim() == 2:
        needed = int(seen) + int((tokens != table.padding_id(config)).sum(1).max())
    _refuse_beyond(table, needed, limit)


def check_positions(table: PositionTable, config: Any, position_ids: Tensor) -> None:
    """Raise :class:`LengthError` if ``position_ids`` go beyond ``table``, where the cache does not hold all past tokens."""
    _refuse_beyond(table, int(position_ids.max()) + 1 - table.first_id(config), table.tokens(config))


def _refuse_beyond(table: PositionTable, needed: int, limit: int) -> None:
    if needed > limit:
        whose, flag = ("decoder", "--max-decoder-length") if table.decoder else ("model", "--max-length")
        raise LengthError(
            f"The input needs {needed} positions, but this {whose} has {limit}; "
            f"cut it with tokenizer(..., truncation=True, max_length={limit}), or convert the checkpoint with a longer maximum length "
            f"(longattn convert SRC DST {flag} {needed})."
        )


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
    apart = ("long_attention", "attn_implementation")  # lengths do not depend on them, and a warning would name the default mechanism
    before = family.config_class(**{key: value for key, value in values.items() if not key.endswith(apart)})
    for table in learned:
        rows = getattr(before, table.field)
        if rows > getattr(config, table.field):
            raise PositionError(
                f"The checkpoint has {rows} positions and the config asks for {getattr(config, table.field)}, "
                f"but a position table can only grow; give {table.field}={rows} or more."
            )


def refuse_scoreless(model: nn.Module, why: str) -> None:
    """Raise :class:`OptionError` if a mechanism of ``model`` has no scores; ``why`` says what the model does with them."""
    for module in model.modules():
        if isinstance(module, Mechanism) and not module.traits.takes_score_mod:
            raise OptionError(
                f"{type(model).__name__} {why}, but mechanism {module.name!r} has no scores; "
                "choose a mechanism over scores, for example mechanism='window'."
            )
