"""What a mechanism that is made of others has from its members."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from ..errors import OptionError
from .base import Mechanism
from .token_rules import TokenRule


class Composite(Mechanism):
    """A mechanism made of ``members``: their forms, their training, their global tokens and the longest of their reaches are its own."""

    members: nn.ModuleList
    _layer = 0

    @property
    def layer(self) -> int:
        """Index of the layer, by which seeded members differ from those of other layers."""
        return self._layer

    @layer.setter
    def layer(self, index: int) -> None:
        self._layer = index
        for member in self.mechanisms:
            member.layer = index

    def adopt(self, members: Iterable[Mechanism]) -> None:
        """Called once by ``__init__``.

        Raises:
            OptionError: one member has the causal form only and another the bidirectional one only, or relative positions were asked for
                and one has no scores to which they could be added.
        """
        self.members = nn.ModuleList(members)
        forms = {member.causal for member in self.mechanisms} - {"both"}
        if len(forms) > 1:
            causal, plain = (next(m.name for m in self.mechanisms if m.causal is form) for form in (True, False))
            raise OptionError(
                f"Mechanism {self.name!r} joins {causal!r}, which exists in the causal form only, with {plain!r}, which has none; "
                "leave one of them out."
            )
        scoreless = next((member.name for member in self.mechanisms if not member.takes_score_mod), None)
        if scoreless is not None and self.relative is not None:
            raise OptionError(
                f"Mechanism {self.name!r} was given relative={self.options.relative!r}, but its member {scoreless!r} has no scores to "
                "which relative positions could be added; leave one of them out."
            )
        # Of this instance, in place of the class's own.
        self.__dict__["takes_score_mod"] = scoreless is None
        self.__dict__["causal"] = forms.pop() if forms else "both"
        self.__dict__["trains"] = any(member.trains for member in self.mechanisms)
        self.__dict__["takes_globals"] = any(member.takes_globals for member in self.mechanisms)

    @property
    def mechanisms(self) -> list[Mechanism]:
        return list(self.members)  # type: ignore[arg-type]

    @property
    def takes_packed(self) -> bool:  # type: ignore[override]
        return all(member.takes_packed for member in self.mechanisms)

    @property
    def token_rule(self) -> TokenRule | None:
        return next((rule for member in self.mechanisms if (rule := member.token_rule) is not None), None)

    def reach(self, causal: bool = True) -> int | None:
        reaches = [member.reach(causal) for member in self.mechanisms]
        return None if None in reaches else max(reach for reach in reaches if reach is not None)
