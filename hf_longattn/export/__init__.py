"""Export checkpoints as ONNX or torch.export graphs, stock architectures, or quantised or pruned models.

:mod:`hf_longattn.conversion.native` writes stock architectures, the opposite of adoption. This package imports
``conversion``, which imports nothing from here.
"""

# ruff: noqa: F401 (names for other packages)
from __future__ import annotations

from typing import TYPE_CHECKING

from ..names import public_names

if TYPE_CHECKING:
    from ..conversion.native import export_native
    from .compress import CompressionReport, compress_checkpoint
    from .compression_input import CompressionConfig
    from .graphs import ExportReport, export_checkpoint

__getattr__, __all__ = public_names(__name__)
