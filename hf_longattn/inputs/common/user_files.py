"""Files of a user as inputs of a model, as its processor makes them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from ...data.files import evenly_spread
from ...errors import OptionError
from .processors import processor_of, required_processor


class UserInputs(ABC):
    """Pictures, videos or recordings that a user names, for a model with this config.

    unit: what one input is called, with an s for several.
    files_in: the files of a folder; raises :class:`DataError` where there is none.
    reads, wanted: what the model reads, and what to give, in error messages.
    name, files: the file or folder, and the files that are read.

    Args:
        rule, config: of the model.
        folder, model: of its processor, and the model's name in messages.
        given: a path.
        count: most files to read; of a larger folder, as many that lie evenly between its first and its last.
        processor: of the model; by default the one in its folder.

    Raises:
        DataError, AudioError: there is no such file, or it cannot be read.
        CheckpointError: the model has no processor.
        OptionError: ``given`` is not a path.
    """

    unit: ClassVar[str]
    files_in: ClassVar[Any]
    reads: ClassVar[str]
    wanted: ClassVar[str]

    def __init__(self, rule: Any, config: Any, folder: Path, model: str, given: object, count: int, processor: Any | None = None) -> None:
        self.rule, self.config, self.folder, self.model, self.count = rule, config, folder, model, count
        self.name, self.files = self.read(given)
        self.processor = required_processor(processor or self.find_processor(), model, self.reads)

    @classmethod
    def files_of(cls, place: Path, count: int) -> list[Path]:
        """Up to ``count`` files of a folder, evenly spread."""
        return evenly_spread(cls.files_in(place), count)

    def read(self, given: object) -> tuple[str, Sequence[Path]]:
        """The name of what is given, and its files."""
        if not isinstance(given, Path):
            raise OptionError(f"{self.model!r} reads {self.reads}{', ' if self.wanted.startswith('by') else '; '}{self.wanted}")
        return given.name, self.files_of(given, self.count)

    def find_processor(self) -> Any:
        """The processor in the model's folder."""
        return processor_of(self.rule, self.folder)

    @abstractmethod
    def values(self, size: Any) -> list[Tensor]:
        """Inputs of this size, ``(1, …)`` each, of which the kind's ``arguments`` makes arguments of ``forward``.

        Raises:
            DataError, LengthError: an input is too short.
            GridError: the processor makes inputs of another size.
        """

    @abstractmethod
    def size(self, asked: Any, *, any_size: bool) -> Any:
        """The size at which a model is probed.

        Args:
            asked: by the user; ``None`` for the size for which the model was made.
            any_size: whether the model is a Long one, which reads every size.
        """

    def too_few(self, pieces: int, wanted: int) -> str:
        """The note on a choice of mechanisms by few inputs."""
        return f"There are {pieces} of {wanted} {self.unit}s; more give a surer choice."
