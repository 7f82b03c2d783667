"""What a model costs at each length, counted from its shape: no run, no time measured."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ...configuration import LongAttentionConfig
from ...mechanisms import Mechanism
from ...mechanisms.registry import mechanism_from
from .decode_state import state_bytes
from .shape import ModelShape

__all__ = ["LengthCost", "cost_at", "layer_mechanisms", "lengths_up_to"]


@dataclass(frozen=True)
class LengthCost:
    """One row of a plan's cost table, for one sequence."""

    length: int
    attention_flops: int
    full_attention_flops: int
    other_flops: int
    activation_bytes: int  # the widest layer during inference: its input, q, k, v, output and the intermediate activation
    cache_bytes: int | None  # keys and values kept for decoding; None when the model does not decode

    @property
    def total_flops(self) -> int:
        return self.attention_flops + self.other_flops


def layer_mechanisms(attention: LongAttentionConfig, shape: ModelShape, max_length: int) -> list[Mechanism]:
    """The mechanism of every layer; layers with equal options share one, since a cost does not depend on the layer."""
    sizes: dict[str, Any] = {"num_heads": shape.heads, "head_dim": shape.head_dim, "hidden_size": shape.hidden, "max_length": max_length}
    built: dict[str, Mechanism] = {}
    layers = []
    for name, options in map(attention.for_layer, range(shape.layers)):
        key = json.dumps([name, options], sort_keys=True)
        if key not in built:
            built[key] = mechanism_from(name, options, **sizes)
        layers.append(built[key])
    return layers


def cost_at(length: int, shape: ModelShape, mechanisms: Iterable[Mechanism]) -> LengthCost:
    """Multiply–adds (counted as two) and bytes for one sequence of `length` tokens."""
    layers = list(mechanisms)
    per_pair = 4 * shape.heads * shape.head_dim  # a score and a weighted value, each a multiply and an add
    dense = length * (length + 1) // 2 if shape.causal else length * length
    width = 4 * shape.hidden + 2 * shape.kv_heads * shape.head_dim + shape.intermediate
    pairs = {layer: layer.pairs(length, shape.causal) for layer in set(layers)}
    cache = None
    if shape.causal:
        cache = state_bytes(layers, shape.keys, length)
    elif shape.cross_layers:
        cache = shape.cross_layers * length * 2 * shape.hidden * shape.element_bytes
    return LengthCost(
        length=length,
        attention_flops=per_pair * sum(pairs[layer] for layer in layers),
        full_attention_flops=per_pair * dense * len(layers),
        other_flops=2 * shape.matrix_parameters * length,
        activation_bytes=length * width * shape.element_bytes,
        cache_bytes=cache,
    )


def lengths_up_to(old_length: int, new_length: int) -> list[int]:
    """The lengths a plan lists: the old one, its doublings, and the new one."""
    lengths = [old_length]
    while lengths[-1] * 2 < new_length:
        lengths.append(lengths[-1] * 2)
    return lengths + [new_length] * (new_length > old_length)
