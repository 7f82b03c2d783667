"""Audio files as the samples that a model reads: one channel, at the model's sampling rate.

Damaged, cut, silent and empty files are refused with one sentence.

Files are read by soundfile (WAV, FLAC, OGG, MP3, AIFF …); neither torchaudio nor torchcodec is needed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError, check_extra, in_a_line
from ..names import logger
from .sources import DataError, path_and_content
from .tokenization import IGNORED

EXTRA = "audio"
SAMPLES_PER_BLOCK = 1 << 20
"""Samples per read. Memory then depends on the file's content, not on its header."""
CUT_DATA = re.compile(r"^\s*(?:data|SSND|Data Size)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)
"""Matches a line in libsndfile's log: a header of a WAV, AIFF or AU file has one number of bytes, the file another."""
UNKNOWN_SIZE, UNKNOWN_COUNT = 0x7FFF0000, 1 << 60
"""A number of bytes in a header, or a number of samples from libsndfile, means "unknown" if it is not smaller than
this. Programs that write to a pipe do not know these numbers."""
LEAST_MISSING = 0.01
"""Seconds. A file counts as cut if more than this is missing at its end. Less may be missing, because encoders round
to frames."""
ROWS_PER_SECOND = 100
"""Spectrogram rows per second in AST's feature extractor."""
Samples: TypeAlias = NDArray[np.float32]


def read_audio(
    source: str | PathLike[str] | Mapping[str, Any],
    sampling_rate: int,
    *,
    name: str = "",
    otherwise: str = "leave it out",
) -> Samples:
    """Read a sound file as the samples that a model's feature extractor takes.

    Several channels are mixed to their mean. A sound with another sampling rate is resampled by
    ``scipy.signal.resample_poly``.

    Args:
        source: a path, or a cell of ``datasets.Audio(decode=False)``, which has ``path`` or ``bytes``.
        sampling_rate: the model's sampling rate per second, ``feature_extractor.sampling_rate``.
        name: name of the sound in messages; default: its path.
        otherwise: the last advice in messages, after "or".

    Returns:
        The samples in float32, an array with one axis.

    Raises:
        InputError: the sound is missing, empty, damaged, cut, not finite or silent.
    """
    check_extra(EXTRA, "soundfile")
    import soundfile

    path, content = path_and_content(source)
    name = name or (repr(str(path)) if path else "the sound")
    if isinstance(content, str) and not Path(path or "").is_file():
        problem = "is not a file" if Path(path or "").exists() else "does not exist"
        raise InputError(f"{name} {problem}; correct its path, or {otherwise}.")

    # All channels of the file
    try:
        with soundfile.SoundFile(content) as file:
            rate, frames, log = file.samplerate, file.frames, file.extra_info
            blocks = [np.zeros((0, file.channels), np.float32)]
            while len(block := file.read(SAMPLES_PER_BLOCK, dtype="float32", always_2d=True)):
                blocks.append(block)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        reason = in_a_line(error).rpartition(">: ")[2]
        raise InputError(
            f"{name} is damaged, cut or not a sound file ({reason}); copy it again, or {otherwise}."
        ) from error
    samples = np.concatenate(blocks).mean(axis=1, dtype=np.float32)
    count = len(samples)

    # Is the file cut? The total is the number of samples according to its header.
    sizes = CUT_DATA.search(log)
    if sizes is None or int(sizes[1]) >= UNKNOWN_SIZE:
        total = frames
    else:
        total = round(count * int(sizes[1]) / max(1, int(sizes[2])))
    if total < UNKNOWN_COUNT and total - count > LEAST_MISSING * rate:
        raise InputError(
            f"{name} is cut: it ends after {count / rate:.1f} of {total / rate:.1f} seconds; copy it again, or "
            f"{otherwise}."
        )

    # Are the samples usable?
    if not count:
        raise InputError(f"{name} holds no samples; {otherwise}.")
    finite = np.isfinite(samples)
    if not finite.all():
        second = int(np.argmin(finite)) / rate
        raise InputError(
            f"{name} has values that are not finite, the first at second {second:.2f}; write it again, or {otherwise}."
        )
    if samples.min() == samples.max():
        raise InputError(
            f"{name} is silent: all of its {count / rate:.2f} seconds have the value {samples[0]:g}; {otherwise}."
        )

    if rate == sampling_rate:
        return samples
    check_extra(EXTRA, "scipy")
    from scipy.signal import resample_poly

    divisor = math.gcd(rate, sampling_rate)
    return np.asarray(resample_poly(samples, sampling_rate // divisor, rate // divisor), np.float32)


class AudioCollator:
    """Collator that makes model inputs from audio files, for rows of :func:`to_utterances`.

    Attributes:
        sampling_rate: the model's sampling rate per second.
        most_samples: number of samples to which the extractor cuts or pads every sound, as Whisper's and AST's do.
            ``None`` if the extractor takes sounds of any length.

    Args:
        extractor: the model's feature extractor.
        masked: also return a padding mask if the extractor returns none by default. Whisper needs the mask in training
            if it masks features (SpecAugment).
    """

    def __init__(self, extractor: Any, *, masked: bool = False) -> None:
        self.extractor, self.sampling_rate = extractor, int(extractor.sampling_rate)
        self.most_samples = getattr(extractor, "n_samples", None)
        rows = getattr(extractor, "max_length", None)
        if self.most_samples is None and rows is not None:
            self.most_samples = rows * self.sampling_rate // ROWS_PER_SECOND
        self.settings: dict[str, Any] = {}
        if self.most_samples is None:
            self.settings["padding"] = True
        if masked:
            self.settings["return_attention_mask"] = True

    def samples(self, row: Mapping[str, Any]) -> Samples:
        """The samples of a row with ``audio`` and ``name``; see :func:`read_audio`."""
        return read_audio(row["audio"], self.sampling_rate, name=row["name"])

    def inputs(self, sounds: Sequence[Samples]) -> dict[str, Tensor]:
        """The model's arguments for some sounds, from the feature extractor. Sounds are padded on the right."""
        return dict(
            self.extractor(list(sounds), sampling_rate=self.sampling_rate, return_tensors="pt", **self.settings)
        )

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """A batch with ``labels``: classes ``(B,)``, or tokens of transcripts ``(B, T)``, padded with -100."""
        row_labels = [torch.as_tensor(row["labels"], dtype=torch.long) for row in rows]
        labels = torch.nn.utils.rnn.pad_sequence(
            [tokens.view(-1) for tokens in row_labels], batch_first=True, padding_value=IGNORED
        )
        if not row_labels[0].dim():  # a class
            labels = labels.flatten()
        return {**self.inputs([*map(self.samples, rows)]), "labels": labels}

    def length(self, sound: Samples) -> int:
        """The length of the model input for a sound: a number of samples, or of spectrogram rows."""
        inputs = self.inputs([sound])
        if "attention_mask" in inputs:
            return int(inputs["attention_mask"].sum())
        return next(iter(inputs.values())).shape[1]


def to_utterances(
    data: Dataset,
    labels: Sequence[Any],
    collator: AudioCollator,
    *,
    length: Callable[[Samples], int] = len,
    fits: Callable[[Any, int], bool] = lambda labels, length: True,
    most_seconds: float | None = None,
) -> Dataset:
    """The rows of :func:`.rows.rows_of` with the columns ``labels`` and ``length``.

    Every file is read once, so that a damaged file is refused before the training. Utterances that are longer than
    ``most_seconds``, or whose labels do not fit, are left out with a warning.

    Args:
        labels: class number of each row, or tokens of its transcript.
        length: function that returns the length of a sound, by which batches are grouped; default: number of samples.
        fits: function that gets the labels and the length of an utterance, and returns whether the model can output
            these labels for a sound of this length.
    """
    lengths = []
    fitting, left_out = [], []  # numbers of rows
    for number, row in enumerate(data.select_columns(["audio", "name"])):
        sound = collator.samples(row)
        lengths.append(length(sound))
        is_short = most_seconds is None or len(sound) <= most_seconds * collator.sampling_rate
        if is_short and fits(labels[number], lengths[-1]):
            fitting.append(number)
        else:
            left_out.append(number)
    if left_out:
        limit = "" if most_seconds is None else f"are longer than {most_seconds:g} seconds or "
        logger.warning(
            f"{len(left_out):,} of {len(data):,} utterances {limit}have longer transcripts than the model can write, "
            f"and are left out; the first is {data['name'][left_out[0]]}."
        )
    if not fitting:
        raise DataError(
            f"None of the {len(data):,} utterances can be used; give shorter ones, or raise --max-seconds."
        )
    return data.add_column("labels", labels).add_column("length", lengths).select(fitting)
