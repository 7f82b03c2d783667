"""Whether the result can carry a PEFT adapter of its source."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from ...errors import CheckpointError
from ..architectures.base import Architecture
from ..files.tensors import read_headers
from ..sources.peft import ADAPTER_WEIGHTS

__all__ = ["check_adapter"]

PEFT_PREFIX = "base_model.model."
"""Before the base's own names in an adapter's tensors."""


def check_adapter(adapter: Path, architecture: Architecture, skeleton: nn.Module) -> None:
    """Refuse an adapter that the result cannot carry.

    Args:
        adapter: its folder; on the Hub, its weights may not have been downloaded, and nothing is checked then.
        architecture, skeleton: of the result.

    Raises:
        CheckpointError: it holds a position table, which has the old length, or nothing in it belongs to a module of the result.
    """
    if not (adapter / ADAPTER_WEIGHTS).is_file():
        return
    names = list(read_headers(adapter / ADAPTER_WEIGHTS))
    tables = [name for name in names if architecture.family.table(name) is not None]
    if tables:
        raise CheckpointError(f"The adapter holds the position table {tables[0]!r}, which has the old length; add --merge-adapter.")
    modules = {name for name, _ in skeleton.named_modules() if name}
    prefix = f"{getattr(skeleton, 'base_model_prefix', '')}."
    modules |= {f"{prefix}{name}" for name in modules} | {name.removeprefix(prefix) for name in modules}
    if not any(set(_parents(name.removeprefix(PEFT_PREFIX))) & modules for name in names):
        raise CheckpointError(f"The adapter {str(adapter)!r} belongs to another base: this one has no module for {names[0]!r}.")


def _parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]
