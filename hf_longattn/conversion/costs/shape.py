"""The shape of a model: the numbers that its cost follows from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...families.attachment import attention_sites
from ...families.places import AttentionSite
from ..architectures.base import attached_mechanisms
from .decode_state import KeyShape

__all__ = ["ModelShape", "generic_shape", "model_shape"]


@dataclass(frozen=True)
class ModelShape:
    """The numbers of a transformer that its cost follows from."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    intermediate: int
    causal: bool
    matrix_parameters: int  # weights that multiply every token: all matrices except the embeddings
    element_bytes: int
    cross_layers: int = 0  # layers of a decoder that keep keys and values of the whole text

    @property
    def keys(self) -> KeyShape:
        """What a layer makes of a token."""
        return KeyShape(self.kv_heads, self.head_dim, self.hidden, self.element_bytes)

    @classmethod
    def of(cls, config: Any, *, causal: bool, matrix_parameters: int, element_bytes: int, cross_layers: int = 0) -> ModelShape:
        """Read a transformers config; of one with an encoder and a decoder, the stack that is asked for."""
        stack = "decoder" if causal else "encoder"
        heads = getattr(config, f"{stack}_attention_heads", config.num_attention_heads)
        hidden = config.hidden_size
        return cls(
            layers=getattr(config, f"{stack}_layers", config.num_hidden_layers),
            heads=heads,
            kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_dim=getattr(config, "head_dim", None) or hidden // heads,
            hidden=hidden,
            intermediate=getattr(config, f"{stack}_ffn_dim", None)
            or getattr(config, "intermediate_size", None)
            or getattr(config, "n_inner", None)
            or 4 * hidden,
            causal=causal,
            matrix_parameters=matrix_parameters,
            element_bytes=element_bytes,
            cross_layers=cross_layers,
        )


def model_shape(config: Any, skeleton: nn.Module, dtypes: Iterable[torch.dtype]) -> ModelShape:
    """The shape of a long model, given as its skeleton and the dtypes it is stored in."""
    sites = attention_sites(skeleton)
    causal = all(site.module.is_causal for site in sites if not site.cross)
    crossing = [site for site in sites if site.cross] if not causal else []
    elsewhere = {id(module.weight) for module in skeleton.modules() if isinstance(module, nn.Embedding)}
    if crossing:  # the text meets the encoder, and the projections by which the decoder's cross-attention reads it
        met = {id(p) for site in crossing for name, p in site.module.named_parameters() if name.startswith(("k_proj", "v_proj"))}
        backbone: Any = skeleton.base_model
        encoder = {id(p) for p in backbone.get_encoder().parameters()}
        elsewhere |= {id(p) for p in skeleton.parameters()} - met - encoder
    times = {id(p): count for layer, count in _shared_layers(sites).items() for p in skeleton.get_submodule(layer).parameters()}
    matrices = sum(p.numel() * times.get(id(p), 1) for p in skeleton.parameters() if p.ndim == 2 and id(p) not in elsewhere)
    floating = [dtype.itemsize for dtype in dtypes if dtype.is_floating_point]
    return ModelShape.of(
        config, causal=causal, matrix_parameters=matrices, element_bytes=max(floating, default=4), cross_layers=len(crossing)
    )


def _shared_layers(sites: Iterable[AttentionSite]) -> Counter[str]:
    """Name of every module that several layers run as theirs -> how many do."""
    return Counter(site.name.rpartition(".")[0] for site in sites if site.shared)


def generic_shape(skeleton: nn.Module) -> ModelShape:
    """The shape of the attention, of the first layer, for tables of layers."""
    mechanisms = list(attached_mechanisms(skeleton).values())
    first, matrices = mechanisms[0], sum(p.numel() for p in skeleton.parameters() if p.ndim == 2)
    width = first.num_heads * first.head_dim
    layers = 1 + max(one.layer or 0 for one in mechanisms)
    return ModelShape(layers, first.num_heads, first.num_heads, first.head_dim, width, 4 * width, False, matrices, 4)
