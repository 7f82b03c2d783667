"""How long a model's inputs may be."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_longattn.errors import OptionError
from hf_longattn.modeling.family.validation import known_length


@dataclass(frozen=True)
class PositionRange:
    """The rows of a learned position table that tokens may use: ``first`` … ``first + count - 1``."""

    first: int
    count: int

    @staticmethod
    def of(model: PreTrainedModel) -> PositionRange | None:
        """The range of a model with a learned table of absolute positions; ``None`` for any other."""
        embeddings = getattr(model.base_model, "embeddings", None)
        table = getattr(embeddings, "position_embeddings", None)
        if not isinstance(table, torch.nn.Embedding):
            return None
        first = 0 if table.padding_idx is None else table.padding_idx + 1  # RoBERTa counts from padding_idx + 1
        return PositionRange(first, table.num_embeddings - first)


def longest_input(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Maximum number of tokens of an input, with special tokens.

    Raises:
        OptionError: neither its config nor its tokenizer tells.
    """
    positions = PositionRange.of(model)
    if positions is not None:
        return positions.count
    longest = known_length(model.config, tokenizer, model)
    if longest is None:
        raise OptionError("Neither the model's config nor its tokenizer tells how long an input may be; give --max-length.")
    return longest


def input_length(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, wanted: int | None) -> int:
    """Return the tokens of one input: ``wanted``, or the model's maximum.

    Raises:
        OptionError: ``wanted`` exceeds that maximum, or there is neither.
    """
    try:
        longest = longest_input(model, tokenizer)
    except OptionError:
        if wanted is None:
            raise
        return wanted
    if wanted is not None and wanted > longest:
        raise OptionError(f"--max-length {wanted} exceeds the {longest} tokens that the model takes; convert it to that length first.")
    return wanted or longest
