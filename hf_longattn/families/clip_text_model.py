"""LongCLIPText: the text tower of CLIP (Radford et al. 2021), causal, one learned position table, pooled at the first end-of-text token.

77 positions are extended to 248, or another number, as in Long-CLIP (Zhang et al. 2024): the first 20 rows are kept, the others stretched.
The tower can be loaded from a folder of the whole CLIP.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.models.clip.configuration_clip import CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPTextEmbeddings
from transformers.utils import ModelOutput

from ..modeling.attach.custom_attention import ReplacedModules
from ..modeling.classes import Family, long_config
from ..modeling.family.definition import PositionTable
from ..modeling.family.long_config import LongConfig

if TYPE_CHECKING:
    _Module: Any = nn.Module
else:
    _Module = object


class TakesPackedRows(_Module):
    """Mixin before a base's text embeddings. Packed rows may be longer than the table, since positions restart with every text."""

    def forward(self, input_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None) -> Tensor:
        if input_ids is None or position_ids is None:
            return super().forward(input_ids, position_ids, inputs_embeds)
        return self.token_embedding(input_ids) + self.position_embedding(position_ids)


class LongCLIPTextMixin(ReplacedModules):
    """Pools every text at its end token. Also if the base ran in segments."""

    replaced = {CLIPTextEmbeddings: TakesPackedRows}

    def call_base(self, base_forward: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        """As in :class:`ReplacedModules`. Then ``pooler_output`` is set from the hidden states of the whole batch."""
        ids = arguments.get("input_ids")
        outputs = super().call_base(base_forward, arguments)
        if not isinstance(outputs, ModelOutput) or outputs.get("pooler_output") is None or ids is None:
            return outputs
        ids = ids.view(-1, ids.shape[-1]).int()
        end = self.config.eos_token_id
        places = (ids if end == 2 else (ids == end).int()).argmax(-1)  # configs of 2023 say 2; then the end is the highest id
        states = outputs["last_hidden_state"]
        outputs["pooler_output"] = states[torch.arange(states.shape[0], device=states.device), places.to(states.device)]
        return outputs


FAMILY = Family(
    long_config(__name__, LongConfig, CLIPTextConfig, default_extension="stretch:20"),
    position_tables=(PositionTable(r"position_embedding\.weight$"),),
    classes=("CLIPTextModel", "CLIPTextModelWithProjection"),
    mixin=LongCLIPTextMixin,
)
