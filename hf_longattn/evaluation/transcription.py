"""Transcribes audio files of any length with a CTC model: in one pass, or in overlapping chunks, as transformers' pipeline does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase, WhisperConfig

from hf_longattn.data.audio import Hearing, Samples, Sound, read_audio
from hf_longattn.errors import AudioError, CheckpointError, OptionError, in_a_line, lacks_memory
from hf_longattn.modeling.inference.optimize import evaluating
from hf_longattn.private_apis import missing

CTC_CLASS = "ForCTC"
"""The end of the names of the classes that transcribe."""
START_OF_WORD = "▁"
"""SentencePiece's mark of a word's first piece."""
MEASURED_SECONDS = 10
"""Seconds that are added to a sound to count the frames in them."""


@dataclass(frozen=True)
class Word:
    """A word of a transcript, with the ``start`` of its first and the ``end`` of its last frame in seconds."""

    text: str
    start: float
    end: float


@dataclass(frozen=True)
class Transcript:
    """The transcript of an audio file.

    text: the transcript.
    words: its words with their times.
    tokens: the token of each frame.
    seconds: of the audio file.
    seams: seconds of the borders between chunks; empty for one pass.
    """

    text: str
    words: tuple[Word, ...]
    tokens: tuple[int, ...]
    seconds: float
    seams: tuple[float, ...] = ()


def transcribe(
    model: PreTrainedModel,
    processor: Any,
    sound: Sound,
    *,
    chunk_seconds: float | None = None,
    stride_seconds: float | tuple[float, float] | None = None,
    resample: bool = False,
    mono: bool = False,
) -> Transcript:
    """Transcribe an audio file with a CTC model, by the best token of each frame.

    Args:
        model: a ``…ForCTC``, short or long.
        processor: its processor, with ``feature_extractor`` and ``tokenizer``.
        sound: see :func:`~hf_longattn.data.audio.read_audio`; silence is read like any other sound.
        chunk_seconds: read it in overlapping chunks of this length; ``None`` = in one pass.
        stride_seconds: overlap to the left and to the right, whose frames are dropped; default: a sixth of a chunk each. Chunks and frames
            are counted as by ``pipeline("automatic-speech-recognition", chunk_length_s=, stride_length_s=)``.
        resample, mono: see :func:`~hf_longattn.data.audio.read_audio`.

    Raises:
        AudioError: the audio file cannot be read, is shorter than a frame, or does not fit into memory in one pass.
        CheckpointError: the model has no head for CTC; an encoder-decoder such as Whisper is run by transformers' pipeline.
        OptionError: a stride without chunks, or chunks shorter than their strides.
    """
    if not type(model).__name__.endswith(CTC_CLASS):
        raise CheckpointError(f"{type(model).__name__} does not transcribe by CTC; {_advice(model)}.")
    hearing = Hearing(processor.feature_extractor, resample, mono)
    samples = read_audio(sound, hearing.sampling_rate, resample=resample, mono=mono, silence=True)
    step = samples_per_frame(model, hearing)
    tokens, seams = [], []
    for start, left, right, chunk in chunks(samples, step, hearing.sampling_rate, chunk_seconds, stride_seconds):
        frames = best_tokens(model, hearing, chunk)
        total = round(len(chunk) / step)
        end = total - round(right / len(chunk) * total) if right else len(frames)
        tokens.append(frames[round(left / len(chunk) * total) : end])
        seams.append((start + left) / hearing.sampling_rate)
    ids = np.concatenate(tokens)
    words = ctc_words(ids, processor.tokenizer, step / hearing.sampling_rate)
    text = processor.tokenizer.decode(ids)
    return Transcript(text, tuple(words), tuple(ids.tolist()), len(samples) / hearing.sampling_rate, tuple(seams[1:]))


def _advice(model: PreTrainedModel) -> str:
    """Advice for a model without a CTC head."""
    if not getattr(model.config, "is_encoder_decoder", False):
        return "load the checkpoint by AutoModelForCTC"
    chunks = ", chunk_length_s=30" if isinstance(model.config, WhisperConfig) else ""
    return (
        "type transformers.pipeline('automatic-speech-recognition', model=model, tokenizer=processor.tokenizer, "
        f"feature_extractor=processor.feature_extractor{chunks})(sound)"
    )


def samples_per_frame(model: PreTrainedModel, hearing: Hearing) -> int:
    """Samples from one frame of a model's logits to the next."""
    lengths = [count * MEASURED_SECONDS * hearing.sampling_rate for count in (1, 2)]
    noise = np.random.default_rng(0).standard_normal(lengths[1], np.float32)
    counts = [output_frames(model, hearing.length(noise[:length])) for length in lengths]
    return round((lengths[1] - lengths[0]) / (counts[1] - counts[0]))


def chunks(
    samples: Samples, step: int, rate: int, chunk_seconds: float | None, stride_seconds: float | tuple[float, float] | None
) -> Iterator[tuple[int, int, int, Samples]]:
    """Yield (start, left, right, samples) of each chunk. ``left`` and ``right`` samples are shared with its neighbours and dropped from its
    result.

    Args:
        step: samples per frame. Lengths are multiples of it.
        rate: samples in a second.

    Raises:
        OptionError: a stride without chunks, or chunks shorter than their strides.
    """
    if chunk_seconds is None:
        if stride_seconds is not None:
            raise OptionError("stride_seconds requires chunk_seconds; give both, or leave it out.")
        yield 0, 0, 0, samples
        return
    strides = (
        stride_seconds if isinstance(stride_seconds, tuple) else (chunk_seconds / 6 if stride_seconds is None else stride_seconds,) * 2
    )
    length, left, right = (round(seconds * rate / step) * step for seconds in (chunk_seconds, *strides))
    if length <= left + right or min(left, right) < 0:
        raise OptionError(
            f"Chunks of {chunk_seconds:g} seconds hold nothing but strides of {strides[0]:g} and {strides[1]:g}; give longer chunks."
        )
    for start in range(0, len(samples), length - left - right):
        chunk, is_last = samples[start : start + length], start + length >= len(samples)
        shared = left if start else 0
        if len(chunk) > shared:
            yield start, shared, 0 if is_last else right, chunk
        if is_last:
            return


def best_tokens(model: PreTrainedModel, hearing: Hearing, samples: Samples) -> NDArray[np.int64]:
    """The best token of each frame of a sound, (frames,).

    Raises:
        AudioError: the sound is shorter than a frame, or does not fit into memory.
    """
    if output_frames(model, hearing.length(samples)) < 1:
        raise AudioError(f"The sound of {len(samples) / hearing.sampling_rate:.3f} seconds is shorter than one frame; give a longer one.")
    inputs = {
        name: value.to(model.device, model.dtype if value.is_floating_point() else None)
        for name, value in hearing.inputs([samples]).items()
    }
    try:
        with evaluating(model), torch.inference_mode():
            return model(**inputs).logits[0].argmax(-1).cpu().numpy()
    except (RuntimeError, MemoryError) as error:
        if not lacks_memory(error):
            raise
        raise AudioError(
            f"{len(samples) / hearing.sampling_rate:,.0f} seconds do not fit into memory in one pass of {type(model).__name__}; convert "
            f"the checkpoint by `longattn convert`, or give chunk_seconds=30 ({in_a_line(error)})."
        ) from error


def ctc_words(ids: Sequence[int] | NDArray[Any], tokenizer: PreTrainedTokenizerBase, seconds: float) -> list[Word]:
    """The words of the tokens of frames, with their times.

    Args:
        ids: the token of each frame; equal ones in a row are one, and padding is CTC's blank.
        seconds: per frame.
    """
    delimiter, blank = getattr(tokenizer, "word_delimiter_token", None), tokenizer.pad_token_id
    words: list[list[tuple[str, int, int]]] = [[]]
    place = 0
    for token, run in groupby(int(number) for number in ids):
        start, place = place, place + len(list(run))
        if token == blank:
            continue
        piece = str(tokenizer.convert_ids_to_tokens(token))
        if piece == delimiter or piece.startswith(START_OF_WORD):
            words.append([])
        if piece != delimiter:
            words[-1].append((piece.removeprefix(START_OF_WORD), start, place))
    lower = getattr(tokenizer, "do_lower_case", False)
    texts = [("".join(piece for piece, _, _ in word), word) for word in words if word]
    return [Word(text.lower() if lower else text, word[0][1] * seconds, word[-1][2] * seconds) for text, word in texts]


def output_frames(model: Any, length: int) -> int:
    """Number of frames for which a speech model has logits. The input has ``length`` samples or rows of features.

    Raises:
        BackendError: the model has no method for it.
    """
    for name in ("_get_feat_extract_output_lengths", "_get_subsampling_output_length"):
        count = getattr(model, name, None)
        if count is not None:
            return int(count(torch.tensor([length]))[0])
    raise missing("output_frames")
