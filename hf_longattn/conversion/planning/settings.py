"""What the user asked for, brought into one configuration and one rule for the positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...configuration import IN_TURN, LongAttentionConfig
from ...errors import CheckpointError, OptionError, PositionError, nearest
from ...mechanisms.options import RELATIVE
from ...positions import DROPPED, SINUSOIDAL, STRATEGIES
from ..architectures.base import Architecture

__all__ = [
    "ALIBI",
    "ROPE_NONE",
    "decoder_choice",
    "fixed_rotary",
    "parse_dtype",
    "relative_choices",
    "resolve_attention",
    "table_strategy",
    "with_alibi",
]

ALIBI = "alibi"
"""The rule for positions by which ALiBi takes the place of a position table."""


ROPE_NONE = "rope:none"
"""The rule by which rotary positions stay as they are."""

DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
}


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


def parse_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """ "bf16", "float32" … or a torch dtype; None keeps each tensor's own.

    Raises:
        CheckpointError: not one of the floating dtypes a checkpoint is stored in.
    """
    if dtype is None:
        return None
    found = dtype if isinstance(dtype, torch.dtype) else DTYPES.get(dtype.removeprefix("torch.").lower())
    if found not in DTYPES.values():
        raise CheckpointError(f"Unknown dtype {str(dtype)!r}; expected one of {', '.join(DTYPES)}.{nearest(str(dtype), DTYPES)}")
    return found


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
        raise OptionError(f"{architecture.source_class} has no decoder beside an encoder; give its attention as long_attention.")
    chosen = LongAttentionConfig.from_dict(long_attention)
    chosen.check_layers(architecture.source_config.decoder_layers)
    return chosen


def table_strategy(positions: str, *, learned: bool = True) -> str:
    """The strategy for a position table; "auto" is tiling for a learned one, which works without training, and the formula for
    sinusoids.

    Raises:
        PositionError: unknown, or meant for rotary positions.
    """
    if positions in DROPPED:
        return positions
    if not learned:
        if positions not in ("auto", SINUSOIDAL):
            raise PositionError(
                f"{positions!r} does not fit a model with sinusoidal positions, which are computed; expected auto, {' or '.join(DROPPED)}."
            )
        return SINUSOIDAL
    if positions == "auto":
        return "tile"
    if positions not in STRATEGIES:
        known = [*STRATEGIES, *DROPPED]
        raise PositionError(
            f"{positions!r} does not fit a model with a learned position table; expected auto or one of"
            f" {', '.join(known)}.{nearest(positions, known)}"
        )
    return positions


def fixed_rotary(positions: str, source_class: str) -> str:
    """The rule for rotary positions that the base computes by its formula alone: they stay as they are, at any length.

    Raises:
        PositionError: others were asked for.
    """
    if positions not in ("auto", ROPE_NONE):
        raise PositionError(
            f"{positions!r} was asked for, but {source_class} has rotary positions that transformers cannot scale;"
            f" expected auto or {ROPE_NONE}."
        )
    return ROPE_NONE


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
