"""Plans the rotary positions of a model for a larger length, in a conversion or in a config."""

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
    """The largest distance, in positions, at which each layer of a rotary model sees a key; ``None`` for a layer
    without a bound.

    causal: whether the layers are causal. If this is ``None`` (unknown), the larger distance of both forms counts.
    """
    layers = attention.prototypes(range(getattr(config, "decoder_layers", config.num_hidden_layers)))
    forms = (True, False) if causal is None else (causal,)
    by_form = [[furthest_position(layer, form) for layer in layers] for form in forms]
    return [None if None in distances else max(distances) for distances in zip(*by_form, strict=True)]


def positions_without_end(family: Family, config: Any) -> int | None:
    """Number of positions that queries look back, their own included, in a model without a maximum length of texts.
    ``None`` for other models.

    A rotary decoder has no maximum length if every layer sees a bounded distance, and if rotations do not change with
    the length of a text.
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
    """The rotary positions of a model that is extended from ``old_length`` to ``new_length`` tokens.

    If each layer type has its own rotary parameters (Gemma 3), they are scaled only for types with layers that see
    beyond the old length.

    Args:
        config: the base's config, or a Long config with the base's ``rope_parameters``.
        attention: the attention of the result.
        positions: "auto" or "rope:<kind>".
        causal: as for :func:`furthest_positions`.

    Raises:
        OptionError: see :func:`~hf_longattn.positions.rope.rope_parameters`. Also for a kind that moves the positions
            of distant tokens in full attention, if no layer has full attention, or if a layer with another mechanism
            sees beyond the old length.
    """
    heads = getattr(config, "decoder_attention_heads", config.num_attention_heads)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    furthest = furthest_positions(config, attention, causal)
    old = config.rope_parameters or {}

    def plan(kind: str, parameters: dict[str, Any], distances: list[int | None]) -> RopePlan:
        """The plan for layers that share rotary ``parameters``, and see keys within ``distances``."""
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
            # it moves positions in full attention only, so other layers must not see beyond the old length
            layers = zip(attention.prototypes(range(len(furthest))), furthest, strict=True)
            others = [(layer.name, distance) for layer, distance in layers if not isinstance(layer, Full)]
            too_far = [name for name, distance in others if distance is None or distance >= old_length]
            problem = ""
            if too_far:
                problem = f"mechanism {too_far[0]!r} sees beyond the {old_length} tokens of the source"
            elif len(others) == len(furthest):
                problem = "no layer has that"
            if problem:
                raise OptionError(
                    f"rope:{planned.scaling} moves the positions of distant tokens in full attention, but {problem}; "
                    "choose mechanism='full' for such layers, or other positions."
                )
        return planned

    # one set of parameters for all layers, or one for each layer type; a type may have none
    layer_types = getattr(config, "layer_types", None) or ()
    by_type = {name: values for name, values in old.items() if name in layer_types and isinstance(values, dict)}
    if not by_type:
        return plan(positions, old, furthest)
    plans: dict[str, RopePlan] = {}
    for name, parameters in by_type.items():
        distances = [
            distance for distance, layer_type in zip(furthest, layer_types, strict=True) if layer_type == name
        ]
        plans[name] = plan(positions, parameters, distances)
        reach = positions_in(distances)
        if reach is not None and reach <= old_length:
            plans[name] = plan("rope:none", parameters, distances)
    # join the plans: the first that scales names the kind of scaling
    planned = [*plans.values()]
    decisive = next((each for each in planned if each.scaling != "none"), planned[0])
    parameters = {**old, **{name: each.parameters for name, each in plans.items()}}
    exact = all(each.exact for each in planned)
    length = min(each.max_position_embeddings for each in planned)
    return RopePlan(decisive.scaling, parameters, length, exact, decisive.relative)


def positions_in(distances: Sequence[int | None]) -> int | None:
    """Number of positions within the largest of ``distances``, the query's own included; ``None`` if unbounded."""
    if None in distances:
        return None
    return max((distance + 1 for distance in distances if distance is not None), default=0)
