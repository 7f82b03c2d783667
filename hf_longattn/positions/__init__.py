"""Longer positions for a trained model: learned tables (`tables`), rotary embeddings (`rope`), relative positions (`relative`)."""

from hf_longattn.positions.distances import RANDOM, Locality, untrained_distances, widest_span
from hf_longattn.positions.rope import RopePlan, rope_parameters
from hf_longattn.positions.tables import (
    CENTRED,
    DROPPED,
    INTERPOLATE,
    SHORTER,
    SINUSOIDAL,
    STRATEGIES,
    STRETCH,
    extend_table,
    extends_learned,
    keeps_old_rows,
    moves_rows,
    shorten_table,
    stretched_from,
    unchanged_rows,
)

__all__ = [
    "CENTRED",
    "DROPPED",
    "INTERPOLATE",
    "RANDOM",
    "SHORTER",
    "SINUSOIDAL",
    "STRATEGIES",
    "STRETCH",
    "Locality",
    "RopePlan",
    "extend_table",
    "extends_learned",
    "keeps_old_rows",
    "moves_rows",
    "rope_parameters",
    "shorten_table",
    "stretched_from",
    "unchanged_rows",
    "untrained_distances",
    "widest_span",
]
