"""Rotary positions of an extended model, for conversions and for configs loaded with a larger length."""

from __future__ import annotations

from typing import Any

from ...configuration import LongAttentionConfig
from ...errors import OptionError
from ...mechanisms.common.base import Mechanism
from ...mechanisms.common.capabilities import keys_per_query
from ...mechanisms.common.registry import prototype
from ...mechanisms.full import Full
from ...positions.relative import relative_class
from ...positions.rope import RopePlan, rope_parameters


def plan_rotary(config: Any, attention: LongAttentionConfig, positions: str, old_length: int, new_length: int) -> RopePlan:
    """The rotary positions of a model extended from ``old_length`` to ``new_length`` tokens.

    If each layer type has its own rotary parameters (Gemma 3), only types with layers that see beyond the old length are scaled.

    Args:
        config: the base's config, or a Long config with the base's ``rope_parameters``.
        attention: the attention of the result.
        positions: "auto" or "rope:<kind>".

    Raises:
        OptionError: see :func:`~hf_longattn.positions.rope.rope_parameters`. Also if the kind moves the positions of distant tokens, and
            no layer has full attention, or another layer sees beyond the old length.
    """
    heads = getattr(config, "decoder_attention_heads", config.num_attention_heads)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    layers = range(getattr(config, "decoder_layers", config.num_hidden_layers))
    mechanisms = [prototype(*attention.for_layer(layer)) for layer in layers]
    reaches = [keys_per_query(mechanism) for mechanism in mechanisms]
    old = config.rope_parameters or {}

    def plan(kind: str, parameters: dict[str, Any], reach: int | None) -> RopePlan:
        lengths = {"old_length": old_length, "new_length": new_length}
        frequencies = int(head_dim * (parameters.get("partial_rotary_factor") or 1.0)) // 2
        planned = rope_parameters(kind, parameters, **lengths, reach=reach, frequencies=frequencies)
        if planned.relative and relative_class(planned.relative).counts_tokens:
            _check_moved(planned, mechanisms, old_length)
        return planned

    of_layers = getattr(config, "layer_types", None) or ()
    kinds = {kind: parameters for kind, parameters in old.items() if kind in of_layers and isinstance(parameters, dict)}  # some have none
    if not kinds:
        return plan(positions, old, _farthest(reaches))
    plans: dict[str, RopePlan] = {}
    for kind, parameters in kinds.items():
        reach = _farthest([reach for reach, layer_kind in zip(reaches, of_layers, strict=True) if layer_kind == kind])
        planned = plan(positions, parameters, reach)
        plans[kind] = plan("rope:none", parameters, reach) if reach is not None and reach <= old_length else planned
    decisive = next((plan_of_kind for plan_of_kind in plans.values() if plan_of_kind.scaling != "none"), next(iter(plans.values())))
    of_kinds = {**old, **{kind: plan_of_kind.parameters for kind, plan_of_kind in plans.items()}}
    exact = all(plan_of_kind.exact for plan_of_kind in plans.values())
    length = min(plan_of_kind.max_position_embeddings for plan_of_kind in plans.values())
    return RopePlan(decisive.scaling, of_kinds, length, exact, decisive.relative)


def _check_moved(planned: RopePlan, mechanisms: list[Mechanism], old_length: int) -> None:
    """Raise OptionError unless some layers have full attention, and the others see no further than the old length."""
    others = [mechanism for mechanism in mechanisms if not isinstance(mechanism, Full)]
    far = next((mechanism for mechanism in others if (reach := keys_per_query(mechanism)) is None or reach > old_length), None)
    if far is not None or len(others) == len(mechanisms):
        problem = "no layer has that" if far is None else f"mechanism {far.name!r} sees beyond the {old_length} tokens of the source"
        raise OptionError(
            f"rope:{planned.scaling} moves the positions of distant tokens in full attention, but {problem}; "
            "choose mechanism='full' for such layers, or other positions."
        )


def _farthest(reaches: list[int | None]) -> int | None:
    """The furthest distance that any layer sees back; ``None`` if unbounded."""
    return None if None in reaches else max((reach for reach in reaches if reach is not None), default=0)
