"""Make the Long classes of a family from the base's own: each is its base class with the mixin in front."""

from __future__ import annotations

import importlib
from typing import Any

from transformers import GenerationMixin, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES
from transformers.utils import output_capturing

from .loading import register_loading
from .mixin import LongAttentionMixin, LongBaseModelMixin
from .registry import Family


def make_classes(family: Family) -> dict[str, type[PreTrainedModel]]:
    """Every Long model class of ``family``, by name."""
    package = importlib.import_module(f"transformers.models.{family.base_model_type}")
    base_model = MODEL_MAPPING_NAMES[family.base_model_type]
    made = {}
    for base_name, long_name in family.heads.items():
        base = getattr(package, base_name)
        if isinstance(base, type) and issubclass(base, PreTrainedModel):
            made[long_name] = _make(family, base, long_name, LongBaseModelMixin if base_name == base_model else LongAttentionMixin)
            if base_name == base_model:
                register_loading(family, base, made[long_name])
    return made


def _make(family: Family, base: type[PreTrainedModel], name: str, mixin: type) -> type[PreTrainedModel]:
    bases: list[type] = [mixin, base]
    if issubclass(base, GenerationMixin):
        bases.append(GenerationMixin)  # transformers asks for it among the direct bases
    namespace: dict[str, Any] = {
        "__module__": family.module,
        "__doc__": f"{base.__name__} with long attention: {mixin.__doc__}",
        "config_class": family.config_class,
        "__annotations__": {"config": family.config_class},
        "family": family,
    }
    made: Any = type(name, tuple(bases), namespace)
    # transformers looks up by class which outputs can be recorded, and enters a class there when one is built; a base model
    # inside a head becomes ours after it was built.
    dict.__setitem__(output_capturing._CAN_RECORD_REGISTRY, str(made), made._can_record_outputs)
    return made
