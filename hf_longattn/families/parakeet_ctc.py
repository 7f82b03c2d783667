"""LongParakeetForCTC: FastConformer (:mod:`.parakeet_encoder`) with a CTC head for transcripts (Graves et al. 2006)."""

from transformers.models.parakeet.configuration_parakeet import ParakeetCTCConfig

from ..modeling.classes import lazy_classes
from ..modeling.family.definition import Family
from ..modeling.family.held_encoder import LongHeldEncoderConfig
from .parakeet_encoder import PARAKEET, LongParakeetEncoderConfig


class LongParakeetCTCConfig(LongHeldEncoderConfig, ParakeetCTCConfig):
    """ParakeetCTCConfig with ``long_attention`` of the encoder."""

    model_type = "long_parakeet_ctc"
    encoder_class = LongParakeetEncoderConfig


FAMILY = Family(LongParakeetCTCConfig, classes=("ParakeetForCTC",), rule=PARAKEET)

__getattr__ = lazy_classes(FAMILY, globals())
