"""Pictures and recordings that a model reads at the size for which it is converted, or at another one, as its processor makes them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..conversion.plan import ConversionPlan
from ..data.audio import RECORDING_FILES
from ..data.files import evenly_spread
from ..data.photographs import photographs
from ..data.pictures import PICTURE_FILES, read_picture_file
from ..data.videos import read_video, video_places
from ..errors import OptionError
from ..inputs.common.base import InputSize
from ..inputs.common.processors import load_processor, processor_of, required_processor, sized_frames, sized_pixels, spectrograms
from ..inputs.sound import RecordedSounds, read_recordings
from ..processor_files import FEATURE_EXTRACTOR, IMAGE_PROCESSOR


class SearchInputs(ABC):
    """Inputs of a model that are not texts.

    name: of what is read. unit: what a piece is, with an s for several.
    """

    name: str
    unit: str

    @abstractmethod
    def pieces(self, size: Any, count: int) -> list[dict[str, Tensor]]:
        """Up to ``count`` inputs of this size, each as arguments of ``forward`` for one of them."""

    def predicted(self, size: Any, count: int, *, causal: bool) -> list[tuple[dict[str, Tensor], None]]:
        """The inputs; everything that a head says of one is compared."""
        return [(piece, None) for piece in self.pieces(size, count)]

    def arguments(self, piece: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
        """What the model is called with."""
        return {name: value.to(device) for name, value in piece.items()}

    def too_few(self, pieces: int, wanted: int) -> str:
        """The note on a choice by few inputs."""
        return f"There are {pieces} of {wanted} {self.unit}s; more give a surer choice."


class SearchPictures(SearchInputs):
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

    unit = "picture"

    def __init__(self, pictures: object, plan: ConversionPlan, count: int) -> None:
        self.rule, self.config, self.folder = plan.inputs.kind.rule, plan.architecture.source_config, plan.source.folder
        self.processor = required_processor(load_processor(self.folder, IMAGE_PROCESSOR), plan.source.name)
        self._pieces: dict[InputSize, list[dict[str, Tensor]]] = {}
        if isinstance(pictures, Path):
            files = PICTURE_FILES.files(pictures)
            self.name = pictures.name
            self.pictures: list[Any] = [read_picture_file(file) for file in evenly_spread(files, count)]
        elif pictures is None:
            self.name = "scikit-learn's photographs"
            self.pictures = [photograph.permute(1, 2, 0).numpy() for photograph in photographs()[:count]]
            if not self.pictures:
                raise OptionError("There are no pictures to choose by, since scikit-learn is not installed; give --search-images FOLDER.")
        else:
            raise OptionError(f"{plan.source.name!r} reads pictures; give a picture or a folder of pictures as a Path instead of a text.")

    def pieces(self, size: InputSize, count: int) -> list[dict[str, Tensor]]:
        """Up to ``count`` pictures of this size.

        Raises:
            GridError: the image processor makes pictures of another size.
        """
        if size not in self._pieces:
            values = sized_pixels(self.processor, self.folder, self.pictures, size.value, self.rule.input)
            self._pieces[size] = [self.rule.arguments(self.config, picture) for picture in values.split(1)]
        return self._pieces[size][:count]


class SearchVideos(SearchInputs):
    """Videos as inputs of a model: folders of frames, or arrays.

    Args:
        videos: a video, or a folder of them.
        plan, count: as for :class:`SearchPictures`.
    Raises:
        DataError: there is no video.
        CheckpointError: the model has no processor.
        OptionError: something else than a path.
    """

    unit = "video"

    def __init__(self, videos: object, plan: ConversionPlan, count: int) -> None:
        if not isinstance(videos, Path):
            raise OptionError(
                f"{plan.source.name!r} reads videos, by which mechanisms are chosen; give a folder of frames or an array (.npy), or a "
                "folder of these, to `longattn search` in place of the text, to --mechanism auto as --search-images, in Python as a Path."
            )
        self.rule, self.config, self.folder = plan.inputs.kind.rule, plan.architecture.source_config, plan.source.folder
        self.processor, self.name = required_processor(processor_of(self.rule, self.folder), plan.source.name, "videos"), videos.name
        self.places, self.model = evenly_spread(video_places(videos), count), plan.source.name

    def pieces(self, size: InputSize, count: int) -> list[dict[str, Tensor]]:
        """Up to ``count`` videos of this size.

        Raises:
            DataError: a video cannot be read, or has too few frames.
            GridError: the processor makes frames of another size.
        """
        videos = (read_video(place, size.value[0]) for place in self.places[:count])
        sized = (sized_frames(self.rule, self.processor, self.folder, [video], size.value, self.model) for video in videos)
        return [self.rule.arguments(self.config, values) for values in sized]


class SearchSpectrograms(SearchInputs):
    """Spectrograms of recordings, cut and padded by the model's feature extractor.

    Args:
        recordings: a recording or a folder of them.
        plan, count: as for :class:`SearchPictures`.
    Raises:
        DataError, AudioError: there is no recording, or one cannot be read.
        CheckpointError: the model has no feature extractor.
        OptionError: something else than a path.
    """

    unit = "recording"

    def __init__(self, recordings: object, plan: ConversionPlan, count: int) -> None:
        path, self.extractor = _recordings(recordings, plan)
        self.rule, self.config, self.name = plan.inputs.kind.rule, plan.architecture.source_config, path.name
        files = evenly_spread(RECORDING_FILES.files(path), count)
        self.sounds = read_recordings(files, self.extractor.sampling_rate)

    def pieces(self, size: InputSize, count: int) -> list[dict[str, Tensor]]:
        """Up to ``count`` spectrograms of this size."""
        rows = spectrograms(self.extractor, self.sounds[:count], self.rule, size.value)
        return [{self.rule.input: row} for row in rows.split(1)]


class SearchSounds(SearchInputs):
    """Stretches of recordings, whose features are computed from the whole recording.

    Args:
        recordings, plan, count: as for :class:`SearchSpectrograms`.
    Raises:
        DataError, AudioError: there is no recording, or one cannot be read.
        CheckpointError: the model has no feature extractor.
        OptionError: something else than a path.
    """

    unit = "stretch"

    def __init__(self, recordings: object, plan: ConversionPlan, count: int) -> None:
        path, extractor = _recordings(recordings, plan)
        self.rule, self.config, self.name = plan.inputs.kind.rule, plan.architecture.source_config, path.name
        self.sounds = RecordedSounds(self.rule, self.config, extractor, path, count)

    def pieces(self, size: InputSize, count: int) -> list[dict[str, Tensor]]:
        """Up to ``count`` stretches of this duration.

        Raises:
            LengthError: no recording is so long.
        """
        return [self.rule.arguments(sound) for sound in self.sounds.stretches(size.value, count)]

    def too_few(self, pieces: int, wanted: int) -> str:
        return f"The recordings are enough for {pieces} of {wanted} stretches; more or longer ones give a surer choice."


def _recordings(recordings: object, plan: ConversionPlan) -> tuple[Path, Any]:
    """The file or the folder of recordings, and the feature extractor that reads them for the model.

    Raises:
        CheckpointError: the model has no feature extractor.
        OptionError: there is none, or it is something else than a path.
    """
    if not isinstance(recordings, Path):
        raise OptionError(
            f"{plan.source.name!r} reads sound, by which mechanisms are chosen; give a recording or a folder of recordings, to `longattn "
            "search` in place of the text, to --mechanism auto as --search-audio, in Python as a Path."
        )
    return recordings, required_processor(load_processor(plan.source.folder, FEATURE_EXTRACTOR), plan.source.name, "sound")


def search_inputs(inputs: object, plan: ConversionPlan, count: int) -> SearchInputs:
    """What a model reads that is not a text: see the classes above."""
    return BY_NOUN[plan.inputs.noun](inputs, plan, count)


BY_NOUN: dict[str, Callable[[object, ConversionPlan, int], SearchInputs]] = {
    "picture": SearchPictures, "video": SearchVideos, "spectrogram": SearchSpectrograms, "sound": SearchSounds,
}  # fmt: skip
"""What a model reads -> its inputs."""


def digest(folder: Path) -> str:
    """Names and sizes of the pictures or recordings of a folder, by which a search that resumes knows them."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and not file.name.startswith(".")]
    return "\n".join(f"{file.name} {file.stat().st_size}" for file in files)
