"""Export checkpoints as ONNX or torch.export graphs, stock architectures, or quantised or pruned models.

:mod:`hf_longattn.conversion.native` writes stock architectures, the opposite of adoption. This package imports
``conversion``, which imports nothing from here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..names import public_names

if TYPE_CHECKING:
    from ..conversion.native import export_native as export_native
    from .compress import CompressionReport as CompressionReport
    from .compress import compress_checkpoint as compress_checkpoint
    from .compression_input import CompressionConfig as CompressionConfig
    from .graphs import ExportReport as ExportReport
    from .graphs import export_checkpoint as export_checkpoint

__getattr__, __all__ = public_names(__name__)
