"""Models with a head for classes: the checkpoint's own head where its classes fit the data, else a new one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel

from hf_longattn.data.sources import DataError
from hf_longattn.errors import listed
from hf_longattn.loading import label_fields, load_config, load_model
from hf_longattn.training.arguments import DataArguments


def load_classifier(loader: Any, name: str, labels: Sequence[str], *, complete: bool, **config: Any) -> tuple[PreTrainedModel, list[str]]:
    """A model with a head for classes in float32, and the names of its classes in order; see :func:`class_names`.

    ``config`` are fields of its config. ``complete`` refuses a checkpoint without the head, and labels that it does not know.
    """
    model = load_model(loader, name, complete=True, **config) if complete else None  # which may lack the head
    classes = (load_config(name) if model is None else model.config).id2label
    names = class_names(labels, [str(classes[number]) for number in sorted(classes)], only_known=complete)
    if model is None:
        model = load_model(loader, name, ignore_mismatched_sizes=True, **label_fields(names), **config)
    return model, names


def class_names(labels: Sequence[str], known: Sequence[str], *, only_known: bool = False) -> list[str]:
    """The classes in the order of their numbers: the model's own if it knows all ``labels``, so that its head stays valid; else ``labels``.

    ``only_known`` refuses labels that the model does not know. If it numbers its classes (LABEL_0, LABEL_1 …), it knows whole numbers.
    """
    names, numbers = list(known), [str(number) for number in range(len(known))]
    if only_known and names == [f"LABEL_{number}" for number in numbers] and not set(labels) <= set(names):
        names = numbers
    if unknown := set(labels) - set(names):
        if not only_known:
            return list(labels)
        raise DataError(
            f"The model does not know the labels {listed(unknown)} of the data; its classes are {listed(names)}, so write the labels like "
            "these, or the names into id2label of its config.json."
        )
    return names


def check_classes(args: DataArguments, trained: Sequence[str], scored: Sequence[str]) -> None:
    """Refuse training data of a single class, and classes of ``--validation`` that no training row has."""
    sources, validation = ", ".join(args.data), args.validation if args.max_train_samples is None else ""
    if args.only_scores:
        return
    if len(trained) < 2:
        raise DataError(f"All rows of {sources} have the label {trained[0]!r}; give data with two labels or more.")
    if validation and (new := set(scored) - set(trained)):
        raise DataError(
            f"{validation} has the labels {listed(new)}, but {sources} only {listed(trained)}; write the same in both, or leave such "
            "rows out."
        )
