"""Where a checkpoint comes from: a folder, the Hub, a GGUF file, an adapter, sentence-transformers … One file per format."""

from .base import (
    SIDECAR_FOLDERS,
    SIDECARS,
    ResultInfo,
    Source,
    SourceFormat,
    SourceRequest,
    open_request,
    open_source,
    register_source,
)

__all__ = [
    "SIDECARS",
    "SIDECAR_FOLDERS",
    "ResultInfo",
    "Source",
    "SourceFormat",
    "SourceRequest",
    "open_request",
    "open_source",
    "register_source",
]
