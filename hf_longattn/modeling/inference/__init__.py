"""A model made faster or smaller for inference: packed linear layers, and attention with fewer heads."""
