"""LongMixtral: Mixtral (Jiang et al. 2024), as Mistral with a mixture of experts in every layer; each token's router chooses them, whatever
the mechanism.
"""

from transformers.models.mixtral.configuration_mixtral import MixtralConfig

from ..modeling.classes import lazy_classes
from ..modeling.config import LongConfig
from ..modeling.family import Family


class LongMixtralConfig(LongConfig, MixtralConfig):
    """MixtralConfig with ``long_attention``."""

    model_type = "long_mixtral"


FAMILY = Family(LongMixtralConfig, rope=True)

__getattr__ = lazy_classes(FAMILY, globals())
