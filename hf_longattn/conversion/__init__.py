"""Convert a short checkpoint to a long one: plan → write → verify.

Names are imported on first use. The settings do not need torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..names import public_names

if TYPE_CHECKING:
    from ..evaluation.token_loss import verification_text as verification_text
    from ..reports import Check as Check
    from .convert import convert_checkpoint as convert_checkpoint
    from .convert import plan_conversion as plan_conversion
    from .folders import ConversionReport as ConversionReport
    from .folders import write_modules as write_modules
    from .plan import ConversionPlan as ConversionPlan
    from .settings import ConversionConfig as ConversionConfig

__getattr__, __all__ = public_names(__name__)
