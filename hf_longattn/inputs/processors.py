"""The image processor or feature extractor of a checkpoint, and a user's images or recordings as it makes them into inputs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from ..data.sources import files_of
from ..errors import CheckpointError, OptionError
from ..files import read_json_object
from ..loading import load_part

FILE, PROCESSOR_FILE = "preprocessor_config.json", "processor_config.json"
IMAGE_PROCESSOR, FEATURE_EXTRACTOR = "image_processor", "feature_extractor"
AUTO_CLASSES = {IMAGE_PROCESSOR: "AutoImageProcessor", FEATURE_EXTRACTOR: "AutoFeatureExtractor"}
"""Name of a part of :data:`PROCESSOR_FILE` -> the class of transformers that loads it from there or from :data:`FILE`."""


def has_processor(folder: Path) -> bool:
    """Whether a checkpoint has an image processor or feature extractor."""
    return any((folder / name).is_file() for name in (FILE, PROCESSOR_FILE))


def load_processor(folder: Path, part: str) -> Any | None:
    """The processor in a checkpoint folder; ``None`` if there is none. Raises :class:`CheckpointError` if it does not load."""
    files = [folder / name for name in (FILE, PROCESSOR_FILE) if (folder / name).is_file()]
    for file in files:
        read_json_object(file)  # transformers would refuse a damaged one in other words
    if not files:
        return None
    import transformers

    return load_part(getattr(transformers, AUTO_CLASSES[part]), folder, part.replace("_", " "), local_files_only=True)


def changed_file(folder: Path, part: str, processor: Any, fields: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The name of the processor's file, and its content as transformers writes it, with ``fields`` changed."""
    values = {**json.loads(processor.to_json_string()), **fields}
    parts = read_json_object(folder / PROCESSOR_FILE) if (folder / PROCESSOR_FILE).is_file() else {}
    return {PROCESSOR_FILE: {**parts, part: values}} if isinstance(parts.get(part), dict) else {FILE: values}


class UserFiles:
    """A user's images or recordings as inputs of a model, made by the model's processor.

    part: the model's processor, a key of :data:`AUTO_CLASSES`.
    file_kind, noun: kind of the files, and their plural noun.
    name: name of the user's file or folder, or of the built-in inputs.

    Args:
        rule, config: the model's rule (grid or audio) and config.
        folder: the folder with the model's processor.
        files: a file or a folder; ``None`` for built-in inputs.
        count: maximum number of files. From a larger folder, files are taken at even distances.
        model: the model's name in messages.
        processor: the model's processor; by default loaded from ``folder``.

    Raises:
        DataError, InputError: a file is missing or cannot be read.
        OptionError: ``files`` is no path.
    """

    part: ClassVar[str]
    file_kind: ClassVar[str]
    noun: ClassVar[str]
    built_in: ClassVar[str]

    def __init__(
        self, rule: Any, config: Any, folder: Path, files: Any = None, *, count: int = 1, model: str = "", processor: Any | None = None
    ) -> None:
        self.rule, self.config, self.folder, self.model = rule, config, folder, model
        self.count = count
        self.name, self.files = self.built_in, list[Path]()
        if isinstance(files, Path):
            self.name, self.files = files.resolve().name, files_of(files, self.file_kind)
        elif files is not None:
            self.needed()
        if len(self.files) > count:
            self.files = [self.files[number * (len(self.files) - 1) // max(1, count - 1)] for number in range(count)]
        self.processor = processor or load_processor(folder, self.part)

    def needed(self) -> list[Path]:
        """The files; raises :class:`OptionError` if the user gave none."""
        if not self.files:
            what = f"a file or a folder of {self.noun}"
            raise OptionError(
                f"{self.model!r} reads {self.noun}; give {what} (with --mechanism auto as --search-input), in Python as a Path."
            )
        return self.files

    @cached_property
    def required(self) -> Any:
        """The processor; raises :class:`CheckpointError` if the model has none."""
        if self.processor is None:
            raise CheckpointError(f"{self.model!r} has no {FILE}, which says how it reads {self.noun}; copy that of its original there.")
        return self.processor
