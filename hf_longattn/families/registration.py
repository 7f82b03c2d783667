"""Enter the backend, configs, tokenizers and models into transformers' own tables, when those come into being.

``import hf_longattn`` must stay cheap, and transformers imports torch and its models only when they are asked for. So nothing is
imported for the sake of registering: each entry is made at the end of the import of the table it belongs to (at once, where that has
happened already), and model classes when the first config of their family is made, since nobody can ask for a model without one.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import threading
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any


def register_configs() -> None:
    """``AutoConfig`` knows every Long config, by name: the classes are imported on first use. Importing them here, in the middle of
    transformers' own imports, would go in a circle: its config modules import the tables of models, and those import this one."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES

    from .registry import family_names

    for base in family_names():
        CONFIG_MAPPING_NAMES[f"long_{base}"] = f"Long{CONFIG_MAPPING_NAMES[base]}"
        CONFIG_MAPPING._modules[f"long_{base}"] = sys.modules[__package__]


def register_tokenizers() -> None:
    """``AutoTokenizer`` gives a Long model the tokenizer of its base."""
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING

    from .registry import FAMILIES

    for family in FAMILIES.values():
        tokenizer = TOKENIZER_MAPPING.get(family.base_config_class, None)
        if tokenizer is not None:
            TOKENIZER_MAPPING.register(family.config_class, tokenizer, exist_ok=True)


def register_attention() -> None:
    """``attn_implementation="longattn"`` is known."""
    importlib.import_module("hf_longattn.backend")


def register_models(config_class: type[Any]) -> None:
    """Every ``AutoModel…`` that knows the base knows the Long class of the same head. Does its work once for a family."""
    with _LOCK:
        if config_class not in _REGISTERED:
            _register_models(config_class)
            _REGISTERED.add(config_class)


def _register_models(config_class: Any) -> None:
    from transformers.models.auto import modeling_auto

    from .registry import family_of

    family = family_of(config_class)
    if config_class is not family.config_class:
        return
    autos: list[Any] = [value for value in vars(modeling_auto).values() if isinstance(value, type)]
    for auto in autos:
        mapping = getattr(auto, "_model_mapping", None)
        long_class = None if mapping is None else family.long_class_of(mapping.get(family.base_config_class, type(None)))
        if long_class is not None:
            auto.register(config_class, long_class, exist_ok=True)


_LOCK = threading.RLock()
_REGISTERED: set[type[Any]] = set()
TABLES: dict[str, Callable[[], None]] = {
    "transformers.models.auto.configuration_auto": register_configs,
    "transformers.models.auto.tokenization_auto": register_tokenizers,
    "transformers.modeling_utils": register_attention,
}


class _AfterImport(importlib.abc.MetaPathFinder):
    """Finds the modules of ``TABLES`` where they are, and has them call their entry once they have been executed."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> importlib.machinery.ModuleSpec | None:
        if name not in TABLES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            TABLES[name]()

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def register() -> None:
    """Make every entry, now or when its table is imported. Called once by ``import hf_longattn``."""
    for name, enter in TABLES.items():
        if name in sys.modules:
            enter()
    if not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())
