"""Run a model once, with the same random numbers at every call, and return its outputs by name."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ..loading import LOADING
from ..modeling.family.definition import known_family

DECODER_INPUT = "decoder_input_ids"
"""The argument of ``forward`` with the decoder's tokens."""


def decoder_start(config: Any) -> int:
    """The decoder's start token. If the config has none, as for mBART and some T5, it is the end or padding token."""
    tokens = (getattr(config, name, None) for name in ("decoder_start_token_id", "eos_token_id", "pad_token_id"))
    return next((token for token in tokens if isinstance(token, int)), 0)


@contextlib.contextmanager
def seeded() -> Iterator[None]:
    """Within the context, the CPU's random numbers are the same at every call.

    All threads share torch's generator, so they wait for one another (:data:`~hf_longattn.loading.LOADING`).
    """
    with LOADING, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # torch.manual_seed would seed GPUs, too
        yield


def run_model(model: Any, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """All floating-point outputs of one forward pass, by name.

    The model draws the same random numbers at every call. If ``inputs`` have no tokens for a decoder beside an
    encoder, it gets one start token.
    """
    arguments, config = dict(inputs), model.config
    if config.is_encoder_decoder and DECODER_INPUT in inspect.signature(model.forward).parameters:
        start = getattr(config, "decoder_start_token_id", None) or 0
        arguments.setdefault(DECODER_INPUT, torch.full((1, 1), min(start, config.vocab_size - 1)))
    with torch.no_grad(), seeded():
        return floating_tensors(model(**arguments, return_dict=True))


def floating_tensors(returned: Mapping[str, Any]) -> dict[str, Tensor]:
    """The floating-point tensors among a model's outputs, by name.

    A tensor in a tuple, such as the feature maps of a backbone, has the name ``name[index]``.
    """
    values: dict[str, Any] = {}
    for name, value in returned.items():
        if isinstance(value, tuple):
            values |= {f"{name}[{index}]": item for index, item in enumerate(value)}
        else:
            values[name] = value
    return {name: value for name, value in values.items() if isinstance(value, Tensor) and value.is_floating_point()}


def all_finite(tensors: Mapping[str, Tensor]) -> bool:
    """Whether there are tensors, and all their values are finite."""
    not_empty = (value for value in tensors.values() if value.numel())
    # minimum and maximum are NaN if a value is NaN; computing them takes a tenth of the time of isfinite for all
    # values
    return bool(tensors) and all(bool(torch.stack(value.aminmax()).isfinite().all()) for value in not_empty)


def outputs(model: Any, ids: Tensor, *, decoder_tokens: int | None = None, **arguments: Any) -> dict[str, Tensor]:
    """All tensors that one forward pass returns, by name.

    Args:
        ids: token ids, ``(B, N)``. A decoder beside an encoder gets them, too, shifted right by one.
        decoder_tokens: number of ids that the decoder gets; ``None`` for all. Sequence classifiers always get all.
        arguments: further arguments of ``forward``.
    """
    if "MultipleChoice" in type(model).__name__:
        ids = ids.unsqueeze(1)
    if model.config.is_encoder_decoder:
        if type(model).__name__.endswith("ForSequenceClassification"):  # the head reads the end token's state
            ids = torch.cat([ids[:, :-1], torch.full_like(ids[:, :1], model.config.eos_token_id)], dim=1)
            decoder_tokens = None
        start = torch.full_like(ids[:, :1], decoder_start(model.config))
        count = min(ids.shape[1], decoder_tokens or ids.shape[1])
        arguments["decoder_input_ids"] = torch.cat([start, ids], dim=1)[:, :count]
    family = known_family(model.config)
    if family is not None:
        arguments = {**family.spec.further_inputs(model.config, *ids.shape[:2]), **arguments}
    with torch.no_grad():
        returned = model(input_ids=ids, return_dict=True, **arguments)
    return {name: value for name, value in returned.items() if isinstance(value, Tensor)}
