"""Efficient attention and checkpoint conversion for transformers: short checkpoints become long-context models.

``import hf_longattn`` registers every family with transformers' Auto classes, and the attention backend with its
models. It is cheap: torch is imported with the first name that needs it (see
:mod:`hf_longattn.modeling.family.registration`).
"""

# ruff: noqa: F401 (names for editors and type checkers)
from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from .modeling.family.registration import register as _register
from .names import public_names

if TYPE_CHECKING:
    from .configuration import LongAttentionConfig
    from .conversion import ConversionConfig, ConversionPlan, ConversionReport, convert_checkpoint, plan_conversion
    from .engines.token_grid import Grid
    from .errors import LongAttentionError
    from .evaluation.embedding import Embedder
    from .evaluation.whole_texts import read_whole
    from .export import (
        CompressionConfig,
        CompressionReport,
        ExportReport,
        compress_checkpoint,
        export_checkpoint,
        export_native,
    )
    from .families import *  # noqa: F403 - every Long class, from families/*.pyi
    from .functional import attend, reference_attend
    from .inspect import Diagnosis, Explanation, diagnose, explain
    from .mechanisms import (
        Mechanism,
        MechanismInfo,
        build_mechanism,
        list_mechanisms,
        mechanism_info,
        register_mechanism,
    )
    from .modeling.generic import enable_long_attention
    from .modeling.inference import optimize_for_inference
    from .modeling.streaming import StreamingCache
    from .modeling.unpadding import unpad
    from .search import SearchConfig, SearchResult, search_design

__version__ = "0.3.0"

_public_name, __all__ = public_names(__name__)


if not TYPE_CHECKING:  # type checkers find every name above

    def __getattr__(name: str) -> Any:
        """The public names, the ``Long…`` classes and the sub-packages, imported on first use."""
        if name in __all__:
            value = _public_name(name)
        elif name.startswith("Long"):
            value = getattr(importlib.import_module(".families", __name__), name)
        elif not name.startswith("_") and importlib.util.find_spec(f"{__name__}.{name}") is not None:
            value = importlib.import_module(f".{name}", __name__)
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    long_classes = [name for name in dir(importlib.import_module(".families", __name__)) if name.startswith("Long")]
    return sorted({*globals(), *__all__, *long_classes})


_register()
