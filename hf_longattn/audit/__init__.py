"""Whether a model, an ONNX file or a server computes the attention that a config says, seen from outside."""

from .run import audit_reach
from .verdict import ReachAudit, StageReach

__all__ = ["ReachAudit", "StageReach", "audit_reach"]
