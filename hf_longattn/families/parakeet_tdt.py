"""LongParakeetForTDT: FastConformer (:mod:`.parakeet_encoder`) with a transducer that also predicts durations (Xu et al. 2023, TDT)."""

from transformers.models.parakeet.configuration_parakeet import ParakeetTDTConfig

from ..modeling.family.held_encoder import with_head
from .parakeet_encoder import FAMILY as ENCODER

FAMILY = with_head(__name__, ParakeetTDTConfig, "ParakeetForTDT", ENCODER)
