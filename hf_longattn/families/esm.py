"""LongEsm: ESM-1b and ESM-2 (Rives et al. 2021; Lin et al. 2022), encoders of proteins: a token is an amino acid.

``position_embedding_type`` says where positions are: ``"rotary"``, or ``"absolute"`` in a table where they start after the row of the
padding token. ``max_position_embeddings`` counts the rows in either case: 1,026 for 1,024 tokens. The folding model, whose trunk computes
on all pairs of tokens, has no long form.
"""

from transformers.models.esm.configuration_esm import EsmConfig

from ..modeling.classes import lazy_classes
from ..modeling.family.config import LongConfig
from ..modeling.family.definition import Family, PositionTable


class LongEsmConfig(LongConfig, EsmConfig):
    """EsmConfig with ``long_attention``."""

    model_type = "long_esm"


FAMILY = Family(
    LongEsmConfig,
    position_tables=(PositionTable(r"position_embeddings\.weight$", offset="padding", skips_padding=True),),
    classes=("EsmModel", "EsmForMaskedLM", "EsmForSequenceClassification", "EsmForTokenClassification"),
)

__getattr__ = lazy_classes(FAMILY, globals())
