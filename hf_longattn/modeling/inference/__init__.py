"""A model made faster or smaller for inference. Packed linear layers, and attention with fewer heads."""
