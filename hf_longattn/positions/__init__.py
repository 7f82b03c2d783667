"""Longer positions for a trained model: learned tables (`tables`), rotary embeddings (`rope`), relative positions (`relative`)."""

from hf_longattn.positions.distances import RANDOM, Extent, untrained_distances, widest_span
from hf_longattn.positions.rope import RopePlan, rope_parameters
from hf_longattn.positions.tables import DROPPED, SHORTER, SINUSOIDAL, STRATEGIES, extend_table, keeps_old_rows, shorten_table

__all__ = [
    "DROPPED",
    "RANDOM",
    "SHORTER",
    "SINUSOIDAL",
    "STRATEGIES",
    "Extent",
    "RopePlan",
    "extend_table",
    "keeps_old_rows",
    "rope_parameters",
    "shorten_table",
    "untrained_distances",
    "widest_span",
]
