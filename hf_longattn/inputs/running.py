"""One forward pass of a model of any input kind, and what its class takes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

DECODER_INPUT = "decoder_input_ids"
"""The argument of ``forward`` with the decoder's tokens."""
OTHER_INPUTS = {"pixel_values", "input_features", "input_values"}
"""Arguments of ``forward`` for images and sound."""


def reads_only_text(model_class: Any) -> bool:
    """Whether a class of transformers reads token ids and neither images nor sound."""
    taken = inspect.signature(model_class.forward).parameters.keys()
    return model_class.main_input_name == "input_ids" and not OTHER_INPUTS & taken


def with_decoder_input(model: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of ``forward``. With one start token for the decoder if the model has one, and the inputs have no tokens for it."""
    if DECODER_INPUT in inputs or not (
        model.config.is_encoder_decoder and DECODER_INPUT in inspect.signature(type(model).forward).parameters
    ):
        return dict(inputs)
    start = getattr(model.config, "decoder_start_token_id", None) or 0
    return {**inputs, DECODER_INPUT: torch.full((1, 1), min(start, model.config.vocab_size - 1))}


def run_model(model: Any, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """All floating-point tensors that one forward pass returns, by name. The model's random numbers are the same at every call."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return floating_tensors(model(**with_decoder_input(model, inputs), return_dict=True))


def floating_tensors(returned: Mapping[str, Any]) -> dict[str, Tensor]:
    """The floating-point tensors among a model's outputs, by name. Tensors in tuples (a backbone's maps) are ``name[index]``."""
    tensors: dict[str, Tensor] = {}
    for name, value in returned.items():
        parts = {f"{name}[{index}]": part for index, part in enumerate(value)} if isinstance(value, tuple) else {name: value}
        tensors |= {name: part for name, part in parts.items() if isinstance(part, Tensor) and part.is_floating_point()}
    return tensors


def all_finite(tensors: Mapping[str, Tensor]) -> bool:
    """Whether there are tensors, and all of their values are finite."""
    return bool(tensors) and all(bool(value.isfinite().all()) for value in tensors.values())
