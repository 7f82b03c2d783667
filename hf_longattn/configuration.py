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
    """A default mechanism, a list of mechanisms that the layers use in turn, and overrides for single layers.

        LongAttentionConfig("longformer", window=512)
        LongAttentionConfig("window", window=512, layers={0: {"window": 64}, 11: {"mechanism": "full"}})
        LongAttentionConfig("window", layers="0-5:window=64;6-10:window=256;11=full")
        LongAttentionConfig(layers="window:window=512,window:window=512,full")  # repeats: 2 windowed layers, 1 full

    A layer without a mechanism uses the default mechanism with its options, and may override some of them. A layer
    with a mechanism starts from that mechanism's defaults. ``config.json`` stores the configuration as
    ``long_attention``.

    Args:
        mechanism: the default mechanism. Without it, the first mechanism in the list of ``layers`` is the default.
            Without such a list, ``longformer`` is.
        layers: the mechanisms of single layers. This is a mapping of layer numbers to overrides (``{0: {...}}``), a
            list that the layers use in turn (``[{...}, {...}]``), a mapping with both (``{"in_turn": [...], 11:
            {...}}``), or a string such as ``"0-5:window=64;11=full"`` (see
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
        """The mechanism's name and options of layer ``index``, before its override applies."""
        turn = dict(self.turns[index % len(self.turns)]) if self.turns else {}
        if "mechanism" in turn:
            return turn.pop("mechanism"), turn
        return self.mechanism, {**self.options, **turn}

    def for_layer(self, index: int) -> tuple[str, dict[str, Any]]:
        """The mechanism's name and the options of layer ``index``. Options that are not set anywhere are left out."""
        override = dict(self.layers.get(index, {}))
        if "mechanism" in override:
            return override.pop("mechanism"), override
        name, options = self._without_override(index)
        return name, {**options, **override}

    def prototypes(self, layers: Iterable[int]) -> list[Mechanism]:
        """The mechanism of each layer, as a module without tensors. It tells form, locality and capabilities."""
        return [prototype(*self.for_layer(layer)) for layer in layers]

    def with_option(
        self, option: str, value: Any, where: Callable[[str, int | None], bool] = lambda mechanism, layer: True
    ) -> LongAttentionConfig:
        """A copy in which an option is set for the default mechanism, and for every layer that names a mechanism.

        Args:
            where: returns whether a mechanism gets the option. Its arguments are the mechanism's name, and the number
                of the overridden layer. The number is ``None`` for the default mechanism and for the list that layers
                use in turn.
        """

        def changed(choice: dict[str, Any], layer: int | None = None) -> dict[str, Any]:
            if "mechanism" in choice and where(choice["mechanism"], layer):
                return {**choice, option: value}
            return choice

        layers: dict[Any, Any] = {layer: changed(choice, layer) for layer, choice in self.layers.items()}
        layers[IN_TURN] = [changed(turn) for turn in self.turns]
        return LongAttentionConfig(**changed({"mechanism": self.mechanism, **self.options}), layers=layers)

    def check_layers(self, num_layers: int) -> None:
        """Raise :class:`OptionError` when an override names a layer that the model does not have."""
        beyond = sorted(layer for layer in self.layers if layer >= num_layers)
        if beyond:
            raise OptionError(
                f"long_attention overrides layer {beyond[0]}, but the model has {num_layers} layers: use 0 to "
                f"{num_layers - 1}."
            )

    def check_forms(self, num_layers: int, causal: bool) -> None:
        """Check every layer's mechanism and its number.

        Raises:
            OptionError: a mechanism has no causal form. If ``causal`` is False, it has no bidirectional form.
            OptionError: an override names a layer from ``num_layers`` on.
        """
        self.check_layers(num_layers)
        for index, mechanism in enumerate(self.prototypes(range(num_layers))):
            check_form(mechanism, causal, f"layer {index}")

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form; ``from_dict`` gives an equal configuration back."""
        layers: dict[str, Any] = {}
        if self.turns:
            layers[IN_TURN] = [dict(turn) for turn in self.turns]
        for index in sorted(self.layers):
            layers[str(index)] = dict(self.layers[index])
        values = {"mechanism": self.mechanism, **self.options}
        if layers:
            values["layers"] = layers
        return values

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
        """A table for reading. Consecutive layers with equal mechanism and options share a line.

        A line has all options, with defaults. Unset options, and details of an option that is off, are left out.
        """
        rows: list[tuple[int, int, str]] = []  # first layer, last layer, mechanism and options
        for index in range(num_layers):
            name, options = self.for_layer(index)
            checked = check_options(name, options)
            values = checked.to_dict()
            words = [
                f"{info.name}={info.readable(values[info.name])}"
                for info in checked.infos()
                if values.get(info.name) is not None and values.get(info.detail_of, True)
            ]
            text = f"{name:<14}" + "  ".join(words)
            first = index
            if rows and rows[-1][2] == text:
                first = rows.pop()[0]
            rows.append((first, index, text))
        lines = ["layers  mechanism     options"]
        for first, last, text in rows:
            numbers = f"{first}-{last}" if last > first else str(first)
            lines.append(f"{numbers:<8}{text}".rstrip())
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"LongAttentionConfig(**{self.to_dict()!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LongAttentionConfig) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash(repr(self.to_dict()))


def _checked_options(mechanism: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Validate options, and return them in JSON types. Options that are not given are not added."""
    checked = check_options(mechanism, dict(options)).to_dict()
    return {name: checked.get(name) for name in options}


def _override(override: Any, default: str) -> dict[str, Any]:
    """An override with checked mechanism and options, in JSON types.

    Args:
        override: options of a layer, perhaps with the key ``mechanism``.
        default: name of the mechanism that the options belong to if the override names none.
    """
    if not isinstance(override, Mapping):
        raise OptionError(
            f"A layer of long_attention is {override!r}, but must be a mapping such as {{'mechanism': 'window', "
            "'window': 256}."
        )
    values = dict(override)
    name = mechanism_class(values.pop("mechanism", default)).name
    checked = _checked_options(name, values)
    return {"mechanism": name, **checked} if "mechanism" in override else checked


def _parse_layers(layers: Layers | None) -> tuple[list[Any], dict[int, Any]]:
    """Parse the argument ``layers`` of :class:`LongAttentionConfig`.

    Returns the list of mechanisms that layers use in turn, and the overrides by layer number.
    """
    if isinstance(layers, str):
        return read_layer_choices(layers)
    if isinstance(layers, Mapping):
        overrides = dict(layers)
        turns = overrides.pop(IN_TURN, [])
        for key in overrides:
            if not str(key).isdecimal() or len(str(key)) > len(str(HIGHEST_LAYER)):
                raise OptionError(
                    f"A layer of long_attention is called {key!r}, but layers are numbered from 0 to {HIGHEST_LAYER}, "
                    "for example layers={0: {'window': 64}}."
                )
        if isinstance(turns, list | tuple):
            return list(turns), {int(key): override for key, override in overrides.items()}
    elif layers is None or isinstance(layers, list | tuple):
        return [read_choice(turn) if isinstance(turn, str) else turn for turn in layers or []], {}
    raise OptionError(
        f"layers of long_attention is {layers!r}, but must be a mapping such as {{0: {{'window': 64}}}}, a list to "
        "take in turn, or a line such as '0-5:window=64;11=full'."
    )
