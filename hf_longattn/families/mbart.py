"""LongMBart: mBART (Liu et al. 2020) and mBART-50, an encoder and a decoder, each with a learned table that starts with two rows that
are not positions. ``max_position_embeddings`` leaves those out.
"""

from transformers.models.mbart.configuration_mbart import MBartConfig

from ..modeling.classes import lazy_classes
from ..modeling.family.config import LongEncoderDecoderConfig
from ..modeling.family.definition import Family, encoder_decoder_tables


class LongMBartConfig(LongEncoderDecoderConfig, MBartConfig):
    """MBartConfig with ``long_attention``, ``decoder_long_attention`` and ``max_decoder_position_embeddings``."""

    model_type = "long_mbart"


FAMILY = Family(LongMBartConfig, position_tables=encoder_decoder_tables(offset=2, counted=False))

__getattr__ = lazy_classes(FAMILY, globals())
