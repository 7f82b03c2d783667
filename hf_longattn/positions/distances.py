"""Distances between tokens that extended positions support without training.

A tiled table repeats after the trained length, so two tokens at that distance have the same position. A query that sees both cannot tell a
neighbour from the token at the far end of its window. The keys of one query may therefore span at most the trained length, as in a window
of that total width. In a decoder, a query shortly after a repetition begins also sees keys with later positions than its own, which never
happened in training. The further back it sees, the more such keys there are, so that the bound is half the trained length.
Global tokens and sinks do not count: they are few, and carry no distances. docs/results/positions.md has measurements.
"""

from __future__ import annotations

from dataclasses import dataclass

TILE, RANDOM, UNCHANGED_ROPE = "tile", "random", "rope:none"


@dataclass(frozen=True)
class Extent:
    """The range of one query's keys, without global tokens and sinks.

    back, ahead: the largest distances before and after the query, in tokens.
    span: distance from the first key to the last, in tokens. In mechanisms with blocks it is less than ``back + ahead``.
    """

    back: int
    ahead: int
    span: int


def widest_span(trained: int, *, causal: bool) -> int:
    """Maximum distance between two keys of one query with tiled positions, in tokens."""
    return trained // 2 if causal else trained


def untrained_distances(rule: str, trained: int, length: int, extent: Extent | None, reach: int | None) -> str:
    """The reason why a layer sees distances that need training; empty if it sees none.

    Args:
        rule: how positions are extended: ``"tile"``, ``"rope:none"`` …
        trained: length that the checkpoint was trained for, in tokens.
        length: maximum length of the result, in tokens.
        extent: range of a query's keys in this layer; ``None`` if unbounded, or chosen by content.
        reach: maximum number of past keys that a causal query sees, sinks included; ``None`` if unbounded.

    Returns:
        A clause whose subject is the layer. Rules that treat all distances alike give an empty one.
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
