"""LongParakeetForTDT: FastConformer (:mod:`.parakeet_encoder`) with a transducer that also predicts durations (Xu et al. 2023, TDT)."""

from transformers.models.parakeet.configuration_parakeet import ParakeetTDTConfig

from ..modeling.classes import lazy_classes
from ..modeling.family.definition import Family
from ..modeling.family.held_encoder import LongHeldEncoderConfig
from .parakeet_encoder import PARAKEET, LongParakeetEncoderConfig


class LongParakeetTDTConfig(LongHeldEncoderConfig, ParakeetTDTConfig):
    """ParakeetTDTConfig with ``long_attention`` of the encoder."""

    model_type = "long_parakeet_tdt"
    encoder_class = LongParakeetEncoderConfig


FAMILY = Family(LongParakeetTDTConfig, classes=("ParakeetForTDT",), rule=PARAKEET)

__getattr__ = lazy_classes(FAMILY, globals())
