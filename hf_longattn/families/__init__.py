"""Long<Base> families: the models of transformers with long attention, one short file per base architecture.

``hf_longattn.families.bert`` holds ``LongBertConfig``, ``LongBertModel``, ``LongBertForMaskedLM`` … Importing this package imports
neither torch nor a model: the names below and every ``Long…`` class arrive on first use.
"""

from __future__ import annotations

from typing import Any

from ..lazy import public_names

_public_name, __all__ = public_names(
    __name__,
    {
        ".modeling.family.definition": ("AttentionNames", "FAMILIES", "Family", "PositionTable"),
        ".modeling.family.registration": ("register",),
        ".modeling.multimodal": (
            *("LongMultimodalConfig", "LongMultimodalModel", "LongMultimodalForSequenceClassification"),
            *("LongMultimodalForTokenClassification", "LongMultimodalForQuestionAnswering"),
            *("LongMultimodalForImageClassification", "LongMultimodalForAudioClassification"),
        ),
        ".modeling.generic": ("enable_long_attention", "load_generic"),
    },
)


def __getattr__(name: str) -> Any:
    if name.startswith("Long"):
        from ..errors import CheckpointError
        from ..modeling.family.definition import family_with, why_no_class

        family = family_with(name)
        if family is not None:
            return family.model_class(name)
        if why := why_no_class(name):  # transformers asks for it by an AutoModel, and takes an AttributeError for its own fault
            raise CheckpointError(why)
    return _public_name(name)


def __dir__() -> list[str]:
    from ..modeling.family.definition import FAMILIES, declared_exports

    return sorted([*__all__, *(name for base in FAMILIES for name in declared_exports(base))])
