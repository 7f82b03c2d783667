"""A mechanism with options as the value of an option, for mechanisms that are made of others."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from ..errors import OptionError
from .base import Mechanism
from .notation import read_choice, read_members, read_numbers, read_rules, write_choice, write_numbers
from .options import Options
from .registry import check_options, mechanism_class


@dataclasses.dataclass(frozen=True)
class Choice:
    """A registered mechanism and its checked options.

    Read from ``{"mechanism": "window", "window": 256}`` or ``"window:window=256"``; written as the former, with the given options only.
    """

    mechanism: str
    options: Options
    given: tuple[str, ...] = dataclasses.field(default=(), compare=False)

    @classmethod
    def read(cls, owner: str, name: str, value: Any) -> Choice:
        """One choice; ``owner`` and ``name`` say whose option it is, for messages."""
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
    def _of(cls, values: dict[str, Any], owner: str) -> Choice:
        mechanism = values.pop("mechanism")
        options = check_options(mechanism, values)
        if options.relative is not None:
            raise OptionError(
                f"Relative positions stand on a whole layer, but a member of mechanism {owner!r} has relative={options.relative!r}; "
                f"give relative to {owner!r} itself."
            )
        return cls(mechanism, options, tuple(values))

    @classmethod
    def read_all(cls, owner: str, name: str, value: Any) -> tuple[Choice, ...]:
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
                raise OptionError(f"Option {name!r} of mechanism {owner!r} is {value!r}, which is no JSON: {error}.") from None
        if isinstance(value, Mapping | Choice):
            return [value]
        if not isinstance(value, list | tuple):
            raise OptionError(f"Option {name!r} of mechanism {owner!r} is {value!r}, but must be a list of mechanisms.")
        return list(value)

    def to_dict(self) -> dict[str, Any]:
        """JSON form, from which :meth:`read` makes an equal choice."""
        values = self.options.to_dict()
        return {"mechanism": self.mechanism, **{name: values.get(name) for name in self.given}}

    def __str__(self) -> str:
        return write_choice(self.to_dict())

    def build(self, num_heads: int, head_dim: int, hidden_size: int, max_length: int | None) -> Mechanism:
        """The mechanism as a module."""
        return mechanism_class(self.mechanism)(num_heads, head_dim, hidden_size, max_length, self.options)


@dataclasses.dataclass(frozen=True)
class HeadChoice(Choice):
    """A choice for the heads ``heads``, or in turn for those that no other choice names (``None``)."""

    heads: tuple[int, ...] | None = None

    @classmethod
    def _of(cls, values: dict[str, Any], owner: str) -> Choice:
        heads = values.pop("heads", None)
        try:
            numbers = None if heads is None else tuple(read_numbers(heads))
        except OptionError as error:
            raise OptionError(f"A choice of mechanism {owner!r} is for heads {heads!r}: {error}") from None
        base = Choice._of(values, owner)
        return cls(base.mechanism, base.options, base.given, numbers)

    @classmethod
    def read_all(cls, owner: str, name: str, value: Any) -> tuple[Choice, ...]:
        """A list of choices, or its text (``0-5=window:window=64;6-11=full``; ``window,full`` takes turns; or JSON)."""

        def rules(text: str) -> list[dict[str, Any]]:
            return [values if where is None else {"heads": where, **values} for where, values in read_rules(text)]

        return tuple(cls.read(owner, name, one) for one in cls._listed(owner, name, value, rules))

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() if self.heads is None else {"heads": write_numbers(self.heads), **super().to_dict()}

    def __str__(self) -> str:
        return super().__str__()
