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
class Locality:
    """A query sees only keys from ``back`` tokens before it to ``ahead`` after it, and what ``beside`` says.

    period: shifting all positions by a multiple of this leaves the output unchanged.
    by_block: whether tokens form blocks of ``period``, and all tokens of a block see the same keys ahead, up to the end of a block.
    beside: other keys that are seen, too: none, ``"globals"`` (:meth:`Mechanism.resolve_globals`), or ``"others"``. With others, no process
        or stream can do with its neighbours.
    is_window: whether every key in the range is seen, and nothing else, as in a sliding window.
    in_eval: whether the range is the ``"same"`` in eval mode; otherwise ``"everything"`` is seen there, or the range is ``"unknown"``.
    width_of_keys: distance from a query's first key to its last, in tokens. By default as in a window, or in blocks of ``period``.
    """

    back: int
    ahead: int
    period: int = 1
    by_block: bool = False
    beside: str = ""
    is_window: bool = False
    in_eval: str = "same"
    width_of_keys: int | None = None

    @property
    def width(self) -> int:
        """``width_of_keys``, or its default. A query late in its block has less of the block ahead."""
        if self.width_of_keys is not None:
            return self.width_of_keys
        return self.back + self.ahead - (self.period - 1 if self.ahead else 0)

    def final(self, seen: int) -> int:
        """Number of outputs that are final after ``seen`` tokens. Later tokens do not change them."""
        if not self.by_block or not self.ahead:
            return max(0, seen - self.ahead)
        return max(0, seen - (self.ahead + 1 - self.period)) // self.period * self.period

    def first(self, output: int) -> int:
        """First token that outputs from index ``output`` on depend on, rounded down to a multiple of ``period``."""
        return max(0, output - self.back) // self.period * self.period


def widest_span(trained: int, *, causal: bool) -> int:
    """Maximum distance between two keys of one query with tiled positions, in tokens."""
    return trained // 2 if causal else trained


def untrained_distances(rule: str, trained: int, length: int, local: Locality | None, reach: int | None) -> str:
    """The reason why a layer sees distances that need training; empty if it sees none.

    Args:
        rule: how positions are extended: ``"tile"``, ``"rope:none"`` …
        trained: length that the checkpoint was trained for, in tokens.
        length: maximum length of the result, in tokens.
        local: how far a query of this layer sees in eval mode; ``None`` if unbounded, or chosen by content.
        reach: maximum number of past keys that a causal query sees, sinks included; ``None`` if unbounded.

    Returns:
        A clause whose subject is the layer. Rules that treat all distances alike give an empty one.
    """
    if length <= trained:
        return ""
    if rule == TILE and (local is None or local.width > widest_span(trained, causal=not local.ahead)):
        seen = "keys at any distance" if local is None else f"keys up to {local.width:,} tokens {'apart' if local.ahead else 'back'}"
        return f"sees {seen}, and tiled positions repeat every {trained:,} tokens"
    if rule == UNCHANGED_ROPE and (reach is None or reach > trained):
        seen = "any distance" if reach is None else f"distances up to {reach - 1:,}"
        return f"sees {seen}, and rotations were trained for distances below {trained:,}"
    return ""
