"""Public names that are imported on first use, and sentences for names and modules that have moved."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

MOVED_MODULES = {
    "conversion.audit": "audit",
    "conversion.compress": "export.compress",
    "conversion.decoder_export": "export.decoder",
    "conversion.export": "export.onnx",
    "conversion.gguf_export": "export.gguf",
    "conversion.graphs": "export.graphs",
    "conversion.int8": "export.int8",
    **{
        f"engines.{name}": f"engines.common.{name}"
        for name in ("batch", "byte_cache", "call", "dense", "derivatives", "global_rows", "plain", "shards")
    },
    "engines.band_plan": "engines.cpu.band",
    "engines.bucketed": "engines.bucket_tiles",
    "engines.cpu_chunks": "engines.cpu.chunks",
    "engines.flex": "engines.cuda.flex",
    "engines.flex_kernel": "engines.cuda.flex_kernel",
    "diagnostics.svg": "diagnostics.charts",
    "evaluation.qa_features": "data.qa_features",
    "evaluation.qa_markers": "data.qa_markers",
    "evaluation.metrics.trivia": "evaluation.metrics.long_qa",
    **{
        f"mechanisms.{name}": f"mechanisms.common.{name}"
        for name in (
            *("base", "bucketed", "composite", "feature_map", "layout", "masked", "pooled", "registry"),
            *("segment_state", "summaries", "token_rules"),
        )
    },
    "mechanisms.options": "options",
    **{f"modeling.{name}": f"modeling.family.{name}" for name in ("config", "registration", "sliding_window", "validation")},
    **{
        f"modeling.{name}": f"modeling.attach.{name}"
        for name in ("attachment", "attention_sites", "custom_attention", "token_globals", "weights")
    },
    **{f"modeling.{name}": f"modeling.inference.{name}" for name in ("fast_linear", "pruning")},
    "modeling.bucketed": "modeling.attach.t5_attention",
    "modeling.recurrence": "modeling.run.segments",
    "modeling.sequence_parallel": "modeling.run.sharding",
    "modeling.quantised": "modeling.inference.optimize",
    "training.attention_distillation": "training.linearise",
    "training.batching": "data.batching",
    "training.collators": "data.batching",
    "training.data": "data.sources",
    "training.lengths": "data.lengths",
    "training.qa_data": "data.qa_schemas",
    "training.segments": "training.segment_trainer",
    "training.classification": "training.tasks.classify",
    "training.knowledge": "training.tasks.distill",
    **{f"training.{name}": f"training.tasks.{name}" for name in ("choice", "embed", "multitask", "qa", "seq2seq", "tokens")},
}
"""Modules of the first 0.1 and where they are now, below ``hf_longattn``."""


def public_names(
    package: str,
    modules: Mapping[str, Sequence[str]],
    moved: Mapping[str, str] | None = None,
    renamed: Mapping[str, str] | None = None,
) -> tuple[Callable[[str], Any], list[str]]:
    """``__getattr__`` and ``__all__`` of a package whose names are imported on first use, so that importing it loads none of its modules.

    Args:
        package: its ``__name__``.
        modules: module -> its public names; a module with a leading dot is relative to the package's parent.
        moved: name -> the package that has it now.
        renamed: name -> what it is called now, in the same package.
    """
    homes = {name: module for module, names in modules.items() for name in names}

    def load(name: str) -> Any:
        if name in homes:
            home = homes[name]
            return getattr(importlib.import_module(f".{home}", package), name)
        if moved and name in moved:
            # `from … import` would replace the message of an AttributeError
            raise ImportError(f"{package}.{name} has moved; write: from {moved[name]} import {name}")
        if renamed and name in renamed:
            raise ImportError(f"{package}.{name} is now called {renamed[name]}; write: from {package} import {renamed[name]}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return load, sorted(homes)


def on_first_call(package: str, module: str, name: str) -> Callable[..., Any]:
    """The function ``name`` of a module below ``package``, which is imported when the function is called."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return getattr(importlib.import_module(f"{package}.{module}"), name)(*args, **kwargs)

    return call


class _MovedModules(importlib.abc.MetaPathFinder):
    """Says where a module is now. It stands first: the folder of a package that has moved, with old
    bytecode in it, would be found as a namespace package."""

    def __init__(self, package: str) -> None:
        self.new_names = {f"{package}.{old}": f"{package}.{new}" for old, new in MOVED_MODULES.items()}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname in self.new_names:
            raise ModuleNotFoundError(f"{fullname} has moved; import {self.new_names[fullname]}", name=fullname)
        return None


def point_to_moved_modules(package: str) -> None:
    """Make imports of modules that have moved fail with a sentence that has their new name."""
    if not any(isinstance(finder, _MovedModules) and f"{package}.conversion.export" in finder.new_names for finder in sys.meta_path):
        sys.meta_path.insert(0, _MovedModules(package))
