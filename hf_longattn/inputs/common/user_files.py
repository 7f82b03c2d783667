"""A user's files as inputs of a model, made by the model's processor."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from ...errors import OptionError
from ...files import ProcessorKind
from .processors import load_processor, required_processor


class UserInputs(ABC):
    """A user's images or recordings as inputs of a model.

    unit: singular noun of an input; the plural has an s.
    processor_kind: the kind of the model's processor.
    files_in: function from a path to the files in it; raises :class:`DataError` if there are none.
    reads, wanted: in error messages, the model's inputs, and what the user must give.
    name, files: name of the given file or folder, and the files that are read.

    Args:
        rule, config: the model's rule (grid or audio) and config.
        folder, model: the folder with the model's processor, and the model's name in messages.
        given: the user's path.
        count: maximum number of files. From a larger folder, files are taken at even distances.
        processor: the model's processor; by default loaded from ``folder``.

    Raises:
        DataError, AudioError: a file is missing or cannot be read.
        CheckpointError: the model has no processor.
        OptionError: ``given`` is not a path.
    """

    unit: ClassVar[str]
    files_in: ClassVar[Any]
    processor_kind: ClassVar[ProcessorKind]
    reads: ClassVar[str]
    wanted: ClassVar[str]

    def __init__(self, rule: Any, config: Any, folder: Path, model: str, given: object, count: int, processor: Any | None = None) -> None:
        self.rule, self.config, self.folder, self.model, self.count = rule, config, folder, model, count
        self.name, self.files = self.read(given)
        self.processor = required_processor(processor or load_processor(folder, self.processor_kind), model, self.reads)

    @classmethod
    def files_of(cls, place: Path, count: int) -> list[Path]:
        """Up to ``count`` files of a folder, at even distances."""
        files = cls.files_in(place)
        if len(files) <= count:
            return list(files)
        return [files[number * (len(files) - 1) // max(1, count - 1)] for number in range(count)]

    def read(self, given: object) -> tuple[str, Sequence[Path]]:
        """The name of the file or folder ``given``, and the files to read."""
        if not isinstance(given, Path):
            raise OptionError(f"{self.model!r} reads {self.reads}{', ' if self.wanted.startswith('by') else '; '}{self.wanted}")
        return given.name, self.files_of(given, self.count)

    @abstractmethod
    def values(self, size: Any) -> list[Tensor]:
        """Inputs of this size, ``(1, …)`` each. ``arguments`` of the input kind turns one into arguments of ``forward``.

        Raises:
            DataError, LengthError: an input is too short.
            GridError: the processor makes inputs of another size.
        """

    def too_few(self, pieces: int, wanted: int) -> str:
        """A note that mechanisms were compared on fewer inputs than wanted."""
        return f"There are {pieces} of {wanted} {self.unit}s; more give a surer choice."
