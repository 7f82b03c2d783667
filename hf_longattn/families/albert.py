"""LongAlbert: ALBERT (Lan et al. 2020), with layers that share weights but have separate mechanisms.

The position table has ``embedding_size`` columns, fewer than the layers' ``hidden_size``.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.albert.configuration_albert import AlbertConfig
from transformers.models.albert.modeling_albert import AlbertAttention, AlbertTransformer

from ..errors import OptionError
from ..modeling.attach.attention_sites import SERVED_LAYERS_ATTRIBUTE
from ..modeling.attach.custom_attention import ReplacedModules
from ..modeling.classes import Family, long_config
from ..modeling.family.definition import PositionTable
from ..modeling.family.long_config import LongEncoderConfig
from ..modeling.keywords import LAYER_INDEX


class LongAlbertTransformer(AlbertTransformer):
    """AlbertTransformer that passes the number of the running layer to attention."""

    def group_of(self, layer: int) -> int:
        """The number of the group whose weights this layer has."""
        return int(layer / (self.config.num_hidden_layers / self.config.num_hidden_groups))

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> BaseModelOutput:
        states = self.embedding_hidden_mapping_in(hidden_states)
        for layer in range(self.config.num_hidden_layers):
            states = self.albert_layer_groups[self.group_of(layer)](
                states, attention_mask, **kwargs, **{LAYER_INDEX: layer}
            )
        return BaseModelOutput(last_hidden_state=states)

    def note_layers(self) -> None:
        """Set the list of layers that use each attention module.

        Raises:
            OptionError: no layer uses some group, since there are more groups than layers.
        """
        for number, group in enumerate(self.albert_layer_groups):
            layers = tuple(layer for layer in range(self.config.num_hidden_layers) if self.group_of(layer) == number)
            if not layers:
                raise OptionError(
                    f"The config says num_hidden_layers={self.config.num_hidden_layers} and num_hidden_groups="
                    f"{self.config.num_hidden_groups}, so that no layer has the weights of group {number}; correct "
                    "its config.json."
                )
            for module in group.modules():
                if isinstance(module, AlbertAttention):
                    setattr(module, SERVED_LAYERS_ATTRIBUTE, layers)


class AlbertCountsItsLayers(ReplacedModules):
    """Replaces the base's transformer by :class:`LongAlbertTransformer`."""

    replaced = {AlbertTransformer: LongAlbertTransformer}

    def adapt_module(self, name: str, module: Any) -> None:
        module.note_layers()


FAMILY = Family(
    long_config(__name__, LongEncoderConfig, AlbertConfig),
    position_tables=(PositionTable(r"position_embeddings\.weight$"),),
    mixin=AlbertCountsItsLayers,
)
