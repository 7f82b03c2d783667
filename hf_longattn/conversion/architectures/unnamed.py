"""Which class a checkpoint's weights are of, where its config names none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...errors import CheckpointError, in_a_line
from ...families.registry import Family
from ..files.tensors import TensorHeader

__all__ = ["class_of_tensors"]

OLD_NAMES = {"gamma": "weight", "beta": "bias"}
"""Of the parameters of a LayerNorm in the first checkpoints."""
FIRST = ("ForMaskedLM", "ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
"""Endings of classes that come after the base model, in this order, where several fit as well."""


def class_of_tensors(family: Family, config: Any, tensors: Mapping[str, TensorHeader]) -> str:
    """The class of the base that takes the most tensors of a checkpoint and lacks the fewest.

    Args:
        family: of the source.
        config: the source's, as the base's config class reads it.
        tensors: headers by name.

    Raises:
        CheckpointError: the config makes no model.
    """
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    held = {_plain(name): header.shape for name, header in tensors.items()}

    def fit(name: str) -> int:
        try:
            with torch.device("meta"):
                model: Any = getattr(transformers, name)(config)
        except Exception as error:  # the constructors raise what they happen to raise
            raise CheckpointError(f"The source's config does not make a {name}: {in_a_line(error)}.") from error
        prefix, tied = f"{model.base_model_prefix}.", set(model.all_tied_weights_keys or ())
        wanted = {key.removeprefix(prefix): tuple(value.shape) for key, value in model.state_dict().items() if key not in tied}
        found = {key.removeprefix(prefix): shape for key, shape in held.items()}
        taken = sum(found.get(key) == shape for key, shape in wanted.items())
        return taken - (len(wanted) - taken)

    base = MODEL_MAPPING_NAMES[family.base_model_type]
    others = sorted(family.heads.keys() - {base}, key=lambda name: (not name.endswith(FIRST[0]), not name.endswith(FIRST), name))
    ordered = [base, *others]
    return max(ordered, key=fit)


def _plain(name: str) -> str:
    stem, dot, last = name.rpartition(".")
    return f"{stem}{dot}{OLD_NAMES.get(last, last) if stem.endswith('LayerNorm') else last}"
