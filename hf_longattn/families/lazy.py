"""The Long classes of a family are made on first use, in the family's own module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .registry import Family


def lazy_classes(family: Family, namespace: dict[str, Any]) -> Callable[[str], Any]:
    """A module ``__getattr__`` for ``namespace`` that makes the Long classes, and keeps them there. Until then no model is imported."""

    def module_getattr(name: str) -> Any:
        if name not in (*family.heads.values(), *family.parts.values()):
            raise AttributeError(f"module {namespace['__name__']!r} has no attribute {name!r}")
        from .classes import make_classes

        namespace.update(make_classes(family))
        return namespace[name]

    return module_getattr
