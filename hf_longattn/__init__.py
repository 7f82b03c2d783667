"""Efficient attention and checkpoint conversion for transformers: short checkpoints become long-context models."""

from .attend import attend, reference_attend
from .configuration import LongAttentionConfig
from .mechanisms import Mechanism, build_mechanism, list_mechanisms, mechanism_info, register_mechanism

__version__ = "0.1.0"

__all__ = [
    "LongAttentionConfig",
    "Mechanism",
    "attend",
    "build_mechanism",
    "list_mechanisms",
    "mechanism_info",
    "reference_attend",
    "register_mechanism",
]
