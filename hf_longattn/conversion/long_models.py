"""Former names in :mod:`.adopt`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from .adopt import ADOPTIONS as CONVERTERS
from .adopt import Adoption as CheckpointConverter
from .adopt import adoption_of, decoder_start
from .sources import Source

__all__ = ["CONVERTERS", "CheckpointConverter", "TensorRename", "converter_of", "decoder_start", "rename"]


@dataclass(frozen=True)
class TensorRename:
    """The new name of a tensor, and a linear map of its values if they change."""

    target: str
    change: Callable[[Tensor], Tensor] | None = None


def converter_of(source: Source) -> CheckpointConverter | None:
    """The adoption of a source's model_type."""
    return adoption_of(source.config)


def rename(adoption: CheckpointConverter, name: str) -> TensorRename:
    """The new name and the change of one tensor, as in ``adoption.state_dict``."""
    pads = adoption.model_type == "led" and name.endswith("embed_positions.weight")
    return TensorRename(adoption.renamed(name), (lambda table: nn.functional.pad(table, (0, 0, 2, 0))) if pads else None)
