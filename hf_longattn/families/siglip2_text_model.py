"""LongSiglip2Text: the text tower of SigLIP 2 (Tschannen et al. 2025), SigLIP's text tower with another vocabulary."""

from transformers.models.siglip2.configuration_siglip2 import Siglip2TextConfig
from transformers.models.siglip2.modeling_siglip2 import Siglip2Attention, Siglip2TextEmbeddings

from ..modeling.attach.custom_attention import HandsKeywordsDown, replacing
from ..modeling.classes import Family, long_config
from ..modeling.family.definition import PositionTable
from ..modeling.family.long_config import LongEncoderConfig
from .clip_text_model import TakesPackedRows
from .siglip_text_model import ReadsLastToken

FAMILY = Family(
    long_config(__name__, LongEncoderConfig, Siglip2TextConfig),
    position_tables=(PositionTable(r"position_embedding\.weight$"),),
    classes=("Siglip2TextModel",),
    mixin=replacing(__name__, {Siglip2Attention: HandsKeywordsDown, Siglip2TextEmbeddings: TakesPackedRows}, ReadsLastToken),
)
