"""The rotary parameters of the result, for all layers or for each kind of layers that has its own."""

from __future__ import annotations

from typing import Any

from ...configuration import LongAttentionConfig
from ...mechanisms import Mechanism
from ...positions import RopePlan, rope_parameters
from ..costs.counts import layer_mechanisms
from ..costs.shape import ModelShape
from .lengths import StackLength

__all__ = ["plan_rotary"]


def plan_rotary(config: Any, attention: LongAttentionConfig, positions: str, length: StackLength) -> RopePlan:
    """What to write into the config of the result.

    Where the source has parameters by layer type (Gemma 3), only the layers that look beyond the old length are scaled.

    Args:
        config: of the source.
        attention: of the result.
        positions: "auto" or "rope:<kind>".
        length: of the text.

    Raises:
        PositionError: as `hf_longattn.positions.rope_parameters`.
    """
    shape = ModelShape.of(config, causal=True, matrix_parameters=0, element_bytes=4)
    mechanisms = layer_mechanisms(attention, shape, length.new)
    old = config.rope_parameters or {}
    partial = old.get("partial_rotary_factor", 1.0)

    def plan(kind: str, parameters: dict[str, Any], layers: list[Mechanism]) -> RopePlan:
        frequencies = int(shape.head_dim * partial) // 2
        lengths = {"old_length": length.old, "new_length": length.new}
        return rope_parameters(kind, parameters, **lengths, reach=_reach(layers), frequencies=frequencies)

    if not all(isinstance(parameters, dict) for parameters in old.values()):
        return plan(positions, old, mechanisms)
    found: dict[str, RopePlan] = {}
    for kind, parameters in old.items():
        layers = [mechanism for mechanism, own in zip(mechanisms, config.layer_types, strict=True) if own == kind]
        planned = plan(positions, parameters, layers)
        reach = _reach(layers)
        near = reach is not None and reach <= length.old
        found[kind] = plan("rope:none", parameters, layers) if near else planned
    decisive = next((one for one in found.values() if one.kind != "none"), next(iter(found.values())))
    parameters = {kind: one.parameters for kind, one in found.items()}
    return RopePlan(decisive.kind, parameters, decisive.max_position_embeddings, all(one.exact for one in found.values()))


def _reach(layers: list[Mechanism]) -> int | None:
    """How far any of these layers looks back; ``None`` is without bound."""
    reaches = [layer.reach(True) for layer in layers]
    return None if None in reaches else max((reach for reach in reaches if reach is not None), default=0)
