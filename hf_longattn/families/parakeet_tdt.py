"""LongParakeetForTDT: FastConformer (:mod:`.parakeet_encoder`) with a transducer that also predicts durations (Xu et al. 2023, TDT)."""

from transformers.models.parakeet.configuration_parakeet import ParakeetTDTConfig

from ..modeling.classes import Family, long_config
from ..modeling.family.held_encoder import LongHeldEncoderConfig
from .parakeet_encoder import PARAKEET, LongParakeetEncoderConfig

FAMILY = Family(
    long_config(__name__, LongHeldEncoderConfig, ParakeetTDTConfig, encoder_class=LongParakeetEncoderConfig),
    classes=("ParakeetForTDT",),
    rule=PARAKEET,
)
