"""What becomes of the positions: rotary parameters, or a rule for tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...configuration import LongAttentionConfig
from ...errors import PositionError, nearest
from ...positions import DROPPED, SINUSOIDAL, STRATEGIES, keeps_old_rows
from ..architectures.base import Architecture
from .lengths import StackLength, config_lengths
from .rotary import plan_rotary

__all__ = ["PositionPlan", "plan_positions"]

ROPE_NONE = "rope:none"
"""The rule by which rotary positions stay as they are."""


@dataclass(frozen=True)
class PositionPlan:
    """What becomes of the positions of one conversion."""

    rule: str  # "tile", "rope:yarn" …
    exact: bool  # whether positions below the old length give what they gave
    rope: dict[str, Any] | None  # rotary parameters of the result; None for tables, and where a formula needs none
    lengths: dict[str, int]  # field of the result's config -> its value

    @property
    def moved(self) -> str:
        """Why positions below the old length do not give what they gave; empty when they do."""
        return "" if self.exact else f"{self.rule} changes the old positions too"


def plan_positions(
    architecture: Architecture, attention: LongAttentionConfig, asked: str, text: StackLength, decoder: StackLength | None
) -> PositionPlan:
    """The positions of the result.

    Args:
        architecture: of the source.
        attention: of the result.
        asked: "auto", a strategy for tables, or "rope:<kind>".
        text, decoder: lengths of the text, and of the decoder beside an encoder.

    Raises:
        PositionError: unknown, or meant for positions that the source does not have.
    """
    family, base = architecture.family, architecture.source_config
    if family.rope:
        rope = plan_rotary(base, attention, asked, text)
        return PositionPlan(f"rope:{rope.kind}", rope.exact, rope.parameters, {"max_position_embeddings": rope.max_position_embeddings})
    lengths = config_lengths(family, text, decoder)
    if family.rotary(base):
        return PositionPlan(_fixed_rotary(asked, architecture.source_class), True, None, lengths)
    rule = _table_strategy(asked, learned=all(table.learned for table in family.position_tables))
    grows = text.new > text.old or (decoder is not None and decoder.new > decoder.old)
    return PositionPlan(rule, rule not in DROPPED and (keeps_old_rows(rule) or not grows), None, lengths)


def _table_strategy(positions: str, *, learned: bool = True) -> str:
    """The strategy for a position table; "auto" is tiling for a learned one, which works without training, and the formula for
    sinusoids.

    Raises:
        PositionError: unknown, or meant for rotary positions.
    """
    if positions in DROPPED:
        return positions
    if not learned:
        if positions not in ("auto", SINUSOIDAL):
            raise PositionError(
                f"{positions!r} does not fit a model with sinusoidal positions, which are computed; expected auto, {' or '.join(DROPPED)}."
            )
        return SINUSOIDAL
    if positions == "auto":
        return "tile"
    if positions not in STRATEGIES:
        known = [*STRATEGIES, *DROPPED]
        raise PositionError(
            f"{positions!r} does not fit a model with a learned position table; expected auto or one of"
            f" {', '.join(known)}.{nearest(positions, known)}"
        )
    return positions


def _fixed_rotary(positions: str, source_class: str) -> str:
    """The rule for rotary positions that the base computes by its formula alone: they stay as they are, at any length.

    Raises:
        PositionError: others were asked for.
    """
    if positions not in ("auto", ROPE_NONE):
        raise PositionError(
            f"{positions!r} was asked for, but {source_class} has rotary positions that transformers cannot scale;"
            f" expected auto or {ROPE_NONE}."
        )
    return ROPE_NONE
