"""The files of a sentence-transformers folder, and of what kind its model is."""

from __future__ import annotations

from pathlib import Path

from .reading import read_json_object

MODULES, SETTINGS_FILE = "modules.json", "config_sentence_transformers.json"
EMBEDDINGS, RERANKER, TOKEN_VECTORS = "SentenceTransformer", "CrossEncoder", "MultiVectorEncoder"


def sentence_kind(folder: Path) -> str | None:
    """The class of sentence-transformers that loads a folder; ``None`` without modules."""
    if not (folder / MODULES).is_file():
        return None
    file = folder / SETTINGS_FILE
    return str(read_json_object(file).get("model_type", EMBEDDINGS)) if file.is_file() else EMBEDDINGS
