"""What a long checkpoint is, from its config: the way back from a folder to its class and family."""

from __future__ import annotations

from typing import Any

import torch

from ...errors import CheckpointError, LongAttentionError, in_a_line
from ...families.registry import FAMILIES, Family
from ...reading import check_config, named_class
from ..sources.base import Source

__all__ = ["read_long"]


def read_long(source: Source) -> tuple[Any, str, Family, Any]:
    """Config, class name, family and skeleton of a long checkpoint.

    Raises:
        CheckpointError: a model that this version does not know, or whose config makes none.
    """
    check_config(source.config, source.name)
    model_type = source.config.get("model_type")
    family = next((one for one in FAMILIES.values() if one.config_class.model_type == model_type), None)
    if family is None and "long_attention" in source.config:
        raise CheckpointError(
            f"{source.name!r} was converted with --generic and has no Long class to inspect; hf_longattn.load_generic loads it, and its "
            "conversion_report.json says what was checked."
        )
    if family is None:
        known = ", ".join(sorted(one.config_class.model_type for one in FAMILIES.values()))
        raise CheckpointError(f"{source.name!r} is a {model_type!r} model, which this version does not know; it knows {known}.")
    try:
        config = family.config_class.from_dict(dict(source.config))
    except LongAttentionError:
        raise
    except Exception as error:  # the config classes raise what their validators happen to raise
        raise CheckpointError(f"The config.json of {source.name!r} is not valid for {model_type}: {in_a_line(error)}.") from error
    named = named_class(source.config, "none")
    if named not in family.heads.values():
        raise CheckpointError(f"{source.name!r} names the class {named!r}; expected one of {', '.join(family.heads.values())}.")
    try:
        with torch.device("meta"):
            return config, named, family, family.model_class(named)(config)
    except LongAttentionError:
        raise
    except Exception as error:  # the constructors raise what they happen to raise
        raise CheckpointError(f"The config.json of {source.name!r} does not make a {named}: {in_a_line(error)}.") from error
