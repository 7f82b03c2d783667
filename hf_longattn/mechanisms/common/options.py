"""Options of mechanisms: dataclasses that check their values, and a text syntax for mechanisms with options.

Importing this module does not import torch, so that the command line can refuse a typo before it loads torch. The
module knows no mechanism.

The syntax has a form for one mechanism, for the members of a union, for layers, and for the towers of a model:

    CHOICE   window                     window:window=256,dilation=2
    MEMBERS  window:window=256+strided:stride=64
    LAYERS   0-5=window:window=64;6-11=full        numbered: layers, counted from 0
             0-5:window=64;11:mechanism=full       numbered, changing options of the default mechanism
             window:window=256,window:window=256,full      not numbered: repeated in turn
    TOWERS   text=window:window=64,vision=full     each tower with a CHOICE

A value that contains these signs goes in brackets: ``union:of=[window:window=64,dilation=2+strided]``. The functions
that read text return plain mappings such as ``{"mechanism": "window", "window": "256"}``. :meth:`Options.build` then
checks and converts the values.
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
"""Names of the other arguments of build_mechanism() and attend(). No option may have one of these names."""

POSITIONS = "positions"
"""The unit of options that list tokens by their positions."""
LARGEST = 2**31 - 1
"""Maximum of an integer option. Sums and products of positions then fit into 64 bits."""
PARITIES: dict[str, tuple[Any, Any]] = {"even": (2, 16), "odd": (1, 3)}
"""Parity that an option may require -> smallest permitted number, and an example for messages."""
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
    """Name of the option without which this one has no effect; "" if there is none."""

    @property
    def type_in_words(self) -> str:
        """The type in words: ``list of int`` for ``tuple[int, ...]``, ``mechanism`` for ``MechanismSpec``."""
        plain = re.sub(r"tuple\[(\w+), \.\.\.\]", r"list of \1", self.type.replace(" | ", " or "))
        return plain.replace("MechanismSpec", "mechanism")

    def readable(self, value: Any) -> str:
        """A value of the option for readers. Positions are written as "position 0", since a bare 0 reads as
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
        parity: "even" or "odd" if the number must be so. An even number must be at least 2, an odd one at least 1.
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
        # Only the shared options are keyword-only, and sorting puts False before True.
        fields = sorted(dataclasses.fields(cls), key=lambda field: field.kw_only is True)
        return tuple(
            OptionInfo(
                field.name,
                _type_name(hints[field.name]),
                field.default,
                *(field.metadata.get(key, "") for key in ("help", "unit", "detail_of")),
            )
            for field in fields
        )

    @classmethod
    def build(cls, mechanism: str, values: dict[str, Any]) -> Options:
        """Check names, types and values of the options given to ``mechanism``, and return the options.

        Raises:
            OptionError: a name is unknown (the message has the nearest one), or a value has a wrong type or is not
                permitted.
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
        choices = limits.get("choices")
        parity = limits.get("parity", "")
        lowest, example_of_parity = PARITIES.get(parity, (None, None))
        least = limits.get("least")
        most = limits.get("most", LARGEST)

        # A value that messages suggest: the default, if it is a number other than 0.
        example: Any = 4
        if type(field.default) in (int, float) and field.default != 0:
            example = field.default
        elif field.default is None and limits.get("unit") == "tokens":
            example = 512

        for entry in value if isinstance(value, tuple) else (value,):
            requirement = ""
            if isinstance(entry, str) and choices and entry not in choices:
                requirement = f"one of: {', '.join(choices)}.{nearest(entry, choices)}"
            elif isinstance(entry, int | float):
                if lowest is not None and (entry < lowest or entry % 2 != lowest % 2):
                    requirement = f"{parity} and at least {lowest}; for example {name}={example_of_parity}."
                elif least is not None and entry < least:
                    requirement = f"at least {least}; for example {name}={example}."
                elif abs(entry) > most:
                    requirement = f"at most {most}."
                    if example == field.default:
                        requirement = f"at most {most}; for example {name}={example}."
            if requirement:
                raise OptionError(
                    f"Option {name!r} of mechanism {mechanism!r} is {entry!r}, but must be {requirement}"
                )

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
        """Whether queries attend to means of several keys. Score terms for single keys then cannot be added."""
        return False

    def sample_length(self) -> int:
        """A text length, in tokens, for which a mechanism with these options can be built."""
        return 64

    def min_heads(self) -> int:
        """The smallest number of heads with which a test runs every part of these options."""
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
    # Only MechanismSpec, which this module does not know, has read_all.
    if origin is tuple and hasattr(args[0], "read_all"):
        return args[0].read_all(mechanism, name, value)
    if hasattr(hint, "read_all"):
        return hint.read(mechanism, name, value)
    try:
        if origin is tuple:
            return tuple(_coerce(mechanism, name, entry, args[0]) for entry in _entries(value))
        return _read(value, hint)
    except (TypeError, ValueError, OverflowError):
        requirement = _type_name(hint)
        if hint is float:
            requirement = "a finite number"
        elif hint is str:
            requirement = "a string"
        elif args and args[0] is int:
            requirement = f"whole numbers joined by +, for example {name}=1"
        raise OptionError(
            f"Option {name!r} of mechanism {mechanism!r} is {value!r}, but must be {requirement}."
        ) from None


def _entries(value: Any) -> Iterable[Any]:
    """The entries of an option with a list: ``value`` is a list, one number, or a text such as ``0+7``."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return [value]
    if isinstance(value, str):
        if value.lower() == "none":
            return []
        value = value.replace("+", ",").split(",")
    return [entry for entry in value if entry != ""]


def _read(value: Any, kind: type) -> Any:
    """Convert ``value`` to ``kind``, which is bool, int, float or str.

    Raises ValueError, TypeError or OverflowError if that is impossible; :func:`_coerce` replaces them by a message.
    """
    if kind is bool and isinstance(value, str):
        value = _WORDS.get(value.lower())
    if isinstance(value, bool) != (kind is bool):  # True is no number here, though Python counts it as an int
        raise ValueError
    if kind is str and not isinstance(value, str):
        raise ValueError
    if kind is int and isinstance(value, str) and not _WHOLE.fullmatch(value.strip()):
        raise ValueError
    read = kind(value)
    if isinstance(value, float) and read != value:  # a fraction given as an int, or NaN
        raise ValueError
    if kind is float and not math.isfinite(read):
        raise ValueError
    return read


NUMBERED = re.compile(r"\s*(\d[\d\s,-]*)([=:])(.*)", re.DOTALL | re.ASCII)
"""Layer numbers, "=" before a mechanism or ":" before options, and the rest of the text."""
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
"""Matches a text that starts with the name of an option."""
LETTER = re.compile(r"\s*[A-Za-z_\[]")
"""Matches a text that starts with the name of a mechanism, which may be in brackets."""


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
    """``window:window=256+strided:stride=64`` as a list of choices.

    Lists of numbers contain plus signs, too: text after a plus sign that starts with a digit continues such a list.
    """
    return [read_choice(piece) for piece in _joined(split(_unwrapped(text), "+"), "+", LETTER.match)]


def read_layer_choices(text: str) -> tuple[list[dict[str, Any]], dict[int, dict[str, Any]]]:
    """Read LAYERS: the choices that layers take in turn, and a mapping of layer numbers to choices.

    If a layer number occurs twice, the later choice replaces the earlier one.
    """
    turns: list[dict[str, Any]] = []
    numbered: dict[int, dict[str, Any]] = {}
    for piece in split(text, ";"):
        if match := NUMBERED.fullmatch(piece):
            numbers, sign, text_of_choice = match.groups()
            choice = read_choice(text_of_choice) if sign == "=" else read_options(text_of_choice)
            numbered |= dict.fromkeys(read_numbers(numbers), choice)
        else:
            # an option belongs to the mechanism before it; any other text begins a mechanism
            choices = _joined(split(piece, ","), ",", lambda part: not OPTION.match(part))
            turns += map(read_choice, choices)
    if not turns and not numbered:
        raise OptionError(f"{text!r} names no mechanism; write for example 0-5=window:window=64;6-11=full.")
    return turns, numbered


def read_towers(text: str) -> dict[str, dict[str, Any]]:
    """``text=window:window=64,dilation=2,vision=full`` as
    ``{"text": {"mechanism": "window", …}, "vision": {"mechanism": "full"}}``.

    A piece between commas that begins with the name of a tower and "=" starts a tower. Any other piece is an option
    of the tower before it. A value that contains commas or "=" goes in brackets:
    ``vision=full:layers=[0-5=window:window=64;6-11=window2d]``.

    Raises:
        OptionError: a tower is unknown, is given twice or has no mechanism, or the text names no tower.
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
        elif not towers or len(split(value, "=")) > 1:  # the value of an option has no "=" outside brackets
            if not sign:
                raise OptionError(f"{piece.strip()!r} names no tower; {example}.")
            raise OptionError(
                f"{name!r} is not a tower; expected {', '.join(TOWERS)}; {example}.{nearest(name, TOWERS)}"
            )
        else:
            last_tower = next(reversed(towers))
            towers[last_tower] += f",{piece}"
    if not towers:
        raise OptionError(f"{text!r} names no tower; {example}.")
    return {name: read_choice(value) for name, value in towers.items()}


def read_numbers(numbers: str) -> list[int]:
    """``0-3,7`` as ``[0, 1, 2, 3, 7]``."""

    def is_number(text: str) -> bool:
        return text.isascii() and text.isdigit() and len(text) < 20 and int(text) <= HIGHEST_LAYER

    listed: list[int] = []
    for part in numbers.split(","):
        first, dash, last = (piece.strip() for piece in part.partition("-"))
        if not is_number(first) or (dash and (not is_number(last) or int(last) < int(first))):
            raise OptionError(f"{numbers.strip()!r} must be numbers from 0 to {HIGHEST_LAYER}, for example 0-3,7.")
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
    """Write the members of a union as text, joined by plus signs."""
    return "+".join(write_choice(choice) for choice in values)


def write_numbers(numbers: Sequence[int]) -> str:
    """``[0, 1, 2, 3, 7]`` as ``0-3,7``."""
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs(numbers))


def runs(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Ranges ``(first, last)`` of consecutive numbers. ``numbers`` must ascend."""
    spans: list[tuple[int, int]] = []
    for number in numbers:
        if spans and number <= spans[-1][1] + 1:
            spans[-1] = spans[-1][0], number
        else:
            spans.append((number, number))
    return spans


def split(text: str, sign: str) -> list[str]:
    """The non-empty pieces of ``text`` between occurrences of ``sign`` outside brackets."""
    pieces = [""]
    depth = 0  # of brackets
    for letter in text:
        if letter == "[":
            depth += 1
        elif letter == "]":
            depth -= 1
        if letter == sign and depth == 0:
            pieces.append("")
        else:
            pieces[-1] += letter
    return [piece for piece in pieces if piece.strip()]


def _joined(pieces: list[str], sign: str, begins: Any) -> list[str]:
    """Join ``pieces`` to entries. A piece for which ``begins(piece)`` is false continues the entry before it."""
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
