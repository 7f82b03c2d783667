"""Architectures that have no family: the class keeps its name, its config and its weights, with mechanisms beside them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, PreTrainedModel

from ...errors import BackendError, CheckpointError, in_a_line
from ...families.enable import check_interface, enable_long_attention
from ...families.registry import FAMILIES, Family
from ..sources.base import Source
from .base import Architecture

__all__ = ["GenericArchitecture", "generic_architecture", "generic_hint"]


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
        plain: Any = super().skeleton(config)
        with torch.device("meta"):
            return enable_long_attention(plain, config.long_attention)


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


def _class_of(source: Source) -> type[PreTrainedModel] | None:
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    named = source.config.get("architectures") or [MODEL_MAPPING_NAMES.get(str(source.config.get("model_type")))]
    found: Any = getattr(transformers, str(named[0]), None) if isinstance(named, list) and len(named) == 1 else None
    if not isinstance(found, type) or not issubclass(found, PreTrainedModel):
        return None
    known = getattr(found, "config_class", None)
    return found if known is not None and known.model_type == source.config.get("model_type") else None
