"""LongGemma3Text: the text model of Gemma 3 (Kamath et al. 2025), five of six layers with a window, and rotary positions
(``rope_parameters``) for each of the two kinds.
"""

from transformers.models.gemma3.configuration_gemma3 import Gemma3TextConfig

from ..modeling.classes import lazy_classes
from ..modeling.family.config import LongConfig
from ..modeling.family.definition import Family


class LongGemma3TextConfig(LongConfig, Gemma3TextConfig):
    """Gemma3TextConfig with ``long_attention``."""

    model_type = "long_gemma3_text"


FAMILY = Family(
    LongGemma3TextConfig,
    rope=True,
    classes=("Gemma3TextModel", "Gemma3ForCausalLM", "Gemma3TextForSequenceClassification"),
)

__getattr__ = lazy_classes(FAMILY, globals())
