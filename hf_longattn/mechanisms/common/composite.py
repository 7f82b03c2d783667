"""Mechanisms made of other mechanisms: their option values and their base class."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from ...choice_text import read_choice, read_members, read_numbers, read_rules, write_choice, write_numbers
from ...errors import OptionError
from ...options import EXACT_LENGTH, RELATIVE, Options
from .base import Mechanism
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
        return cls._of(dict(values), owner)

    @classmethod
    def _of(cls, values: dict[str, Any], owner: str) -> MechanismSpec:
        mechanism = mechanism_class(values.pop("mechanism")).name
        options = check_options(mechanism, values)
        for option, what in {RELATIVE: "Relative positions belong", EXACT_LENGTH: "Texts attended in full belong"}.items():
            if value := getattr(options, option):
                raise OptionError(
                    f"{what} to a whole layer, but a member of mechanism {owner!r} has {option}={value!r}; "
                    f"give {option} to {owner!r} itself."
                )
        return cls(mechanism, options, tuple(values))

    @classmethod
    def read_all(cls, owner: str, name: str, value: Any) -> tuple[MechanismSpec, ...]:
        """Parse a list of members, or a string: ``window:window=256+strided:stride=64`` or JSON."""
        return tuple(cls.read(owner, name, member) for member in cls._listed(owner, name, value, read_members))

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
        """JSON form; :meth:`read` turns it into an equal member."""
        values = self.options.to_dict()
        return {"mechanism": self.mechanism, **{name: values.get(name) for name in self.named_options}}

    def __str__(self) -> str:
        return write_choice(self.to_dict())

    def build(self, num_heads: int, head_dim: int, hidden_size: int, max_length: int | None) -> Mechanism:
        return mechanism_class(self.mechanism)(num_heads, head_dim, hidden_size, max_length, self.options)


@dataclasses.dataclass(frozen=True)
class HeadSpec(MechanismSpec):
    """A member for some ``heads``. Members with ``heads=None`` take turns over the remaining heads."""

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
        """Parse a list, JSON, or a string: ``0-5=window:window=64;6-11=full``. With ``window,full``, members take turns over the heads."""

        def rules(text: str) -> list[dict[str, Any]]:
            return [values if where is None else {"heads": where, **values} for where, values in read_rules(text)]

        return tuple(cls.read(owner, name, rule) for rule in cls._listed(owner, name, value, rules))

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() if self.heads is None else {"heads": write_numbers(self.heads), **super().to_dict()}


class Composite(Mechanism):
    """A mechanism made of other mechanisms, its ``members``. Its forms (causal, bidirectional) and its traits follow from theirs."""

    members: nn.ModuleList

    def enter(self, layer: int) -> None:
        for member in self.mechanisms:
            member.layer = layer

    def adopt(self, members: Iterable[Mechanism]) -> None:
        """Set the members; called once by ``__init__``.

        Raises:
            OptionError: one of these is true:
                - some members are causal only, others bidirectional only
                - a member counts padding
                - the option ``relative`` is set, and a member has no scores
        """
        self.members = nn.ModuleList(members)
        forms = {member.causal for member in self.mechanisms} - {"both"}
        if len(forms) > 1:
            causal, plain = (next(m.name for m in self.mechanisms if m.causal is form) for form in (True, False))
            raise OptionError(
                f"Mechanism {self.name!r} joins {causal!r}, which exists in the causal form only, with {plain!r}, which has no causal "
                "form; leave one of them out."
            )
        scoreless = next((member.name for member in self.mechanisms if not member.traits.takes_score_mod), None)
        if scoreless is not None and self.relative is not None:
            raise OptionError(
                f"Mechanism {self.name!r} was given relative={self.options.relative!r}, but its member {scoreless!r} has no scores that "
                "relative positions could be added to; leave one of them out."
            )
        counting = next((member.name for member in self.mechanisms if not member.traits.ignores_padding), None)
        if counting is not None:
            raise OptionError(
                f"With these options, mechanism {counting!r} counts padding, which a member of {self.name!r} cannot do; leave the options "
                f"out, or use {counting!r} for the whole layer."
            )
        self.causal = forms.pop() if forms else "both"
        traits = [member.traits for member in self.mechanisms]
        needs = {member.needs_whole_batch for member in traits}
        self.traits = self.traits.but(
            trains=any(member.trains for member in traits),
            takes_globals=any(member.takes_globals for member in traits),
            token_rule=next((member.token_rule for member in traits if member.token_rule is not None), None),
            takes_score_mod=scoreless is None,
            takes_sinks=all(member.takes_sinks for member in traits),
            needs_whole_batch=next(when for when in ("always", "in training", "never") if when in needs),
            detached_beyond=min((member.detached_beyond for member in traits if member.detached_beyond is not None), default=None),
            fits_activations=any(member.fits_activations for member in traits),
            exports=all(member.exports for member in traits),
            shared_by_layers=tuple(f"members.{i}.{name}" for i, member in enumerate(traits) for name in member.shared_by_layers),
        )

    @property
    def mechanisms(self) -> list[Mechanism]:
        return list(self.members)  # type: ignore[arg-type]
