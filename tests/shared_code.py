"""What two cells of a table share: the code that a family's or a mechanism's cell runs, for
``every_case(..., code=...)``."""

from __future__ import annotations

from collections.abc import Hashable

from hf_longattn.families import FAMILIES
from hf_longattn.mechanisms.common.capabilities import Stateful
from hf_longattn.mechanisms.common.registry import mechanism_class, mechanism_info


def code_of_family(base: str, *rest: object) -> Hashable:
    """Where a family's positions, stacks, inputs and classes come from; one with code of its own is like no other."""
    one = FAMILIES[base]
    return (
        one.rope,
        one.relative,
        len(one.position_tables),
        one.two_stacks,
        one.attention,
        bool(one.inner),
        type(one.spec),
        bool(one.spec.further),
        one.mixin,
    )


def kind_of_family(base: str, *rest: object) -> Hashable:
    """Which parts a family has, whatever their code: for tests that follow another one of every
    :func:`code_of_family`."""
    one = FAMILIES[base]
    parts = (one.rope, one.relative, one.position_tables, one.two_stacks, one.inner, one.mixin)
    return type(one.spec), *map(bool, parts)


def code_of_form(name: str, causal: bool | None = None, *rest: object) -> Hashable:
    """A mechanism's engine and form, and how it decodes."""
    capabilities = mechanism_class(name).capabilities
    stateful = issubclass(mechanism_class(name), Stateful)
    return (
        mechanism_info(name).engine,
        causal,
        stateful,
        capabilities.recursion is not None,
        capabilities.takes_globals,
    )


def engine_of_form(name: str, causal: bool | None = None, *rest: object) -> Hashable:
    """A mechanism's engine, and how it decodes, in either form: for tests that follow another one of every form."""
    return code_of_form(name)
