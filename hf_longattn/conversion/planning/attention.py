"""The attention that was asked for, brought into one configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...configuration import IN_TURN, LongAttentionConfig
from ...errors import OptionError, PositionError
from ...mechanisms.options import RELATIVE
from ..architectures.base import Architecture

__all__ = [
    "ALIBI",
    "all_options",
    "decoder_choice",
    "needs_separator",
    "relative_choices",
    "resolve_attention",
    "with_alibi",
    "with_separator",
]

SEGMENTS = ("global_first_segment", "global_second_segment")
"""Options by which a whole segment is global."""
SEPARATOR = "separator_token_id"
ALIBI = "alibi"
"""The relative positions that take the place of a position table, and the rule for positions that says so."""


def all_options(options: Mapping[str, Any] | None, more: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a mechanism from a mapping and from further arguments.

    Raises:
        OptionError: one is given in both, or one is not an option, but chooses the mechanism.
    """
    given = dict(options or {})
    twice = sorted(given.keys() & more.keys())
    if twice:
        raise OptionError(f"The option {twice[0]!r} was given twice; give it once.")
    for name in ("mechanism", "long_attention"):
        if name in given or name in more:
            raise OptionError(f"{name!r} is not an option of a mechanism; pass it as --mechanism (mechanism=…).")
    return {**given, **more}


def resolve_attention(
    mechanism: str | None,
    long_attention: LongAttentionConfig | Mapping[str, Any] | None,
    options: Mapping[str, Any],
    adopted: LongAttentionConfig | None = None,
) -> LongAttentionConfig:
    """Either a mechanism with options and `layers`, or a whole configuration; of an adopted source, its own attention in which the
    options given replace its own, unless another mechanism is named.

    Raises:
        OptionError: both were given.
        UnknownMechanismError, OptionError: from the configuration itself, with the nearest valid name.
    """
    if long_attention is None and adopted is not None and mechanism in (None, adopted.mechanism):
        return _with_options(adopted, options)
    if long_attention is None:
        return LongAttentionConfig(**options) if mechanism is None else LongAttentionConfig(mechanism, **options)
    if mechanism is not None or options:
        given = ["mechanism"] * (mechanism is not None) + list(options)
        raise OptionError(f"long_attention was given together with {', '.join(given)}; put everything into long_attention.")
    return LongAttentionConfig.from_dict(long_attention)


def _with_options(adopted: LongAttentionConfig, options: Mapping[str, Any]) -> LongAttentionConfig:
    """An adopted attention in which the options given stand in all layers, and `layers` given above its own."""
    given = LongAttentionConfig(adopted.mechanism, **options).to_dict()
    layers = {index: {k: v for k, v in one.items() if k not in options} for index, one in adopted.layers.items()}
    kept = {str(index): one for index, one in layers.items() if one}
    return LongAttentionConfig.from_dict({**adopted.options, **given, "layers": {**kept, **given.get("layers", {})}})


def decoder_choice(
    architecture: Architecture, long_attention: LongAttentionConfig | Mapping[str, Any] | None
) -> LongAttentionConfig | None:
    """The attention asked for in the decoder beside an encoder; ``None`` is full attention.

    Raises:
        OptionError: there is no such decoder, or it does not have a layer that is named.
    """
    if long_attention is None:
        return None
    if not architecture.encoder_decoder:
        raise OptionError(f"{architecture.source_class} has no decoder beside an encoder; give its attention as --mechanism (mechanism=…).")
    chosen = LongAttentionConfig.from_dict(long_attention)
    chosen.check_layers(architecture.source_config.decoder_layers)
    return chosen


def relative_choices(attention: LongAttentionConfig) -> list[str]:
    """The relative positions that an attention names, in any of its layers."""
    given = [attention.options, *attention.turns, *attention.layers.values()]
    return [values[RELATIVE] for values in given if values.get(RELATIVE) is not None]


def with_alibi(attention: LongAttentionConfig) -> LongAttentionConfig:
    """The same attention with ALiBi in every layer.

    Raises:
        PositionError: it names other relative positions.
        OptionError: a mechanism without scores to which it could be added.
    """
    others = [choice for choice in relative_choices(attention) if choice != ALIBI]
    if others:
        raise PositionError(
            f"positions='alibi' was asked for together with relative={others[0]!r}; give positions='none' to keep the latter alone."
        )
    values = attention.to_dict()
    layers = values.pop("layers", {})
    turns, overrides = layers.pop(IN_TURN, None), layers
    for one in [*(turns or ()), *overrides.values()]:
        if "mechanism" in one:
            one[RELATIVE] = ALIBI
    changed = {**({} if turns is None else {IN_TURN: turns}), **overrides}
    return LongAttentionConfig.from_dict({**values, RELATIVE: ALIBI, **({"layers": changed} if changed else {})})


def needs_separator(attention: LongAttentionConfig) -> bool:
    """Whether a segment is global somewhere in the attention, but nothing says which token ends it."""
    return with_separator(attention, 0).to_dict() != attention.to_dict()


def with_separator(attention: LongAttentionConfig, separator: int) -> LongAttentionConfig:
    """The same attention with ``separator`` wherever a segment is global and nothing says which token ends it."""
    if attention.options.get(SEPARATOR) is not None:
        return attention

    def completed(value: Any) -> Any:
        if isinstance(value, Mapping):
            inside = {name: completed(one) for name, one in value.items()}
            lacking = any(inside.get(name) for name in SEGMENTS) and inside.get(SEPARATOR) is None
            return {**inside, SEPARATOR: separator} if lacking else inside
        return [completed(one) for one in value] if isinstance(value, list | tuple) else value

    return LongAttentionConfig.from_dict(completed(attention.to_dict()))
