"""Distances between tokens that need no training after positions are extended.

A tiled table repeats after the trained length, so that two tokens at that distance have the same position. A query
that sees both cannot tell a neighbour from the token at the far end of its window. The keys of one query may therefore
span at most the trained length, as in a window of that total width. In a decoder, a query shortly after the start of a
repetition also sees keys with later positions than its own, which never happened in training. The further back a query
sees, the more such keys there are. For decoders the bound is therefore half the trained length. Global tokens and
sinks do not count: they are few, and carry no distances. docs/results/training.md has measurements.

Rotary positions need no such bound. They need training, or a scaling, if a query is further from a key than in
training. Sinks of decoders are then at their positions in StreamingLLM's cache, directly before the window.
"""

from __future__ import annotations

from dataclasses import dataclass

TILE, UNCHANGED_ROPE = "tile", "rope:none"


@dataclass(frozen=True)
class Locality:
    """The keys that a query sees: those from ``back`` tokens before it to ``ahead`` tokens after it, or some of them,
    and the extra keys that ``beside`` names.

    period: shifting all positions by a multiple of this number leaves the output unchanged.
    beside: the extra keys. "" for none, "globals" for :meth:`MaskedMechanism.resolve_globals`, "others" for keys
        anywhere.
    is_window: whether every key in the range is seen, and nothing else, as in a sliding window.
    width_of_keys: maximum distance from a query's first key to its last, in tokens; ``None`` for the default of
        :attr:`width`.
    """

    back: int
    ahead: int
    period: int = 1
    beside: str = ""
    is_window: bool = False
    width_of_keys: int | None = None

    @property
    def width(self) -> int:
        """Maximum distance from a query's first key to its last, in tokens: ``width_of_keys``, or its default.

        The default is ``back + ahead``, less ``period - 1`` if ``ahead > 0``. ``back`` and ``ahead`` are maxima over
        all queries. In blocks of ``period`` tokens no query reaches both: the further a query is from the start of its
        block, the fewer tokens of the block are ahead of it.
        """
        if self.width_of_keys is not None:
            return self.width_of_keys
        return self.back + self.ahead - (self.period - 1 if self.ahead else 0)


def widest_span(trained: int, *, causal: bool) -> int:
    """Limit with tiled positions: maximum distance between the first and the last key that a query sees, in tokens."""
    return trained // 2 if causal else trained


def untrained_distances(
    positions: str, trained: int, length: int, local: Locality | None, furthest: int | None
) -> str:
    """Why the distances that a layer sees need training; empty if they need none.

    Args:
        positions: how positions are extended: ``"tile"``, ``"rope:none"`` …
        trained: training length of the checkpoint, in tokens.
        length: maximum length of the result, in tokens.
        local: range of a query in this layer; ``None`` if unbounded, or chosen by content.
        furthest: largest distance from a query to a key, in rotary positions; ``None`` if unbounded.

    Returns:
        A clause with the layer as its subject. Empty for extensions other than ``"tile"`` and ``"rope:none"``, which
        change all distances alike.
    """
    if length <= trained:
        return ""
    if positions == TILE and (local is None or local.width > widest_span(trained, causal=not local.ahead)):
        if local is None:
            seen = "keys at any distance"
        else:
            direction = "apart" if local.ahead else "back"
            seen = f"keys up to {local.width:,} tokens {direction}"
        return f"sees {seen}, and tiled positions repeat every {trained:,} tokens"
    if positions == UNCHANGED_ROPE and (furthest is None or furthest >= trained):
        seen = "any distance" if furthest is None else f"distances up to {furthest:,}"
        if furthest is None and local is not None and local.beside == "globals" and local.back < trained:
            seen = "its sinks or global tokens at any distance"
        return f"sees {seen}, and rotations were trained for distances below {trained:,}"
    return ""
