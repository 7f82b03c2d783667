"""Finds the attention modules of a model, layer by layer, with their mechanisms and projections."""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization
from transformers.pytorch_utils import Conv1D

from ...mechanisms.common.base import Mechanism
from ...mechanisms.common.capabilities import projection_copies
from ...names import logger
from ..family.definition import attention_names

MECHANISM_ATTRIBUTE = "long_attention"
"""Attribute of an attention module with its mechanism. If several layers share the module, it is a ModuleDict with the
mechanism of each layer by number."""
CROSS_MECHANISM = "full"
"""Mechanism of cross-attention. Its queries and keys are from different sequences, so distances between them have no
meaning."""
CROSS_ATTENTION_NAMES = re.compile(r"cross|encoder_attn|encdec", re.IGNORECASE)
"""Matches the names of cross-attention modules."""
SERVED_LAYERS_ATTRIBUTE = "layers_served"
"""Attribute of an attention module that several layers share, with the list of these layers."""
Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of a module. An attention module passes keyword arguments on to its attention
function."""
CAUSAL_BY_CALL = frozenset(
    f"{model}_text_model" for model in ("clip", "clipseg", "metaclip_2", "owlv2", "owlvit", "xclip")
)
"""Model types that pass ``is_causal=True`` in each call instead of setting an attribute on their attention modules."""


def is_causal(attention: nn.Module) -> bool:
    """Whether an attention module is causal, by its attribute or by its calls."""
    config = getattr(attention, "config", None)
    model_type = getattr(config, "base_model_type", getattr(config, "model_type", None))
    return bool(getattr(attention, "is_causal", False)) or model_type in CAUSAL_BY_CALL


@dataclass(frozen=True)
class AttentionSite:
    """The attention of one layer of a model: its module, and the layer that runs it.

    name: the module's name in the model.
    module: the attention module.
    layer: the layer's number in its stack.
    cross: whether it is cross-attention.
    causal: whether later tokens are hidden.
    shared: whether several layers run the same module. There is a site for each of these layers.
    """

    name: str
    module: nn.Module
    layer: int
    cross: bool
    causal: bool
    shared: bool = False

    @property
    def decoding(self) -> bool:
        """Whether the layer belongs to a decoder that is causal or has cross-attention."""
        return self.causal or self.cross

    @property
    def mechanism(self) -> nn.Module:
        """The mechanism of this layer, which :meth:`put` has set."""
        mechanism: Any = getattr(self.module, MECHANISM_ATTRIBUTE)
        return mechanism[str(self.layer)] if self.shared else mechanism

    def put(self, mechanism: nn.Module) -> None:
        """Set the mechanism of this layer on the module."""
        if not self.shared:
            setattr(self.module, MECHANISM_ATTRIBUTE, mechanism)
            return
        by_layer = getattr(self.module, MECHANISM_ATTRIBUTE, None)
        if not isinstance(by_layer, nn.ModuleDict):
            by_layer = nn.ModuleDict()
            setattr(self.module, MECHANISM_ATTRIBUTE, by_layer)
        by_layer[str(self.layer)] = mechanism


def attention_sites(model: nn.Module) -> list[AttentionSite]:
    """The attention of every layer of ``model``. The layers of encoder and decoder are counted separately."""
    sites: list[AttentionSite] = []
    counted: Counter[tuple[str, bool]] = Counter()
    for name, module in model.named_modules():
        class_name = type(module).__name__
        if "attention" not in class_name.lower() or isinstance(module, Mechanism):
            continue
        # Modules on the AttentionInterface have is_causal, except bidirectional ones of ALIGN, CLAP, LayoutLM and
        # Splinter. These are recognised by the names in the code of their ``forward``.
        if not hasattr(module, "is_causal"):
            code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
            if not hasattr(module, "query") or code is None or "ALL_ATTENTION_FUNCTIONS" not in code.co_names:
                continue
        words = f"{name.rpartition('.')[2]} {class_name}"
        cross = bool(getattr(module, "is_cross_attention", False) or CROSS_ATTENTION_NAMES.search(words))
        causal = is_causal(module)
        if served := getattr(module, SERVED_LAYERS_ATTRIBUTE, ()):
            sites += [AttentionSite(name, module, layer, cross, causal, shared=True) for layer in served]
            continue
        # the module's own layer number, or else its place among the modules of its stack
        stack = re.split(r"\.\d+\.", name, maxsplit=1)[0]
        ordinal = counted[stack, cross]
        counted[stack, cross] += 1
        layer = getattr(module, "layer_idx", None)
        if not isinstance(layer, int) or layer < 0:
            layer = ordinal
        sites.append(AttentionSite(name, module, layer, cross, causal))
    return sites


def self_attention(model: nn.Module) -> list[AttentionSite]:
    """:func:`attention_sites` without cross-attention."""
    return [site for site in attention_sites(model) if not site.cross]


def check_layers_found(model: nn.Module, sites: Collection[str]) -> None:
    """Warn if an attention module was found in some layers of a stack, and not in others of the same structure. The
    latter keep the architecture's own attention.

    sites: names of the attention modules that were found.
    """
    lines = "\n".join(["", *sites])
    for name, stack in model.named_modules():
        if not isinstance(stack, nn.ModuleList) or len(stack) < 2:
            continue
        # structure of a layer -> whether each layer of this structure has an attention module
        by_structure: dict[Any, list[bool]] = {}
        for number, layer in enumerate(stack):
            structure = (type(layer), tuple(dict(layer.named_children())))
            by_structure.setdefault(structure, []).append(f"\n{name}.{number}." in lines)
        for (layer_class, _), have_sites in by_structure.items():
            if any(have_sites) and not all(have_sites):
                missed = f"{len(have_sites) - sum(have_sites)} of {len(have_sites)} layers {layer_class.__name__}"
                logger.warning(
                    f"{type(model).__name__} has no known attention module in {missed} of {name}, which keep the "
                    "architecture's own attention; name the layers in an issue, or choose another architecture."
                )


def mechanisms_on(attention: nn.Module) -> list[Mechanism]:
    """Mechanisms of an attention module, one for each layer that it serves; empty for other modules."""
    value = getattr(attention, MECHANISM_ATTRIBUTE, None)
    if isinstance(value, nn.ModuleDict):
        return [mechanism for mechanism in value.values() if isinstance(mechanism, Mechanism)]
    return [value] if isinstance(value, Mechanism) else []


def layer_mechanisms(model: nn.Module) -> list[Mechanism]:
    """The mechanism of every layer of ``model``."""
    modules = model.__dict__.get("attention_modules")  # of a Long base model, since searching all modules is slow
    if modules is None:
        modules = [module for module in model.modules() if hasattr(module, MECHANISM_ATTRIBUTE)]
    return [mechanism for module in modules for mechanism in mechanisms_on(module)]


def with_members(mechanisms: Iterable[Mechanism]) -> list[Mechanism]:
    """``mechanisms``, and the members of composite mechanisms."""
    return [part for mechanism in mechanisms for part in mechanism.modules() if isinstance(part, Mechanism)]


SEPARATE_PROJECTIONS = {
    "query": ("query", "q_proj", "q_lin", "q"),
    "key": ("key", "k_proj", "k_lin", "k"),
    "value": ("value", "v_proj", "v_lin", "v"),
}
"""Projection -> its usual names in attention modules."""
OUTPUT = ("o_proj", "out_proj", "c_proj", "out_lin", "Wo", "dense", "o")
"""Usual names of the output projection in attention modules."""
OUTPUT_OF_PARENT = "output.dense"
"""The output projection of BERT-like models, which is beside the attention module, not inside it."""

FUSED_PROJECTIONS = ("c_attn", "query_key_value", "qkv_proj", "Wqkv")
"""Names of the modules that project queries, keys and values together."""


@dataclass(frozen=True)
class OwnParameter:
    """A weight or bias of the query, key or value projection in an attention module.

    name: the name of the module's parameter.
    part: if the parameter fuses those of queries, keys and values: 0, 1 or 2. ``None`` if it is not fused.
    """

    name: str
    part: int | None = None

    def __call__(self, parameter: Tensor) -> Tensor:
        """The weight or bias in the layout of ``nn.Linear``, ``(out, in)``. A fused parameter is one of GPT-2's
        ``Conv1D``, ``(in, 3 · out)``."""
        if self.part is None:
            return parameter
        return parameter.chunk(3, dim=-1)[self.part].transpose(0, -1).contiguous()


def own_projections(attention: nn.Module) -> dict[str, OwnParameter]:
    """The projections of an attention module: "query.weight", "query.bias", "key.weight" … -> the module's parameter.
    A bias that the module does not have is left out."""
    parameters: dict[str, OwnParameter] = {}
    unusual = attention_names(attention)
    for part, usual in SEPARATE_PROJECTIONS.items():
        for name in (getattr(unusual, part), *usual):
            linear = getattr(attention, name, None)
            if isinstance(linear, nn.Linear):
                for parameter, _ in linear.named_parameters():
                    parameters[f"{part}.{parameter}"] = OwnParameter(f"{name}.{parameter}")
                break
    for fused in FUSED_PROJECTIONS:
        module = getattr(attention, fused, None)
        if not isinstance(module, nn.Module):
            continue
        for index, part in enumerate(SEPARATE_PROJECTIONS):
            for parameter, _ in module.named_parameters():
                parameters[f"{part}.{parameter}"] = OwnParameter(f"{fused}.{parameter}", index)
    return parameters


def input_width(attention: nn.Module) -> int | None:
    """The width of an attention module's input; ``None`` if its projections are not known."""
    query = own_projections(attention).get("query.weight")
    if query is None:
        return None
    linear = attention.get_submodule(query.name.rpartition(".")[0])
    return linear.weight.shape[0] if isinstance(linear, Conv1D) else int(linear.in_features)  # type: ignore[arg-type]


def copied_parameters(attention: nn.Module, copies: Mapping[str, str]) -> dict[str, OwnParameter]:
    """Name of a mechanism's parameter -> the parameter of the attention module to copy at initialisation.

    Parameters that cannot be found are left out. Of fused projections, only those of GPT-2 can be copied.

    copies: name of a mechanism's parameter -> name in :func:`own_projections`, from ``CopiesProjections.copies``.
    """
    parameters = own_projections(attention)
    if not isinstance(getattr(attention, "c_attn", None), Conv1D):
        parameters = {name: parameter for name, parameter in parameters.items() if parameter.part is None}
    return {name: parameters[wanted] for name, wanted in copies.items() if wanted in parameters}


@torch.no_grad()
def copy_projections(attention: nn.Module, mechanism: Mechanism) -> None:
    """Initialise parameters of a mechanism with copies of its layer's projections. Loaded parameters do not change."""
    for name, parameter in copied_parameters(attention, projection_copies(mechanism)).items():
        copy = mechanism.get_parameter(name)
        initialization.copy_(copy, parameter(attention.get_parameter(parameter.name)).view_as(copy))


def attention_projections(model: nn.Module, attention: str) -> list[str]:
    """Names in ``model`` of the query, key, value and output projections of an attention module. Fused projections are
    one module. Empty if the query projection is unknown.

    attention: the name of the attention module.
    """
    module = model.get_submodule(attention)
    # a dict keeps the order, and each module once
    inner = dict.fromkeys(parameter.name.rpartition(".")[0] for parameter in own_projections(module).values())
    names = [f"{attention}.{name}" for name in inner]
    if not names:
        return []
    for name in (attention_names(module).output, *OUTPUT):
        if isinstance(getattr(module, name, None), nn.Module):
            return [*names, f"{attention}.{name}"]
    beside = f"{attention.rpartition('.')[0]}.{OUTPUT_OF_PARENT}".removeprefix(".")
    if beside in dict(model.named_modules()):
        names.append(beside)
    return names
