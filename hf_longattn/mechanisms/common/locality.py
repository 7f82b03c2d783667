"""Values derived from :meth:`Mechanism.locality`, for caches, tables of distances, native checkpoints and positions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...engines.call import UNBOUNDED
from ...positions.trained_distances import Locality, untrained_distances

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
    return None if local is None or local.period > 1 else local.back + 1


def largest_distances(mechanism: Any, q_len: int, kv_len: int, causal: bool) -> Span:
    """The largest visible distances of a call: back (query - key) and ahead (key - query). Sizes tables of relative positions."""
    local = _distances(mechanism, causal)
    if local is None:
        return kv_len - 1, 0 if causal else q_len - 1
    return min(local.back, kv_len - 1), min(local.ahead, q_len - 1)


def band_of(mechanism: Any, causal: bool) -> tuple[int, int] | None:
    """``(back, ahead)`` if the mechanism is exactly a sliding window or full attention at every length.
    ``None`` for other mechanisms, and for any with relative positions."""
    if mechanism.relative is not None:
        return None
    local = mechanism.locality(causal)
    if mechanism.covers(UNBOUNDED, causal):
        return UNBOUNDED, 0 if causal else UNBOUNDED
    return (local.back, local.ahead) if local is not None and local.is_window else None


def needs_training_by(mechanism: Any, rule: str, trained: int, length: int, causal: bool) -> str:
    """Why ``mechanism`` needs training if positions are extended by ``rule``; empty if it needs none. See
    :func:`~hf_longattn.positions.trained_distances.untrained_distances`."""
    return untrained_distances(rule, trained, length, mechanism.locality(causal), keys_per_query(mechanism))
