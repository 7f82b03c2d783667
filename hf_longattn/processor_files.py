"""The files of a checkpoint folder that say how data becomes inputs: of its processors, its tokenizer, and sentence-transformers.

transformers 5 writes the parts of a processor into processor_config.json, and reads a part from there before the part's separate file.

A conversion raises sizes and limits in these files. It keeps the former values in them, since trainers write all their fields again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from .errors import CheckpointError
from .reading import BOOLEAN, COUNT, NAMES, TEXT, check_fields, read_json, read_json_object

FILE = "preprocessor_config.json"
PROCESSOR_FILE = "processor_config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
TOKENIZER_LIMIT, SENTENCE_LIMIT = "model_max_length", "max_seq_length"
"""Maximum tokens of a text: a field of the tokenizer's config, and one of sentence-transformers'."""

MODULES, SETTINGS_FILE = "modules.json", "config_sentence_transformers.json"
"""Files of a sentence-transformers folder: the list of its modules, and its settings."""
TRANSFORMER_SETTINGS = "sentence_*_config.json"
"""Files with the settings of a sentence-transformers Transformer; old versions put the architecture's name in the middle."""
SENTENCE_FIELDS = {
    **dict.fromkeys(("model_type", "default_prompt_name", "similarity_fn_name", "activation_function"), TEXT),
    **dict.fromkeys(("prompts", "__version__"), "an object of text"),
    **dict.fromkeys(
        (SENTENCE_LIMIT, "truncate_dim", "embedding_dimension", "word_embedding_dimension", "in_features", "out_features"), COUNT
    ),
    **dict.fromkeys(("do_lower_case", "include_prompt", "bias"), BOOLEAN),
    "pooling_mode": NAMES,
}
"""Fields of the small files of a sentence-transformers folder, except modules.json, and their types."""
EMBEDDINGS, RERANKER, TOKEN_VECTORS = "SentenceTransformer", "CrossEncoder", "MultiVectorEncoder"
"""The classes of sentence-transformers that load a folder."""


class ProcessorKind(NamedTuple):
    """A kind of processor: its names in processor_config.json, and the Auto class that loads it."""

    parts: tuple[str, ...]
    auto_class: str

    @property
    def noun(self) -> str:
        """For example "image processor"."""
        return self.parts[0].replace("_", " ")


IMAGE_PROCESSOR = ProcessorKind(("image_processor",), "AutoImageProcessor")
FEATURE_EXTRACTOR = ProcessorKind(("feature_extractor", "audio_processor"), "AutoFeatureExtractor")


@dataclass(frozen=True)
class ProcessorFile:
    """The place of the values of an image processor or a feature extractor.

    part: their name in processor_config.json; empty if they are in the separate file.
    """

    folder: Path
    kind: ProcessorKind
    part: str = ""

    @property
    def file(self) -> str:
        """The name of the file."""
        return PROCESSOR_FILE if self.part else FILE

    @classmethod
    def find(cls, folder: Path, kind: ProcessorKind) -> ProcessorFile | None:
        """The place that transformers reads; ``None`` if there is none.

        Raises:
            CheckpointError: a file is damaged.
        """
        parts = read_json_object(folder / PROCESSOR_FILE) if (folder / PROCESSOR_FILE).is_file() else {}
        part = next((name for name in kind.parts if isinstance(parts.get(name), dict)), None)
        if part is not None:
            return cls(folder, kind, part)
        if not (folder / FILE).is_file():
            return None
        read_json_object(folder / FILE)  # transformers would refuse a damaged one in other words
        return cls(folder, kind)

    @property
    def values(self) -> dict[str, Any]:
        """The values of the processor.

        Raises:
            CheckpointError: the file is damaged.
        """
        values = read_json_object(self.folder / self.file)
        return dict(values[self.part]) if self.part else values

    def with_values(self, values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """The name of the file, and its content with other values of this processor."""
        return {self.file: {**read_json_object(self.folder / self.file), self.part: dict(values)} if self.part else dict(values)}


def tokenizer_values(folder: Path) -> dict[str, Any]:
    """The values of the tokenizer's config in a folder; empty without one."""
    file = folder / TOKENIZER_CONFIG
    return read_json_object(file) if file.is_file() else {}


def limits_of(values: object) -> dict[str, int]:
    """The fields of a tokenizer's config that are a number of tokens."""
    fields = values.items() if isinstance(values, Mapping) else ()
    return {name: value for name, value in fields if isinstance(value, int) and not isinstance(value, bool) and value > 0}


def sentence_kind(folder: Path) -> str | None:
    """The class of sentence-transformers that loads a folder; ``None`` without modules."""
    if not (folder / MODULES).is_file():
        return None
    file = folder / SETTINGS_FILE
    return str(sentence_values(file).get("model_type", EMBEDDINGS)) if file.is_file() else EMBEDDINGS


def sentence_modules(folder: Path) -> list[dict[str, Any]]:
    """The modules of a sentence-transformers folder, the transformer first; empty for other folders. All their small files are checked.

    Raises:
        CheckpointError: a file is damaged, or names a folder outside of ``folder``.
    """
    file = folder / MODULES
    modules = read_json(file) if file.is_file() else []
    sound = isinstance(modules, list) and all(isinstance(entry, dict) for entry in modules)
    texts = [entry.get(field) for entry in modules for field in ("path", "type")] if sound else [None]
    names = {repr(entry.get("name", number)) for number, entry in enumerate(modules)} if sound else ()
    if file.is_file() and not (modules and all(isinstance(text, str) for text in texts) and len(names) == len(modules)):
        raise CheckpointError(
            f"{str(file)!r} must hold a list of modules, each with a path, a type and another name; save the model again."
        )
    for module in modules:
        path = PurePosixPath(module["path"])
        if path.is_absolute() or ".." in path.parts:
            raise CheckpointError(
                f"{str(file)!r} names the folder {module['path']!r}, which lies outside of {str(folder)!r}; save the model again."
            )
        kind = module["type"].rpartition(".")[2]
        for settings in (folder / path).glob(TRANSFORMER_SETTINGS if kind == "Transformer" else "config.json"):
            sentence_values(settings)
    if modules and (folder / SETTINGS_FILE).is_file():
        sentence_values(folder / SETTINGS_FILE)
    return list(modules)


def sentence_values(file: Path) -> dict[str, Any]:
    """The values of a small file of a sentence-transformers folder.

    Raises:
        CheckpointError: the file is damaged, or a field has a type that sentence-transformers does not write.
    """
    values = read_json_object(file)
    flags = {name: BOOLEAN for name in values if name.startswith("pooling_mode_")}
    check_fields(values, {**SENTENCE_FIELDS, **flags}, repr(str(file)), "correct the file")
    return values
