"""A model made faster or smaller for inference: packed linear layers, and attention with fewer heads."""

from ...lazy import public_names

__getattr__, __all__ = public_names(__name__, {}, moved={"optimize_for_inference": "hf_longattn.modeling.inference.optimize"})
