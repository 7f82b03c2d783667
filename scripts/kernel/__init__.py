"""Source of the Hub's kernel, which ``scripts/build_kernel.py`` writes."""
