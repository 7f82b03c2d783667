"""Which modules of this package are families, and what transformers calls them."""

from __future__ import annotations

from collections.abc import Collection

from ..naming import module_names

NO_FAMILIES = {"encoder_decoder"}
"""Modules of this package that are no family although a model type of transformers, there a pair of any two models, has their name."""


def family_names(model_types: Collection[str]) -> list[str]:
    """The base model types that have a family: a module of this package that is named after a model type of transformers."""
    modules = set(module_names("families")) - NO_FAMILIES
    return sorted(model_type for model_type in model_types if module_name(model_type) in modules)


def module_name(model_type: str) -> str:
    """The module of a model type, in transformers and here: ``"xlm-roberta"`` -> ``"xlm_roberta"``."""
    return model_type.replace("-", "_")
