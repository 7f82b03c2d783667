"""LongLayoutLM: LayoutLM (Xu et al. 2020), BERT with the box of every token on its page. A document's boxes restart on each page."""

from transformers.models.layoutlm.configuration_layoutlm import LayoutLMConfig
from transformers.models.layoutlm.modeling_layoutlm import LayoutLMEncoder

from ..modeling.attach.custom_attention import ReadsPadding, replacing
from ..modeling.classes import Family, long_config
from ..modeling.family.definition import PositionTable
from ..modeling.family.input_spec import TextSpec
from ..modeling.family.long_config import LongEncoderConfig

FAMILY = Family(
    long_config(__name__, LongEncoderConfig, LayoutLMConfig),
    position_tables=(PositionTable(r"embeddings\.position_embeddings\.weight$"),),
    spec=TextSpec({"bbox": lambda config: 4}),
    mixin=replacing(__name__, {LayoutLMEncoder: ReadsPadding}),
)
