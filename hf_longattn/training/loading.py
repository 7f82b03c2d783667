"""Load what a training starts from; what cannot be loaded is refused with one sentence."""

from __future__ import annotations

import contextlib
import logging as std_logging
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES
from transformers.utils import logging

from hf_longattn.data.tokenization import pad_with_end
from hf_longattn.errors import CheckpointError, checkpoint_errors
from hf_longattn.hub_errors import check_saved_model
from hf_longattn.modeling.generic import check_read_alone
from hf_longattn.modeling.mixin import LongAttentionMixin
from hf_longattn.naming import LOGGER

REPORTERS = ("transformers.modeling_utils", "transformers.utils.loading_report")
"""Loggers of transformers' LOAD REPORT."""
NOTHING_ELSE: Mapping[str, Any] = {}
logger = logging.get_logger(LOGGER)


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


def load_start(
    name: str, head: str, names: Any, otherwise: Mapping[str, Any] = NOTHING_ELSE
) -> tuple[PreTrainedConfig, PreTrainedTokenizerBase]:
    """Config and tokenizer of a checkpoint; the tokenizer gets a padding token if it has none.

    Args:
        head, names, otherwise: see :func:`load_config`.

    Raises:
        CheckpointError: it cannot be loaded, has no such head, or a tokenizer without a token to pad with.
    """
    config = load_config(name, head, names, otherwise)
    tokenizer: Any = load_processing_class(AutoTokenizer, name)
    pad_with_end(tokenizer, name)
    return config, tokenizer


def load_config(name: str, head: str, names: Any, otherwise: Mapping[str, Any] = NOTHING_ELSE) -> PreTrainedConfig:
    """The config of a checkpoint.

    Args:
        head: what the architecture must have a head for, in words.
        names: the model types that have it, one of transformers' ``MODEL_FOR_*_MAPPING_NAMES``.
        otherwise: what to do with other model types, in words, and those types.

    Raises:
        CheckpointError: it cannot be loaded, or has no such head.
    """
    with loading(name):
        config = AutoConfig.from_pretrained(name)
    if config.model_type not in names:
        advice = next((words for words, types in otherwise.items() if config.model_type in types), "take a model of another architecture")
        raise CheckpointError(f"{name!r} ({config.model_type}) has no head for {head}; {advice}")
    return config


def check_reads_text(name: str) -> None:
    """Raise :class:`CheckpointError` for a checkpoint of an architecture that reads pictures and has no tokenizer."""
    kind = AutoConfig.from_pretrained(name).model_type
    if kind in IMAGE_PROCESSOR_MAPPING_NAMES and kind not in TOKENIZER_MAPPING_NAMES:
        raise CheckpointError(f"{name!r} ({kind}) has no tokenizer, since it reads pictures; take a model of texts")


def load_processing_class(loader: Any, name: str) -> Any:
    """What makes a checkpoint's inputs, Trainer's ``processing_class``.

    Args:
        loader: ``AutoTokenizer`` or ``AutoImageProcessor``.
        name: a folder or a Hub repository id.

    Raises:
        CheckpointError: it cannot be loaded.
    """
    with checkpoint_errors(f"cannot load {name!r}"):
        return loader.from_pretrained(name)


def load_head(loader: Any, name: str, tokenizer: PreTrainedTokenizerBase | None, **config: Any) -> PreTrainedModel:
    """A model of an ``AutoModelFor…`` class in float32; its head is new unless the checkpoint has one of this size.

    Args:
        tokenizer: of a model that reads text, whose config gets the padding token if it has none.

    Raises:
        CheckpointError: it cannot be loaded.
    """
    with checkpoint_errors(f"cannot load {name!r}"):
        model = load_model(loader, name, ignore_mismatched_sizes=True, **config)
    if tokenizer is not None and model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    return model


def load_model(loader: Any, name: str, *, elsewhere: tuple[str, ...] = (), **arguments: Any) -> PreTrainedModel:
    """``loader.from_pretrained`` in float32, with a sentence in place of transformers' LOAD REPORT: which modules are new, and which of the
    checkpoint are not used.

    Args:
        elsewhere: prefixes of weights that are loaded in another way.
    """
    with without_load_report():
        model, info = loader.from_pretrained(name, dtype=torch.float32, output_loading_info=True, **arguments)
    if int(os.environ.get("RANK", "0")) == 0 and (sentence := load_report(info, elsewhere)):
        logger.warning(f"{name}: {sentence}.")
    return model


def load_report(info: Mapping[str, Any], elsewhere: tuple[str, ...] = ()) -> str:
    """What ``from_pretrained(output_loading_info=True)`` tells about a checkpoint, in words; "" if all of it was loaded."""
    new = [key.rpartition(".")[0] for key in info["missing_keys"]]
    resized = [key[0].rpartition(".")[0] for key in info["mismatched_keys"]]
    unused = [key.partition(".")[0] for key in info["unexpected_keys"] if not key.startswith(elsewhere or "\0")]
    parts = [f"{_listed(new)} {_are(new)} new and trained from random values"] if new else []
    reason = "it is" if len(set(resized)) == 1 else "they are"
    parts += [f"{_listed(resized)} {_are(resized)} new, since {reason} of another size there"] if resized else []
    parts += [f"{_listed(unused)} {_are(unused)} not used by this task"] if unused else []
    return "; ".join(parts)


def _listed(names: list[str], most: int = 4) -> str:
    """ "a, b, c and 5 others"."""
    names = sorted(set(names))
    return ", ".join(names) if len(names) <= most else f"{', '.join(names[:most])} and {len(names) - most} others"


def _are(names: list[str]) -> str:
    return "is" if len(set(names)) == 1 else "are"


@contextlib.contextmanager
def without_load_report() -> Iterator[None]:
    """Leave out the table that transformers logs about weights that a checkpoint lacks, or has beside those of the model."""

    def is_other(record: std_logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    loggers = [std_logging.getLogger(name) for name in REPORTERS]
    for log in loggers:
        log.addFilter(is_other)
    try:
        yield
    finally:
        for log in loggers:
            log.removeFilter(is_other)


def frozen_teacher(model: PreTrainedModel) -> PreTrainedModel:
    """``model`` with the full attention that it has learned; without gradients, dropout and cache."""
    if isinstance(model, LongAttentionMixin):
        model.use_base_attention()
    if getattr(model.config, "use_cache", None):
        model.config.use_cache = False
    return model.requires_grad_(False).eval()


def label_config(names: list[str]) -> dict[str, Any]:
    """The arguments of a config with these classes."""
    return {
        "id2label": dict(enumerate(names)),
        "label2id": {name: number for number, name in enumerate(names)},
    }
