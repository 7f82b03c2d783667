"""Mechanisms made of other mechanisms: the notation for members, their option values, and the base class.

The one-line notation for command lines, recipes and short configurations:

    CHOICE   window                     window:window=256,dilation=2
    MEMBERS  window:window=256+strided:stride=64
    RULES    0-5=window:window=64;6-11=full        numbered: layers or heads, counted from 0
             0-5:window=64;11:mechanism=full       numbered, changing options of the default mechanism
             window:window=256,window:window=256,full      or  2*window:window=256,full       not numbered: repeated in turn

A value that contains these signs goes in brackets: ``union:of=[window:window=64,dilation=2+strided]``. Everything is read into plain
mappings such as ``{"mechanism": "window", "window": "256"}``; the options of the mechanisms check and convert the values.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

from torch import nn

from ...errors import OptionError
from .base import Mechanism
from .options import Options
from .registry import check_options, mechanism_class
from .token_rules import TokenRule

NUMBERED = re.compile(r"\s*(\d[\d\s,-]*)([=:])(.*)", re.DOTALL | re.ASCII)
REPEATED = re.compile(r"\s*(\d+)\s*\*(.*)", re.DOTALL | re.ASCII)
HIGHEST_LAYER = 9999
"""Largest number of a layer or head: above any model's, and it bounds what a typo can allocate."""
OPTION = re.compile(r"\s*\w+\s*=")
LETTER = re.compile(r"\s*[A-Za-z_\[]")


def read_choice(text: str) -> dict[str, Any]:
    """``window:window=256`` as ``{"mechanism": "window", "window": "256"}``."""
    name, _, options = _unwrapped(text).partition(":")
    if not name.strip() or OPTION.match(name):
        raise OptionError(f"{text!r} must read MECHANISM[:NAME=VALUE,...], for example window:window=256.")
    return {"mechanism": name.strip(), **read_options(options)}


def read_options(text: str) -> dict[str, Any]:
    """``window=256,dilation=2`` as a mapping of text to text; lists are joined by plus signs, as in ``global_tokens=0+7``."""
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
    """``window:window=256+strided:stride=64`` as a list of choices; a piece that starts with a digit continues the list before it."""
    return [read_choice(piece) for piece in _joined(split(_unwrapped(text), "+"), "+", LETTER.match)]


def read_rules(text: str) -> list[tuple[list[int] | None, dict[str, Any]]]:
    """Rules in order: the numbers that each applies to (``None``: in turn) and its mapping."""
    rules: list[tuple[list[int] | None, dict[str, Any]]] = []
    for piece in split(text, ";"):
        if numbered := NUMBERED.fullmatch(piece):
            where, sign, what = numbered.groups()
            rules.append((read_numbers(where), read_choice(what) if sign == "=" else read_options(what)))
            continue
        for choice in _joined(split(piece, ","), ",", lambda part: not OPTION.match(part)):
            times, choice = repeated.groups() if (repeated := REPEATED.fullmatch(choice)) else ("1", choice)
            if len(times) > 4:
                raise OptionError(
                    f"{piece.strip()!r} repeats a mechanism more than {HIGHEST_LAYER} times, but no model has so many layers."
                )
            rules += [(None, read_choice(choice)) for _ in range(int(times))]
    if not rules:
        raise OptionError(f"{text!r} names no mechanism; write for example 0-5=window:window=64;6-11=full.")
    return rules


def read_numbers(where: str | int | Sequence[int]) -> list[int]:
    """``0-3,7`` as ``[0, 1, 2, 3, 7]``."""
    if not isinstance(where, str):
        numbers: list[Any] = [where] if isinstance(where, int) else list(where) if isinstance(where, Sequence) else []
        if numbers and all(isinstance(number, int) and not isinstance(number, bool) and 0 <= number <= HIGHEST_LAYER for number in numbers):
            return numbers
        raise OptionError(f"{where!r} must be numbers from 0 to {HIGHEST_LAYER}, for example '0-3,7'.")
    listed: list[int] = []
    for part in where.split(","):
        first, dash, last = (piece.strip() for piece in part.partition("-"))
        if not _is_number(first) or (dash and (not _is_number(last) or int(last) < int(first))):
            raise OptionError(f"{where.strip()!r} must be numbers from 0 to {HIGHEST_LAYER}, for example 0-3,7.")
        listed += range(int(first), int(last or first) + 1)
    return listed


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 20 and int(text) <= HIGHEST_LAYER


def write_choice(values: Mapping[str, Any]) -> str:
    """A mapping with ``mechanism``, and perhaps ``heads``, as text that reads back as the same mapping."""
    options = {name: value for name, value in values.items() if name not in ("mechanism", "heads")}
    written = ",".join(f"{name}={_written(value)}" for name, value in options.items())
    where = f"{values['heads']}=" if "heads" in values else ""
    return where + values["mechanism"] + (f":{written}" if written else "")


def write_choices(values: Sequence[Mapping[str, Any]]) -> str:
    """Members of a union; rules if one of them has ``heads``."""
    return (";" if any("heads" in choice for choice in values) else "+").join(write_choice(choice) for choice in values)


def write_numbers(numbers: Sequence[int]) -> str:
    """``[0, 1, 2, 3, 7]`` as ``0-3,7``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def split(text: str, sign: str) -> list[str]:
    """The non-empty pieces of ``text`` between occurrences of ``sign`` outside brackets."""
    pieces, depth = [""], 0
    for letter in text:
        depth += (letter in "[{") - (letter in "]}")
        if letter == sign and depth == 0:
            pieces.append("")
        else:
            pieces[-1] += letter
    return [piece for piece in pieces if piece.strip()]


def _joined(pieces: list[str], sign: str, begins: Any) -> list[str]:
    """Append every piece that does not begin a new entry to the one before it."""
    entries: list[str] = []
    for piece in pieces:
        if entries and not begins(piece):
            entries[-1] += sign + piece
        else:
            entries.append(piece)
    return entries


def _unwrapped(text: str) -> str:
    """``text`` without a pair of brackets around all of it, unless it is JSON."""
    text = text.strip()
    return text[1:-1] if text.startswith("[") and text.endswith("]") and not text[1:].lstrip().startswith(("{", "]")) else text


def _written(value: Any) -> str:
    if isinstance(value, list | tuple):
        nested = any(isinstance(entry, Mapping) for entry in value)
        return f"[{write_choices(value)}]" if nested else "+".join(map(str, value))
    return str(value)


@dataclasses.dataclass(frozen=True)
class MechanismSpec:
    """A registered mechanism and its checked options.

    Read from ``{"mechanism": "window", "window": 256}`` or ``"window:window=256"``; written as the former, with only the options given.
    """

    mechanism: str
    options: Options
    named_options: tuple[str, ...] = dataclasses.field(default=(), compare=False)

    @classmethod
    def read(cls, owner: str, name: str, value: Any) -> MechanismSpec:
        """One choice; error messages name the option ``name`` of mechanism ``owner``."""
        if isinstance(value, cls):
            return value
        values = read_choice(value) if isinstance(value, str) else value
        if not isinstance(values, Mapping) or not isinstance(values.get("mechanism"), str):
            raise OptionError(
                f"Option {name!r} of mechanism {owner!r} holds {value!r}, but each entry must name a mechanism, for example "
                "{'mechanism': 'window', 'window': 256} or 'window:window=256'."
            )
        return cls._of(dict(values), owner)

    @classmethod
    def _of(cls, values: dict[str, Any], owner: str) -> MechanismSpec:
        mechanism = values.pop("mechanism")
        options = check_options(mechanism, values)
        if options.relative is not None:
            raise OptionError(
                f"Relative positions belong to a whole layer, but a member of mechanism {owner!r} has relative={options.relative!r}; "
                f"give relative to {owner!r} itself."
            )
        return cls(mechanism, options, tuple(values))

    @classmethod
    def read_all(cls, owner: str, name: str, value: Any) -> tuple[MechanismSpec, ...]:
        """A list of choices, or its text (``window:window=256+strided:stride=64``, or JSON)."""
        return tuple(cls.read(owner, name, one) for one in cls._listed(owner, name, value, read_members))

    @staticmethod
    def _listed(owner: str, name: str, value: Any, read: Any) -> list[Any]:
        if isinstance(value, str):
            if not value.lstrip().startswith(("[{", "[ {", "{")):
                return read(value)
            try:
                value = json.loads(value)
            except ValueError as error:
                raise OptionError(f"Option {name!r} of mechanism {owner!r} is {value!r}, which is not valid JSON: {error}.") from None
        if isinstance(value, Mapping | MechanismSpec):
            return [value]
        if not isinstance(value, list | tuple):
            raise OptionError(f"Option {name!r} of mechanism {owner!r} is {value!r}, but must be a list of mechanisms.")
        return list(value)

    def to_dict(self) -> dict[str, Any]:
        """JSON form, from which :meth:`read` makes an equal choice."""
        values = self.options.to_dict()
        return {"mechanism": self.mechanism, **{name: values.get(name) for name in self.named_options}}

    def __str__(self) -> str:
        return write_choice(self.to_dict())

    def build(self, num_heads: int, head_dim: int, hidden_size: int, max_length: int | None) -> Mechanism:
        """The mechanism as a module."""
        return mechanism_class(self.mechanism)(num_heads, head_dim, hidden_size, max_length, self.options)


@dataclasses.dataclass(frozen=True)
class HeadSpec(MechanismSpec):
    """A choice for the heads ``heads``; with ``None``, it takes turns over the heads that no choice names."""

    heads: tuple[int, ...] | None = None

    @classmethod
    def _of(cls, values: dict[str, Any], owner: str) -> MechanismSpec:
        heads = values.pop("heads", None)
        try:
            numbers = None if heads is None else tuple(read_numbers(heads))
        except OptionError as error:
            raise OptionError(f"A choice of mechanism {owner!r} is for heads {heads!r}: {error}") from None
        base = MechanismSpec._of(values, owner)
        return cls(base.mechanism, base.options, base.named_options, numbers)

    @classmethod
    def read_all(cls, owner: str, name: str, value: Any) -> tuple[MechanismSpec, ...]:
        """A list of choices, or its text (``0-5=window:window=64;6-11=full``, ``window,full`` to take turns, or JSON)."""

        def rules(text: str) -> list[dict[str, Any]]:
            return [values if where is None else {"heads": where, **values} for where, values in read_rules(text)]

        return tuple(cls.read(owner, name, one) for one in cls._listed(owner, name, value, rules))

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() if self.heads is None else {"heads": write_numbers(self.heads), **super().to_dict()}


class Composite(Mechanism):
    """A mechanism made of ``members``, from which its forms, training, global tokens and reach follow."""

    members: nn.ModuleList
    some_heads: list[Mechanism] | None = None
    """The members of some heads, in a part that :meth:`of_heads` made."""
    _layer = 0

    @property
    def layer(self) -> int:
        """Index of the layer, which seeded members depend on."""
        return self._layer

    @layer.setter
    def layer(self, index: int) -> None:
        self._layer = index
        for member in self.mechanisms:
            member.layer = index

    def adopt(self, members: Iterable[Mechanism]) -> None:
        """Set the members; called once by ``__init__``.

        Raises:
            OptionError: one member is causal only and another bidirectional only, one counts padding, or relative positions were requested
                and one member has no scores to add them to.
        """
        self.members = nn.ModuleList(members)
        forms = {member.causal for member in self.mechanisms} - {"both"}
        if len(forms) > 1:
            causal, plain = (next(m.name for m in self.mechanisms if m.causal is form) for form in (True, False))
            raise OptionError(
                f"Mechanism {self.name!r} joins {causal!r}, which exists in the causal form only, with {plain!r}, which has no causal "
                "form; leave one of them out."
            )
        scoreless = next((member.name for member in self.mechanisms if not member.takes_score_mod), None)
        if scoreless is not None and self.relative is not None:
            raise OptionError(
                f"Mechanism {self.name!r} was given relative={self.options.relative!r}, but its member {scoreless!r} has no scores that "
                "relative positions could be added to; leave one of them out."
            )
        counting = next((member.name for member in self.mechanisms if not member.ignores_padding), None)
        if counting is not None:
            raise OptionError(
                f"Mechanism {counting!r} counts padding with these options, as the implementation that it reproduces does, which single "
                f"members of {self.name!r} cannot; leave them out, or use it for the whole layer."
            )
        self.takes_score_mod = scoreless is None
        self.causal = forms.pop() if forms else "both"
        self.trains = any(member.trains for member in self.mechanisms)
        self.takes_globals = any(member.takes_globals for member in self.mechanisms)
        self.fits_activations = any(member.fits_activations for member in self.mechanisms)
        if not all(member.exports for member in self.mechanisms):
            self.exports = self.exports_definition = False
        self.shared_by_layers = tuple(f"members.{i}.{name}" for i, member in enumerate(self.mechanisms) for name in member.shared_by_layers)

    def of_heads(self, first: int, last: int) -> Self:
        part = super().of_heads(first, last)
        part.some_heads = [member.of_heads(first, last) for member in self.mechanisms]
        return part

    @property
    def mechanisms(self) -> list[Mechanism]:
        return self.some_heads or list(self.members)  # type: ignore[arg-type]

    @property
    def position_dependent(self) -> bool:  # type: ignore[override]
        return any(member.position_dependent for member in self.mechanisms)

    @property
    def needs_whole_batch(self) -> bool:  # type: ignore[override]
        return any(member.needs_whole_batch for member in self.mechanisms)

    @property
    def token_rule(self) -> TokenRule | None:
        return next((rule for member in self.mechanisms if (rule := member.token_rule) is not None), None)

    def reach(self, causal: bool = True) -> int | None:
        reaches = [member.reach(causal) for member in self.mechanisms]
        return None if None in reaches else max(reach for reach in reaches if reach is not None)
