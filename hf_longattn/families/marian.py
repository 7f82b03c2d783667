"""LongMarian: the translation models of Marian (Junczys-Dowmunt et al. 2018), an encoder and a decoder with sinusoidal positions, computed
for any length.
"""

from transformers.models.marian.configuration_marian import MarianConfig

from ..modeling.classes import lazy_classes
from ..modeling.family.config import LongEncoderDecoderConfig
from ..modeling.family.definition import Family, encoder_decoder_tables


class LongMarianConfig(LongEncoderDecoderConfig, MarianConfig):
    """MarianConfig with ``long_attention``, ``decoder_long_attention`` and ``max_decoder_position_embeddings``."""

    model_type = "long_marian"


FAMILY = Family(LongMarianConfig, position_tables=encoder_decoder_tables(learned=False))

__getattr__ = lazy_classes(FAMILY, globals())
