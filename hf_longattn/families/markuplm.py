"""LongMarkupLM: MarkupLM (Li et al. 2022), RoBERTa with the path of every token in the tree of a web page."""

from transformers.models.markuplm.configuration_markuplm import MarkupLMConfig
from transformers.models.markuplm.modeling_markuplm import MarkupLMEncoder

from ..modeling.attach.custom_attention import ReadsPadding, replacing
from ..modeling.classes import Family, long_config
from ..modeling.family.definition import PositionTable
from ..modeling.family.input_spec import TextSpec
from ..modeling.family.long_config import LongEncoderConfig

FAMILY = Family(
    long_config(__name__, LongEncoderConfig, MarkupLMConfig),
    position_tables=(PositionTable(r"embeddings\.position_embeddings\.weight$", offset="padding", skips_padding=True),),
    spec=TextSpec(dict.fromkeys(("xpath_tags_seq", "xpath_subs_seq"), lambda config: config.max_depth)),
    mixin=replacing(__name__, {MarkupLMEncoder: ReadsPadding}),
)
