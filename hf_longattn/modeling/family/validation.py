"""The maximum length of a model's inputs. And a check of mechanisms in models that add terms to attention scores."""

from __future__ import annotations

from typing import Any

from torch import nn

from ...errors import OptionError
from ...mechanisms.common.base import Mechanism
from .definition import longest_input

POSITION_TABLE_NAME = "position_embeddings"
"""Name of the learned position table in transformers' encoders."""
UNLIMITED_LENGTH = 1 << 30
"""Lengths from here on mean no limit. A tokenizer without a maximum length has 1e30."""


def known_length(config: Any, tokenizer: Any | None, model: nn.Module | None = None) -> int | None:
    """Maximum number of tokens of an input, special ones included, by config and tokenizer. ``None`` if neither has one.

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
    """Number of rows of a position table after its padding row, as in RoBERTa's embeddings. ``None`` without a padding row."""
    if not isinstance(table, nn.Embedding) or table.padding_idx is None:
        return None
    return table.num_embeddings - table.padding_idx - 1


def refuse_scoreless(model: nn.Module, why: str) -> None:
    """Raise :class:`OptionError` if a mechanism of ``model`` cannot add terms to its scores. ``why`` says how the model changes scores."""
    for module in model.modules():
        if isinstance(module, Mechanism) and not module.capabilities.takes_score_mod:
            raise OptionError(
                f"{type(model).__name__} {why}, but mechanism {module.name!r} has no scores of single "
                "tokens that could change; choose one that has, for example mechanism='window'."
            )
