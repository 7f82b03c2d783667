"""Models with 8-bit layers of torchao: whether this processor computes them."""

from __future__ import annotations

import functools
import importlib
from typing import Any

import torch
from torch import nn
from transformers.utils import logging

from ..naming import LOGGER

OVERFLOW = (
    "The 8-bit products of torch overflow on this processor, which has no VNNI instructions, so the outputs of a model of torchao's int8 "
    "are wrong on it. Run it on a GPU or on a processor with VNNI, or compress it with --method int8-weight-only or bf16."
)

logger = logging.get_logger(LOGGER)


@functools.cache
@torch.no_grad()
def products_overflow() -> bool:
    """Whether a layer with inputs and weights in 8 bits (torchao) computes something else on this CPU.

    Without VNNI instructions, pairs of products are summed in 16 bits, which do not hold them.
    """
    ao = importlib.import_module("torchao.quantization")  # an import statement would be required of who loads a bundle of this code
    layer = nn.Linear(64, 64, bias=False, dtype=torch.bfloat16)
    layer.weight.fill_(1.0)
    ao.quantize_(layer, ao.Int8DynamicActivationInt8WeightConfig())
    return abs(float(layer(torch.ones(1, 64, dtype=torch.bfloat16)).mean()) - 64) > 1


def warn_of_overflow(model: Any) -> None:
    """Warn of a model on the CPU whose 8-bit products this processor gets wrong."""
    quantisation = getattr(model.config, "quantization_config", None)
    kind = type(getattr(quantisation, "quant_type", None)).__name__
    if kind == "Int8DynamicActivationInt8WeightConfig" and model.device.type == "cpu" and products_overflow():
        logger.warning(OVERFLOW)
