"""Where a checkpoint folder says how data becomes inputs: in a file of its own, or in a part of processor_config.json.

transformers 5 writes the parts of a processor into processor_config.json, and reads a part from there before a file of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from .reading import read_json_object

FILE = "preprocessor_config.json"
VIDEO_FILE = "video_preprocessor_config.json"
PROCESSOR_FILE = "processor_config.json"


class ProcessorKind(NamedTuple):
    """The names of a kind of processor in processor_config.json, and its own file."""

    parts: tuple[str, ...]
    file: str


IMAGE_PROCESSOR = ProcessorKind(("image_processor",), FILE)
VIDEO_PROCESSOR = ProcessorKind(("video_processor",), VIDEO_FILE)
FEATURE_EXTRACTOR = ProcessorKind(("feature_extractor", "audio_processor"), FILE)
KINDS = (IMAGE_PROCESSOR, VIDEO_PROCESSOR, FEATURE_EXTRACTOR)


@dataclass(frozen=True)
class ProcessorFile:
    """Where the values of an image processor, a video processor or a feature extractor are.

    file: name of the file.
    part: their name in it; empty where they are the whole file.
    """

    folder: Path
    file: str
    part: str = ""

    @classmethod
    def find(cls, folder: Path, kind: ProcessorKind) -> ProcessorFile | None:
        """The place that transformers reads; ``None`` where there is none.

        Raises:
            CheckpointError: a file is damaged.
        """
        parts = read_json_object(folder / PROCESSOR_FILE) if (folder / PROCESSOR_FILE).is_file() else {}
        part = next((name for name in kind.parts if isinstance(parts.get(name), dict)), None)
        if part is not None:
            return cls(folder, PROCESSOR_FILE, part)
        if not (folder / kind.file).is_file():
            return None
        read_json_object(folder / kind.file)  # transformers would refuse a damaged one in other words
        return cls(folder, kind.file)

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
