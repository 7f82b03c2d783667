"""LongNomicBert: Nomic BERT (Nussbaum et al. 2024), the encoder of nomic-embed-text: BERT with rotary positions and gated layers."""

from transformers.models.nomic_bert.configuration_nomic_bert import NomicBertConfig

from ..modeling.classes import lazy_classes
from ..modeling.family.config import LongEncoderConfig
from ..modeling.family.definition import Family


class LongNomicBertConfig(LongEncoderConfig, NomicBertConfig):
    """NomicBertConfig with ``long_attention``."""

    model_type = "long_nomic_bert"


FAMILY = Family(LongNomicBertConfig, rope=True)

__getattr__ = lazy_classes(FAMILY, globals())
