"""Former names in :mod:`.adopt`."""

from __future__ import annotations

from .adopt import ADOPTIONS as CONVERTERS
from .adopt import Adoption as CheckpointConverter
from .adopt import Probe, TensorRename, adoption_of, decoder_start
from .sources import Source

Probing = CheckpointConverter
__all__ = ["CONVERTERS", "CheckpointConverter", "Probe", "Probing", "TensorRename", "converter_of", "decoder_start"]


def converter_of(source: Source) -> CheckpointConverter | None:
    """The adoption of a source's model_type."""
    return adoption_of(source.config)
