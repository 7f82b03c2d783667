"""A sentence-transformers folder. Its transformer is converted, and its other modules are copied beside the result."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ...errors import CheckpointError
from ...processor_files import (
    EMBEDDINGS,
    MODULES,
    RERANKER,
    SENTENCE_LIMIT,
    SETTINGS_FILE,
    TOKEN_VECTORS,
    TRANSFORMER_SETTINGS,
    sentence_kind,
    sentence_modules,
    sentence_values,
)
from ...reading import check_files
from ...staging import copy_folder
from ..tensor_files import write_json
from .base import ResultInfo, Source, SourceFormat, SourceRequest, register_source
from .folder import Folder, read_config

KINDS = {EMBEDDINGS: (), RERANKER: ("--reranker",), TOKEN_VECTORS: ("--multi-vector",)}
"""Kinds of models that `longattn train embed` trains, and the options for it."""
CROSS_ENCODER_FIELDS = ("sentence_transformers", "sbert_ce_default_activation_function")
"""Fields of a cross-encoder's config in versions without modules."""


@dataclass(frozen=True)
class SentenceSource(Source):
    """The transformer, which is the first module of the folder ``root``."""

    root: Path = field(kw_only=True)

    @property
    def card_folder(self) -> Path:
        return self.root

    def write_beside(self, folder: Path, result: ResultInfo) -> list[str]:
        return write_modules(self.root, folder, result.max_length, longer=result.longer)

    def training_hint(self, max_length: int) -> str | tuple[str, ...]:
        kind = sentence_kind(self.root)
        if kind not in KINDS:
            return f"fine-tune {{model}} with sentence-transformers' trainer on texts of up to {max_length} tokens"
        return ("embed", *KINDS[kind], "--data", "YOUR_PAIRS.jsonl", "--max-length", str(max_length))


@register_source("sentence-transformers")
class SentenceTransformers(SourceFormat):
    """A folder with a modules.json whose first module is a Transformer."""

    priority = 50
    markers = (MODULES,)

    def open(self, request: SourceRequest) -> Source:
        root = request.path
        first = sentence_modules(root)[0]
        if not first["type"].endswith(".Transformer"):
            raise CheckpointError(
                f"{str(root)!r} begins with a {first['type']!r}, but only models whose first module is Transformer can be converted; "
                "give another."
            )
        check_files(root, (), [path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")])
        read_config(root / first["path"])  # raises if there is no config.json
        inner = Folder().open(replace(request, path=root / first["path"]))
        return SentenceSource(**{**vars(inner), "paths": (*inner.paths, root)}, root=root)


def write_modules(root: Path, folder: Path, max_length: int = 0, *, longer: bool = False) -> list[str]:
    """Write all modules of ``root`` except the transformer. Its files are in ``folder`` itself, for AutoModel.

    Args:
        max_length, longer: of the result; see :class:`ResultInfo`. A longer result's ``max_seq_length`` is its maximum length.
    """
    written = [MODULES]
    modules = sentence_modules(root)
    transformer = root / modules[0]["path"]
    write_json(folder / MODULES, [{**modules[0], "path": ""}, *modules[1:]])
    for settings in sorted(transformer.glob(TRANSFORMER_SETTINGS)):
        values = sentence_values(settings)
        if (limit := values.get(SENTENCE_LIMIT)) is not None and max_length:
            values[SENTENCE_LIMIT] = max_length if longer else min(limit, max_length)
        write_json(folder / settings.name, values)
        written.append(settings.name)
    if (root / SETTINGS_FILE).is_file():
        shutil.copyfile(root / SETTINGS_FILE, folder / SETTINGS_FILE)
        written.append(SETTINGS_FILE)
    for module in modules[1:]:
        if module["path"] and (root / module["path"]).is_dir():
            copy_folder(root / module["path"], folder / module["path"])
            written.append(module["path"])
    return written


def scores_pairs(folder: Path, config: Any) -> bool:
    """Whether ``folder`` holds a cross-encoder. config: of its transformer."""
    return sentence_kind(folder) == RERANKER or any(hasattr(config, name) for name in CROSS_ENCODER_FIELDS)
