"""What a mechanism that is made of others has from its members."""

from __future__ import annotations

from ..errors import OptionError
from .base import Mechanism


def adopt(whole: Mechanism, members: list[Mechanism]) -> None:
    """Give ``whole`` the forms, the training and the global tokens of its members.

    Raises:
        OptionError: one member has the causal form only and another the bidirectional one only, or relative positions were asked for
            and one has no scores to which they could be added.
    """
    forms = {member.causal for member in members} - {"both"}
    if len(forms) > 1:
        causal, plain = (next(m.name for m in members if m.causal is form) for form in (True, False))
        raise OptionError(
            f"Mechanism {whole.name!r} joins {causal!r}, which exists in the causal form only, with {plain!r}, which has none; "
            "leave one of them out."
        )
    scoreless = next((member.name for member in members if not member.takes_score_mod), None)
    if scoreless is not None and whole.relative is not None:
        raise OptionError(
            f"Mechanism {whole.name!r} was given relative={whole.options.relative!r}, but its member {scoreless!r} has no scores to which "
            "relative positions could be added; leave one of them out."
        )
    # Of this instance, in place of the class's own.
    whole.__dict__["takes_score_mod"] = scoreless is None
    whole.__dict__["causal"] = forms.pop() if forms else "both"
    whole.__dict__["trains"] = any(member.trains for member in members)
    whole.__dict__["takes_globals"] = any(member.takes_globals for member in members)


def furthest(members: list[Mechanism], causal: bool) -> int | None:
    """The longest reach among ``members``."""
    reaches = [member.reach(causal) for member in members]
    return None if None in reaches else max(reach for reach in reaches if reach is not None)
