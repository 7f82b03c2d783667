"""Streaming attention and models. They read an input piece by piece in constant memory. Outputs equal those of one pass over all of it."""

from ..lazy import public_names

__getattr__, __all__ = public_names(__name__, {"attention": ("AttentionStream",), "model": ("Stream",), "transcript": ("LiveTranscript",)})
