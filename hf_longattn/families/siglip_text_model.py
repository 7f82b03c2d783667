"""LongSiglipText: the text tower of SigLIP (Zhai et al. 2023), bidirectional, one learned position table, pooled at the last position.

It was trained on texts padded to 64 tokens without a mask: call the tokenizer with ``padding="max_length"`` and leave ``attention_mask``
out. With a mask, a text is pooled at its last real token. The tower can be loaded from a folder of the whole SigLIP.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.models.siglip.configuration_siglip import SiglipTextConfig
from transformers.models.siglip.modeling_siglip import SiglipAttention, SiglipTextEmbeddings
from transformers.utils import ModelOutput

from ..engines.batch import last_real
from ..modeling.attach.custom_attention import HandsKeywordsDown, ReplacedModules
from ..modeling.classes import Family, long_config
from ..modeling.family.definition import PositionTable
from ..modeling.family.long_config import LongEncoderConfig
from .clip_text_model import TakesPackedRows


class ReadsLastToken(ReplacedModules):
    """Pools a text at its last real token, also if the base ran in segments, or at its last position without a mask."""

    replaced = {SiglipAttention: HandsKeywordsDown, SiglipTextEmbeddings: TakesPackedRows}
    head: nn.Module

    def call_base(self, base_forward: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        mask = arguments.get("attention_mask")
        outputs = super().call_base(base_forward, arguments)
        states = outputs[0]
        if mask is None or mask.dim() != 2:
            pooled = self.head(states[:, -1])
        else:
            rows = torch.arange(states.shape[0], device=states.device)
            pooled = self.head(states[rows, last_real(mask.ne(0)).to(states.device)])
        if not isinstance(outputs, ModelOutput):
            return (states, pooled, *outputs[2:])
        outputs["pooler_output"] = pooled
        return outputs


FAMILY = Family(
    long_config(__name__, LongEncoderConfig, SiglipTextConfig),
    position_tables=(PositionTable(r"position_embedding\.weight$"),),
    classes=("SiglipTextModel",),
    mixin=ReadsLastToken,
)
