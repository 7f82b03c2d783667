"""Longer positions for a trained model: learned tables (`tables`) and rotary embeddings (`rope`)."""

from hf_longattn.positions.rope import RopePlan, rope_parameters
from hf_longattn.positions.tables import SINUSOIDAL, STRATEGIES, extend_table, keeps_old_rows

__all__ = ["SINUSOIDAL", "STRATEGIES", "RopePlan", "extend_table", "keeps_old_rows", "rope_parameters"]
