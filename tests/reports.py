"""What tests read in reports of conversions."""

from __future__ import annotations

from typing import Any


def tensor_counts(report: Any) -> dict[str, int]:
    """How many tensors of a verified result were "kept", "extended" and "new"."""
    (check,) = [check for check in report.checks if check.name == "tensors"]
    return {action: check.values[action] for action in ("kept", "extended", "new")}


def statuses(report: Any) -> dict[str, str]:
    """Name of a check -> its status."""
    return {check.name: check.status for check in report.checks}


def needing_training(report: Any) -> list[str]:
    """The names of the checks that ask for training."""
    return [check.name for check in report.checks if check.status == "needs training"]


def check_of(report: Any, name: str) -> Any:
    """The check with this name."""
    return next(check for check in report.checks if check.name == name)
