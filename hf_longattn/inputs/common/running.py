"""One forward pass of a model of any input kind."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .base import kind_of_model

DECODER_INPUT = "decoder_input_ids"
"""The argument of ``forward`` with the decoder's tokens."""


def with_decoder_input(model: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of ``forward``, with one start token for the decoder if the model has a decoder."""
    if DECODER_INPUT not in inspect.signature(type(model).forward).parameters:
        return dict(inputs)
    start = getattr(model.config, "decoder_start_token_id", None) or 0
    return {**inputs, DECODER_INPUT: torch.full((1, 1), min(start, model.config.vocab_size - 1))}


def run_model(model: Any, inputs: Mapping[str, Any], *, gradients: bool = False) -> dict[str, Tensor]:
    """All floating-point tensors that one forward pass returns, by name. Tensors in tuples (a backbone's maps) are ``name[index]``."""
    arguments, kind = with_decoder_input(model, inputs), kind_of_model(model.config)
    if kind is not None:
        arguments = kind.arguments_of_head(model, arguments)
    with torch.set_grad_enabled(gradients):
        returned = dict(model(**arguments, return_dict=True))
    for name, entries in list(returned.items()):
        if isinstance(entries, tuple):
            returned |= {f"{name}[{index}]": entry for index, entry in enumerate(entries)}
    return {name: value for name, value in returned.items() if isinstance(value, Tensor) and value.is_floating_point()}
