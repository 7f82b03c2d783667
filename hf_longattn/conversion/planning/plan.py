"""The plan of a conversion: what is to be written, with the attention that was decided on and what it costs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ...configuration import LongAttentionConfig
from ..costs.counts import LengthCost
from ..costs.shape import ModelShape
from .lengths import StackLength
from .result import ResultPlan

__all__ = ["ConversionPlan"]


@dataclass(frozen=True)
class ConversionPlan(ResultPlan):
    """Everything that is decided before a byte is written."""

    attention: LongAttentionConfig
    moved: str  # why positions below the old length do not give what they gave; empty when they do
    shape: ModelShape
    costs: tuple[LengthCost, ...]
    decoder: StackLength | None = None  # of the decoder beside an encoder, whose lengths are those above
    generic: bool = False  # the plain class keeps its name, with mechanisms in it

    @property
    def positions_exact(self) -> bool:
        """Whether positions below the old length give what they gave."""
        return not self.moved

    @property
    def decoder_shape(self) -> ModelShape:
        """The shape of the decoder beside an encoder."""
        return ModelShape.of(self.config, causal=True, matrix_parameters=0, element_bytes=self.shape.element_bytes)

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form."""
        return {
            "source": self.source.name,
            "source_class": self.architecture.source_class,
            "adopted_from": None if self.architecture.adopter is None else self.source.config["model_type"],
            "long_class": self.architecture.long_class,
            "model_type": self.config.model_type,
            **({"generic": True} if self.generic else {}),
            "long_attention": self.attention.to_dict(),
            "old_length": self.old_length,
            "new_length": self.new_length,
            **({"decoder": self._decoder()} if self.decoder is not None else {}),
            "positions": self.positions,
            **self.sizes(),
            "costs": [asdict(cost) for cost in self.costs],
        }

    def _decoder(self) -> dict[str, Any]:
        assert self.decoder is not None
        attention = self.config.decoder_attention.to_dict()
        return {"long_attention": attention, "old_length": self.decoder.old, "new_length": self.decoder.new}
