"""Typed, documented and validated options of a mechanism, as frozen dataclasses.

Importing this module does not import torch, so the command line can check options first.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any

from ...engines.token_grid import check_order
from ...errors import OptionError, nearest

ORDER = "order"
"""Option of mechanisms for sequences: the order in which grid tokens form a sequence."""
RELATIVE = "relative"
"""Option of every mechanism over scores: relative positions, see :mod:`hf_longattn.positions.relative`."""
EXACT_LENGTH = "exact_length"
"""Option of every mechanism with a bidirectional form: the maximum length for full attention, in tokens."""

MAX_LENGTH, SEED = "max_length", "seed"
"""Options that are also arguments of build_mechanism or attend. The argument sets the option."""
RESERVED = frozenset(
    (
        *("name", "num_heads", "head_dim", "hidden_size", "generator"),
        *("q", "k", "v", "mechanism", "causal", "padding_mask", "documents", "cu_seqlens", "global_mask", "scaling", "dropout_p"),
        *("score_mod", "hidden_states", "grid", "prefix", "sink_scores"),
    )
)
"""The other argument names of build_mechanism() and attend(), reserved: no option may have them."""

POSITIONS = "positions"
"""The unit of options that list tokens by their positions."""
LARGEST = 2**31 - 1
"""Largest whole number that an option takes. Sums and products of positions then stay within 64 bits."""
_WHOLE = re.compile(r"[+-]?[0-9]+", re.ASCII)


@dataclasses.dataclass(frozen=True)
class OptionInfo:
    """One option as shown to users: name, readable type, default, meaning and unit."""

    name: str
    type: str
    default: Any
    help: str
    unit: str

    @property
    def type_in_words(self) -> str:
        """The type in words: ``list of int`` for ``tuple[int, ...]``, ``mechanism`` for a mechanism's or head's specification."""
        plain = re.sub(r"tuple\[(\w+), \.\.\.\]", r"list of \1", self.type.replace(" | ", " or "))
        return re.sub(r"(Mechanism|Head)Spec", "mechanism", plain)

    def readable(self, value: Any) -> str:
        """A value of the option for readers. Lists of positions are labelled as such, since a bare 0 reads as "none"."""
        if not isinstance(value, list | tuple):
            return str(value)
        entries = ",".join(map(str, value)) or "none"
        return f"position{'s' if len(value) > 1 else ''} {entries}" if value and self.unit == POSITIONS else entries


def option(
    default: Any,
    help: str,
    unit: str = "",
    *,
    least: int | None = None,
    most: int = LARGEST,
    even: bool = False,
    choices: Sequence[str] = (),
) -> Any:
    """Declare a field of an ``Options`` dataclass with its meaning, unit (tokens, blocks, rows …) and permitted values.

    Args:
        least, most: bounds of a number, or of each number of a tuple. Set ``most`` for numbers that determine memory or time regardless of
            the input length: a typo is then refused at once. The default is the largest number that the engines' indices allow.
        even: whether a number must be even and at least 2.
        choices: the permitted strings.
    """
    limits = {"least": least, "most": most, "even": even, "choices": tuple(choices)}
    return dataclasses.field(default=default, metadata={"help": help, "unit": unit, **limits})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Base of every mechanism's options. Fields declare their permitted values; :meth:`check` refuses impossible combinations."""

    relative: str | None = option(
        None,
        "relative positions added to the scores: alibi, t5_buckets, shaw or transformer_xl, with settings as in shaw:clip=32; of "
        "rotary models also self_extend",
    )
    order: str | None = option(
        None,
        "for images and other grids: the order in which tokens are read, so that blocks and bands are local: raster, "
        "columns, hilbert, or tiles with their sizes, as in tiles:8x8",
    )
    exact_length: int | None = option(
        None,
        "maximum length for full attention, as in the source of a converted encoder; each longer text is attended by the mechanism",
        "tokens",
        least=0,
    )

    def check(self) -> None:
        """Raise :class:`OptionError` for values that are impossible together, which :func:`option` cannot express."""

    @classmethod
    def infos(cls) -> tuple[OptionInfo, ...]:
        """Describe every option, in declaration order. Options shared by all mechanisms come last."""
        return _infos(cls)  # type: ignore[arg-type]  # a class is hashable

    @classmethod
    def build(cls, mechanism: str, values: dict[str, Any]) -> Options:
        """Check names, types and values, and return the options.

        Raises:
            OptionError: for an unknown name (the nearest one is offered), a wrong type or an impossible value.
        """
        hints = _hints(cls)  # type: ignore[arg-type]
        known = [info.name for info in cls.infos()]
        checked: dict[str, Any] = {}
        for name, value in values.items():
            if name not in hints or name not in known:
                listed = ", ".join(known) if known else "none"
                raise OptionError(f"Mechanism {mechanism!r} has no option {name!r}; its options are: {listed}.{nearest(name, known)}")
            read = COMMON.get(name) if value not in (None, "none", "None") else None
            checked[name] = _coerce(mechanism, name, value, hints[name]) if read is None else read(value)
            cls._check_value(mechanism, name, checked[name])
        built = cls(**checked)
        built.check()
        return built

    @classmethod
    def _check_value(cls, mechanism: str, name: str, value: Any) -> None:
        """Raise :class:`OptionError` unless ``value``, of the right type, is permitted by its field."""
        field = cls.__dataclass_fields__[name]
        limits, known = field.metadata, type(field.default) in (int, float) and field.default != 0
        example = field.default if known else 512 if field.default is None and limits.get("unit") == "tokens" else 4
        for entry in value if isinstance(value, tuple) else (value,):
            wanted, choices = "", limits.get("choices")
            if isinstance(entry, str) and choices and entry not in choices:
                wanted = f"one of: {', '.join(choices)}.{nearest(entry, choices)}"
            elif isinstance(entry, int | float):
                least, most = limits.get("least"), limits.get("most", LARGEST)
                if limits.get("even") and (entry < 2 or entry % 2):
                    wanted = f"even and at least 2; for example {name}=16."
                elif least is not None and entry < least:
                    wanted = f"at least {least}; for example {name}={example}."
                elif abs(entry) > most:
                    wanted = f"at most {most}{f'; for example {name}={field.default}' if known else ''}."
            if wanted:
                raise OptionError(f"Option {name!r} of mechanism {mechanism!r} is {entry!r}, but must be {wanted}")

    def to_dict(self) -> dict[str, Any]:
        """All options in JSON types: tuples as lists, mechanisms as mappings. Options in :data:`COMMON` are omitted when unset."""
        values = {info.name: getattr(self, info.name) for info in self.infos()}
        plain = {name: [_plain(entry) for entry in value] if isinstance(value, tuple) else _plain(value) for name, value in values.items()}
        return {name: value for name, value in plain.items() if name not in COMMON or value is not None}

    def changed(self) -> list[str]:
        """``"name=value"`` of the options that are not at their defaults."""
        usual = {name: field.default for name, field in self.__dataclass_fields__.items()}
        return [f"{name}={value}" for name, value in self.to_dict().items() if getattr(self, name) != usual[name]]

    def is_mask(self) -> bool:
        """Whether a masked mechanism with these options is plain softmax over the visible keys."""
        return True

    def sample_length(self) -> int:
        """A text length, in tokens, for which a mechanism with these options can be built."""
        return 64

    def min_heads(self) -> int:
        """The smallest head count that exercises every part of these options."""
        return 1


COMMON: dict[str, Callable[[Any], str] | None] = {RELATIVE: lambda value: _read_relative(value), ORDER: check_order, EXACT_LENGTH: None}
"""Options shared by all mechanisms -> their parsers; None parses by the field's type. Omitted from config.json when unset."""


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    """The types of a dataclass's fields. Cached, since annotations are strings and slow to evaluate."""
    return typing.get_type_hints(cls)


@functools.cache
def _infos(cls: type) -> tuple[OptionInfo, ...]:
    hints = _hints(cls)
    return tuple(
        OptionInfo(f.name, _type_name(hints[f.name]), f.default, f.metadata.get("help", ""), f.metadata.get("unit", ""))
        for f in sorted(dataclasses.fields(cls), key=lambda field: field.kw_only is True)
    )


def _read_relative(value: Any) -> str:
    from ...positions.relative import read_relative

    return read_relative(value)


def _plain(value: Any) -> Any:
    return value.to_dict() if hasattr(value, "to_dict") else value


def _type_name(hint: Any) -> str:
    args = typing.get_args(hint)
    if typing.get_origin(hint) is tuple and not hasattr(args[0], "__origin__"):
        return f"tuple[{args[0].__name__}, ...]"
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint).replace("typing.", "")


def _coerce(mechanism: str, name: str, value: Any, hint: Any) -> Any:
    """Convert ``value`` to the annotated type, or raise :class:`OptionError`. Values come from Python, JSON or a command line."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in args:
            return None
        if isinstance(value, str) and value.lower() in ("none", "null") and type(None) in args:
            return None
        return _coerce(mechanism, name, value, next(a for a in args if a is not type(None)))
    if origin is tuple and hasattr(args[0], "read_all"):
        return args[0].read_all(mechanism, name, value)
    if hasattr(hint, "read_all"):
        return hint.read(mechanism, name, value)
    try:
        if origin is tuple:
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                value = [value]  # one entry
            if isinstance(value, str):
                value = [] if value.lower() == "none" else value.replace("+", ",").split(",")
            return tuple(_coerce(mechanism, name, item, args[0]) for item in value if item != "")
        if hint is bool:
            if isinstance(value, bool):
                return value
            if isinstance(value, str) and value.lower() in ("true", "false", "yes", "no", "1", "0"):
                return value.lower() in ("true", "yes", "1")
            raise ValueError
        if hint is int:
            if isinstance(value, bool) or (isinstance(value, float) and value != int(value)):
                raise ValueError
            if isinstance(value, str) and not _WHOLE.fullmatch(value.strip()):
                raise ValueError
            return int(value)
        if hint is float:
            if isinstance(value, bool) or not math.isfinite(float(value)):
                raise ValueError
            return float(value)
    except (TypeError, ValueError, OverflowError):
        wanted = "a finite number" if hint is float else _type_name(hint)
        if args and args[0] is int:
            wanted = f"whole numbers joined by +, for example {name}=1"
        raise OptionError(f"Option {name!r} of mechanism {mechanism!r} is {value!r}, but must be {wanted}.") from None
    if hint is str and not isinstance(value, str):
        raise OptionError(f"Option {name!r} of mechanism {mechanism!r} is {value!r}, but must be a string.")
    return value
