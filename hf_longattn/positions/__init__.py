"""Longer positions for a trained model: learned tables (`tables`), rotary embeddings (`rope`), relative positions (`relative`)."""
