"""Long<Base> families: the models of transformers with long attention, one module per base architecture.

``hf_longattn.families.bert`` holds ``LongBertConfig``, ``LongBertModel``, ``LongBertForMaskedLM`` … A family has a
file only where it has code. The other modules are made from the rows of ``families.json``. Importing this package
imports neither torch nor a model: the names below and every ``Long…`` class are imported on first use.
"""

# ruff: noqa: F401 (names that are imported on first use)
from __future__ import annotations

import contextlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ..files import GENERIC_CLASS
from ..names import public_names

if TYPE_CHECKING:
    from ..modeling.family.definition import FAMILIES, AttentionNames, Family, PositionTable
    from ..modeling.family.registration import register
    from ..modeling.generic import enable_long_attention
    from ..modeling.multimodal import (
        LongMultimodalConfig,
        LongMultimodalForAudioClassification,
        LongMultimodalForImageClassification,
        LongMultimodalForQuestionAnswering,
        LongMultimodalForSequenceClassification,
        LongMultimodalForTokenClassification,
        LongMultimodalModel,
    )

_public_name, __all__ = public_names(__name__)


def __getattr__(name: str) -> Any:
    """A ``Long…`` class or a public name, imported when it is first used."""
    if name.startswith(GENERIC_CLASS):
        from ..modeling.generic import class_for_auto

        return class_for_auto(name)
    if name.startswith("Long"):
        from ..modeling.family.definition import family_for_class

        family = family_for_class(name)
        if family is not None:
            # stored, since the Auto classes ask several times for each model
            globals()[name] = family.model_class(name)
            return globals()[name]
    return _public_name(name)


class _RowModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports the families without a file. Python asks it last, so a file takes precedence."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The spec of a family with a row in ``families.json``; ``None`` for any other module."""
        package, _, module = name.rpartition(".")
        if package != __name__:
            return None
        from ..modeling.family.definition import FACTS_FILE, family_rows

        if module not in family_rows():
            return None
        spec = importlib.machinery.ModuleSpec(name, self, origin=str(FACTS_FILE))
        spec.has_location = True  # transformers reads the class's source file to see whether its attention can be set
        return spec

    def exec_module(self, module: ModuleType) -> None:
        """Make the module's docstring and its ``FAMILY`` from its row."""
        from ..modeling.classes import family_of_row
        from ..modeling.family.definition import base_config_name, family_rows

        model_type, row = family_rows()[module.__name__.rpartition(".")[2]]
        module.__doc__ = row.get("about", f"The models of {base_config_name(model_type)} with long attention.")
        vars(module)["FAMILY"] = family_of_row(module.__name__, model_type, row)


sys.meta_path.append(_RowModules())


def __dir__() -> list[str]:
    from ..modeling.family.definition import FAMILIES, exported_names

    names = [*__all__]
    for base in FAMILIES:
        with contextlib.suppress(Exception):  # errors in a family are raised when its models are loaded
            names += exported_names(base)
    return sorted(names)
