"""LongParakeetForCTC: FastConformer (:mod:`.parakeet_encoder`) with a CTC head for transcripts (Graves et al. 2006)."""

from transformers.models.parakeet.configuration_parakeet import ParakeetCTCConfig

from ..modeling.family.held_encoder import with_head
from .parakeet_encoder import FAMILY as ENCODER

FAMILY = with_head(__name__, ParakeetCTCConfig, "ParakeetForCTC", ENCODER)
