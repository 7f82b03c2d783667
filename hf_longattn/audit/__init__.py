"""Black-box tests of whether a model, an ONNX file or a server computes the attention of its config."""

from .run import audit_reach
from .verdict import ReachAudit, StageReach

__all__ = ["ReachAudit", "StageReach", "audit_reach"]
