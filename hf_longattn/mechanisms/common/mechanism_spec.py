"""Option values that name a mechanism with its options."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from ...errors import OptionError
from .base import Mechanism
from .choice_text import read_choice, read_members, write_choice
from .options import EXACT_LENGTH, RELATIVE, Options
from .registry import check_options, mechanism_class


@dataclasses.dataclass(frozen=True)
class MechanismSpec:
    """A registered mechanism and its checked options.

    Read from ``{"mechanism": "window", "window": 256}`` or ``"window:window=256"``. Written in the first form, with the given options only.
    """

    mechanism: str
    options: Options
    named_options: tuple[str, ...] = dataclasses.field(default=(), compare=False)

    @classmethod
    def read(cls, owner: str, name: str, value: Any) -> MechanismSpec:
        """Parse one member. Error messages name the option ``name`` of mechanism ``owner``."""
        if isinstance(value, cls):
            return value
        values = read_choice(value) if isinstance(value, str) else value
        if not isinstance(values, Mapping) or not isinstance(values.get("mechanism"), str):
            raise OptionError(
                f"Option {name!r} of mechanism {owner!r} holds {value!r}, but each entry must name a mechanism, for example "
                "{'mechanism': 'window', 'window': 256} or 'window:window=256'."
            )
        values = dict(values)
        mechanism = mechanism_class(values.pop("mechanism")).name
        options = check_options(mechanism, values)
        for option, what in {RELATIVE: "Relative positions belong", EXACT_LENGTH: "Texts attended in full belong"}.items():
            if setting := getattr(options, option):
                raise OptionError(
                    f"{what} to a whole layer, but a member of mechanism {owner!r} has {option}={setting!r}; "
                    f"give {option} to {owner!r} itself."
                )
        return cls(mechanism, options, tuple(values))

    @classmethod
    def read_all(cls, owner: str, name: str, value: Any) -> tuple[MechanismSpec, ...]:
        """Parse a list of members, or a string: ``window:window=256+strided:stride=64`` or JSON."""
        if isinstance(value, str):
            if not value.lstrip().startswith(("[{", "[ {", "{")):
                return tuple(cls.read(owner, name, member) for member in read_members(value))
            try:
                value = json.loads(value)
            except ValueError as error:
                raise OptionError(f"Option {name!r} of mechanism {owner!r} is {value!r}, which is not valid JSON: {error}.") from None
        if isinstance(value, Mapping | MechanismSpec):
            value = [value]
        if not isinstance(value, list | tuple):
            raise OptionError(f"Option {name!r} of mechanism {owner!r} is {value!r}, but must be a list of mechanisms.")
        return tuple(cls.read(owner, name, member) for member in value)

    def to_dict(self) -> dict[str, Any]:
        """JSON form; :meth:`read` turns it into an equal member."""
        values = self.options.to_dict()
        return {"mechanism": self.mechanism, **{name: values.get(name) for name in self.named_options}}

    def __str__(self) -> str:
        return write_choice(self.to_dict())

    def build(self, num_heads: int, head_dim: int, hidden_size: int, max_length: int | None) -> Mechanism:
        return mechanism_class(self.mechanism)(num_heads, head_dim, hidden_size, max_length, self.options)
