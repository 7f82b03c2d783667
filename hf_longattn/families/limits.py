"""Refuse, in one sentence, a text that is longer than the position table and a config that is shorter than the checkpoint."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PreTrainedConfig

from ..errors import LengthError, PositionError
from .registry import Family


def check_length(family: Family, config: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise :class:`LengthError` when the tokens of this forward pass, with those in the cache, need more positions than there are.

    Padding that takes no position (RoBERTa's, or with ``position_ids`` that say so) does not count.
    """
    if not family.position_tables:
        return
    offset = family.position_tables[0].offset
    limit = config.max_position_embeddings - offset
    tokens = args[0] if args else kwargs.get("input_ids")
    sized = tokens if tokens is not None else kwargs.get("inputs_embeds")
    if not isinstance(sized, Tensor):
        return
    past = next((value for value in (*args, kwargs.get("past_key_values")) if isinstance(value, Cache)), None)
    seen = past.get_seq_length() if past is not None else 0
    needed = sized.shape[1] + (int(seen) if not torch.compiler.is_compiling() or isinstance(seen, int) else 0)
    if needed <= limit:
        return
    if kwargs.get("position_ids") is not None:
        needed = int(kwargs["position_ids"].max()) + 1 - offset
    elif offset and tokens is not None:
        needed = int(seen) + int((tokens != config.pad_token_id).sum(1).max())
    if needed > limit:
        raise LengthError(
            f"The input needs {needed} positions, but this model has {limit}; "
            f"shorten it, or convert the checkpoint with a longer maximum length (longattn convert SRC DST --max-length {needed})."
        )


def check_table(family: Family, source: Any, kwargs: dict[str, Any]) -> None:
    """Raise :class:`PositionError` when ``kwargs["config"]`` has fewer positions than the checkpoint at ``source``."""
    config = kwargs.get("config")
    if not family.position_tables or not isinstance(config, PreTrainedConfig) or source is None or kwargs.get("ignore_mismatched_sizes"):
        return
    passed_on = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
    try:
        values, _ = family.base_config_class.get_config_dict(source, **{key: kwargs[key] for key in passed_on if key in kwargs})
    except OSError:
        return  # weights without a config file: nothing says how long the checkpoint is
    values.pop("long_attention", None)
    rows = family.base_config_class(**values).max_position_embeddings
    if rows > config.max_position_embeddings:
        raise PositionError(
            f"The checkpoint has {rows} positions and the config asks for {config.max_position_embeddings}, "
            f"but a position table can only grow; give max_position_embeddings={rows} or more."
        )
