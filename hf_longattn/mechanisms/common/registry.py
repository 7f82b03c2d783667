"""The registry of mechanisms: register, list, describe, build. Also the type of options that hold a mechanism with
its options."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import cache, lru_cache
from numbers import Integral
from typing import Any, TypeVar

import torch
from torch import nn

from ...engines.token_grid import Grid
from ...errors import OptionError, nearest
from ...names import load_module, module_names
from ...positions.relative import relative_class
from .base import LayerSizes, Mechanism
from .capabilities import About, Capabilities
from .options import (
    EXACT_LENGTH,
    FULL_DECODING,
    LARGEST,
    MAX_LENGTH,
    RELATIVE,
    RESERVED,
    OptionInfo,
    Options,
    read_choice,
    read_members,
    write_choice,
)
from .shared_options import why_not_in_full

COMPOSED = {
    "based": "layers of two in turn: layers='taylor:feature_dim=16,window:window=64', or --config based",
    "lolcats": "'hybrid' with features=hedgehog, or --config lolcats",
    "streaming_llm": "'window' with num_sinks=4, or --config streaming-llm",
}
"""Names from the literature for configurations of these mechanisms -> what to type instead."""
_REGISTRY: dict[str, type[Mechanism]] = {}
PROTOTYPE_WIDTH = 64
"""Head size of prototypes."""
EXAMPLE_LENGTH = 1024
"""Length up to which the options in :attr:`MechanismInfo.exact_when` equal full attention, in tokens."""
EXAMPLE_GRID = Grid((64, 64))
"""Grid on which :func:`mechanism_info` names options equal to full attention."""
CACHED_PROTOTYPES = 256
"""Maximum entries in each of two caches: prototypes, and mechanisms that :func:`hf_longattn.attend` builds by name."""
M = TypeVar("M", bound=type[Mechanism])


@dataclasses.dataclass(frozen=True)
class MechanismInfo:
    """Facts about a mechanism, for choosing one.

    Attributes:
        name: its registered name.
        summary: one line on which keys a query attends to.
        paper: its source, with section or equation.
        when: good use cases; empty if not stated.
        engine: the engine that runs it.
        cost: how its time grows; N is the number of tokens, D the size of a head.
        causal: True or False, or "both" if it has both forms.
        trains: whether it has parameters that need training.
        takes_globals: whether it takes ``global_mask``.
        exact_when: "always", "never", or options with which it equals full attention up to a length or on a grid.
        needs_grid: whether it compares coordinates on a grid, such as an image's patches, and therefore cannot read
            texts.
        options: its options, with type, default, unit and meaning.
    """

    name: str
    summary: str
    paper: str
    when: str
    engine: str
    cost: str
    causal: bool | str
    trains: bool
    takes_globals: bool
    exact_when: str
    needs_grid: bool
    options: tuple[OptionInfo, ...]


def register_mechanism(name: str) -> Callable[[M], M]:
    """Class decorator that makes a :class:`Mechanism` available under ``name`` everywhere (functional API, configs,
    CLI, tests).

    Raises:
        OptionError: the class lacks a method, an option lacks a help text, or the name is taken. The message has file
            and line.
    """

    def register(cls: M) -> M:
        _check_class(name, cls)
        _check_options_class(name, cls._options_type)
        cls.name = name
        _REGISTRY[name] = cls
        _prototype.cache_clear()
        without_tensors.cache_clear()
        return cls

    return register


def defined_at(value: Any) -> str:
    """``file:line`` of a class; its dotted name if the file is unknown."""
    try:
        return f"{inspect.getsourcefile(value)}:{inspect.getsourcelines(value)[1]}"
    except (OSError, TypeError):  # typed at a prompt
        return f"{value.__module__}.{value.__qualname__}"


def _check_class(name: str, cls: Any) -> None:
    """Raise :class:`OptionError` for a class without a method, a taken name, or a capability set as an attribute."""
    known = _REGISTRY.get(name)

    def here() -> str:  # reads the source
        return f"Mechanism {name!r} of {defined_at(cls)}"

    if not (isinstance(cls, type) and issubclass(cls, Mechanism)):
        raise OptionError(f"{here()} is not a class derived from Mechanism; derive it from one.")
    if missing := sorted(getattr(cls, "__abstractmethods__", ())):
        # the classes that declare these methods
        bases = sorted({parent.__name__ for parent in cls.__mro__ for method in missing if method in vars(parent)})
        methods = ", ".join(f"{method}()" for method in missing)
        raise OptionError(
            f"{here()} lacks {methods}; define {'it' if len(missing) == 1 else 'them'} as {' and '.join(bases)} "
            "describes."
        )
    if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
        both = f"{defined_at(known)} and {defined_at(cls)}"
        raise OptionError(f"Two files register the mechanism {name!r}: {both}; rename one of them.")
    subclasses = cls.__mro__[: cls.__mro__.index(Mechanism)]  # the class and its bases, up to Mechanism
    attributes = {attribute for base in subclasses for attribute in vars(base)}
    holders = (
        ("about = About", About.__dataclass_fields__),
        ("capabilities = Mechanism.capabilities.but", Capabilities.__dataclass_fields__),
    )
    for holder, fields in holders:
        if misplaced := sorted(attributes.intersection(fields)):
            raise OptionError(
                f"{here()} sets {misplaced[0]!r} as an attribute, but it belongs in {holder.partition(' ')[0]}; write "
                f"{holder}({misplaced[0]}=...)."
            )


def _check_options_class(name: str, options: Any) -> None:
    """Raise :class:`OptionError` unless ``options`` is a frozen dataclass, its options have help texts, and none has a
    reserved name."""
    frozen = isinstance(options, type) and getattr(vars(options).get("__dataclass_params__"), "frozen", False)
    if not (frozen and issubclass(options, Options)):
        raise OptionError(
            f"The options of mechanism {name!r} at {defined_at(options)} are not a frozen dataclass derived from "
            "Options; write @dataclasses.dataclass(frozen=True) and class MyOptions(Options)."
        )
    if taken := sorted(RESERVED.intersection(options.__dataclass_fields__)):
        raise OptionError(
            f"Option {taken[0]!r} of mechanism {name!r} at {defined_at(options)} has the name of an argument of "
            "build_mechanism or attend, so that calls would set the argument instead; choose another name."
        )
    if bare := next((info.name for info in options.infos() if not info.help), None):
        raise OptionError(
            f"Option {bare!r} of mechanism {name!r} at {defined_at(options)} has no help text; "
            f'write {bare} = option(default, "what it means", "its unit").'
        )


@cache
def _discover() -> None:
    """Import every module of hf_longattn/mechanisms once. A new mechanism is registered by its file alone."""
    for name in module_names("mechanisms"):
        module = load_module("mechanisms", name)
        if name not in _REGISTRY:
            raise OptionError(
                f"{module.__file__}:1 registers no mechanism {name!r}; give the file the name of its mechanism."
            )


def mechanism_class(name: str) -> type[Mechanism]:
    """The class registered under ``name``.

    Raises:
        OptionError: no mechanism has this name; the message has the nearest one.
    """
    _discover()
    if not isinstance(name, str):
        raise OptionError(
            f"The mechanism is {name!r}, but must be a name, for example 'longformer', or a module from "
            "build_mechanism."
        )
    if name not in _REGISTRY:
        if name in COMPOSED:
            raise OptionError(f"{name!r} is not a mechanism; use {COMPOSED[name]}.")
        plain, _, options = name.partition(":")
        if plain in _REGISTRY:
            raise OptionError(
                f"{name!r} is a name with options; give the name {plain!r} and the options {options!r} separately "
                "(--option), or the whole text as layers (--layers)."
            )
        raise OptionError(
            f"Unknown mechanism {name!r}; choose from {', '.join(sorted(_REGISTRY))}.{nearest(name, _REGISTRY)}"
        )
    return _REGISTRY[name]


def options_of(name: str) -> Mapping[str, object]:
    """The dataclass fields of a mechanism's options, by name."""
    return mechanism_class(name)._options_type.__dataclass_fields__


def list_mechanisms(causal: bool | None = None, engine: str | None = None, grid: bool | None = None) -> list[str]:
    """Sorted names of the registered mechanisms. ``causal=True`` lists mechanisms with a causal form, False those with
    a bidirectional form. ``grid=True`` lists mechanisms for grids, False those for texts. ``engine`` selects by engine
    name. ``None`` does not filter."""
    _discover()
    return sorted(
        name
        for name, cls in _REGISTRY.items()
        if (causal is None or cls.causal in ("both", causal))
        and (engine is None or cls.about.engine == engine)
        and (grid is None or cls.capabilities.needs_grid == grid)
    )


def mechanism_info(name: str) -> MechanismInfo:
    """Summary, paper, cost, options … of one mechanism.

    Raises:
        OptionError: no mechanism has this name; the message has the nearest name.
    """
    cls = mechanism_class(name)
    takes_exact_length = (
        not cls.capabilities.needs_grid
        and cls.causal is not True
        and prototype(name, {}).capabilities.recursion is None
    )
    # every mechanism inherits these options, but some refuse them
    taken = {RELATIVE: cls.capabilities.takes_score_mod, EXACT_LENGTH: takes_exact_length}
    options = tuple(info for info in cls._options_type.infos() if taken.get(info.name, True))
    about = {field: getattr(cls.about, field) for field in ("summary", "paper", "when", "engine", "cost")}
    flags = {flag: getattr(cls.capabilities, flag) for flag in ("trains", "takes_globals", "needs_grid")}
    return MechanismInfo(name, **about, causal=cls.causal, **flags, exact_when=_exact_when(cls), options=options)


def input_in_words(name: str) -> str:
    """The input that a mechanism reads, in words: a text, a text or an image, or a grid."""
    capabilities = mechanism_class(name).capabilities
    if capabilities.needs_grid:
        return "a grid: the patches of an image, or `attend(..., grid=(height, width), prefix=1)`"
    return "a text; an image" if capabilities.images == "any" else "a text"


def _exact_when(cls: type[Mechanism]) -> str:
    """:attr:`MechanismInfo.exact_when`: the options with which a mechanism equals full attention."""
    covering = cls.about.covering
    if covering is None:
        return "never"
    if cls.capabilities.needs_grid:
        return f"with {_in_words(covering(EXAMPLE_GRID))}, on {EXAMPLE_GRID}"
    forms = [causal for causal in (False, True) if cls.causal in ("both", causal)]
    options = [covering(EXAMPLE_LENGTH, causal) for causal in forms]
    if not options[0]:
        return "always"
    texts = [_in_words(values) for values in options]
    description = f"with {texts[0]}"
    if len(set(texts)) > 1:
        description += f" (causal: {texts[1]})"
    if options[0] != covering(2 * EXAMPLE_LENGTH, forms[0]):  # the options depend on the length
        description += f", up to {EXAMPLE_LENGTH:,} tokens"
    return description


def _in_words(options: Mapping[str, Any]) -> str:
    """Options as they are typed on a command line."""
    return ", ".join(f"{name}={value}" for name, value in options.items())


def check_options(name: str, options: dict[str, Any]) -> Options:
    """Validate options for a mechanism without building it.

    Raises:
        OptionError: :func:`build_mechanism` would refuse the options, too.
    """
    cls = mechanism_class(name)
    built = cls._options_type.build(name, options)
    if built.relative is None:
        return built
    relative = relative_class(built.relative)
    if not cls.capabilities.takes_score_mod:
        raise OptionError(
            f"Mechanism {name!r} has no scores that relative positions could be added to, but "
            f"relative={built.relative!r} was given; leave it out, or choose a mechanism of softmax attention such as "
            "'window'."
        )
    if relative.reads_keys and built.pools_keys():
        raise OptionError(
            f"Relative positions {built.relative!r} add a number for each key, but mechanism {name!r} with these "
            "options attends to means of keys; choose for example relative='alibi' or 'shaw', or mechanism 'window'."
        )
    if relative.counts_tokens and not issubclass(cls, mechanism_class("full")):
        raise OptionError(
            f"relative={built.relative!r} needs mechanism 'full', but the mechanism is {name!r}; choose 'full', or "
            "leave relative out if the layer sees no further than the model was trained for."
        )
    return built


def prototype(name: str, options: str | Mapping[str, Any]) -> Mechanism:
    """A small instance of a mechanism with these options (or their JSON), to look up its form, locality and
    capabilities.

    Its tensors are on the meta device, without storage.
    """
    return _prototype(name, options if isinstance(options, str) else json.dumps(options, sort_keys=True))


def _add_full(mechanism: Mechanism) -> None:
    """Give the mechanism a full attention, to which it hands short texts (``exact_length``) or single queries
    (``full_decoding``)."""
    length = mechanism.options.exact_length
    if length and (why := why_not_in_full(mechanism)):
        raise OptionError(
            f"Mechanism {mechanism.name!r} {why}, so it cannot give short texts full attention as another model does; "
            "leave exact_length out, or set exact_length=0."
        )
    if length or getattr(mechanism.options, FULL_DECODING, None):
        sizes = mechanism.sizes._replace(max_length=length or 0)
        mechanism._full = (mechanism_class("full")(sizes, Options()),)


@lru_cache(CACHED_PROTOTYPES)
def _prototype(name: str, options: str) -> Mechanism:
    values = json.loads(options)
    chosen = check_options(name, values)
    heads, length = chosen.min_heads(), chosen.sample_length()
    with torch.device("meta"):
        return mechanism_from(name, values, num_heads=heads, head_dim=PROTOTYPE_WIDTH, max_length=length)


def build_mechanism(
    name: str,
    *,
    num_heads: int,
    head_dim: int,
    hidden_size: int | None = None,
    max_length: int | None = None,
    **options: Any,
) -> Mechanism:
    """Build one layer's mechanism.

    Args:
        name: a registered name.
        num_heads: query heads of the layer.
        head_dim: width of a head.
        hidden_size: width of the model; ``num_heads * head_dim`` by default.
        max_length: longest input in tokens, for mechanisms whose parameters depend on it. It sets the option of this
            name if there is one.
        options: the mechanism's own options, see :func:`mechanism_info`.

    Raises:
        OptionError: a name or value is invalid; the message has the nearest valid name.
    """
    if max_length is not None and MAX_LENGTH in options_of(name):
        options[MAX_LENGTH], max_length = max_length, None
    return mechanism_from(
        name, options, num_heads=num_heads, head_dim=head_dim, hidden_size=hidden_size, max_length=max_length
    )


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
    """:func:`build_mechanism` with a mapping of options, as in configurations. The mapping may also hold
    ``max_length``.

    generator: source of random parameters, which are created on its device; torch's default generator if ``None``.
    """
    cls, checked = mechanism_class(name), check_options(name, dict(options))
    for field, value in {
        "num_heads": num_heads,
        "head_dim": head_dim,
        "hidden_size": hidden_size,
        "max_length": max_length,
    }.items():
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, Integral) or not 1 <= int(value) <= LARGEST
        ):
            raise OptionError(
                f"Mechanism {name!r} cannot be built with {field}={value!r}; it must be a whole number, 1 to "
                f"{LARGEST:,}."
            )
    width = hidden_size or num_heads * head_dim
    # Parameters from a generator are built without storage, and drawn by reset_parameters below.
    with torch.device("meta") if generator is not None else nullcontext():
        built = cls(LayerSizes(num_heads, head_dim, width, max_length), checked)
    _add_full(built)
    if generator is not None and has_tensors(built):
        with generator.device:  # reset also creates its intermediate tensors there
            built.to_empty(device=generator.device).reset_parameters(generator)
    return built


@lru_cache(CACHED_PROTOTYPES, typed=True)
def without_tensors(
    name: str,
    num_heads: int,
    head_dim: int,
    hidden_size: int | None,
    max_length: int,
    /,
    **options: bool | float | str | None,
) -> Mechanism | None:
    """A mechanism in eval mode, cached and shared between calls. ``None`` if it has parameters or buffers."""
    with torch.device("meta"):
        built = mechanism_from(
            name, options, num_heads=num_heads, head_dim=head_dim, hidden_size=hidden_size, max_length=max_length
        )
    return None if has_tensors(built) else built.eval()


def has_tensors(module: nn.Module) -> bool:
    """Whether the module has a parameter or buffer."""
    return next(itertools.chain(module.parameters(), module.buffers()), None) is not None


def why_not_exported(mechanism: Mechanism) -> str | None:
    """Why ``torch.export`` cannot export a mechanism, as a sentence; ``None`` if it can."""
    if mechanism.capabilities.exports:
        return None
    exportable = ", ".join(name for name in list_mechanisms() if mechanism_class(name).capabilities.exports)
    return (
        f"Mechanism {mechanism.name!r} with these options cannot be exported as a graph, but {exportable} without "
        "dilation can; convert the source again, for example with --mechanism longformer, or run the model in PyTorch."
    )


@dataclasses.dataclass(frozen=True)
class MechanismSpec:
    """A registered mechanism and its checked options.

    Read from ``{"mechanism": "window", "window": 256}`` or ``"window:window=256"``. Written in the first form, with
    the given options only, whose names are ``named_options``.
    """

    mechanism: str
    options: Options
    named_options: tuple[str, ...] = dataclasses.field(default=(), compare=False)

    @classmethod
    def read(cls, owner: str, name: str, value: Any) -> MechanismSpec:
        """Parse one member. Error messages name the option ``name`` of mechanism ``owner``."""
        values = read_choice(value) if isinstance(value, str) else value
        if not isinstance(values, Mapping) or not isinstance(values.get("mechanism"), str):
            raise OptionError(
                f"Option {name!r} of mechanism {owner!r} holds {value!r}, but each entry must name a mechanism, for "
                "example {'mechanism': 'window', 'window': 256} or 'window:window=256'."
            )
        values = dict(values)
        mechanism = mechanism_class(values.pop("mechanism")).name
        options = check_options(mechanism, values)
        for option in (RELATIVE, EXACT_LENGTH, FULL_DECODING):
            if setting := getattr(options, option, None):
                raise OptionError(
                    f"Option {option!r} is for a whole layer, but a member of mechanism {owner!r} has "
                    f"{option}={setting!r}; leave it out, or give {option} to {owner!r} itself, if {owner!r} takes it."
                )
        return cls(mechanism, options, tuple(values))

    @classmethod
    def read_all(cls, owner: str, name: str, value: Any) -> tuple[MechanismSpec, ...]:
        """Parse a list of members, or a string such as ``window:window=256+strided:stride=64``."""
        if isinstance(value, str):
            value = read_members(value)
        if isinstance(value, Mapping):
            value = [value]
        if not isinstance(value, list | tuple):
            raise OptionError(
                f"Option {name!r} of mechanism {owner!r} is {value!r}, but must be a list of mechanisms."
            )
        return tuple(cls.read(owner, name, member) for member in value)

    def to_dict(self) -> dict[str, Any]:
        """JSON form; :meth:`read` turns it into an equal member."""
        values = self.options.to_dict()
        return {"mechanism": self.mechanism, **{name: values.get(name) for name in self.named_options}}

    def __str__(self) -> str:
        return write_choice(self.to_dict())

    def build(self, sizes: LayerSizes) -> Mechanism:
        return mechanism_class(self.mechanism)(sizes, self.options)
