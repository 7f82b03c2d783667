"""What tests read in reports of conversions."""

from __future__ import annotations

from typing import Any


def tensor_counts(report: Any) -> dict[str, int]:
    """How many tensors of a verified result were "kept", "extended" and "new"."""
    (check,) = [check for check in report.checks if check.name == "tensors"]
    return {action: check.values[action] for action in ("kept", "extended", "new")}
