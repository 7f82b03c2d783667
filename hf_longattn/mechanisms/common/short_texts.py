"""Checks of a call's form, causal or bidirectional, and full attention for short texts (option ``exact_length``)."""

from __future__ import annotations

from typing import Any

from ...errors import OptionError


def full_of(mechanism: Any) -> Any:
    """Full attention for sequences of at most ``exact_length`` tokens; ``None`` without that option."""
    if not mechanism._full or mechanism.is_cross_attention or mechanism.ignores_exact_length:
        return None
    full = mechanism._full[0]
    if full.layer != mechanism.layer:
        full.layer = mechanism.layer
    return full


def exact_length_of(mechanism: Any) -> int:
    """Maximum length for full attention, in tokens; 0 without the option ``exact_length``."""
    return mechanism.options.exact_length or 0


def for_length(mechanism: Any, length: int, causal: bool = False) -> Any:
    """Full attention up to ``exact_length`` tokens, ``mechanism`` for longer inputs and always when causal."""
    full = None if causal else full_of(mechanism)
    return mechanism if full is None or length > exact_length_of(mechanism) else full


def why_not_in_full(mechanism: Any) -> str:
    """Why ``mechanism`` cannot use full attention for short texts; empty if it can."""
    reasons = {
        "exists in the causal form only": mechanism.causal is True,
        "reads a grid": mechanism.reads_grid,
        "passes memory tokens from segment to segment": mechanism.traits.recursion is not None,
        "counts padding with these options": not mechanism.handling.ignores_padding,
        "adds relative positions to the scores": mechanism.relative is not None,
    }
    return next((why for why, holds in reasons.items() if holds), "")


def form_problem(mechanism: Any, causal: bool, where: str) -> OptionError | None:
    """The error if ``mechanism`` lacks the form that ``where`` needs, causal or bidirectional; ``None`` if it has it."""
    if mechanism.causal in ("both", causal):
        return None
    if mechanism.traits.why_one_form:
        return OptionError(mechanism.traits.why_one_form.format(where=where))
    chosen = "" if type(mechanism).causal == mechanism.causal else " with these options"
    return OptionError(
        f"Mechanism {mechanism.name!r} exists only with causal={mechanism.causal}{chosen}, but {where} needs causal={causal}; "
        f"choose {'others, or ' if chosen else ''}one of hf_longattn.list_mechanisms(causal={causal})."
    )


def check_form(mechanism: Any, causal: bool, where: str) -> None:
    """Raise :class:`OptionError` if these options lack the form that ``where`` needs, causal or bidirectional."""
    if problem := form_problem(mechanism, causal, where):
        raise problem
    if causal and full_of(mechanism) is not None:
        raise OptionError(
            f"exact_length={mechanism.options.exact_length} is for attention in both directions, but {where} is causal; leave it out: "
            f"a causal window of {mechanism.options.exact_length} tokens already sees all of shorter texts."
        )
