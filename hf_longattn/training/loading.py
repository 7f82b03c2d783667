"""Load what a training starts from; what cannot be loaded is refused with one sentence."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from hf_longattn.data.tokenization import pad_with_end
from hf_longattn.errors import CheckpointError, checkpoint_errors
from hf_longattn.hub_errors import check_saved_model
from hf_longattn.modeling.generic import check_read_alone


@contextlib.contextmanager
def loading(name: str, what: str = "") -> Iterator[None]:
    """Around the first call that loads ``name``, a folder or a Hub repository id: what goes wrong is one sentence, about ``what`` it is.

    Raises:
        CheckpointError: it is neither, or cannot be loaded.
    """
    check_saved_model(name)
    check_read_alone(name)
    with checkpoint_errors(f"cannot load {what}{name!r}"):
        yield


def load_start(name: str, head: str, names: Any) -> tuple[PreTrainedConfig, PreTrainedTokenizerBase]:
    """Config and tokenizer of a checkpoint; the tokenizer gets a padding token if it has none.

    Args:
        head: what the architecture must have a head for, in words.
        names: the model types that have it, one of transformers' ``MODEL_FOR_*_MAPPING_NAMES``.

    Raises:
        CheckpointError: it cannot be loaded, has no such head, or a tokenizer without a token to pad with.
    """
    with loading(name):
        config, tokenizer = AutoConfig.from_pretrained(name), AutoTokenizer.from_pretrained(name)
    if config.model_type not in names:
        raise CheckpointError(f"{name!r} ({config.model_type}) has no head for {head}; take a model of another architecture")
    pad_with_end(tokenizer, name)
    return config, tokenizer


def load_head(loader: Any, name: str, tokenizer: PreTrainedTokenizerBase, **config: Any) -> PreTrainedModel:
    """A model of an ``AutoModelFor…`` class in float32; its head is new unless the checkpoint has one of this size.

    Raises:
        CheckpointError: it cannot be loaded.
    """
    with checkpoint_errors(f"cannot load {name!r}"):
        model = loader.from_pretrained(name, dtype=torch.float32, ignore_mismatched_sizes=True, **config)
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    return model


def numbered(names: list[str]) -> dict[str, Any]:
    """The arguments of a config with these classes."""
    return {
        "num_labels": len(names),
        "id2label": dict(enumerate(names)),
        "label2id": {name: number for number, name in enumerate(names)},
    }
