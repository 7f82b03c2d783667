"""The cache layer type of each decoder layer. transformers builds its cache from these names."""

from __future__ import annotations

import json

import torch

from ..configuration import LongAttentionConfig
from ..mechanisms.common.base import Mechanism
from ..mechanisms.common.locality import keys_per_query
from ..mechanisms.common.registry import prototype
from .kept_cache import sparse_layer_type
from .state_cache import STATE_LAYER
from .window_cache import window_layer_type

FULL = "full_attention"
"""transformers' name of the cache layer that holds all keys."""


def _causal(long_attention: LongAttentionConfig, layer: int) -> Mechanism | None:
    built = prototype(*long_attention.for_layer(layer))
    return built if built.causal in ("both", True) else None


def decode_reach(long_attention: LongAttentionConfig, layer: int) -> int | None:
    """The number of past keys that a token sees in ``layer``, itself included. ``None`` if unbounded, or without a causal form."""
    built = _causal(long_attention, layer)
    return None if built is None else keys_per_query(built)


def decode_layer_type(long_attention: LongAttentionConfig, layer: int, plain_scores: bool = True) -> str:
    """The cache layer type of one layer: a state, a window, scattered keys, or all keys.
    Scattered keys need ``plain_scores``: the model must not change the scores q·k."""
    built = _causal(long_attention, layer)
    if built is None:
        return FULL
    if built.capabilities.stateful:
        return STATE_LAYER
    reach = keys_per_query(built)
    if reach is not None:
        return window_layer_type(reach)
    none = torch.zeros(1, 1, dtype=torch.long)
    if not plain_scores or built.kept(none, none) is None:
        return FULL
    mechanism, options = long_attention.for_layer(layer)
    return sparse_layer_type(mechanism, json.dumps(options, sort_keys=True))


def decode_layer_types(long_attention: LongAttentionConfig, num_layers: int, plain_scores: bool = True) -> list[str] | None:
    """The cache layer type of every layer, or ``None`` if all layers hold all keys."""
    types = [decode_layer_type(long_attention, layer, plain_scores) for layer in range(num_layers)]
    return None if set(types) <= {FULL} else types
