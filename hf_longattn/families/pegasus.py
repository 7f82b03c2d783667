"""LongPegasus: Pegasus (Zhang et al. 2020), an encoder and a decoder with sinusoidal positions, computed for any length."""

from transformers.models.pegasus.configuration_pegasus import PegasusConfig

from ..modeling.classes import lazy_classes
from ..modeling.family.config import LongEncoderDecoderConfig
from ..modeling.family.definition import Family, encoder_decoder_tables


class LongPegasusConfig(LongEncoderDecoderConfig, PegasusConfig):
    """PegasusConfig with ``long_attention``, ``decoder_long_attention`` and ``max_decoder_position_embeddings``."""

    model_type = "long_pegasus"


FAMILY = Family(LongPegasusConfig, position_tables=encoder_decoder_tables(learned=False))

__getattr__ = lazy_classes(FAMILY, globals())
