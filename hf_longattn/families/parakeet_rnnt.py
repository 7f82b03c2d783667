"""LongParakeetForRNNT: FastConformer (:mod:`.parakeet_encoder`) with a recurrent transducer (Graves 2012)."""

from transformers.models.parakeet.configuration_parakeet import ParakeetRNNTConfig

from ..modeling.classes import lazy_classes
from ..modeling.family.definition import Family
from ..modeling.family.held_encoder import LongHeldEncoderConfig
from .parakeet_encoder import PARAKEET, LongParakeetEncoderConfig


class LongParakeetRNNTConfig(LongHeldEncoderConfig, ParakeetRNNTConfig):
    """ParakeetRNNTConfig with ``long_attention`` of the encoder."""

    model_type = "long_parakeet_rnnt"
    encoder_class = LongParakeetEncoderConfig


FAMILY = Family(LongParakeetRNNTConfig, classes=("ParakeetForRNNT",), rule=PARAKEET)

__getattr__ = lazy_classes(FAMILY, globals())
