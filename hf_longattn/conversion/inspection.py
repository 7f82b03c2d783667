"""Describe a checkpoint from its config and headers. Layers and mechanisms, parameters, decode state and cost."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from functools import singledispatch
from pathlib import Path
from typing import Any

from ..configuration import LongAttentionConfig
from ..errors import CheckpointError
from ..files import is_long
from ..inputs.common.base import InputKind, LengthCost
from ..inputs.plain import PlainKind
from ..inputs.text import kind_in
from ..inputs.towers import TowersKind, WithTowers, text_part
from ..mechanisms import Mechanism
from ..modeling.attach.text_globals import TEXT_GLOBAL
from ..modeling.generic import attention_of_towers, towers_of
from ..modeling.inference.pruning import KEPT_HEADS
from .architectures import read_long
from .flops import (
    DecodeState,
    cost_with,
    decode_states,
    layer_mechanisms,
    model_shape,
)
from .model_loading import quiet_libraries
from .plain_parts import PlainPart, parts_with_mechanisms, text_length, text_tower
from .sources import Source, open_source, tower_of


@dataclass(frozen=True)
class Inspection(WithTowers):
    """A long checkpoint."""

    source: Source
    class_name: str
    model_type: str
    attention: LongAttentionConfig
    max_length: int
    mechanisms: tuple[Mechanism, ...]
    causal: bool
    parameters: int
    nbytes: int
    tensors: int
    """Number of tensors in the files."""
    costs: tuple[LengthCost, ...]
    states: tuple[DecodeState, ...]
    """Decode cache of each layer after ``max_length`` tokens; empty for a model that does not decode."""
    kept_heads: dict[str, int] = field(default_factory=dict)
    """Number of remaining heads in each layer with pruned heads (key-value heads under grouped-query attention)."""
    inputs: Any = None
    """Sizes of its inputs, ``InputSizes``."""
    towers: dict[str, Inspection] = field(default_factory=dict)
    """Each tower by name, if there are several; the other fields then describe the text tower. In a plain class with mechanisms, only the
    towers that have one."""
    other_towers: tuple[str, ...] = ()
    """Names of the towers of a plain class that keep its attention."""
    text_global: bool = False
    """Whether all tokens except image tokens are global in the language model of a plain class."""
    generic: bool = False
    """Whether the model is a plain class with mechanisms."""

    @property
    def longest_input(self) -> str:
        """The maximum input as text."""
        return str(self.inputs.longest)

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form."""
        return {
            "model": self.source.name,
            "class": self.class_name,
            "model_type": self.model_type,
            **({"generic": True} if self.generic else {}),
            "long_attention": self.attention.to_dict(),
            "layers": [{"mechanism": mechanism.name, **mechanism.options.to_dict()} for mechanism in self.mechanisms],
            "decode_states": [asdict(state) for state in self.states],
            "kept_heads": self.kept_heads,
            "causal": self.causal,
            "max_length": self.max_length,
            **self.inputs.of_model,
            "parameters": self.parameters,
            "bytes": self.nbytes,
            "costs": [cost.to_dict() for cost in self.costs],
            **({"text_global": True} if self.text_global else {}),
            **self.report_of_towers(),
        }


@quiet_libraries()
def inspect_checkpoint(model: str | Path, *, revision: str | None = None, token: str | bool | None = None) -> Inspection:
    """Describe a long checkpoint. :func:`hf_longattn.inspect.inspect_stock` describes others.

    Raises:
        CheckpointError: not a readable long checkpoint of a supported family.
    """
    source = open_source(model, revision=revision, token=token, headers_only=True)
    if not is_long(source.config):
        raise CheckpointError(f"{source.name!r} is a short checkpoint; convert it first (longattn convert {source.name} DST).")
    return _inspect(source)


def _inspect(source: Source) -> Inspection:
    return _inspection_of(kind_in(source.config), source)


@singledispatch
def _inspection_of(kind: InputKind, source: Source) -> Inspection:
    """Inspect a model of one stack."""
    config, class_name, family, skeleton = read_long(source)
    max_length = family.longest(config)
    shape = model_shape(config, skeleton, [header.dtype for header in source.tensors.values()])
    sizes, further = kind.sizes(config), kind.further_operations(skeleton, config)
    shape = replace(shape, matrix_parameters=shape.matrix_parameters + further)
    mechanisms = tuple(layer_mechanisms(config.long_attention, shape, max_length))
    return Inspection(
        source=source,
        class_name=class_name,
        model_type=source.config["model_type"],
        attention=config.long_attention,
        max_length=max_length,
        mechanisms=mechanisms,
        causal=shape.causal,
        parameters=sum(header.numel for header in source.tensors.values()),
        nbytes=source.total_bytes,
        tensors=len(source.tensors),
        states=tuple(decode_states(mechanisms, shape, max_length)) if shape.causal else (),
        costs=tuple(cost_with(size, mechanisms, shape) for size in sizes.steps(config)),
        inputs=sizes,
        kept_heads=dict(getattr(config, KEPT_HEADS, None) or {}),
    )


@_inspection_of.register(TowersKind)
def _inspect_towers(kind: TowersKind, source: Source) -> Inspection:
    """Inspect a model of several towers."""
    towers = {
        name: _inspect(tower_of(source, name, part.family.model_classes[part.family.base_model_name])) for name, part in kind.parts.items()
    }
    return _of_whole(source, text_part(towers), class_name=read_long(source)[1], model_type=source.config["model_type"], towers=towers)


def _of_whole(source: Source, longest: Inspection, **fields: Any) -> Inspection:
    """The whole model: the fields of its ``longest`` tower, with the tensors of its source."""
    fields |= {"parameters": sum(header.numel for header in source.tensors.values()), "tensors": len(source.tensors)}
    return replace(longest, source=source, nbytes=source.total_bytes, **fields)


@_inspection_of.register(PlainKind)
def _inspect_plain(kind: PlainKind, source: Source) -> Inspection:
    """Inspect a checkpoint converted with ``--generic``. Towers with their own mechanisms are inspected one by one."""
    config, _, _, skeleton = read_long(source)
    longest = text_length(config)
    lengths = (min(512, longest), longest)
    attention = attention_of_towers(config)
    if not attention:
        chosen = LongAttentionConfig.from_dict(config.long_attention)
        return _inspect_part(source, PlainPart.of(skeleton, chosen, source.tensors, lengths if longest else None))
    parts = parts_with_mechanisms(skeleton, attention, source.tensors, lengths)
    towers = {name: _inspect_part(source, part) for name, part in parts.items()}
    return _of_whole(
        source,
        towers.get(text_tower(config, attention), next(iter(towers.values()))),
        class_name=type(skeleton).__name__,
        model_type=config.model_type,
        towers=towers,
        text_global=bool(config.long_attention.get(TEXT_GLOBAL)),
        other_towers=tuple(name for name in towers_of(skeleton) if name not in attention),
    )


def _inspect_part(source: Source, part: PlainPart) -> Inspection:
    """Inspect a plain model with mechanisms, or one of its towers."""
    state = DecodeState(part.new_length * part.shape.token_bytes, part.shape.token_bytes)  # a plain class caches every token
    return Inspection(
        source=source,
        class_name=type(part.module).__name__,
        model_type=part.module.config.model_type,
        attention=part.attention,
        max_length=part.new_length,
        mechanisms=tuple(layer_mechanisms(part.attention, part.shape, part.new_length or None)),
        causal=part.shape.causal,
        parameters=sum(header.numel for header in part.tensors.values()),
        nbytes=sum(header.nbytes for header in part.tensors.values()),
        tensors=len(part.tensors),
        states=(state,) * part.shape.layers if part.shape.causal and part.new_length else (),
        costs=part.costs(),
        inputs=part.inputs,
        generic=True,
    )
