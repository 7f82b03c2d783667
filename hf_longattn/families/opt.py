"""LongOPT: OPT (Zhang et al. 2022), causal, positions in one learned table that starts with two rows that are not positions; the model adds
those itself, and ``max_position_embeddings`` leaves them out. Padding takes no position.
"""

from transformers.models.opt.configuration_opt import OPTConfig

from ..modeling.classes import lazy_classes
from ..modeling.family.config import LongConfig
from ..modeling.family.definition import Family, PositionTable


class LongOPTConfig(LongConfig, OPTConfig):
    """OPTConfig with ``long_attention``."""

    model_type = "long_opt"


FAMILY = Family(
    LongOPTConfig,
    position_tables=(PositionTable(r"embed_positions\.weight$", offset=2, counted=False, added=True, skips_padding=True),),
    inner=("OPTDecoder",),
)

__getattr__ = lazy_classes(FAMILY, globals())
