"""What a long checkpoint's config and classes say: layers and mechanisms, parameters, decode state and cost. No weights are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ..configuration import LongAttentionConfig
from ..conversion.source_models import Source, open_source, quiet_libraries, read_long, tower_of
from ..errors import CheckpointError
from ..evaluation.flops import DecodeState, LengthCost, ModelShape, costs_of, decode_states, layer_mechanisms, model_shape
from ..files import is_generic, is_long
from ..inputs.kind import InputSizes, WithTowers, kind_in
from ..inputs.plain import text_length, text_tower
from ..mechanisms import Mechanism
from ..modeling.attach.global_mask import TEXT_GLOBAL
from ..modeling.generic import attention_of_towers, towers_of
from ..modeling.pruning import KEPT_HEADS


@dataclass(frozen=True)
class Inspection(WithTowers):
    """A long checkpoint.

    attention, inputs, shape, costs: of its layers; with several towers, of the text tower.
    kept_heads: number of remaining heads in each layer with pruned heads (key-value heads under grouped-query attention).
    towers: each tower by name, if there are several. In a plain class with mechanisms, only the towers that have one.
    other_towers: names of the towers of a plain class that keep its attention.
    text_global: whether all tokens except image tokens are global in the language model of a plain class.
    generic: whether the model is a plain class with mechanisms.
    """

    source: Source
    class_name: str
    model_type: str
    parameters: int
    attention: LongAttentionConfig
    inputs: InputSizes
    shape: ModelShape
    costs: tuple[LengthCost, ...]
    kept_heads: Mapping[str, int] = field(default_factory=dict)
    towers: Mapping[str, Inspection] = field(default_factory=dict)
    other_towers: tuple[str, ...] = ()
    text_global: bool = False
    generic: bool = False

    @property
    def longest_input(self) -> str:
        """The maximum input as text."""
        size = self.inputs.new
        return f"up to {size if size.name else f'{size.tokens:,} tokens'}" if size.tokens else size.words

    @property
    def max_length(self) -> int:
        """The maximum input in tokens; 0 if the config does not say."""
        return self.inputs.new.tokens

    @property
    def causal(self) -> bool:
        """Whether the layers are causal."""
        return self.shape.causal

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        return self.parameters * self.shape.element_bytes

    @cached_property
    def mechanisms(self) -> tuple[Mechanism, ...]:
        """The mechanism of every layer."""
        return tuple(layer_mechanisms(self.attention, self.shape, self.max_length or None))

    @cached_property
    def states(self) -> tuple[DecodeState, ...]:
        """Decode cache of each layer after ``max_length`` tokens; empty for a model that does not decode."""
        if not (self.causal and self.max_length):
            return ()
        if self.generic:  # a plain class caches every token
            return (DecodeState(self.max_length * self.shape.token_bytes, self.shape.token_bytes),) * self.shape.layers
        return tuple(decode_states(self.mechanisms, self.shape, self.max_length))

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
            "kept_heads": dict(self.kept_heads),
            "causal": self.causal,
            "max_length": self.max_length,
            **self.inputs.new.values,
            "parameters": self.parameters,
            "bytes": self.nbytes,
            "costs": [cost.to_dict() for cost in self.costs],
            **({"text_global": True} if self.text_global else {}),
            **self.by_tower(lambda tower: tower.to_dict()),
        }


@quiet_libraries()
def inspect_checkpoint(model: str | Path, *, revision: str | None = None, token: str | bool | None = None) -> Inspection:
    """Describe a long checkpoint. :func:`hf_longattn.inspect.inspect_stock` describes others.

    Raises:
        CheckpointError: not a readable long checkpoint of a supported family.
    """
    source = open_source(model, revision=revision, token=token, weights=False)
    if not is_long(source.config):
        raise CheckpointError(f"{source.name!r} is a short checkpoint; convert it first (longattn convert {source.name} DST).")
    return _inspect(source)


def _inspect(source: Source) -> Inspection:
    config, class_name, _, skeleton = read_long(source)
    facts = {
        "source": source,
        "class_name": class_name,
        "model_type": config.model_type,
        "parameters": sum(parameter.numel() for parameter in skeleton.parameters()),
    }
    if is_generic(source.config):
        return _inspect_plain(source, config, skeleton, {**facts, "class_name": type(skeleton).__name__})
    kind = kind_in(source.config)
    if kind.apart:
        bases = {name: part.family.model_classes[part.family.base_model_name] for name, part in kind.parts.items()}
        towers = {name: _inspect(tower_of(source, name, base)) for name, base in bases.items()}
        texts = next(tower for name, tower in towers.items() if not kind.parts[name].units)
        return replace(texts, **facts, towers=towers)
    shape, sizes, attention = model_shape(config, skeleton), kind.sizes(config), config.long_attention
    costs = costs_of(sizes, attention, shape)
    return Inspection(
        **facts, attention=attention, inputs=sizes, shape=shape, costs=costs, kept_heads=getattr(config, KEPT_HEADS, None) or {}
    )


def _inspect_plain(source: Source, config: Any, skeleton: Any, facts: dict[str, Any]) -> Inspection:
    """Inspect a checkpoint converted with ``--generic``. Towers with their own mechanisms are inspected one by one."""

    def inspect_part(module: Any, facts: dict[str, Any]) -> Inspection:
        return Inspection(
            **facts,
            source=source,
            class_name=type(module).__name__,
            model_type=module.config.model_type,
            parameters=sum(parameter.numel() for parameter in module.parameters()),
            generic=True,
        )

    longest, kind = text_length(config), kind_in(source.config)
    attention = attention_of_towers(config) or {"": LongAttentionConfig.from_dict(config.long_attention)}
    parts = kind.plain_parts(skeleton, attention, (min(512, longest), longest))  # type: ignore[attr-defined]
    towers = {name: inspect_part(*part) for name, part in parts.items()}
    if "" in towers:
        return towers[""]
    return replace(
        towers.get(text_tower(config, attention), next(iter(towers.values()))),
        **facts,
        towers=towers,
        text_global=bool(config.long_attention.get(TEXT_GLOBAL)),
        other_towers=tuple(name for name in towers_of(skeleton) if name not in attention),
    )
