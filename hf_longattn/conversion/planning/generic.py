"""The plan of a conversion of an architecture that has no family: its config as it is, with the attention in it."""

from __future__ import annotations

from typing import Any

import torch

from ...configuration import LongAttentionConfig
from ...errors import LengthError, OptionError, PositionError
from ...families.own_windows import own_windows, with_own_windows
from ..architectures.generic import GenericArchitecture, generic_architecture
from ..costs.shape import generic_shape
from ..sources.base import Source
from .lengths import StackLength
from .plan import ConversionPlan
from .rotary import plan_rotary
from .tensors import moved_tensors, plan_tensors

__all__ = ["plan_generic"]


def plan_generic(
    source: Source,
    given: LongAttentionConfig,
    unasked: bool,
    positions: str,
    max_length: int | None,
    cast: torch.dtype | None,
    max_shard_size: str | int | None,
    *,
    whole: bool,
) -> ConversionPlan:
    """For an architecture without a family; ``whole`` is that nothing was asked for which needs to know more of it."""
    if not whole:
        raise OptionError(
            "--generic puts one attention into a plain class and knows nothing else of it; leave the options of decoders, "
            "--init-from-text and adapters out."
        )
    architecture = generic_architecture(source)
    attention = _attention(architecture, given, unasked)
    config, length, rule, moved = _config(architecture, attention, positions, max_length)
    if cast is not None:
        config.dtype = cast
    skeleton = architecture.skeleton(config)
    tensors = plan_tensors(source, moved_tensors(source, architecture), skeleton, {}, length.old, cast)
    return ConversionPlan(
        source=source,
        architecture=architecture,
        config=config,
        old_length=length.old,
        new_length=length.new,
        positions=rule,
        tensors=tuple(tensors),
        max_shard_size=max_shard_size,
        attention=attention,
        moved=moved,
        shape=generic_shape(skeleton),
        costs=(),
        generic=True,
    )


def _config(
    architecture: GenericArchitecture, attention: LongAttentionConfig, positions: str, max_length: int | None
) -> tuple[Any, StackLength, str, str]:
    """The config of the result, the tokens of text that it takes (0 where it does not say), the rule for positions, and why positions
    below the old length change.

    Raises:
        PositionError, LengthError: longer positions than the source has, where those are not rotary.
    """
    config = architecture.source_config.__class__.from_dict(architecture.source_config.to_dict())
    config.long_attention = attention.to_dict()
    config.architectures = [architecture.source_class]
    said = getattr(config.get_text_config(), "max_position_embeddings", None)
    old = said if isinstance(said, int) else 0
    new = old if max_length is None else int(max_length)
    if isinstance(getattr(config, "rope_parameters", None), dict) and old:
        if new < old:
            raise LengthError(f"The source takes {old} tokens and conversion only extends: --max-length {new} is too small.")
        rope = plan_rotary(config, attention, positions, StackLength(old, new))
        config.rope_parameters, config.max_position_embeddings = rope.parameters, rope.max_position_embeddings
        moved = "" if rope.exact else f"rope:{rope.kind} changes the old positions too"
        return config, StackLength(old, new), f"rope:{rope.kind}", moved
    if new != old or positions != "auto":
        raise PositionError(
            f"--generic leaves the positions of a {architecture.source_class} as they are, since it does not know them; "
            "leave --max-length and --positions out."
        )
    return config, StackLength(old, old), "as they were", ""


def _attention(architecture: GenericArchitecture, asked: LongAttentionConfig, unasked: bool) -> LongAttentionConfig:
    """What was asked for, with the windows that the source has of its own where nothing else was."""
    config = architecture.source_config
    windows = own_windows(config) if isinstance(getattr(config, "num_hidden_layers", None), int) else []
    return with_own_windows(None if unasked else asked, windows)
