"""The image processor or feature extractor of a checkpoint: a user's files as inputs, the size of outputs, and the file for another size.

The file for another size is the one that transformers writes, with a size in the same form (height and width, or the shortest edge).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from ..errors import CheckpointError, OptionError
from ..files import read_json_object
from ..loading import load_part

FILE, PROCESSOR_FILE = "preprocessor_config.json", "processor_config.json"


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


class ProcessorFile(NamedTuple):
    """The place of a processor's values: a file of their own, or the object ``part`` in processor_config.json."""

    folder: Path
    kind: ProcessorKind
    part: str = ""

    @property
    def file(self) -> str:
        """The name of the file."""
        return PROCESSOR_FILE if self.part else FILE

    @classmethod
    def find(cls, folder: Path, kind: ProcessorKind) -> ProcessorFile | None:
        """The place that transformers reads; ``None`` if there is none. A damaged file is refused."""
        values = read_json_object(folder / PROCESSOR_FILE) if (folder / PROCESSOR_FILE).is_file() else {}
        part = next((name for name in kind.parts if isinstance(values.get(name), dict)), "")
        if not part:
            if not (folder / FILE).is_file():
                return None
            read_json_object(folder / FILE)  # transformers would refuse a damaged one in other words
        return cls(folder, kind, part)

    def with_values(self, values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """The name of the file, and its content with other values of this processor."""
        return {self.file: {**read_json_object(self.folder / self.file), self.part: dict(values)} if self.part else dict(values)}


def load_processor(folder: Path, kind: ProcessorKind) -> Any | None:
    """The processor of a kind in a checkpoint folder; ``None`` if there is none.

    Raises:
        CheckpointError: transformers cannot load it.
    """
    if ProcessorFile.find(folder, kind) is None:
        return None
    import transformers

    return load_part(getattr(transformers, kind.auto_class), folder, kind.noun, local_files_only=True)


class UserFiles:
    """A user's images or recordings as inputs of a model, made by the model's processor.

    processor_kind: the kind of the model's processor.
    files_in: function from a path to the files in it; raises :class:`DataError` if there are none.
    reads, wanted: in error messages, the model's inputs, and what the user must give.
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
        OptionError: ``files`` is not a path.
    """

    files_in: ClassVar[Any]
    processor_kind: ClassVar[ProcessorKind]
    reads: ClassVar[str]
    wanted: ClassVar[str]
    built_in: ClassVar[str]

    def __init__(
        self, rule: Any, config: Any, folder: Path, files: Any = None, *, count: int = 1, model: str = "", processor: Any | None = None
    ) -> None:
        self.rule, self.config, self.folder, self.count, self.model = rule, config, folder, count, model
        if files is not None and not isinstance(files, Path):
            raise OptionError(f"{model!r} reads {self.reads}{self.wanted}")
        self.name = self.built_in if files is None else files.resolve().name
        self.files = [] if files is None else list(self.files_in(files))
        if len(self.files) > count:
            self.files = [self.files[number * (len(self.files) - 1) // max(1, count - 1)] for number in range(count)]
        self.processor = processor or load_processor(folder, self.processor_kind)

    @cached_property
    def required(self) -> Any:
        """The processor; raises :class:`CheckpointError` if the model has none."""
        if self.processor is None:
            raise CheckpointError(f"{self.model!r} has no {FILE}, which says how it reads {self.reads}; copy that of its original there.")
        return self.processor


def processed_size(processor: Any) -> tuple[int, int] | None:
    """(height, width) of a processor's outputs; ``None`` if they depend on the image."""
    crop, size = _sizes(processor)
    fixed = crop or size
    return (fixed["height"], fixed["width"]) if fixed.keys() == {"height", "width"} else None


def values_of_size(processor: Any, size: tuple[int, ...]) -> dict[str, Any]:
    """The values of an image processor's file for outputs of ``size``, (height, width).

    Raises:
        CheckpointError: the processor resizes without a crop in a form other than height and width.
    """
    (crop, resized), old, changed = _sizes(processor), processed_size(processor), dict[str, Any]()
    if old is None and resized:
        raise CheckpointError(
            f"The image processor resizes images by {resized}, which gives none of {pixels(size)}; set size to a height and a width in its "
            "file."
        )
    if old is not None:
        ratios = {side: new / before for side, new, before in zip(("height", "width"), size, old, strict=True)}
        if crop:
            changed["crop_size"] = dict(zip(ratios, size, strict=True))
        # the crop fits into a resized image, whichever side is shorter
        changed["size"] = {side: round(number * ratios.get(side, max(ratios.values()))) for side, number in resized.items()}
    return values_with(processor, {name: value for name, value in changed.items() if value})


def values_with(processor: Any, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a processor's file as transformers writes it, with ``fields`` changed."""
    return {**json.loads(processor.to_json_string()), **fields}


def _sizes(processor: Any) -> list[dict[str, int]]:
    """The crop size and the size after resizing, each by its sides. Empty if the processor does not crop or resize."""
    steps = (("do_center_crop", "crop_size"), ("do_resize", "size"))
    sizes = [getattr(processor, name, None) if getattr(processor, done, None) else None for done, name in steps]
    return [{side: number for side, number in dict(size or {}).items() if number is not None} for size in sizes]


def pixels(size: tuple[int, ...]) -> str:
    """A size as text, for example "768 × 1024 pixels"."""
    return f"{' × '.join(map(str, size))} pixels"
