"""Load a checkpoint with the head of a task, its tokenizer and its labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

from hf_longattn.data.tokenization import word_argument
from hf_longattn.errors import CheckpointError
from hf_longattn.loading import load_config, load_model, load_padding_tokenizer
from hf_longattn.training.heads import class_names

NOTHING_ELSE: Mapping[str, Any] = {}


def load_start(
    name: str, head: str, names: Any, otherwise: Mapping[str, Any] = NOTHING_ELSE
) -> tuple[PreTrainedConfig, PreTrainedTokenizerBase]:
    """Config and tokenizer of a checkpoint; see :func:`~hf_longattn.loading.fit_tokenizer`.

    Args:
        head, names, otherwise: see :func:`config_with_head`.

    Raises:
        CheckpointError: the checkpoint cannot be loaded, has no such head, or its tokenizer does not fit or reads more than text.
    """
    config = config_with_head(name, head, names, otherwise)
    tokenizer = load_padding_tokenizer(name, config)
    if (places := word_argument(tokenizer)) is not None:
        raise CheckpointError(
            f"The tokenizer of {name!r} reads words with their {places}, and this command reads text alone; encode the data with its "
            "processor, and train it with transformers' Trainer."
        )
    return config, tokenizer


def config_with_head(name: str, head: str, names: Any, otherwise: Mapping[str, Any] = NOTHING_ELSE) -> PreTrainedConfig:
    """The config of a checkpoint.

    Args:
        head: the task of the head, in words.
        names: the model types that have it, one of transformers' ``MODEL_FOR_*_MAPPING_NAMES``.
        otherwise: advice in words -> the model types that need it.

    Raises:
        CheckpointError: the checkpoint cannot be loaded, or has no such head.
    """
    config: PreTrainedConfig = load_config(name)
    if config.model_type not in names:
        advice = next((words for words, types in otherwise.items() if config.model_type in types), "take a model of another architecture")
        raise CheckpointError(f"{name!r} ({config.model_type}) has no head for {head}; {advice}.")
    return config


def check_reads_text(config: PreTrainedConfig, name: str) -> None:
    """Raise :class:`CheckpointError` for a checkpoint of an architecture that reads images and has no tokenizer."""
    kind = config.model_type
    if kind in IMAGE_PROCESSOR_MAPPING_NAMES and kind not in TOKENIZER_MAPPING_NAMES:
        raise CheckpointError(f"{name!r} ({kind}) has no tokenizer, since it reads images; take a model of texts.")


def load_head(loader: Any, name: str, tokenizer: PreTrainedTokenizerBase | None, *, complete: bool, **config: Any) -> PreTrainedModel:
    """Load a model of an ``AutoModelFor…`` class in float32. Its head is new unless the checkpoint has one of this size.

    Args:
        tokenizer: of a text model. Its padding token goes into a config without one.
        complete: refuse a new head; ``only_scores`` of the arguments.

    Raises:
        CheckpointError: it cannot be loaded, or lacks weights.
    """
    model: PreTrainedModel = load_model(loader, name, complete=complete, ignore_mismatched_sizes=True, **config)
    if tokenizer is not None and model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    return model


def load_classifier(
    loader: Any, name: str, tokenizer: PreTrainedTokenizerBase | None, labels: Sequence[str], *, complete: bool, **config: Any
) -> tuple[PreTrainedModel, list[str]]:
    """A model with a head for classes, and the names of its classes in order.

    Args:
        tokenizer, complete: see :func:`load_head`. A complete model keeps its classes.
        labels: of the data.

    Raises:
        CheckpointError: it cannot be loaded, or lacks weights.
        DataError: a complete model does not know a label.
    """
    if complete:
        model = load_head(loader, name, tokenizer, complete=True, **config)
        return model, class_names(labels, labels_of(model.config), only_known=True)
    names = class_names(labels, labels_of(load_config(name)))
    return load_head(loader, name, tokenizer, complete=False, **label_config(names), **config), names


def labels_of(config: PreTrainedConfig) -> list[str]:
    """The names of the classes in a config, by their numbers."""
    return [str(config.id2label[number]) for number in sorted(config.id2label)]


def label_config(names: list[str]) -> dict[str, Any]:
    """The arguments of a config with these classes."""
    return {
        "id2label": dict(enumerate(names)),
        "label2id": {name: number for number, name in enumerate(names)},
    }


SPAN_LABELS = label_config(["LABEL_0", "LABEL_1"])
"""Config arguments for a span head, whatever classes the checkpoint has."""
