"""LongParakeetForRNNT: FastConformer (:mod:`.parakeet_encoder`) with a recurrent transducer (Graves 2012)."""

from transformers.models.parakeet.configuration_parakeet import ParakeetRNNTConfig

from ..modeling.classes import Family, long_config
from ..modeling.family.held_encoder import LongHeldEncoderConfig
from .parakeet_encoder import PARAKEET, LongParakeetEncoderConfig

FAMILY = Family(
    long_config(__name__, LongHeldEncoderConfig, ParakeetRNNTConfig, encoder_class=LongParakeetEncoderConfig),
    classes=("ParakeetForRNNT",),
    rule=PARAKEET,
)
