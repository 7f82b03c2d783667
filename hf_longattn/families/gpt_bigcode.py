"""LongGPTBigCode: StarCoder and SantaCoder (Li et al. 2023; Ben Allal et al. 2023), GPT-2 with one key/value head for all query heads
(``multi_query``); causal, one learned position table.
"""

from typing import Any

from torch import Tensor
from transformers.models.gpt_bigcode.configuration_gpt_bigcode import GPTBigCodeConfig

from ..modeling.classes import Family, long_config
from ..modeling.family.config import LongConfig
from ..modeling.family.definition import AttentionNames, PositionTable


def _split(attention: Any, parameter: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Split the fused parameter into query, key and value. They are consecutive with ``multi_query``, otherwise interleaved by head."""
    if attention.multi_query:
        query, key, value = parameter.split([attention.embed_dim, attention.kv_dim, attention.kv_dim])
    else:
        query, key, value = (part.flatten(0, 1) for part in parameter.unflatten(0, (attention.num_heads, 3, -1)).unbind(1))
    return query, key, value


FAMILY = Family(
    long_config(__name__, LongConfig, GPTBigCodeConfig),
    position_tables=(PositionTable(r"wpe\.weight$"),),
    attention=AttentionNames(fused="c_attn", split=_split),
)
