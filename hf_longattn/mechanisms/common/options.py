"""Options of mechanisms: typed, documented and validated dataclasses, and mechanisms with options in one line of text.

Importing this module does not import torch, so the command line can check options and refuse a typo first. It knows no
mechanism.

    CHOICE   window                     window:window=256,dilation=2
    MEMBERS  window:window=256+strided:stride=64
    LAYERS   0-5=window:window=64;6-11=full        numbered: layers, counted from 0
             0-5:window=64;11:mechanism=full       numbered, changing options of the default mechanism
             window:window=256,window:window=256,full      not numbered: repeated in turn
    TOWERS   text=window:window=64,vision=full     towers of a model, each with a choice

A value that contains these signs goes in brackets: ``union:of=[window:window=64,dilation=2+strided]``. Text becomes
plain mappings such as ``{"mechanism": "window", "window": "256"}``; the options of the mechanisms check and convert
the values.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ...errors import OptionError, nearest

RELATIVE = "relative"
"""Option of every mechanism over scores: relative positions, see :mod:`hf_longattn.positions.relative`."""
EXACT_LENGTH = "exact_length"
"""Option of every mechanism with a bidirectional form: the maximum length for full attention, in tokens."""
FULL_DECODING = "full_decoding"
"""Option of decoders' windows: whether a causal call with one query attends to all keys."""

MAX_LENGTH, SEED = "max_length", "seed"
"""Options that are also arguments of build_mechanism or attend. The argument sets the option."""
RESERVED = frozenset(
    {
        "name",
        "num_heads",
        "head_dim",
        "hidden_size",
        "generator",
        "q",
        "k",
        "v",
        "mechanism",
        "causal",
        "padding_mask",
        "documents",
        "cu_seqlens",
        "global_mask",
        "scaling",
        "dropout_p",
        "score_mod",
        "hidden_states",
        "grid",
        "prefix",
        "sink_scores",
    }
)
"""The other argument names of build_mechanism() and attend(), reserved: no option may have them."""

POSITIONS = "positions"
"""The unit of options that list tokens by their positions."""
LARGEST = 2**31 - 1
"""Maximum of an integer option. Sums and products of positions then fit into 64 bits."""
PARITIES: dict[str, tuple[Any, Any]] = {"even": (2, 16), "odd": (1, 3)}
"""Parity that an option may ask for -> the lowest such number, and an example."""
_WHOLE = re.compile(r"[+-]?[0-9]+", re.ASCII)
_WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@dataclasses.dataclass(frozen=True)
class OptionInfo:
    """One option as shown to users: name, readable type, default, meaning and unit."""

    name: str
    type: str
    default: Any
    help: str
    unit: str
    detail_of: str = ""
    """The number that must be set for the option to have an effect, if there is one."""

    @property
    def type_in_words(self) -> str:
        """The type in words: ``list of int`` for ``tuple[int, ...]``, ``mechanism`` for one with its options."""
        plain = re.sub(r"tuple\[(\w+), \.\.\.\]", r"list of \1", self.type.replace(" | ", " or "))
        return plain.replace("MechanismSpec", "mechanism")

    def readable(self, value: Any) -> str:
        """A value of the option for readers. Lists of positions are labelled as such, since a bare 0 reads as
        "none"."""
        if isinstance(value, Mapping):
            return write_choice(value)
        if not isinstance(value, list | tuple):
            return str(value)
        if any(isinstance(entry, Mapping) for entry in value):
            return write_choices(value)
        entries = ",".join(map(str, value)) or "none"
        if not value or self.unit != POSITIONS:
            return entries
        return f"positions {entries}" if len(value) > 1 else f"position {entries}"


def option(
    default: Any,
    help: str,
    unit: str = "",
    *,
    least: int | None = None,
    most: int = LARGEST,
    parity: str = "",
    choices: Sequence[str] = (),
    detail_of: str = "",
) -> Any:
    """Declare a field of an ``Options`` dataclass with its meaning, unit (tokens, blocks, rows …) and permitted
    values.

    Args:
        least, most: bounds of a number, or of each number of a tuple. Set ``most`` for numbers that determine memory
            or time regardless of the input length: a typo is then refused at once. The default is the largest number
            that the engines' indices allow.
        parity: "even" or "odd", if a number must be that. It must then be at least 2 or 1.
        choices: the permitted strings.
        detail_of: the option without which this one has no effect. Tables then leave it out.
    """
    limits = {"least": least, "most": most, "parity": parity, "choices": choices}
    return dataclasses.field(default=default, metadata={"help": help, "unit": unit, "detail_of": detail_of, **limits})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Base of every mechanism's options. Fields declare their permitted values; :meth:`check` refuses impossible
    combinations."""

    relative: str | None = option(
        None,
        "relative positions added to the scores: alibi, t5_buckets, shaw or transformer_xl, with settings as in "
        "shaw:clip=32; for rotary models also self_extend",
    )
    exact_length: int | None = option(
        None,
        "texts of up to this length get full attention, as in the source of a converted encoder; longer ones get the "
        "mechanism",
        "tokens",
        least=0,
    )

    def check(self) -> None:
        """Raise :class:`OptionError` for impossible combinations of values, which :func:`option` cannot express."""

    @classmethod
    @functools.cache
    def infos(cls) -> tuple[OptionInfo, ...]:
        """Describe every option, in declaration order. Options shared by all mechanisms come last."""
        hints = _hints(cls)  # type: ignore[arg-type]  # a class is hashable
        return tuple(
            OptionInfo(
                f.name,
                _type_name(hints[f.name]),
                f.default,
                *(f.metadata.get(key, "") for key in ("help", "unit", "detail_of")),
            )
            for f in sorted(dataclasses.fields(cls), key=lambda field: field.kw_only is True)
        )

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
            if name not in known:
                listed = ", ".join(known)
                raise OptionError(
                    f"Mechanism {mechanism!r} has no option {name!r}; leave it out, also of a config.json, or choose "
                    f"from its options: {listed}.{nearest(name, known)}"
                )
            if name == RELATIVE and value not in (None, "none", "None"):
                from ...positions.relative import read_relative  # imports torch

                checked[name] = read_relative(value)
            else:
                checked[name] = _coerce(mechanism, name, value, hints[name])
            cls._check_value(mechanism, name, checked[name])
        built = cls(**checked)
        built.check()
        return built

    @classmethod
    def _check_value(cls, mechanism: str, name: str, value: Any) -> None:
        """Raise :class:`OptionError` unless ``value``, of the right type, is permitted by its field."""
        field = cls.__dataclass_fields__[name]
        limits = field.metadata
        example: Any = 4
        if type(field.default) in (int, float) and field.default != 0:
            example = field.default
        elif field.default is None and limits.get("unit") == "tokens":
            example = 512
        for entry in value if isinstance(value, tuple) else (value,):
            wanted, choices, parity = "", limits.get("choices"), limits.get("parity", "")
            if isinstance(entry, str) and choices and entry not in choices:
                wanted = f"one of: {', '.join(choices)}.{nearest(entry, choices)}"
            elif isinstance(entry, int | float):
                least, most = limits.get("least"), limits.get("most", LARGEST)
                lowest, fitting = PARITIES.get(parity, (None, None))
                if lowest is not None and (entry < lowest or entry % 2 != lowest % 2):
                    wanted = f"{parity} and at least {lowest}; for example {name}={fitting}."
                elif least is not None and entry < least:
                    wanted = f"at least {least}; for example {name}={example}."
                elif abs(entry) > most:
                    wanted = f"at most {most}."
                    if example == field.default:
                        wanted = f"at most {most}; for example {name}={example}."
            if wanted:
                raise OptionError(f"Option {name!r} of mechanism {mechanism!r} is {entry!r}, but must be {wanted}")

    def to_dict(self) -> dict[str, Any]:
        """All options in JSON types: tuples as lists, mechanisms as mappings. Options in :data:`COMMON` are omitted
        when unset."""
        plain = {info.name: _plain(getattr(self, info.name)) for info in self.infos()}
        return {name: value for name, value in plain.items() if name not in COMMON or value is not None}

    def changed(self) -> list[str]:
        """``"name=value"`` of the options that are not at their defaults."""
        fields = self.__dataclass_fields__
        return [
            f"{name}={value}" for name, value in self.to_dict().items() if getattr(self, name) != fields[name].default
        ]

    def is_mask(self) -> bool:
        """Whether a masked mechanism with these options is plain softmax over the visible keys."""
        return True

    def pools_keys(self) -> bool:
        """Whether queries attend to means of several keys, which no score term may take for single keys."""
        return False

    def sample_length(self) -> int:
        """A text length, in tokens, for which a mechanism with these options can be built."""
        return 64

    def min_heads(self) -> int:
        """The smallest head count that exercises every part of these options."""
        return 1


def _plain(value: Any) -> Any:
    """A value of an option in JSON types."""
    if isinstance(value, tuple):
        return [_plain(entry) for entry in value]
    if hasattr(value, "to_dict"):
        return value.to_dict()
    return value


COMMON = (RELATIVE, EXACT_LENGTH)
"""Options shared by all mechanisms. Omitted from config.json when unset."""


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    """The types of a dataclass's fields. Cached, since annotations are strings and slow to evaluate."""
    return typing.get_type_hints(cls)


def _type_name(hint: Any) -> str:
    args = typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        return f"tuple[{args[0].__name__}, ...]"
    if isinstance(hint, type):
        return hint.__name__
    return str(hint).replace("typing.", "")


def _coerce(mechanism: str, name: str, value: Any, hint: Any) -> Any:
    """Convert ``value`` to the annotated type, or raise :class:`OptionError`. Values come from Python, JSON or a
    command line."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):  # a type or None
        if value is None or (isinstance(value, str) and value.lower() in ("none", "null")):
            return None
        return _coerce(mechanism, name, value, args[0])
    if origin is tuple and hasattr(args[0], "read_all"):
        return args[0].read_all(mechanism, name, value)
    if hasattr(hint, "read_all"):
        return hint.read(mechanism, name, value)
    try:
        if origin is tuple:
            return tuple(_coerce(mechanism, name, entry, args[0]) for entry in _entries(value))
        return _read(value, hint)
    except (TypeError, ValueError, OverflowError):
        wanted = {float: "a finite number", str: "a string"}.get(hint) or _type_name(hint)
        if args and args[0] is int:
            wanted = f"whole numbers joined by +, for example {name}=1"
        raise OptionError(f"Option {name!r} of mechanism {mechanism!r} is {value!r}, but must be {wanted}.") from None


def _entries(value: Any) -> Iterable[Any]:
    """The entries of a list, which may be one number, or a text such as ``0+7``."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return [value]
    if isinstance(value, str):
        if value.lower() == "none":
            return []
        value = value.replace("+", ",").split(",")
    return [entry for entry in value if entry != ""]


def _read(value: Any, kind: type) -> Any:
    """``value`` as a ``kind``: a bool, int, float or str. Raises an error of :func:`_coerce` if it is none."""
    if kind is bool and isinstance(value, str):
        value = _WORDS.get(value.lower())
    if isinstance(value, bool) != (kind is bool):
        raise ValueError
    if kind is str and not isinstance(value, str):
        raise ValueError
    if kind is int and isinstance(value, str) and not _WHOLE.fullmatch(value.strip()):
        raise ValueError
    read = kind(value)
    if isinstance(value, float) and read != value:  # a fraction, or no number
        raise ValueError
    if kind is float and not math.isfinite(read):
        raise ValueError
    return read


NUMBERED = re.compile(r"\s*(\d[\d\s,-]*)([=:])(.*)", re.DOTALL | re.ASCII)
HIGHEST_LAYER = 9999
"""Maximum layer number. No model has so many layers; it bounds the memory that a typo can allocate."""
IN_TURN = "in_turn"
"""Key of ``layers`` for the mechanisms that layers take in turn."""
TOWERS = (
    "text",
    "vision",
    "audio",
    "video",
    "speech",
    "qformer",
    "backbone",
    "depth_decoder",
    "codec",
    "encoder",
    "decoder",
)
"""Names of towers: in transformers, those of the config fields that hold a tower's config (``text_config``)."""
OPTION = re.compile(r"\s*\w+\s*=")
LETTER = re.compile(r"\s*[A-Za-z_\[]")


def read_choice(text: str) -> dict[str, Any]:
    """``window:window=256`` as ``{"mechanism": "window", "window": "256"}``."""
    name, _, options = _unwrapped(text).partition(":")
    if not name.strip() or OPTION.match(name):
        raise OptionError(f"{text!r} must read MECHANISM[:NAME=VALUE,...], for example window:window=256.")
    return {"mechanism": name.strip(), **read_options(options)}


def read_options(text: str) -> dict[str, Any]:
    """``window=256,dilation=2`` as a mapping of text to text; lists are joined by plus signs, as in
    ``global_tokens=0+7``."""
    return {name: _unwrapped(value) for name, value in read_pairs(split(text, ",")).items()}


def read_pairs(pairs: Iterable[str]) -> dict[str, str]:
    """``["window=256", "dilation=2"]`` as a mapping of text to text; dashes in names become underscores."""
    values: dict[str, str] = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        name = name.strip().replace("-", "_")
        if not sign or not name:
            raise OptionError(f"{pair!r} must read NAME=VALUE, for example window=512.")
        if name in values:
            raise OptionError(f"{name!r} is given twice.")
        values[name] = value.strip()
    return values


def read_members(text: str) -> list[dict[str, Any]]:
    """``window:window=256+strided:stride=64`` as a list of choices; a piece that starts with a digit continues the
    list before it."""
    return [read_choice(piece) for piece in _joined(split(_unwrapped(text), "+"), "+", LETTER.match)]


def read_layer_choices(text: str) -> tuple[list[dict[str, Any]], dict[int, dict[str, Any]]]:
    """The choices that layers take in turn, and those by layer number. Later choices replace earlier ones."""
    turns: list[dict[str, Any]] = []
    numbered: dict[int, dict[str, Any]] = {}
    for piece in split(text, ";"):
        if match := NUMBERED.fullmatch(piece):
            where, sign, what = match.groups()
            choice = read_choice(what) if sign == "=" else read_options(what)
            numbered |= dict.fromkeys(read_numbers(where), choice)
        else:
            choices = _joined(split(piece, ","), ",", lambda part: not OPTION.match(part))
            turns += map(read_choice, choices)
    if not turns and not numbered:
        raise OptionError(f"{text!r} names no mechanism; write for example 0-5=window:window=64;6-11=full.")
    return turns, numbered


def read_towers(text: str) -> dict[str, dict[str, Any]]:
    """``text=window:window=64,dilation=2,vision=full`` as
    ``{"text": {"mechanism": "window", …}, "vision": {"mechanism": "full"}}``.

    A piece between commas that begins with the name of a tower and "=" starts a tower; any other is an option of the
    tower before it.
    Values with such signs go in brackets: ``vision=full:layers=[0-5=window:window=64;6-11=window2d]``.

    Raises:
        OptionError: an unknown tower, one that is given twice or without a mechanism, or no tower at all.
    """
    example = "write for example text=full,vision=window:window=64"
    towers: dict[str, str] = {}
    for piece in split(text, ","):
        name, sign, value = (part.strip() for part in piece.partition("="))
        if sign and name in TOWERS:
            if name in towers:
                raise OptionError(f"The tower {name!r} is given twice; put all its options after one {name}=.")
            if not value:
                raise OptionError(f"The tower {name!r} has no mechanism; {example}.")
            towers[name] = value
        elif not towers or len(split(value, "=")) > 1:  # an option's value has no such sign outside brackets
            if not sign:
                raise OptionError(f"{piece.strip()!r} names no tower; {example}.")
            raise OptionError(
                f"{name!r} is not a tower; expected {', '.join(TOWERS)}; {example}.{nearest(name, TOWERS)}"
            )
        else:
            towers[next(reversed(towers))] += f",{piece}"
    if not towers:
        raise OptionError(f"{text!r} names no tower; {example}.")
    return {name: read_choice(value) for name, value in towers.items()}


def read_numbers(where: str) -> list[int]:
    """``0-3,7`` as ``[0, 1, 2, 3, 7]``."""

    def is_number(text: str) -> bool:
        return text.isascii() and text.isdigit() and len(text) < 20 and int(text) <= HIGHEST_LAYER

    listed: list[int] = []
    for part in where.split(","):
        first, dash, last = (piece.strip() for piece in part.partition("-"))
        if not is_number(first) or (dash and (not is_number(last) or int(last) < int(first))):
            raise OptionError(f"{where.strip()!r} must be numbers from 0 to {HIGHEST_LAYER}, for example 0-3,7.")
        listed += range(int(first), int(last or first) + 1)
    return listed


def write_choice(values: Mapping[str, Any]) -> str:
    """Write a mapping with ``mechanism`` as text, from which :func:`read_choice` makes the same mapping."""
    written: list[str] = []
    for name, value in values.items():
        if isinstance(value, list | tuple):
            nested = any(isinstance(entry, Mapping) for entry in value)
            value = f"[{write_choices(value)}]" if nested else "+".join(map(str, value))
        if name != "mechanism":
            written.append(f"{name}={value}")
    return values["mechanism"] + (f":{','.join(written)}" if written else "")


def write_choices(values: Sequence[Mapping[str, Any]]) -> str:
    """Members of a union."""
    return "+".join(write_choice(choice) for choice in values)


def write_numbers(numbers: Sequence[int]) -> str:
    """``[0, 1, 2, 3, 7]`` as ``0-3,7``."""
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs(numbers))


def runs(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """The first and the last of each run of consecutive ``numbers``, which ascend."""
    spans: list[tuple[int, int]] = []
    for number in numbers:
        if spans and number <= spans[-1][1] + 1:
            spans[-1] = spans[-1][0], number
        else:
            spans.append((number, number))
    return spans


def split(text: str, sign: str) -> list[str]:
    """The non-empty pieces of ``text`` between occurrences of ``sign`` outside brackets."""
    pieces, depth = [""], 0
    for letter in text:
        depth += (letter == "[") - (letter == "]")
        if letter == sign and depth == 0:
            pieces.append("")
        else:
            pieces[-1] += letter
    return [piece for piece in pieces if piece.strip()]


def _joined(pieces: list[str], sign: str, begins: Any) -> list[str]:
    """Join pieces to entries. A piece that does not begin an entry is appended to the previous piece."""
    entries: list[str] = []
    for piece in pieces:
        if entries and not begins(piece):
            entries[-1] += sign + piece
        else:
            entries.append(piece)
    return entries


def _unwrapped(text: str) -> str:
    """``text`` without a pair of brackets around all of it."""
    text = text.strip()
    return text[1:-1] if text.startswith("[") and text.endswith("]") else text
