"""What this package takes for granted about transformers' models, caches and kernels.

A name that a version of transformers lacks is noticed where it is used (:mod:`~hf_longattn.names`). A name that stays,
and comes to mean something else, is not: outputs would change, or memory would grow, without a word. Each check here
runs once per process, class or model, and costs nothing in a call.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch
from torch import nn

from ..errors import BackendError
from ..names import BACKEND, TESTED, logger


def unlike(found: str) -> str:
    """The sentence for a version of transformers in which ``found`` (a clause) is not what this package relies on."""
    lowest, highest = TESTED["transformers"]
    return (
        f"transformers {version('transformers')} is not what hf_longattn takes it for ({found}); install transformers "
        f"{lowest} to {highest}, with which it is tested."
    )


def check_cache_layers(model: Any, cache: Any) -> None:
    """Warn once per model if a cache that ``generate`` made has other layers than its config names.

    Outputs stay right, since other layers keep all keys.
    """
    if "cache_layers_checked" in vars(model):
        return
    layers = getattr(getattr(cache, "self_attention_cache", cache), "layers", ())
    if not layers or any(layer.is_initialized for layer in layers):  # a caller's DynamicCache() makes layers later
        return
    model.cache_layers_checked = True
    types = getattr(model.config, "layer_types", None) or ()
    for number, (layer, layer_type) in enumerate(zip(layers, types, strict=False)):
        if layer_type.startswith(BACKEND) and not type(layer).__module__.startswith("hf_longattn."):
            found = f"layer {number} of a cache is a {type(layer).__name__} in place of {layer_type}"
            logger.warning(f"{unlike(found)} Outputs are right, but memory grows with the text.")
            return


TOKENS, WINDOW = 8, 3
"""Tokens of the call by which a kernel's windows are checked, and its ``sliding_window``."""


def check_windows(attend: Callable[..., Any], module: nn.Module, query: torch.Tensor, causal: bool) -> None:
    """Raise :class:`BackendError` if an attention function of transformers reads ``sliding_window`` otherwise than as
    ``sliding_window - 1`` keys on either side.

    Queries and keys are zeros and the values one-hot, so that each output lists the keys that its query sees.

    query: ``(B, H, N, D)`` of a call, for its device, dtype and head size.
    """
    zeros = query.new_zeros(1, query.shape[1], TOKENS, query.shape[3])
    size = min(TOKENS, query.shape[3])
    values = zeros.clone()
    values[:, :, range(size), range(size)] = 1.0
    found = "it takes no sliding_window"
    parameters = inspect.signature(attend).parameters
    if "sliding_window" in parameters:
        with torch.no_grad():
            out, _ = attend(module, zeros, zeros, values, None, scaling=1.0, sliding_window=WINDOW, is_causal=causal)
        seen = out[0, :, 0, :size].float().cpu() > 0.5 / TOKENS
        band = torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril(0 if causal else WINDOW - 1).triu(1 - WINDOW)
        if torch.equal(seen, band[:, :size]):
            return
        found = f"sliding_window={WINDOW} does not show {WINDOW - 1} keys on either side"
    sentence = unlike(f"its FlashAttention has other windows: {found}")
    raise BackendError(f"{sentence} Or call model.set_attn_implementation({BACKEND!r}).")
