"""The decode cache of a model: the name of its argument, and the cache layer type of each decoder layer.

transformers builds a cache layer for each entry of ``config.layer_types``. It looks up the entry's name in a table for
growing caches or in a table for static caches, and passes no settings of mechanisms on. The name therefore contains
the settings (``longattn_window_512``).
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, cache_utils

from ..configuration import LongAttentionConfig
from ..mechanisms.common.capabilities import Stateful, keys_per_query
from ..mechanisms.common.masked import MaskedMechanism
from ..mechanisms.common.registry import prototype
from ..names import BACKEND, release
from .attention_cache import STATE_LAYER, SparseCacheLayer
from .key_cache import GrowingWindowLayer, StaticKeysLayer, StaticWindowLayer

# transformers renamed the argument in version 5.24.
CACHE, OTHER_CACHE = "cache", "past_key_values"
if release(importlib.metadata.version("transformers")) < (5, 24):
    CACHE, OTHER_CACHE = OTHER_CACHE, CACHE
"""Name of the models' argument for the cache in the installed version of transformers, and in other versions. Outputs
have a field of that name."""
READS_PROMPT = "reads_prompt"
"""Name of an attribute that a cache has while ``generate`` reads a prompt of several tokens into it. The attention
function gets a keyword of that name."""
FULL = "full_attention"
"""transformers' name of the cache layer that holds all keys."""


def find_cache(values: Iterable[Any]) -> Any:
    """The cache among the arguments of an attention module, or ``None``. The cache is recognised by its type, since
    the argument's name differs between modules."""
    return next((value for value in values if isinstance(value, Cache)), None)


def take_cache(arguments: dict[str, Any]) -> Any:
    """Remove the cache from the keyword arguments of an attention module, and return it; ``None`` if there is none."""
    cache = find_cache(arguments.values())
    for name in (CACHE, OTHER_CACHE):
        arguments.pop(name, None)
    return cache


@contextmanager
def prompt_read(
    config: Any, input_ids: Tensor, generation_config: Any, arguments: Mapping[str, Any]
) -> Iterator[None]:
    """Context manager for ``_prefill`` of ``generate``. If the prompt has several new tokens, no call within it is a
    decoding step, not even a call with a piece of one token.

    Args:
        config: the model's config.
        input_ids: ``(B, n)``, with or without the tokens that are in the cache.
        arguments: the other arguments of the model.
    """
    cache = find_cache(arguments.values())
    cache = getattr(cache, "self_attention_cache", cache)
    new_tokens = length = input_ids.shape[1]
    # since 5.24, generate leaves out a mask of ones, and notes its length
    text_length = getattr(generation_config, "_mask_length", length)
    if not config.is_encoder_decoder and arguments.get("attention_mask") is not None:
        text_length = arguments["attention_mask"].shape[1]
    if cache is not None and length == text_length:  # the ids include the tokens in the cache
        new_tokens = length - int(cache.get_seq_length())
    if cache is None or new_tokens < 2:
        yield
        return
    setattr(cache, READS_PROMPT, True)
    try:
        yield
    finally:
        delattr(cache, READS_PROMPT)


def decode_layer_types(
    long_attention: LongAttentionConfig, num_layers: int, plain_scores: bool = True
) -> list[str] | None:
    """The cache layer type of every layer, or ``None`` if all layers hold all keys.

    plain_scores: whether the model adds nothing to the scores q·k. Layers that hold scattered keys need this.
    """
    types = [_layer_type(*long_attention.for_layer(layer), plain_scores) for layer in range(num_layers)]
    return None if set(types) <= {FULL} else types


def _layer_type(name: str, options: dict[str, Any], plain_scores: bool) -> str:
    """The cache layer type of a mechanism: a state, a window, scattered keys, or all keys."""
    mechanism = prototype(name, options)
    if mechanism.causal not in ("both", True):
        return FULL
    if isinstance(mechanism, Stateful):
        return STATE_LAYER
    reach = keys_per_query(mechanism)
    if reach is not None:
        growing, static = (partial(layer, window=reach) for layer in (GrowingWindowLayer, StaticWindowLayer))
        return _enter_layer_type(f"{BACKEND}_window_{reach}", growing, static)
    first_token = torch.zeros(1, 1, dtype=torch.long)
    scattered = isinstance(mechanism, MaskedMechanism) and mechanism.retained(first_token, first_token) is not None
    if not plain_scores or not scattered:
        return FULL

    # A static cache holds all keys.
    settings = json.dumps(options, sort_keys=True)
    scattered_keys = partial(SparseCacheLayer, mechanism=name, options=settings)
    return _enter_layer_type(f"{BACKEND}_{name}_{settings}", scattered_keys, StaticKeysLayer)


def _enter_layer_type(name: str, growing: Callable[..., Any], static: Callable[..., Any]) -> str:
    """Register ``name`` as a cache layer type in transformers' tables. Returns ``name``.

    ``growing`` builds layers for ``DynamicCache``, ``static`` for ``StaticCache``. Both must return instances of
    module-level classes, so that any process can unpickle a cache.
    """
    cache_utils.DYNAMIC_LAYER_TYPE_MAPPING[name] = growing
    cache_utils.STATIC_LAYER_TYPE_MAPPING[name] = static
    return name
