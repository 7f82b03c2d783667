"""Pictures that a model reads at the size for which it is converted, or at another one, as its image processor makes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..conversion.grid_sizes import GridSize
from ..conversion.plan import ConversionPlan
from ..conversion.processors import load_image_processor, required_processor, sized_pixels
from ..data.files import evenly_spread
from ..data.photographs import photographs
from ..data.pictures import picture_files, read_picture_file
from ..errors import OptionError


class SearchPictures:
    """Pictures as inputs of a model.

    Args:
        pictures: a picture or a folder of them; ``None`` for scikit-learn's photographs.
        plan: of a conversion of the model.
        count: pictures that will be read at most; of a larger folder, as many that lie evenly between its first and its last.
    Raises:
        DataError: there is no picture.
        CheckpointError: the model has no image processor.
        OptionError: something else than a path, or no photographs to take.
    """

    def __init__(self, pictures: object, plan: ConversionPlan, count: int) -> None:
        assert plan.grid is not None
        self.rule, self.config, self.folder = plan.grid.rule, plan.architecture.source_config, plan.source.folder
        self.processor = required_processor(load_image_processor(self.folder), plan.source.name)
        self._pieces: dict[GridSize, list[dict[str, Tensor]]] = {}
        if isinstance(pictures, Path):
            files = picture_files(pictures)
            self.name = pictures.name
            self.pictures: list[Any] = [read_picture_file(file) for file in evenly_spread(files, count)]
        elif pictures is None:
            self.name = "scikit-learn's photographs"
            self.pictures = [photograph.permute(1, 2, 0).numpy() for photograph in photographs()[:count]]
            if not self.pictures:
                raise OptionError("There are no pictures to choose by, since scikit-learn is not installed; give --search-images FOLDER.")
        else:
            raise OptionError(f"{plan.source.name!r} reads pictures; give a picture or a folder of pictures as a Path instead of a text.")

    def pieces(self, size: GridSize, count: int) -> list[dict[str, Tensor]]:
        """Up to ``count`` pictures of this size, each as arguments of ``forward`` for one picture.

        Raises:
            GridError: the image processor makes pictures of another size.
        """
        if size not in self._pieces:
            values = sized_pixels(self.processor, self.folder, self.pictures, size.size, self.rule.input)
            self._pieces[size] = [self.rule.arguments(self.config, picture) for picture in values.split(1)]
        return self._pieces[size][:count]

    def predicted(self, size: GridSize, count: int, *, causal: bool) -> list[tuple[dict[str, Tensor], None]]:
        """The pictures; everything that a head says of one is compared."""
        return [(piece, None) for piece in self.pieces(size, count)]

    def arguments(self, piece: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
        """What the model is called with."""
        return {name: value.to(device) for name, value in piece.items()}

    def too_few(self, pieces: int, wanted: int) -> str:
        """The note on a choice by few pictures."""
        return f"There are {pieces} of {wanted} pictures; more give a surer choice."


def pictures_digest(pictures: Path) -> str:
    """Names and sizes of the files, by which a search that resumes knows them."""
    return "\n".join(f"{file.name} {file.stat().st_size}" for file in picture_files(pictures))
