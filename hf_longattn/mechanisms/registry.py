"""The one registry of mechanisms: register, list, describe, build."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Mapping
from functools import cache, lru_cache
from numbers import Integral
from typing import Any, TypeVar

import torch
from torch import nn

from ..errors import OptionError, UnknownMechanismError, nearest
from ..naming import load_module, module_names
from .base import Mechanism, reset
from .options import LARGEST, RELATIVE, OptionInfo, Options

_REGISTRY: dict[str, type[Mechanism]] = {}
COMPOSED = {
    "based": "layers of two in turn: layers='taylor:feature_dim=16,window:window=64', or --config based",
    "lolcats": "'hybrid' with features=hedgehog, or --config lolcats",
    "streaming_llm": "'window' with num_sinks=4, or --config streaming-llm",
}
"""Names of the field for what is a setting of mechanisms."""
PROTOTYPE_WIDTH = 64
"""Head width and length of a prototype."""
PROTOTYPES = 256
"""How many prototypes are kept."""
M = TypeVar("M", bound=type[Mechanism])


@dataclasses.dataclass(frozen=True)
class MechanismInfo:
    """What a user wants to know of a mechanism before choosing it."""

    name: str
    summary: str
    paper: str
    engine: str
    cost: str
    causal: bool | str
    trains: bool
    takes_globals: bool
    exact_when: str
    options: tuple[OptionInfo, ...]


def register_mechanism(name: str) -> Callable[[M], M]:
    """Class decorator that makes a :class:`Mechanism` available under ``name`` everywhere (functional API, configs, CLI, tests).

    Raises:
        OptionError: when another class already has the name.
    """

    def register(cls: M) -> M:
        known = _REGISTRY.get(name)
        if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise OptionError(
                f"A mechanism named {name!r} is already registered by {known.__module__}.{known.__qualname__}; choose another name."
            )
        cls.name = name
        _REGISTRY[name] = cls
        return cls

    return register


@cache
def _discover() -> None:
    """Import every module of this room once: a new mechanism is one new file."""
    for name in module_names("mechanisms"):
        load_module("mechanisms", name)


def mechanism_class(name: str) -> type[Mechanism]:
    """The class registered under ``name``.

    Raises:
        UnknownMechanismError: naming the nearest registered mechanism.
    """
    _discover()
    if not isinstance(name, str):
        raise UnknownMechanismError(f"A mechanism is named {name!r}, but must be a name, for example 'longformer'.")
    if name not in _REGISTRY:
        if name in COMPOSED:
            raise UnknownMechanismError(f"{name!r} is no mechanism, but {COMPOSED[name]}.")
        raise UnknownMechanismError(
            f"Unknown mechanism {name!r}; the registered ones are: {', '.join(sorted(_REGISTRY))}.{nearest(name, _REGISTRY)}"
        )
    return _REGISTRY[name]


def list_mechanisms(causal: bool | None = None, engine: str | None = None) -> list[str]:
    """Names of the registered mechanisms, optionally only those with a causal (bidirectional) form or of one engine."""
    _discover()
    return sorted(
        name
        for name, cls in _REGISTRY.items()
        if (causal is None or cls.causal in ("both", causal)) and (engine is None or cls.engine == engine)
    )


def mechanism_info(name: str) -> MechanismInfo:
    """Summary, paper, cost, options … of one mechanism."""
    cls = mechanism_class(name)
    fields = {f.name: getattr(cls, f.name) for f in dataclasses.fields(MechanismInfo) if f.name not in ("name", "options")}
    options = tuple(info for info in cls.options_type.infos() if cls.takes_score_mod or info.name != RELATIVE)
    return MechanismInfo(name=name, options=options, **fields)


def check_options(name: str, options: dict[str, Any]) -> Options:
    """Validate options for a mechanism without building it; raises the errors of :func:`build_mechanism`."""
    cls = mechanism_class(name)
    built = cls.options_type.build(name, options)
    if built.relative is not None and not cls.takes_score_mod:
        raise OptionError(
            f"Mechanism {name!r} has no scores that relative positions could be added to, but relative={built.relative!r} was asked for; "
            "leave it out, or choose a mechanism of softmax attention such as 'window'."
        )
    return built


def prototype(name: str, options: str | Mapping[str, Any]) -> Mechanism:
    """A small instance of a mechanism with these options (or their JSON), to ask what it needs: its causal form, its reach, its state.

    It has no storage: its tensors are on the meta device.
    """
    return _prototype(name, options if isinstance(options, str) else json.dumps(options, sort_keys=True))


@lru_cache(PROTOTYPES)
def _prototype(name: str, options: str) -> Mechanism:
    chosen = check_options(name, json.loads(options))
    heads = chosen.min_heads()
    with torch.device("meta"):
        return mechanism_class(name)(heads, PROTOTYPE_WIDTH, heads * PROTOTYPE_WIDTH, chosen.sample_length(), chosen)


def packing_mechanisms(causal: bool) -> list[str]:
    """Names of the mechanisms that take packed documents, with their default options."""
    return [name for name in list_mechanisms(causal) if prototype(name, {}).takes_packed]


def build_mechanism(
    name: str, *, num_heads: int, head_dim: int, hidden_size: int | None = None, max_length: int | None = None, **options: Any
) -> Mechanism:
    """Build one layer's mechanism.

    Args:
        name: a registered name.
        num_heads: query heads of the layer.
        head_dim: width of a head.
        hidden_size: width of the model; ``num_heads * head_dim`` by default.
        max_length: longest input in tokens, for mechanisms whose parameters depend on it.
        options: the mechanism's own options, see :func:`mechanism_info`.

    Raises:
        UnknownMechanismError, OptionError: one sentence with the nearest valid name.
    """
    return mechanism_from(name, options, num_heads=num_heads, head_dim=head_dim, hidden_size=hidden_size, max_length=max_length)


def mechanism_from(
    name: str,
    options: Mapping[str, Any],
    *,
    num_heads: int,
    head_dim: int,
    hidden_size: int | None = None,
    max_length: int | None = None,
    generator: torch.Generator | None = None,
) -> Mechanism:
    """:func:`build_mechanism` with the options in a mapping, as configurations keep them: ``max_length`` may be one of them as well.

    generator: what random parameters are drawn from, on its device; torch's own generator, which is the default, is then left alone.
    """
    cls, checked = mechanism_class(name), check_options(name, dict(options))
    for field, value in {"num_heads": num_heads, "head_dim": head_dim, "hidden_size": hidden_size, "max_length": max_length}.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, Integral) or not 1 <= int(value) <= LARGEST):
            raise OptionError(f"Mechanism {name!r} cannot be built with {field}={value!r}; it must be a whole number of at least 1.")
    width = hidden_size or num_heads * head_dim
    if generator is None:
        return cls(num_heads, head_dim, width, max_length, checked)
    with torch.device("meta"):
        built = cls(num_heads, head_dim, width, max_length, checked)
    if has_tensors(built):
        reset(built.to_empty(device=generator.device), generator)
    return built


def has_tensors(module: nn.Module) -> bool:
    """Whether a module has any parameters or buffers."""
    return next(itertools.chain(module.parameters(), module.buffers()), None) is not None
