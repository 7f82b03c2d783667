"""Values derived from :meth:`Mechanism.locality`, for caches, tables of distances, native checkpoints and positions."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ...engines.common.call import UNBOUNDED
from ...positions.distances import Locality, untrained_distances

if TYPE_CHECKING:
    from ...positions.relative import Span


def _distances(mechanism: Any, causal: bool) -> Locality | None:
    """The locality if queries see only keys in its range, without global tokens or other extra keys; else ``None``."""
    local = mechanism.locality(causal)
    return local if local is not None and not local.beside else None


def keys_per_query(mechanism: Any) -> int | None:
    """The maximum number of keys that a causal query sees, its own included. Sizes the decode cache. ``None`` if unbounded, if the keys
    are not one fixed range, and for mechanisms with blocks, which have a smaller cache."""
    local = _distances(mechanism, True)
    return None if local is None or local.period > 1 or local.in_eval != "same" else local.back + 1


def largest_distances(mechanism: Any, q_len: int, kv_len: int, causal: bool) -> Span:
    """The largest visible distances of a call: back (query - key) and ahead (key - query). Sizes tables of relative positions."""
    local = _distances(mechanism, causal)
    if local is None:
        return kv_len - 1, 0 if causal else q_len - 1
    return min(local.back, kv_len - 1), min(local.ahead, q_len - 1)


def eval_locality(mechanism: Any, causal: bool) -> Locality | None:
    """The locality in eval mode, ignoring global tokens and sinks; ``None`` if unbounded, unknown or dependent on content."""
    local = mechanism.locality(causal)
    return None if local is None or local.in_eval != "same" else local


def band_of(mechanism: Any, causal: bool) -> tuple[int, int] | None:
    """``(back, ahead)`` if, in eval mode, the mechanism is exactly a sliding window or full attention at every length.
    ``None`` for other mechanisms, and for any with relative positions."""
    if mechanism.relative is not None:
        return None
    local = mechanism.locality(causal)
    if mechanism.covers(UNBOUNDED, causal) or (local is not None and local.in_eval == "everything"):
        return UNBOUNDED, 0 if causal else UNBOUNDED
    return (local.back, local.ahead) if local is not None and local.is_window else None


def needs_training_by(mechanism: Any, rule: str, trained: int, length: int, causal: bool) -> str:
    """Why ``mechanism`` needs training if positions are extended by ``rule``; empty if it needs none. See
    :func:`~hf_longattn.positions.distances.untrained_distances`."""
    return untrained_distances(rule, trained, length, eval_locality(mechanism, causal), keys_per_query(mechanism))


def joined(localities: Iterable[Locality | None], *, one_softmax: bool) -> Locality | None:
    """The joint locality of a mechanism's members; ``None`` if one has none. Members share one softmax, or each has its own heads."""
    members = list(localities)
    known = [local for local in members if local is not None]
    if len(known) < len(members):
        return None
    back, ahead = max(local.back for local in known), max(local.ahead for local in known)
    width = back + ahead if one_softmax and len(known) > 1 else max(local.width for local in known)
    kinds = {local.beside for local in known}
    beside = next(kind for kind in ("others", "globals", "") if kind in kinds)
    return Locality(
        back, ahead, math.lcm(*(local.period for local in known)),
        beside="others" if beside and not one_softmax else beside,  # each member resolves the global tokens of its heads itself
        width_of_keys=width,
        in_eval="same" if all(local.in_eval == "same" for local in known) else "unknown",
    )  # fmt: skip
