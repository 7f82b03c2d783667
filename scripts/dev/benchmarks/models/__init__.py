"""The implementations that compute whole encoders, one per file; importing this registers them."""

from . import bert_sdpa, hf_longformer, ours

__all__ = ["bert_sdpa", "hf_longformer", "ours"]
