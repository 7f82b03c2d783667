"""Conversion of an architecture that has no family: its config and weights as they are, with mechanisms beside them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import transformers
from torch import nn
from transformers import AutoConfig, PreTrainedModel

from ..configuration import LongAttentionConfig
from ..errors import BackendError, CheckpointError, LengthError, PositionError, in_a_line
from ..families.enable import check_interface, enable_long_attention
from ..families.own_windows import own_windows, with_own_windows
from ..families.registry import FAMILIES, Family
from .architecture import Architecture, attached_mechanisms
from .cost import ModelShape
from .lengths import StackLength
from .rotary import plan_rotary
from .source import Source

__all__ = ["GenericArchitecture", "attention_of", "generic_architecture", "generic_config", "generic_hint", "generic_shape"]


@dataclass(frozen=True)
class GenericArchitecture(Architecture):
    """A class of transformers that keeps its name, its config and its weights."""

    @property
    def encoder_decoder(self) -> bool:
        """Both stacks have the same attention, so that the second is not spoken of."""
        return False

    @property
    def model_class(self) -> type[nn.Module]:
        return getattr(transformers, self.source_class)

    def skeleton(self, config: Any) -> nn.Module:
        """The plain model without storage, with its mechanisms."""
        return enable_long_attention(super().skeleton(config), config.long_attention)


def generic_architecture(source: Source) -> GenericArchitecture:
    """The class of a source.

    Raises:
        CheckpointError: no class of transformers, or one that has a family.
        BackendError: it is not on transformers' AttentionInterface.
    """
    model_type = source.config.get("model_type")
    if model_type in FAMILIES:
        raise CheckpointError(f"{source.name!r} is a {model_type!r} model, which has Long classes of its own; leave --generic out.")
    if "long_attention" in source.config:
        raise CheckpointError(f"{source.name!r} is already a long checkpoint ({model_type}); convert the one that it was made from.")
    base = _class_of(source)
    if base is None:
        raise CheckpointError(f"{source.name!r} names no class of transformers {transformers.__version__} in its config.json.")
    check_interface(base)
    try:
        config = AutoConfig.for_model(**dict(source.config))
    except Exception as error:  # the config classes raise what their validators happen to raise
        raise CheckpointError(f"The config.json of {source.name!r} is not valid for {model_type}: {in_a_line(error)}.") from error
    return GenericArchitecture(Family(type(config)), config, base.__name__, base.__name__)


def generic_hint(source: Source) -> str:
    """What can be done with a source without a family, as a clause about it."""
    base = _class_of(source)
    if base is None:
        return f"which is not supported: transformers {transformers.__version__} has no class of this type"
    try:
        check_interface(base)
    except BackendError:
        own = f"{base.__name__} does not take its attention from transformers' AttentionInterface"
        return f"which has no Long classes, not even with --generic, since {own}"
    return "which has no Long classes, but --generic puts mechanisms into the plain class"


def generic_config(
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


def generic_shape(skeleton: nn.Module) -> ModelShape:
    """The shape of the attention, of the first layer, for tables of layers."""
    mechanisms = list(attached_mechanisms(skeleton).values())
    first, matrices = mechanisms[0], sum(p.numel() for p in skeleton.parameters() if p.ndim == 2)
    width = first.num_heads * first.head_dim
    layers = 1 + max(one.layer or 0 for one in mechanisms)
    return ModelShape(layers, first.num_heads, first.num_heads, first.head_dim, width, 4 * width, False, matrices, 4)


def attention_of(architecture: GenericArchitecture, asked: LongAttentionConfig, unasked: bool) -> LongAttentionConfig:
    """What was asked for, with the windows that the source has of its own where nothing else was."""
    config = architecture.source_config
    windows = own_windows(config) if isinstance(getattr(config, "num_hidden_layers", None), int) else []
    return with_own_windows(None if unasked else asked, windows)


def _class_of(source: Source) -> type[PreTrainedModel] | None:
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    named = source.config.get("architectures") or [MODEL_MAPPING_NAMES.get(str(source.config.get("model_type")))]
    found: Any = getattr(transformers, str(named[0]), None) if isinstance(named, list) and len(named) == 1 else None
    if not isinstance(found, type) or not issubclass(found, PreTrainedModel):
        return None
    known = getattr(found, "config_class", None)
    return found if known is not None and known.model_type == source.config.get("model_type") else None
