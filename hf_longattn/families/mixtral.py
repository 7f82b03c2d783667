"""LongMixtral: Mixtral (Jiang et al. 2024), as Mistral with a mixture of experts in every layer; each token's router chooses them, whatever
the mechanism.
"""

from typing import TYPE_CHECKING, Any

from transformers.models.mixtral.configuration_mixtral import MixtralConfig

from ..modeling.classes import lazy_classes
from ..modeling.family.config import LongConfig
from ..modeling.family.definition import Family


class LongMixtralConfig(LongConfig, MixtralConfig):
    """MixtralConfig with ``long_attention``; ``head_dim`` is written out, since transformers' scaled rotary positions need it."""

    model_type = "long_mixtral"

    if TYPE_CHECKING:
        head_dim: int | None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        super().__post_init__(**kwargs)


FAMILY = Family(LongMixtralConfig, rope=True)

__getattr__ = lazy_classes(FAMILY, globals())
