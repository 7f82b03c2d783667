"""LongAttentionConfig: which mechanism runs in which layer, with its options."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from .errors import OptionError
from .mechanisms import Mechanism
from .mechanisms.common.options import HIGHEST_LAYER, IN_TURN, read_choice, read_layer_choices
from .mechanisms.common.registry import check_options, mechanism_class, prototype
from .mechanisms.common.shared_options import check_form

Layers = str | Sequence[Any] | Mapping[Any, Any]
"""Accepted types of ``layers``; see :class:`LongAttentionConfig`."""


class LongAttentionConfig:
    """A default mechanism, mechanisms that layers use in turn, and overrides for single layers.

        LongAttentionConfig("longformer", window=512)
        LongAttentionConfig("window", window=512, layers={0: {"window": 64}, 11: {"mechanism": "full"}})
        LongAttentionConfig("window", layers="0-5:window=64;6-10:window=256;11=full")
        LongAttentionConfig(layers="window:window=512,window:window=512,full")     # two windowed layers, one full,
        and again

    A layer without a mechanism uses the default mechanism with its options, and may override some of them. A layer
    with a mechanism starts from that mechanism's defaults. ``config.json`` stores the configuration as
    ``long_attention``.

    Args:
        mechanism: the default mechanism. If not given, the first one that layers take in turn, otherwise
            ``longformer``.
        layers: overrides by layer number (``{0: {...}}``), a list to take in turn (``[{...}, {...}]``), both
            (``{"in_turn": [...], 11: {...}}``), or all of it in one line (see
            :mod:`hf_longattn.mechanisms.common.options`).
        options: options of the default mechanism.

    Raises:
        OptionError: for unknown names (the nearest valid one is offered) and impossible values.
    """

    def __init__(self, /, mechanism: str | None = None, layers: Layers | None = None, **options: Any) -> None:
        turns, overrides = _parse_layers(layers)
        if mechanism is None:
            mechanism = next((str(turn["mechanism"]) for turn in turns if "mechanism" in turn), "longformer")
        self.mechanism = mechanism_class(mechanism).name
        self.options = _checked_options(self.mechanism, options)
        self.turns = [_override(turn, self.mechanism) for turn in turns]
        self.layers: dict[int, dict[str, Any]] = {}
        for index, override in overrides.items():
            self.layers[index] = _override(override, self._without_override(index)[0])

    def _without_override(self, index: int) -> tuple[str, dict[str, Any]]:
        turn = dict(self.turns[index % len(self.turns)]) if self.turns else {}
        if "mechanism" in turn:
            return turn.pop("mechanism"), turn
        return self.mechanism, {**self.options, **turn}

    def for_layer(self, index: int) -> tuple[str, dict[str, Any]]:
        """The mechanism's name and the explicit options of layer ``index``. Other options have the mechanism's
        defaults."""
        override = dict(self.layers.get(index, {}))
        if "mechanism" in override:
            return override.pop("mechanism"), override
        name, options = self._without_override(index)
        return name, {**options, **override}

    def prototypes(self, layers: Iterable[int]) -> list[Mechanism]:
        """The mechanisms of these layers, without tensors, for looking up their form, locality and capabilities."""
        return [prototype(*self.for_layer(layer)) for layer in layers]

    def with_option(
        self, option: str, value: Any, where: Callable[[str, int | None], bool] = lambda mechanism, layer: True
    ) -> LongAttentionConfig:
        """A copy with the option set in the default and in every choice that names a mechanism.

        Args:
            where: function of a mechanism's name and the overridden layer (or ``None``): whether this choice gets the
                option.
        """

        def changed(choice: dict[str, Any], layer: int | None = None) -> dict[str, Any]:
            return {**choice, option: value} if "mechanism" in choice and where(choice["mechanism"], layer) else choice

        layers: dict[Any, Any] = {layer: changed(choice, layer) for layer, choice in self.layers.items()}
        layers[IN_TURN] = [changed(turn) for turn in self.turns]
        return LongAttentionConfig(**changed({"mechanism": self.mechanism, **self.options}), layers=layers)

    def check_layers(self, num_layers: int) -> None:
        """Raise :class:`OptionError` when an override names a layer that the model does not have."""
        beyond = sorted(i for i in self.layers if i >= num_layers)
        if beyond:
            raise OptionError(
                f"long_attention overrides layer {beyond[0]}, but the model has {num_layers} layers: use 0 to "
                f"{num_layers - 1}."
            )

    def check_forms(self, num_layers: int, causal: bool) -> None:
        """Raise :class:`OptionError` if a layer's mechanism lacks the causal form (bidirectional form if ``causal`` is
        False). Overrides of layers from ``num_layers`` on are refused, too."""
        self.check_layers(num_layers)
        for index, mechanism in enumerate(self.prototypes(range(num_layers))):
            check_form(mechanism, causal, f"layer {index}")

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form; ``from_dict`` gives an equal configuration back."""
        turns = {IN_TURN: [dict(turn) for turn in self.turns]} if self.turns else {}
        layers = {**turns, **{str(index): dict(self.layers[index]) for index in sorted(self.layers)}}
        return {"mechanism": self.mechanism, **self.options, **({"layers": layers} if layers else {})}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any] | LongAttentionConfig | None) -> LongAttentionConfig:
        """Build from a mapping. A configuration is returned unchanged; ``None`` gives the default."""
        if values is None:
            return cls()
        if isinstance(values, LongAttentionConfig):
            return values
        if not isinstance(values, Mapping):
            raise OptionError(
                f"long_attention is {values!r}, but must be a mapping such as {{'mechanism': 'longformer', 'window': "
                "512}."
            )
        return cls(**values)

    def table(self, num_layers: int) -> str:
        """Table with one line per run of equal layers, with all options, defaults included. Options without effect are
        left out."""
        rows: list[tuple[int, int, str]] = []
        for index in range(num_layers):
            name, options = self.for_layer(index)
            full = check_options(name, options)
            infos, values = {info.name: info for info in full.infos()}, full.to_dict()
            in_force = [
                key for key, value in values.items() if value is not None and values.get(infos[key].detail_of, True)
            ]
            text = f"{name:<14}" + "  ".join(f"{key}={infos[key].readable(values[key])}" for key in in_force)
            if rows and rows[-1][2] == text:
                rows[-1] = (rows[-1][0], index, text)
            else:
                rows.append((index, index, text))
        lines = [f"{f'{first}-{last}' if last > first else first!s:<8}{text}".rstrip() for first, last, text in rows]
        return "\n".join(["layers  mechanism     options", *lines])

    def __repr__(self) -> str:
        return f"LongAttentionConfig(**{self.to_dict()!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LongAttentionConfig) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash(repr(self.to_dict()))


def _checked_options(mechanism: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Validate options and return them in JSON types. Defaults stay implicit."""
    built = check_options(mechanism, dict(options)).to_dict()
    return {name: built.get(name) for name in options}


def _override(override: Any, default: str) -> dict[str, Any]:
    """One checked override. ``default``: the mechanism if the override does not name one."""
    if not isinstance(override, Mapping):
        raise OptionError(
            f"A layer of long_attention is {override!r}, but must be a mapping such as {{'mechanism': 'window', "
            "'window': 256}."
        )
    values = dict(override)
    name = mechanism_class(values.pop("mechanism", default)).name
    named = {"mechanism": name} if "mechanism" in override else {}
    return {**named, **_checked_options(name, values)}


def _parse_layers(layers: Layers | None) -> tuple[list[Any], dict[int, Any]]:
    """Parse ``layers`` in any form: choices to take in turn, and overrides by layer number. Later overrides replace
    earlier ones."""
    if isinstance(layers, str):
        return read_layer_choices(layers)
    if isinstance(layers, Mapping):
        rest = dict(layers)
        turns = rest.pop(IN_TURN, [])
        for key in rest:
            if not str(key).isdecimal() or len(str(key)) > len(str(HIGHEST_LAYER)):
                raise OptionError(
                    f"A layer of long_attention is called {key!r}, but layers are numbered from 0 to {HIGHEST_LAYER}, "
                    "for example layers={0: {'window': 64}}."
                )
        if isinstance(turns, list | tuple):
            return list(turns), {int(key): override for key, override in rest.items()}
    elif layers is None or isinstance(layers, list | tuple):
        return [read_choice(turn) if isinstance(turn, str) else turn for turn in layers or []], {}
    raise OptionError(
        f"layers of long_attention is {layers!r}, but must be a mapping such as {{0: {{'window': 64}}}}, a list to "
        "take in turn, or a line such as '0-5:window=64;11=full'."
    )
