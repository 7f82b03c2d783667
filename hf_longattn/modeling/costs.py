"""Costs of a model at each length, computed from its shape: FLOPs, activations, and the decode cache of each layer."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ..configuration import LongAttentionConfig
from ..engines.call import AttentionCall
from ..mechanisms import Mechanism
from ..mechanisms.common.capabilities import Stateful, keys_per_query
from ..mechanisms.common.layout import full_pairs
from ..mechanisms.common.masked import MaskedMechanism
from ..mechanisms.common.registry import mechanism_from
from ..mechanisms.common.shared_options import for_length
from .attach.attention_sites import (
    MECHANISM_ATTRIBUTE,
    AttentionSite,
    attention_sites,
    input_width,
    self_attention,
)
from .family.definition import known_family

PROBE_LENGTH = 45 << 16
"""Tokens at which growth of the decode cache is measured: longer than windows, and a multiple of most block and
segment sizes."""
DTYPES = {2: torch.bfloat16, 4: torch.float32, 8: torch.float64}
"""Bytes of an element -> a dtype of that size."""


@dataclass(frozen=True)
class LengthCost:
    """Cost of a forward pass over one input. A row in a table of costs.

    length: number of tokens.
    attention_flops, full_attention_flops: FLOPs of attention in all layers, with the mechanisms and with full
        attention.
    other_flops: FLOPs of everything besides attention.
    activation_bytes: activations of the largest layer in inference, which are its input, q, k, v, output and the
        intermediate activation.
    cache_bytes: size of the KV cache for decoding; ``None`` if the model does not decode.
    size: the input's ``InputSize``; ``None`` for a text.
    """

    length: int
    attention_flops: int
    full_attention_flops: int
    other_flops: int
    activation_bytes: int
    cache_bytes: int | None
    size: Any = None

    @property
    def total_flops(self) -> int:
        return self.attention_flops + self.other_flops

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form."""
        values = dict(vars(self))
        size = values.pop("size")
        if size is not None:
            values |= size.values
        return values


@dataclass(frozen=True)
class ModelShape:
    """The numbers of a transformer that determine its cost."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    intermediate: int
    causal: bool
    matrix_parameters: int = 0  # weights that multiply every token: all matrices except the embeddings
    element_bytes: int = 4
    cross_layers: int = 0  # number of cross-attention layers, which cache keys and values of all encoder tokens

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's key and value in a layer."""
        return 2 * self.kv_heads * self.head_dim * self.element_bytes

    @classmethod
    def of(cls, config: Any, *, causal: bool, **further: int) -> ModelShape:
        """The shape that a config of transformers describes.

        Args:
            config: the config. For an encoder-decoder, the shape is the decoder's if ``causal``, else the encoder's.
            causal: whether later tokens are hidden.
            further: values of fields about which the config says nothing, such as ``matrix_parameters``.
        """
        stack = "decoder" if causal else "encoder"
        heads = getattr(config, f"{stack}_attention_heads", config.num_attention_heads)
        hidden = config.hidden_size
        # the first of the usual names that has a number
        widths = (getattr(config, name, None) for name in (f"{stack}_ffn_dim", "intermediate_size", "n_inner"))
        return cls(
            layers=getattr(config, f"{stack}_layers", config.num_hidden_layers),
            heads=heads,
            kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_dim=getattr(config, "head_dim", None) or hidden // heads,
            hidden=hidden,
            intermediate=next(filter(None, widths), 4 * hidden),
            causal=causal,
            **further,
        )


@dataclass(frozen=True)
class DecodeState:
    """Bytes of one layer's decode cache, and bytes per additional token (0 if the size is constant)."""

    bytes: int
    per_token: int


def decode_states(mechanisms: Iterable[Mechanism], shape: ModelShape, length: int) -> list[DecodeState]:
    """The decode cache of every layer after ``length`` tokens of one sequence."""
    layers = list(mechanisms)
    states = {}
    for layer in set(layers):  # layers with equal options share a mechanism
        growth = 0
        if not isinstance(layer, Stateful) and keys_per_query(layer) is None:
            # Measure the average growth per token, from a length at which windows and segments are full. Growth by
            # less than a thousandth of a token's bytes is rounding.
            before = state_bytes(layer, shape, PROBE_LENGTH)
            added = state_bytes(layer, shape, 2 * PROBE_LENGTH) - before
            if added > PROBE_LENGTH * shape.token_bytes // 1000:
                growth = added // PROBE_LENGTH
        states[layer] = DecodeState(state_bytes(layer, shape, length), growth)
    return [states[layer] for layer in layers]


def state_bytes(mechanism: Mechanism, shape: ModelShape, length: int) -> int:
    """Bytes of one layer's decode cache after ``length`` tokens of one sequence."""
    if mechanism.capabilities.recursion is not None:
        return 0  # there is no cache, because every step reads the whole text
    if isinstance(mechanism, Stateful):
        return _measured(mechanism, shape)
    reach = keys_per_query(mechanism)
    if reach is not None:
        return min(length, reach) * shape.token_bytes
    first = torch.zeros(1, 1, dtype=torch.long)
    if not isinstance(mechanism, MaskedMechanism) or mechanism.retained(first, first) is None:
        return length * shape.token_bytes  # all keys
    # the cache is largest before or after the last step; ``None`` stands for all keys
    positions = torch.arange(length)[None]
    retained = [mechanism.retained(positions, torch.tensor([[upcoming]])) for upcoming in (length - 1, length)]
    return shape.token_bytes * max(length if keys is None else int(keys.sum()) for keys in retained)


def _measured(mechanism: Any, shape: ModelShape) -> int:
    """Bytes of a mechanism's recurrent state. It is measured after one token, because its size is constant."""
    dtype = DTYPES[shape.element_bytes]
    layer = type(mechanism)(mechanism.sizes, mechanism.options).to(dtype)  # ``mechanism`` may be on the meta device
    layer.layer = mechanism.layer
    q = torch.zeros(1, layer.num_heads, 1, layer.head_dim, dtype=dtype)
    k = torch.zeros(1, shape.kv_heads, 1, shape.head_dim, dtype=dtype)
    hidden = torch.zeros(1, 1, shape.hidden, dtype=dtype)
    with torch.no_grad():
        _, state = layer.advance(q, k, k, None, AttentionCall(causal=True, hidden_states=hidden))
    return sum(tensor.nbytes for tensor in state.values())


def element_bytes(config: Any) -> int:
    """Bytes of one weight of a model with this config; fp32 if its dtype is not set."""
    return (getattr(config, "dtype", None) or torch.float32).itemsize


def model_shape(config: Any, skeleton: nn.Module) -> ModelShape:
    """The shape of a Long model, or of its encoder if it has one.

    ``skeleton``: the model, which may be on the meta device.
    """
    sites = attention_sites(skeleton)
    causal = all(site.causal for site in sites if not site.cross)
    crossing = [] if causal else [site for site in sites if site.cross]
    # weights that multiply no token of the input: embeddings, and those of a decoder beside the encoder
    unused = {id(module.weight) for module in skeleton.modules() if isinstance(module, nn.Embedding)}
    if crossing:
        unused |= _weights_of_decoder_alone(skeleton, crossing)
    # weights of a module that several layers share count once for each layer
    shared = Counter(site.name.rpartition(".")[0] for site in sites if site.shared)
    times = {id(p): count for layer, count in shared.items() for p in skeleton.get_submodule(layer).parameters()}
    used = [p for p in skeleton.parameters() if p.ndim == 2 and id(p) not in unused]
    matrices = sum(p.numel() * times.get(id(p), 1) for p in used)
    family = known_family(config)
    if family is not None:
        matrices += family.spec.further_operations(config, skeleton)
    return ModelShape.of(
        config,
        causal=causal,
        matrix_parameters=matrices,
        element_bytes=element_bytes(config),
        cross_layers=len(crossing),
    )


def _weights_of_decoder_alone(skeleton: Any, crossing: Sequence[AttentionSite]) -> set[int]:
    """The ids of an encoder-decoder's weights that do not multiply the tokens of the encoder's text. These are all
    weights outside the encoder, except the key and value projections of cross-attention (``crossing``)."""
    encoding = {id(p) for p in skeleton.base_model.get_encoder().parameters()}
    for site in crossing:
        projections = site.module.named_parameters()
        encoding |= {id(p) for name, p in projections if name.startswith(("k_proj", "v_proj"))}
    return {id(p) for p in skeleton.parameters()} - encoding


def generic_shape(skeleton: nn.Module, whole: Any) -> ModelShape:
    """The shape of a model without a Long class on which mechanisms are attached, or of one of its towers.

    Args:
        skeleton: the model or the tower.
        whole: the config of the whole model.
    """
    sites = [site for site in self_attention(skeleton) if hasattr(site.module, MECHANISM_ATTRIBUTE)]
    first: Any = sites[0].mechanism
    module: Any = sites[0].module
    config = getattr(module, "config", None)
    width = input_width(module) or first.num_heads * first.head_dim
    embeddings = {id(module.weight) for module in skeleton.modules() if isinstance(module, nn.Embedding)}
    return ModelShape(
        layers=1 + max(site.layer for site in sites),
        heads=first.num_heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or first.num_heads,
        head_dim=first.head_dim,
        hidden=width,
        intermediate=getattr(config, "intermediate_size", None) or 4 * width,
        causal=all(site.causal for site in sites),
        matrix_parameters=sum(p.numel() for p in skeleton.parameters() if p.ndim == 2 and id(p) not in embeddings),
        element_bytes=element_bytes(whole),
    )


def layer_mechanisms(attention: LongAttentionConfig, shape: ModelShape, max_length: int | None) -> list[Mechanism]:
    """The mechanism of every layer. Layers with equal options share one, since cost does not depend on the layer.

    max_length: the longest input in tokens; ``None`` if the config does not say, for example for images.
    """
    built: dict[str, Mechanism] = {}
    layers = []
    for name, options in map(attention.for_layer, range(shape.layers)):
        key = json.dumps([name, options], sort_keys=True)
        if key not in built:
            # a separate generator, because other threads may use the process's; tensors on meta need no random values
            on_meta = torch.get_default_device().type == "meta"
            generator = None if on_meta else torch.Generator().manual_seed(0)
            built[key] = mechanism_from(
                name,
                options,
                num_heads=shape.heads,
                head_dim=shape.head_dim,
                hidden_size=shape.hidden,
                max_length=max_length,
                generator=generator,
            )
        layers.append(built[key])
    return layers


def cost_at(length: int, shape: ModelShape, mechanisms: Iterable[Mechanism]) -> LengthCost:
    """Operations (a multiply–add counts as two) and bytes for one sequence of ``length`` tokens.

    mechanisms: the mechanism of every layer.
    """
    layers = list(mechanisms)
    per_pair = 4 * shape.heads * shape.head_dim  # a score and a weighted value, each a multiply and an add
    all_pairs = full_pairs(length, shape.causal)
    # numbers per token in a layer: input, q, attention's output, the layer's output; k, v; the intermediate activation
    width = 4 * shape.hidden + 2 * shape.kv_heads * shape.head_dim + shape.intermediate
    pairs = {layer: for_length(layer, length, shape.causal).pairs(length, shape.causal) for layer in set(layers)}
    cache = None
    if shape.causal:
        bytes_of = {layer: state_bytes(layer, shape, length) for layer in pairs}
        cache = sum(bytes_of[layer] for layer in layers)
    elif shape.cross_layers:  # keys and values of the encoder's tokens
        cache = shape.cross_layers * length * 2 * shape.hidden * shape.element_bytes
    return LengthCost(
        length=length,
        attention_flops=per_pair * sum(pairs[layer] for layer in layers),
        full_attention_flops=per_pair * all_pairs * len(layers),
        other_flops=2 * shape.matrix_parameters * length,
        activation_bytes=length * width * shape.element_bytes,
        cache_bytes=cache,
    )


def affordable_length(
    length: int, shape: ModelShape, mechanisms: Sequence[Mechanism], limit: float, least: int = 64
) -> int:
    """The length, at most ``length`` tokens, at which a forward pass takes at most ``limit`` FLOPs. It is found by
    halving, and not below ``least`` tokens."""
    while length > least and cost_at(length, shape, mechanisms).total_flops > limit:
        length = max(least, length // 2)
    return length


def costs_of(sizes: Any, attention: LongAttentionConfig, shape: ModelShape) -> tuple[LengthCost, ...]:
    """The cost of one input of each size between the source's and the result's.

    sizes: an ``InputSizes``; ``sizes.steps()`` lists the sizes.
    """
    mechanisms = layer_mechanisms(attention, shape, sizes.new.tokens)
    return tuple(replace(cost_at(size.tokens, shape, size.bound(mechanisms)), size=size) for size in sizes.steps())
