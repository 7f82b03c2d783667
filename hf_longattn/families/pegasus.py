"""LongPegasus: Pegasus (Zhang et al. 2020), an encoder and a decoder with sinusoidal positions, computed for any length."""

from transformers.models.pegasus.configuration_pegasus import PegasusConfig

from ..modeling.classes import lazy_classes
from ..modeling.config import LongEncoderDecoderConfig
from ..modeling.family import Family, PositionTable


class LongPegasusConfig(LongEncoderDecoderConfig, PegasusConfig):
    """PegasusConfig with ``long_attention``, ``decoder_long_attention`` and ``max_decoder_position_embeddings``."""

    model_type = "long_pegasus"


FAMILY = Family(
    LongPegasusConfig,
    position_tables=(
        PositionTable(r"encoder\.embed_positions\.weight$", learned=False),
        PositionTable(r"decoder\.embed_positions\.weight$", learned=False, decoder=True),
    ),
)

__getattr__ = lazy_classes(FAMILY, globals())
