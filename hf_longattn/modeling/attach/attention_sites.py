"""Finds the attention modules of a model, layer by layer, with their mechanisms and projections."""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization
from transformers.pytorch_utils import Conv1D

from ...mechanisms.common.base import Mechanism
from ...mechanisms.common.capabilities import projection_copies
from ..family.definition import attention_names

MECHANISM_ATTRIBUTE = "long_attention"
"""Attribute of an attention module that holds its mechanism, or a ModuleDict by layer number if it serves several layers."""
CROSS_MECHANISM = "full"
"""Mechanism of cross-attention. Its queries and keys come from different sequences, so distances between them mean nothing."""
CROSS_ATTENTION_NAMES = re.compile(r"cross|encoder_attn|encdec", re.IGNORECASE)
"""Matches the names of cross-attention modules."""
SERVED_LAYERS_ATTRIBUTE = "layers_served"
"""Attribute of an attention module that lists the layers it serves, if there are several."""
Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of a module. An attention module passes keyword arguments on to its attention function."""
CAUSAL_BY_CALL = frozenset(f"{model}_text_model" for model in ("clip", "clipseg", "metaclip_2", "owlv2", "owlvit", "xclip"))
"""Model types that are causal by an argument of each call (``is_causal=True``), not by an attribute of their attention modules."""
IN_DECODER_ATTRIBUTE = "in_decoder"
"""Attribute that marks the attention modules of a bidirectional decoder (ViT-MAE)."""


def is_causal(attention: nn.Module) -> bool:
    """Whether an attention module is causal, by its attribute or by its calls."""
    config = getattr(attention, "config", None)
    model_type = getattr(config, "base_model_type", getattr(config, "model_type", None))
    return bool(getattr(attention, "is_causal", False)) or model_type in CAUSAL_BY_CALL


@dataclass(frozen=True)
class AttentionSite:
    """The attention of one layer. Its module, the layer's number in its stack, and whether it is cross-attention.

    shared: whether the module serves other layers as well, each with its own site.
    """

    name: str
    module: nn.Module
    layer: int
    cross: bool
    shared: bool = False

    @property
    def causal(self) -> bool:
        return is_causal(self.module)

    @property
    def decoding(self) -> bool:
        """Whether the layer belongs to a decoder that is causal or has cross-attention."""
        return self.causal or self.cross

    @property
    def in_decoder(self) -> bool:
        """Whether the layer belongs to a decoder, including decoders that see past and future (ViT-MAE)."""
        return self.decoding or bool(getattr(self.module, IN_DECODER_ATTRIBUTE, False))

    @property
    def mechanism_name(self) -> str:
        """The module name of the layer's mechanism in the model."""
        return f"{self.name}.{MECHANISM_ATTRIBUTE}.{self.layer}" if self.shared else f"{self.name}.{MECHANISM_ATTRIBUTE}"

    @property
    def mechanism(self) -> nn.Module:
        owner, name = self._place
        return getattr(owner, name)

    def put(self, mechanism: nn.Module) -> None:
        """Set or replace the layer's mechanism."""
        if self.shared and not isinstance(getattr(self.module, MECHANISM_ATTRIBUTE, None), nn.ModuleDict):
            setattr(self.module, MECHANISM_ATTRIBUTE, nn.ModuleDict())
        setattr(*self._place, mechanism)

    @property
    def _place(self) -> tuple[nn.Module, str]:
        return (getattr(self.module, MECHANISM_ATTRIBUTE), str(self.layer)) if self.shared else (self.module, MECHANISM_ATTRIBUTE)


def attention_sites(model: nn.Module) -> list[AttentionSite]:
    """The attention of every layer of ``model``. The layers of encoder and decoder are counted separately."""
    sites: list[AttentionSite] = []
    counted: Counter[tuple[str, bool]] = Counter()
    for name, module in model.named_modules():
        kind = type(module).__name__
        if "attention" not in kind.lower() or isinstance(module, Mechanism):
            continue
        if not hasattr(module, "is_causal"):  # bidirectional modules of ALIGN, CLAP, LayoutLM and Splinter are on the AttentionInterface
            code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
            if not hasattr(module, "query") or code is None or "ALL_ATTENTION_FUNCTIONS" not in code.co_names:
                continue
        cross = bool(getattr(module, "is_cross_attention", False)) or bool(
            CROSS_ATTENTION_NAMES.search(f"{name.rpartition('.')[2]} {kind}")
        )
        if served := getattr(module, SERVED_LAYERS_ATTRIBUTE, ()):
            sites += [AttentionSite(name, module, layer, cross, shared=True) for layer in served]
            continue
        stack = re.split(r"\.\d+\.", name, maxsplit=1)[0]
        ordinal = counted[stack, cross]
        counted[stack, cross] += 1
        layer = getattr(module, "layer_idx", None)
        sites.append(AttentionSite(name, module, layer if isinstance(layer, int) and layer >= 0 else ordinal, cross))
    return sites


def mechanisms_on(attention: nn.Module) -> dict[str, Mechanism]:
    """Mechanisms of an attention module, by module name relative to it; empty for other modules."""
    value = getattr(attention, MECHANISM_ATTRIBUTE, None)
    if isinstance(value, nn.ModuleDict):
        return {f"{MECHANISM_ATTRIBUTE}.{layer}": mechanism for layer, mechanism in value.items() if isinstance(mechanism, Mechanism)}
    return {MECHANISM_ATTRIBUTE: value} if isinstance(value, Mechanism) else {}


def layer_mechanisms(model: nn.Module) -> list[Mechanism]:
    """The mechanism of every layer. A Long base model lists its attention modules, since a search can take longer than attention."""
    modules = model.__dict__.get("attention_modules")
    modules = [module for module in model.modules() if hasattr(module, MECHANISM_ATTRIBUTE)] if modules is None else modules
    return [mechanism for module in modules for mechanism in mechanisms_on(module).values()]


def with_members(mechanisms: Iterable[Mechanism]) -> list[Mechanism]:
    """``mechanisms`` and the members of composites."""
    return [part for mechanism in mechanisms for part in mechanism.modules() if isinstance(part, Mechanism)]


SEPARATE_PROJECTIONS = {
    "query": ("query", "q_proj", "q_lin", "q"),
    "key": ("key", "k_proj", "k_lin", "k"),
    "value": ("value", "v_proj", "v_lin", "v"),
}
OUTPUT = ("o_proj", "out_proj", "c_proj", "out_lin", "Wo", "dense", "o")
OUTPUT_OF_PARENT = "output.dense"
"""BERT-like models have the output projection beside the attention module, not inside it."""

Split = Callable[[Any, Tensor], Sequence[Tensor]]
"""``(attention module, weight or bias of its fused projection) -> (query, key, value)``, each in the layout of ``nn.Linear``."""


@dataclass(frozen=True)
class OwnParameter:
    """A parameter of the layer in the layout of ``nn.Linear``. Or one of the three parts of a fused parameter.

    name: the parameter's name below the attention module.
    split: the function that splits a fused parameter; ``None`` if it is not fused.
    index: index of the part.
    """

    name: str
    split: Callable[[Tensor], Sequence[Tensor]] | None = None
    index: int = 0

    def __call__(self, parameter: Tensor) -> Tensor:
        return parameter if self.split is None else self.split(parameter)[self.index].contiguous()


def _gpt2(attention: Any, parameter: Tensor) -> list[Tensor]:
    """Split the weight ``(in, out)`` of a Conv1D."""
    return [part.transpose(0, -1) for part in parameter.chunk(3, dim=-1)]


def _gpt_neox(attention: Any, parameter: Tensor) -> list[Tensor]:
    """Split rows that hold query, key and value head by head. Those of the first head, then those of the next, and so on."""
    return [part.flatten(0, 1) for part in parameter.unflatten(0, (attention.config.num_attention_heads, 3, -1)).unbind(1)]


def _phi3(attention: Any, parameter: Tensor) -> Sequence[Tensor]:
    """Split rows with all queries first, then all keys, then all values. Keys and values may have fewer heads."""
    config = attention.config
    heads = (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
    return parameter.split([count * attention.head_dim for count in heads])


FUSED_PROJECTIONS: dict[str, tuple[Split, Callable[[Any], bool]]] = {
    "c_attn": (_gpt2, lambda module: isinstance(module, Conv1D)),
    "query_key_value": (_gpt_neox, lambda module: module.out_features == 3 * module.in_features),
    "qkv_proj": (_phi3, lambda module: True),
    "Wqkv": (lambda attention, parameter: parameter.chunk(3), lambda module: True),  # equally many queries, keys and values
}
"""Name of a fused projection -> the function that splits it, and a check whether a module has that layout."""


def own_projections(attention: nn.Module) -> dict[str, OwnParameter]:
    """ "query.weight", "query.bias", "key.weight" … -> the module's parameter. Biases that do not exist have no entry."""
    parameters: dict[str, OwnParameter] = {}
    unusual = attention_names(attention)
    for kind, usual in SEPARATE_PROJECTIONS.items():
        names = (getattr(unusual, kind) or usual[0], *usual)
        linear = next((name for name in names if isinstance(getattr(attention, name, None), nn.Linear)), None)
        if linear is not None:
            parameters |= {
                f"{kind}.{parameter}": OwnParameter(f"{linear}.{parameter}")
                for parameter, _ in getattr(attention, linear).named_parameters()
            }
    for fused, (split, fits) in FUSED_PROJECTIONS.items():
        module = getattr(attention, fused, None)
        if isinstance(module, nn.Module) and fits(module):
            for index, kind in enumerate(SEPARATE_PROJECTIONS):
                for parameter, _ in module.named_parameters():
                    parameters[f"{kind}.{parameter}"] = OwnParameter(f"{fused}.{parameter}", partial(split, attention), index)
    return parameters


def input_width(attention: nn.Module) -> int | None:
    """The width of an attention module's input; ``None`` if its projections are not known."""
    query = own_projections(attention).get("query.weight")
    if query is None:
        return None
    linear = attention.get_submodule(query.name.rpartition(".")[0])
    return linear.weight.shape[0] if isinstance(linear, Conv1D) else int(linear.in_features)  # type: ignore[arg-type]


def copied_parameters(attention: nn.Module, copies: Mapping[str, str]) -> dict[str, OwnParameter]:
    """A mechanism's parameter name -> the layer's parameter to copy at initialisation, from ``CopiesProjections.copies``."""
    parameters = own_projections(attention)
    return {name: parameters[wanted] for name, wanted in copies.items() if wanted in parameters}


@torch.no_grad()
def copy_projections(attention: nn.Module, mechanism: Mechanism) -> None:
    """Initialise a mechanism's parameters with copies of its layer's projections, unless they were loaded."""
    for name, parameter in copied_parameters(attention, projection_copies(mechanism)).items():
        copy = mechanism.get_parameter(name)
        initialization.copy_(copy, parameter(attention.get_parameter(parameter.name)).view_as(copy))


def attention_projections(model: nn.Module, attention: str) -> list[str]:
    """Names in ``model`` of the q, k, v and output projections of its module ``attention``. Empty if the query projection is unknown."""
    module = model.get_submodule(attention)
    inner = dict.fromkeys(parameter.name.rpartition(".")[0] for parameter in own_projections(module).values())
    names = [f"{attention}.{name}" for name in inner]
    outputs = (attention_names(module).output or OUTPUT[0], *OUTPUT)
    output = next((f"{attention}.{name}" for name in outputs if isinstance(getattr(module, name, None), nn.Module)), None)
    if output is None:
        beside = f"{attention.rpartition('.')[0]}.{OUTPUT_OF_PARENT}".removeprefix(".")
        output = beside if beside in dict(model.named_modules()) else None
    return names and [*names, *([output] if output else [])]
