"""Which distances between tokens hold without training where positions are extended.

A tiled table repeats after as many rows as the checkpoint was trained for, so that two tokens of that distance have the same position. A
query that sees both cannot tell a neighbour from the token at the far end of its window: the keys of one query must span no more than the
trained length, as in a window of that total width. In a decoder, a query shortly after a repetition begins also sees keys whose positions
come after its own, which never happened in training; the further back it sees, the more of them, so half the trained length is the bound.
Global tokens and sinks do not count: they are few, and tell no distances. docs/results/positions.md has measurements.
"""

from __future__ import annotations

from dataclasses import dataclass

TILE, RANDOM, UNCHANGED_ROPE = "tile", "random", "rope:none"


@dataclass(frozen=True)
class Extent:
    """Where the keys of one query lie, global tokens and sinks apart.

    back, ahead: the furthest distances before and after the query, in tokens.
    span: from the first of its keys to the last, in tokens; less than ``back + ahead`` where blocks are counted.
    """

    back: int
    ahead: int
    span: int


def widest_span(trained: int, *, causal: bool) -> int:
    """The furthest apart that keys of one query may lie with tiled positions."""
    return trained // 2 if causal else trained


def untrained_distances(rule: str, trained: int, length: int, extent: Extent | None, reach: int | None) -> str:
    """Why positions do not hold without training for a layer that sees so far.

    Args:
        rule: how positions are extended: ``"tile"``, ``"rope:none"`` …
        trained: tokens that the checkpoint was trained to read.
        length: tokens that the result reads.
        extent: where the layer's keys lie; ``None`` if that is not bounded, or decided by their content.
        reach: how many past keys a causal query sees at most, sinks included; ``None`` if that is not bounded.

    Returns:
        A clause whose subject is the layer; empty if every distance was trained, and for rules that treat all distances alike.
    """
    if length <= trained:
        return ""
    if rule == TILE and (extent is None or extent.span > widest_span(trained, causal=not extent.ahead)):
        seen = "keys at any distance" if extent is None else f"keys up to {extent.span:,} tokens {'apart' if extent.ahead else 'back'}"
        return f"sees {seen}, and tiled positions repeat every {trained:,} tokens"
    if rule == UNCHANGED_ROPE and (reach is None or reach > trained):
        seen = "any distance" if reach is None else f"distances up to {reach - 1:,}"
        return f"sees {seen}, and rotations were trained for distances below {trained:,}"
    return ""
