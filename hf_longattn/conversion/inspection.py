"""Describe a checkpoint from its config and headers: layers and mechanisms, parameters, decode state and cost."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..configuration import LongAttentionConfig
from ..mechanisms import Mechanism
from ..modeling.family.definition import Family
from ..modeling.family.grid_rule import GridRule
from ..modeling.inference.pruning import KEPT_HEADS
from .architectures import find_architecture, read_long
from .audio_seconds import AudioDuration
from .flops import (
    DecodeState,
    LengthCost,
    ModelShape,
    cost_at,
    cost_on,
    decode_states,
    layer_mechanisms,
    lengths_up_to,
    model_shape,
    sizes_up_to,
)
from .grid_sizes import GridSize
from .model_loading import quiet_libraries
from .plan_audio import audio_costs, with_convolutions
from .sources.base import Source, open_source


@dataclass(frozen=True)
class Inspection:
    """A long or short checkpoint; a short one has full attention."""

    source: Source
    class_name: str
    model_type: str
    attention: LongAttentionConfig
    max_length: int
    mechanisms: tuple[Mechanism, ...]
    causal: bool
    parameters: int
    nbytes: int
    costs: tuple[LengthCost, ...]
    states: tuple[DecodeState, ...]
    """What each layer keeps while decoding ``max_length`` tokens; empty for a model that does not decode."""
    kept_heads: dict[str, int] = field(default_factory=dict)
    """Number of heads of the layers whose heads were pruned (of keys and values, where queries share them)."""
    grid: GridSize | None = None
    """The size of the pictures or spectrograms that a model of such inputs was made for."""
    rule: GridRule | None = None
    """How inputs of such a model lie on a grid."""

    sound: AudioDuration | None = None
    """The duration of the sound that a model of sound was made for."""

    @property
    def longest_input(self) -> str:
        """The longest input, in words."""
        if self.sound is not None:
            return f"sounds of {self.sound.describe()}"
        return (
            f"up to {self.max_length:,} tokens"
            if self.grid is None or self.rule is None
            else f"{self.rule.noun}s of {self.grid.describe()}"
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form."""
        return {
            "model": self.source.name,
            "class": self.class_name,
            "model_type": self.model_type,
            "long_attention": self.attention.to_dict(),
            "layers": [{"mechanism": mechanism.name, **mechanism.options.to_dict()} for mechanism in self.mechanisms],
            "decode_states": [asdict(state) for state in self.states],
            "kept_heads": self.kept_heads,
            "causal": self.causal,
            "max_length": self.max_length,
            **(
                {}
                if self.grid is None or self.rule is None
                else {self.rule.size_name: list(self.grid.size), "grid": list(self.grid.grid.sizes)}
            ),
            **({} if self.sound is None else {"audio_seconds": self.sound.seconds}),
            "parameters": self.parameters,
            "bytes": self.nbytes,
            "costs": [asdict(cost) for cost in self.costs],
        }


@quiet_libraries()
def inspect_checkpoint(model: str | Path, *, revision: str | None = None, token: str | bool | None = None) -> Inspection:
    """Describe a long checkpoint, or a short one of a supported family.

    Raises:
        CheckpointError: not a readable checkpoint of a supported family.
    """
    source = open_source(model, revision=revision, token=token, headers_only=True)
    config, class_name, family, skeleton = read_long(source) if "long_attention" in source.config else _short(source)
    max_length = family.longest(config)
    shape = model_shape(config, skeleton, [header.dtype for header in source.tensors.values()])
    if family.audio is not None:
        shape = with_convolutions(shape, skeleton, family, config)
    sound = None if family.audio is None else AudioDuration.of(family.audio, config, family.audio.durations(config)[1])
    mechanisms = tuple(layer_mechanisms(config.long_attention, shape, max_length))
    grid = None if family.grid is None else GridSize.of(family.grid, config, family.grid.sizes(config)[1])
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
        states=tuple(decode_states(mechanisms, shape, max_length)) if shape.causal else (),
        costs=_costs(config, family, shape, mechanisms, max_length),
        grid=grid,
        rule=family.grid,
        sound=sound,
        kept_heads=dict(getattr(config, KEPT_HEADS, None) or {}),
    )


def _costs(config: Any, family: Family, shape: ModelShape, mechanisms: tuple[Mechanism, ...], longest: int) -> tuple[LengthCost, ...]:
    """At 512 tokens, or the size of the position table, and its doublings."""
    if family.audio is not None:
        return audio_costs(family.audio, config, family.audio.durations(config), config.long_attention, shape)
    if family.grid is None:
        return tuple(cost_at(length, shape, mechanisms) for length in lengths_up_to(min(512, longest), longest))
    sizes = sizes_up_to(*family.grid.sizes(config))
    return tuple(cost_on(GridSize.of(family.grid, config, size), config.long_attention, shape) for size in sizes)


def _short(source: Source) -> tuple[Any, str, Family, Any]:
    architecture = find_architecture(source)
    attention = architecture.original_attention() or LongAttentionConfig("full")
    config = architecture.long_config(attention, {}, None, "tile")
    return config, architecture.source_class, architecture.family, architecture.skeleton(config)
