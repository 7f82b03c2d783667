"""LongGPTNeoX: GPT-NeoX (Black et al. 2022) and Pythia, causal, rotary positions on a part of each head (``partial_rotary_factor``)."""

from transformers.models.gpt_neox.configuration_gpt_neox import GPTNeoXConfig

from ..modeling.classes import lazy_classes
from ..modeling.family.config import LongConfig
from ..modeling.family.definition import Family


class LongGPTNeoXConfig(LongConfig, GPTNeoXConfig):
    """GPTNeoXConfig with ``long_attention``."""

    model_type = "long_gpt_neox"

    @property
    def _causal(self) -> bool:
        """Every GPT-NeoX is, whatever ``is_decoder`` says."""
        return True


FAMILY = Family(LongGPTNeoXConfig, rope=True)

__getattr__ = lazy_classes(FAMILY, globals())
