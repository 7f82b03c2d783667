"""How long a model's inputs may be."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_longattn.errors import OptionError
from hf_longattn.modeling.family.definition import known_family
from hf_longattn.modeling.family.definition import longest_input as longest_of_config
from hf_longattn.modeling.family.validation import known_length


def longest_input(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, decoded: bool = True) -> int:
    """Maximum number of tokens of an input, with special tokens.

    Args:
        decoded: whether the decoder of an encoder-decoder reads all of the input, too, as BART's classifiers do.

    Raises:
        OptionError: neither its config nor its tokenizer tells.
    """
    table = getattr(getattr(model.base_model, "embeddings", None), "position_embeddings", None)
    if isinstance(table, torch.nn.Embedding):  # RoBERTa counts from padding_idx + 1
        return table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1)
    read = decoder_length(model) if decoded and getattr(model.config, "is_encoder_decoder", False) else None
    longest = min((length for length in (known_length(model.config, tokenizer, model), read) if length is not None), default=None)
    if longest is None:
        raise OptionError("Neither the model's config nor its tokenizer tells how long an input may be; give --max-length.")
    return longest


def decoder_length(model: PreTrainedModel) -> int | None:
    """Maximum number of tokens that the decoder of an encoder-decoder reads, and so writes; ``None`` without a limit."""
    config: Any = model.config
    if hasattr(config, "decoder"):  # two models in one, such as SpeechEncoderDecoder
        return longest_of_config(config.decoder)
    family = known_family(config)
    if family is not None and family.relative:
        return None
    names = ("max_target_positions", "max_decoder_position_embeddings", "max_position_embeddings")
    return next((int(getattr(config, name)) for name in names if getattr(config, name, None)), None)


def input_length(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, wanted: int | None, *, decoded: bool = True) -> int:
    """Return the tokens of one input: ``wanted``, or the model's maximum. ``decoded`` as for :func:`longest_input`."""
    try:
        longest = longest_input(model, tokenizer, decoded=decoded)
    except OptionError:
        if wanted is None:
            raise
        return wanted
    if wanted is not None and wanted > longest:
        raise OptionError(f"--max-length {wanted} exceeds the {longest} tokens that the model takes; convert it to that length first.")
    return wanted or longest
