"""LongParakeetForRNNT: FastConformer (:mod:`.parakeet_encoder`) with a recurrent transducer (Graves 2012)."""

from transformers.models.parakeet.configuration_parakeet import ParakeetRNNTConfig

from ..modeling.family.held_encoder import with_head
from .parakeet_encoder import FAMILY as ENCODER

FAMILY = with_head(__name__, ParakeetRNNTConfig, "ParakeetForRNNT", ENCODER)
