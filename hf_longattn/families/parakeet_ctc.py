"""LongParakeetForCTC: FastConformer (:mod:`.parakeet_encoder`) with a CTC head for transcripts (Graves et al. 2006)."""

from transformers.models.parakeet.configuration_parakeet import ParakeetCTCConfig

from ..modeling.classes import Family, long_config
from ..modeling.family.held_encoder import LongHeldEncoderConfig
from .parakeet_encoder import PARAKEET, LongParakeetEncoderConfig

FAMILY = Family(
    long_config(__name__, LongHeldEncoderConfig, ParakeetCTCConfig, encoder_class=LongParakeetEncoderConfig),
    classes=("ParakeetForCTC",),
    rule=PARAKEET,
)
