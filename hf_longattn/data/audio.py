"""Sound as the samples that a model hears, in one channel and at its sampling rate, or refused with one sentence.

Files are read by soundfile (WAV, FLAC, OGG, MP3, AIFF …); neither torchaudio nor torchcodec is needed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from torch import Tensor

from hf_longattn.errors import InputError, in_a_line, needs_extra

EXTRA = "audio"
SAMPLES_PER_BLOCK = 1 << 20
"""Samples per read. Memory then depends on the file's content, not on its header."""
CUT_DATA = re.compile(r"^\s*(?:data|SSND|Data Size)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)
"""libsndfile's note about a WAV, AIFF or AU file whose header states a wrong number of bytes."""
UNKNOWN_SIZE, UNKNOWN_COUNT = 0x7FFF0000, 1 << 60
"""Minimum bytes in a header, and minimum samples by libsndfile, that mean "unknown". Programs that write to a pipe use them."""
LEAST_MISSING = 0.01
"""Minimum missing seconds of a cut file. Encoders round to frames."""
ROWS_PER_SECOND = 100
"""Rows of a spectrogram in a second, by AST's feature extractor."""
Samples: TypeAlias = NDArray[np.float32]
Sound: TypeAlias = str | PathLike[str] | bytes | Mapping[str, Any] | NDArray[Any]


def read_audio(source: Sound, sampling_rate: int, *, name: str = "", otherwise: str = "leave it out") -> Samples:
    """One sound as the samples that a model's feature extractor takes.

    Several channels are mixed to their mean, and another sampling rate is converted by ``scipy.signal.resample_poly``.

    Args:
        source: a path; the bytes of a file; a cell of ``datasets.Audio``, decoded (``array`` and ``sampling_rate``) or not (``path`` or
            ``bytes``); or an array of samples at ``sampling_rate``, (samples,), (samples, channels) or (channels, samples). Integers in an
            array are divided by the maximum of their type, as in a file.
        sampling_rate: samples a second that the model reads, ``feature_extractor.sampling_rate``.
        name: the sound's name in messages; default: its path.
        otherwise: the last advice of a message.

    Returns:
        The samples, (samples,), in float32.

    Raises:
        MissingExtraError: soundfile, or scipy for resampling, is not installed.
        InputError: the sound is missing, empty, damaged, cut, not finite or silent.
    """
    rate = sampling_rate
    if isinstance(source, Mapping) and source.get("array") is not None:
        rate, source = int(source.get("sampling_rate") or rate), source["array"]
    elif isinstance(source, Mapping):
        source = source["bytes"] if source.get("bytes") is not None else source.get("path") or ""
    name = name or (repr(str(source)) if isinstance(source, (str, PathLike)) and source else "the sound")
    if isinstance(source, (str, PathLike, bytes)):
        samples, rate = _from_file(source, name, otherwise)
    else:
        samples = _from_array(source, name)
    samples = samples if samples.ndim == 1 else samples.mean(axis=1, dtype=np.float32)
    if not samples.size:
        raise InputError(f"{name} holds no samples; {otherwise}.")
    finite = np.isfinite(samples)
    if not finite.all():
        second = int(np.argmin(finite)) / rate
        raise InputError(f"{name} has values that are not finite, the first at second {second:.2f}; write it again, or {otherwise}.")
    if samples.min() == samples.max():
        raise InputError(f"{name} is silent: all of its {len(samples) / rate:.2f} seconds have the value {samples[0]:g}; {otherwise}.")
    if rate == sampling_rate:
        return samples
    with needs_extra(EXTRA):
        from scipy.signal import resample_poly

    divisor = math.gcd(rate, sampling_rate)
    return np.asarray(resample_poly(samples, sampling_rate // divisor, rate // divisor), np.float32)


def _from_array(values: Any, name: str) -> Samples:
    """Samples with or without an axis of channels, which is the last one."""
    array = np.asarray(values)
    if array.dtype.kind == "i":
        array = array / -float(np.iinfo(array.dtype).min)
    if array.dtype.kind != "f" or array.ndim not in (1, 2):
        raise InputError(
            f"{name} is an array of {array.dtype} with the shape {tuple(array.shape)}; give floats or signed whole numbers, (samples,) or "
            "(samples, channels)."
        )
    return (array.T if array.ndim == 2 and array.shape[0] < array.shape[1] else array).astype(np.float32)


def _from_file(source: str | PathLike[str] | bytes, name: str, otherwise: str) -> tuple[Samples, int]:
    """The samples of a file, (samples, channels), and their rate."""
    with needs_extra(EXTRA):
        import soundfile

    if not isinstance(source, bytes) and not Path(source).is_file():
        why = "is not a file" if Path(source).exists() else "does not exist"
        raise InputError(f"{name} {why}; correct its path, or {otherwise}.")
    try:
        with soundfile.SoundFile(BytesIO(source) if isinstance(source, bytes) else str(source)) as file:
            rate, frames, notes = file.samplerate, file.frames, file.extra_info
            blocks = [np.zeros((0, file.channels), np.float32)]
            while len(block := file.read(SAMPLES_PER_BLOCK, dtype="float32", always_2d=True)):
                blocks.append(block)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        reason = in_a_line(error).rpartition(">: ")[2]
        raise InputError(f"{name} is damaged, cut or not a sound file ({reason}); copy it again, or {otherwise}.") from error
    samples = np.concatenate(blocks)
    count, sizes = len(samples), CUT_DATA.search(notes)
    total = round(count * int(sizes[1]) / max(1, int(sizes[2]))) if sizes and int(sizes[1]) < UNKNOWN_SIZE else frames
    if count < total < UNKNOWN_COUNT and total - count > LEAST_MISSING * rate:  # a FLAC of unknown length may say 0
        raise InputError(f"{name} is cut: it ends after {count / rate:.1f} of {total / rate:.1f} seconds; copy it again, or {otherwise}.")
    return samples, rate


@dataclass(frozen=True)
class Hearing:
    """How audio files become the inputs of a model.

    extractor: the model's feature extractor.
    masked: return a mask of the padding even if the extractor makes none by default. Whisper masks its own features in training by it.
    """

    extractor: Any
    masked: bool = False

    @property
    def sampling_rate(self) -> int:
        """Samples a second that the model reads."""
        return int(self.extractor.sampling_rate)

    @property
    def most_samples(self) -> int | None:
        """Number of samples to which the extractor cuts or pads every audio file (Whisper, AST); ``None`` where it keeps them whole."""
        if hasattr(self.extractor, "n_samples"):
            return int(self.extractor.n_samples)
        rows = getattr(self.extractor, "max_length", None)
        return None if rows is None else rows * self.sampling_rate // ROWS_PER_SECOND

    def samples(self, row: Mapping[str, Any]) -> Samples:
        """The samples of a row with ``audio`` and ``name``; see :func:`read_audio`."""
        return read_audio(row["audio"], self.sampling_rate, name=row["name"])

    def inputs(self, sounds: Sequence[Samples]) -> dict[str, Tensor]:
        """The arguments of a model, padded after the sound, as the feature extractor makes them."""
        settings: dict[str, Any] = {"padding": True} if self.most_samples is None else {}
        if self.masked:
            settings["return_attention_mask"] = True
        return dict(self.extractor(list(sounds), sampling_rate=self.sampling_rate, return_tensors="pt", **settings))

    def batch(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """The arguments of a model for rows with ``audio`` and ``name``."""
        return self.inputs([self.samples(row) for row in rows])

    def length(self, sound: Samples) -> int:
        """The length of a model's input for a sound: samples, or rows of features."""
        inputs = self.inputs([sound])
        mask = inputs.get("attention_mask")
        return int(mask.sum()) if mask is not None else next(iter(inputs.values())).shape[1]


def with_lengths(data: Dataset, hearing: Hearing) -> Dataset:
    """Add ``length``, the samples of each audio file. Every file is read once, so that a bad one is refused before the training."""
    return data.add_column("length", [len(hearing.samples(row)) for row in data.select_columns(["audio", "name"])])


class RecordingCollator:
    """Batches of audio files: the feature extractor's padded inputs, and ``labels (B,)``.

    Args:
        hearing: how audio files become inputs.
        names: of the labels, in the order of their numbers.
    """

    def __init__(self, hearing: Hearing, names: Sequence[str]) -> None:
        self.hearing, self.numbers = hearing, {name: number for number, name in enumerate(names)}

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Tensor]:
        """The batch of rows with ``audio``, ``name`` and ``label``; see :func:`.rows.rows_of`."""
        labels = torch.tensor([self.numbers[row["label"]] for row in features])
        return {**self.hearing.batch(features), "labels": labels}
