"""LongBart: BART (Lewis et al. 2020), an encoder and a decoder, each with a learned table that starts with two rows that are not
positions. ``max_position_embeddings`` leaves those out, as in BartConfig: 4,096 for 4,096 tokens.
"""

from transformers.models.bart.configuration_bart import BartConfig

from ..modeling.classes import lazy_classes
from ..modeling.family.config import LongEncoderDecoderConfig
from ..modeling.family.definition import Family, encoder_decoder_tables


class LongBartConfig(LongEncoderDecoderConfig, BartConfig):
    """BartConfig with ``long_attention``, ``decoder_long_attention`` and ``max_decoder_position_embeddings``."""

    model_type = "long_bart"


FAMILY = Family(LongBartConfig, position_tables=encoder_decoder_tables(offset=2, counted=False))

__getattr__ = lazy_classes(FAMILY, globals())
