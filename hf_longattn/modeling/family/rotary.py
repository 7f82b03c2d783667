"""Rotary positions of an extended model, for conversions and for configs loaded with a larger length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ...configuration import LongAttentionConfig
from ...errors import OptionError
from ...mechanisms.common.masked import furthest_position
from ...mechanisms.full import Full
from ...positions.relative import relative_class
from ...positions.rope import RopePlan, rope_parameters

if TYPE_CHECKING:
    from .definition import Family


def furthest_positions(config: Any, attention: LongAttentionConfig, causal: bool | None) -> list[int | None]:
    """Largest distance at which each layer of a rotary stack sees a key, in positions; ``None`` if unbounded.

    causal: whether the layers are causal; ``None`` if unknown, for the larger distance of both forms.
    """
    layers = attention.prototypes(range(getattr(config, "decoder_layers", config.num_hidden_layers)))
    forms = [
        [furthest_position(layer, form) for layer in layers]
        for form in ((True, False) if causal is None else (causal,))
    ]
    return [None if None in distances else max(distances) for distances in zip(*forms, strict=True)]


def positions_without_end(family: Family, config: Any) -> int | None:
    """Number of positions that a query looks back, its own included; ``None`` if texts have a maximum length.

    Texts have no maximum length in a rotary decoder if every layer sees a bounded distance, and if rotations do not
    change with the length of a text.
    """
    if not family.scales_rotations(config) or not config.attending[1] or "dynamic" in str(config.rope_parameters):
        return None
    return positions_in(furthest_positions(config, config.long_attention, True))


def plan_rotary(
    config: Any,
    attention: LongAttentionConfig,
    positions: str,
    old_length: int,
    new_length: int,
    *,
    causal: bool | None,
) -> RopePlan:
    """The rotary positions of a model extended from ``old_length`` to ``new_length`` tokens.

    If each layer type has its own rotary parameters (Gemma 3), only types with layers that see beyond the old length
    are scaled.

    Args:
        config: the base's config, or a Long config with the base's ``rope_parameters``.
        attention: the attention of the result.
        positions: "auto" or "rope:<kind>".
        causal: as for :func:`furthest_positions`.

    Raises:
        OptionError: see :func:`~hf_longattn.positions.rope.rope_parameters`. Also if the kind moves the positions of
            distant tokens, and no layer has full attention, or another layer sees beyond the old length.
    """
    heads = getattr(config, "decoder_attention_heads", config.num_attention_heads)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    furthest = furthest_positions(config, attention, causal)
    old = config.rope_parameters or {}

    def plan(kind: str, parameters: dict[str, Any], distances: list[int | None]) -> RopePlan:
        frequencies = int(head_dim * (parameters.get("partial_rotary_factor") or 1.0)) // 2
        planned = rope_parameters(
            kind,
            parameters,
            old_length=old_length,
            new_length=new_length,
            reach=positions_in(distances),
            frequencies=frequencies,
        )
        if planned.relative and relative_class(planned.relative).counts_tokens:
            # some layers must have full attention, and the others see no further than the old length
            mechanisms = attention.prototypes(range(len(furthest)))
            others = [
                (mechanism.name, seen)
                for mechanism, seen in zip(mechanisms, furthest, strict=True)
                if not isinstance(mechanism, Full)
            ]
            far = next((name for name, distance in others if distance is None or distance >= old_length), None)
            if far is not None or len(others) == len(furthest):
                problem = (
                    "no layer has that"
                    if far is None
                    else f"mechanism {far!r} sees beyond the {old_length} tokens of the source"
                )
                raise OptionError(
                    f"rope:{planned.scaling} moves the positions of distant tokens in full attention, but {problem}; "
                    "choose mechanism='full' for such layers, or other positions."
                )
        return planned

    of_layers = getattr(config, "layer_types", None) or ()
    # some have none
    kinds = {
        kind: parameters for kind, parameters in old.items() if kind in of_layers and isinstance(parameters, dict)
    }
    if not kinds:
        return plan(positions, old, furthest)
    plans: dict[str, RopePlan] = {}
    for kind, parameters in kinds.items():
        distances = [distance for distance, layer_kind in zip(furthest, of_layers, strict=True) if layer_kind == kind]
        plans[kind] = plan(positions, parameters, distances)
        reach = positions_in(distances)
        if reach is not None and reach <= old_length:
            plans[kind] = plan("rope:none", parameters, distances)
    decisive = next(
        (plan_of_kind for plan_of_kind in plans.values() if plan_of_kind.scaling != "none"), next(iter(plans.values()))
    )
    of_kinds = {**old, **{kind: plan_of_kind.parameters for kind, plan_of_kind in plans.items()}}
    exact = all(plan_of_kind.exact for plan_of_kind in plans.values())
    length = min(plan_of_kind.max_position_embeddings for plan_of_kind in plans.values())
    return RopePlan(decisive.scaling, of_kinds, length, exact, decisive.relative)


def positions_in(distances: Sequence[int | None]) -> int | None:
    """Number of positions within the largest of some distances; ``None`` if unbounded."""
    if None in distances:
        return None
    return max((distance + 1 for distance in distances if distance is not None), default=0)
