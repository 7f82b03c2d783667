"""Names and options of all mechanisms, without importing them. Typos are rejected before torch is imported."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from .declarations import declared, declared_class
from .errors import UnknownMechanismError, nearest
from .naming import module_names
from .options import RELATIVE

PACKAGE = __name__.rpartition(".")[0]
REGISTRY = f"{PACKAGE}.mechanisms.common.registry"
COMPOSED = {
    "based": "layers of two in turn: layers='taylor:feature_dim=16,window:window=64', or --config based",
    "lolcats": "'hybrid' with features=hedgehog, or --config lolcats",
    "streaming_llm": "'window' with num_sinks=4, or --config streaming-llm",
}
"""Name from the literature for settings of other mechanisms -> what to write instead."""


def unknown_mechanism(name: str, known: Collection[str]) -> UnknownMechanismError:
    """The error for a name that is not among the ``known`` ones."""
    if name in COMPOSED:
        return UnknownMechanismError(f"{name!r} is not a mechanism; use {COMPOSED[name]}.")
    plain, _, options = name.partition(":")
    if plain in known:
        return UnknownMechanismError(f"{name!r} names options, too; give {plain!r} and {options!r} apart (--option), or all as layers.")
    return UnknownMechanismError(f"Unknown mechanism {name!r}; the registered ones are: {', '.join(sorted(known))}.{nearest(name, known)}")


class Listed(NamedTuple):
    """One line of the list of mechanisms."""

    name: str
    summary: str
    cost: str
    causal: bool | str


def list_early() -> list[Listed]:
    """The list of mechanisms, without importing them.

    It is empty if a mechanism may be missing from it: a new file, or one registered at run time.
    """
    entries = declared()["mechanisms"]
    if REGISTRY in sys.modules or [*entries] != module_names("mechanisms"):
        return []
    return [Listed(name, entry["summary"], entry["cost"], entry["causal"]) for name, entry in entries.items()]


def is_option(name: str) -> bool:
    """Whether some mechanism has an option of this name."""
    kinds = (declared_class(entry["options"]) for entry in declared()["mechanisms"].values())
    return any(field.name == name for kind in kinds for field in dataclasses.fields(kind))


def check_early(name: str, options: Mapping[str, Any]) -> None:
    """Refuse an unknown mechanism or option, or a wrong value, without importing the mechanism.

    The mechanism itself checks relative positions and runs :meth:`~hf_longattn.options.Options.check`. Once mechanisms have been imported,
    nothing is checked here, since new ones may be registered by then.

    Raises:
        UnknownMechanismError, OptionError: one sentence with the nearest valid name.
    """
    if REGISTRY in sys.modules:
        return
    names = module_names("mechanisms")
    if name not in names:
        raise unknown_mechanism(name, names)
    if (entry := declared()["mechanisms"].get(name)) is not None:
        declared_class(entry["options"]).build(name, {option: value for option, value in options.items() if option != RELATIVE})
