"""Relative positions as score terms, one file each; chosen as ``relative="alibi"`` or ``relative="shaw:clip=32"``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import OptionError, nearest
from .alibi import Alibi
from .base import DistanceOnly, QueryDependent, RelativePositions, Span
from .shaw import Shaw
from .t5_buckets import T5Buckets
from .transformer_xl import TransformerXL

__all__ = ["RELATIVE", "DistanceOnly", "QueryDependent", "RelativePositions", "Span", "build_relative", "read_relative", "relative_kind"]

RELATIVE: dict[str, type[RelativePositions]] = {kind.name: kind for kind in (Alibi, T5Buckets, Shaw, TransformerXL)}


def read_relative(value: str | Mapping[str, Any]) -> str:
    """Check a choice of relative positions and bring it to its one form, ``kind`` or ``kind:name=value,...``.

    Args:
        value: that text, or ``{"kind": "shaw", "clip": 32}``.

    Raises:
        OptionError: an unknown kind or setting, with the nearest one, or an impossible value.
    """
    kind, given = _parts(value)
    cls = relative_kind(kind)
    settings: dict[str, int] = {}
    for name, number in given.items():
        if name not in cls.settings:
            listed = ", ".join(cls.settings) or "none"
            raise OptionError(f"Relative positions {kind!r} have no setting {name!r}; theirs are: {listed}.{nearest(name, cls.settings)}")
        try:
            settings[name] = int(str(number))
        except ValueError:
            raise OptionError(f"Setting {name!r} of relative positions {kind!r} is {number!r}, but must be a whole number.") from None
    cls.check(_complete(cls, settings))
    written = ",".join(f"{name}={number}" for name, number in settings.items())
    return f"{kind}:{written}" if written else kind


def relative_kind(value: str) -> type[RelativePositions]:
    """The class of a kind, given by its name or a whole choice.

    Raises:
        OptionError: an unknown kind, with the nearest one.
    """
    kind = value.partition(":")[0].strip()
    if kind not in RELATIVE:
        raise OptionError(f"Unknown relative positions {kind!r}; the kinds are: {', '.join(RELATIVE)}.{nearest(kind, RELATIVE)}")
    return RELATIVE[kind]


def build_relative(choice: str, num_heads: int, head_dim: int, hidden_size: int) -> RelativePositions:
    """The module of a choice that :func:`read_relative` has checked."""
    kind, given = _parts(choice)
    settings = {name: int(number) for name, number in given.items()}
    return RELATIVE[kind](num_heads, head_dim, hidden_size, _complete(RELATIVE[kind], settings))


def _complete(cls: type[RelativePositions], settings: Mapping[str, int]) -> dict[str, int]:
    return {**{name: default for name, (default, _) in cls.settings.items()}, **settings}


def _parts(value: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    if isinstance(value, Mapping) and isinstance(value.get("kind"), str):
        return value["kind"], {name: number for name, number in value.items() if name != "kind"}
    pairs = [pair.partition("=") for pair in value.partition(":")[2].split(",") if pair.strip()] if isinstance(value, str) else []
    if not isinstance(value, str) or not all(sign for _, sign, _ in pairs):
        raise OptionError(
            f"relative is {value!r}, but must read KIND or KIND:NAME=VALUE,...; for example relative='alibi' or "
            "relative='t5_buckets:num_buckets=32'."
        )
    return value.partition(":")[0].strip(), {name.strip(): number for name, _, number in pairs}
