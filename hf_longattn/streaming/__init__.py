"""Streams: attention and models that read an input piece by piece, in memory that does not grow, and give what one pass would give."""

from ..lazy import public_names

__getattr__, __all__ = public_names(__name__, {"attention": ("AttentionStream",), "model": ("Stream",), "transcript": ("LiveTranscript",)})
