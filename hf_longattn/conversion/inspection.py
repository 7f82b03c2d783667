"""What a checkpoint is: its layers and mechanisms, parameters, state and cost, from its config and headers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..configuration import LongAttentionConfig
from ..errors import CheckpointError, LongAttentionError, in_a_line
from ..families.registry import FAMILIES, Family
from ..mechanisms import Mechanism
from .architectures.families import find_architecture
from .costs.counts import LengthCost, cost_at, layer_mechanisms, lengths_up_to
from .costs.decode_state import DecodeState, decode_states
from .costs.shape import model_shape
from .planning.lengths import longest
from .quiet import quiet_libraries
from .sources.base import Source
from .sources.opening import open_source

__all__ = ["Inspection", "inspect_checkpoint", "read_long"]


@dataclass(frozen=True)
class Inspection:
    """One checkpoint, long or short; a short one is shown with the full attention it has."""

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

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form."""
        return {
            "model": self.source.name,
            "class": self.class_name,
            "model_type": self.model_type,
            "long_attention": self.attention.to_dict(),
            "layers": [{"mechanism": one.name, **one.options.to_dict()} for one in self.mechanisms],
            "decode_states": [asdict(state) for state in self.states],
            "causal": self.causal,
            "max_length": self.max_length,
            "parameters": self.parameters,
            "bytes": self.nbytes,
            "costs": [asdict(cost) for cost in self.costs],
        }


@quiet_libraries()
def inspect_checkpoint(model: str | Path, *, revision: str | None = None, token: str | bool | None = None) -> Inspection:
    """Describe a long checkpoint, or a short one of a supported family.

    Raises:
        CheckpointError: what `plan_conversion` refuses as a source, except a long checkpoint.
    """
    source = open_source(model, revision=revision, token=token, headers_only=True)
    config, class_name, family, skeleton = read_long(source) if "long_attention" in source.config else _short(source)
    max_length = longest(family, config)
    shape = model_shape(config, skeleton, [header.torch_dtype for header in source.tensors.values()])
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
        states=tuple(decode_states(mechanisms, shape.keys, max_length)) if shape.causal else (),
        costs=tuple(cost_at(length, shape, mechanisms) for length in lengths_up_to(min(512, max_length), max_length)),
    )


def _short(source: Source) -> tuple[Any, str, Family, Any]:
    architecture = find_architecture(source)
    attention = architecture.adopted_attention() or LongAttentionConfig("full")
    config = architecture.long_config(attention, {}, None, "tile")
    return config, architecture.source_class, architecture.family, architecture.skeleton(config)


def read_long(source: Source) -> tuple[Any, str, Family, Any]:
    """Config, class name, family and skeleton of a long checkpoint.

    Raises:
        CheckpointError: a model that this version does not know, or whose config makes none.
    """
    import torch

    model_type = source.config.get("model_type")
    family = next((one for one in FAMILIES.values() if one.config_class.model_type == model_type), None)
    if family is None and "long_attention" in source.config:
        raise CheckpointError(
            f"{source.name!r} was converted with --generic and has no Long class to inspect; hf_longattn.load_generic loads it, and its "
            "conversion_report.json says what was checked."
        )
    if family is None:
        known = ", ".join(sorted(one.config_class.model_type for one in FAMILIES.values()))
        raise CheckpointError(f"{source.name!r} is a {model_type!r} model, which this version does not know; it knows {known}.")
    try:
        config = family.config_class.from_dict(dict(source.config))
    except LongAttentionError:
        raise
    except Exception as error:  # the config classes raise what their validators happen to raise
        raise CheckpointError(f"The config.json of {source.name!r} is not valid for {model_type}: {in_a_line(error)}.") from error
    named = (source.config.get("architectures") or [None])[0]
    if named not in family.heads.values():
        raise CheckpointError(f"{source.name!r} names the class {named!r}; expected one of {', '.join(family.heads.values())}.")
    with torch.device("meta"):
        return config, named, family, family.model_class(named)(config)
