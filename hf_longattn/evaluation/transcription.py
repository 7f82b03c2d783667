"""Transcribes audio files of any length, in one pass or in overlapping chunks, as transformers' ``generate`` and pipeline do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_longattn.data.audio import Hearing, Samples, Sound, read_audio
from hf_longattn.data.lengths import decoder_length
from hf_longattn.errors import AudioError, CheckpointError, OptionError, in_a_line, lacks_memory
from hf_longattn.modeling.inference.optimize import evaluating
from hf_longattn.modeling.pipelines import SpeechRecognitionPipeline
from hf_longattn.private_apis import missing
from hf_longattn.reading import base_type

CTC_CLASS = "ForCTC"
"""The end of the names of the classes that transcribe by CTC."""
WRITERS = ("whisper", "speech_to_text", "moonshine", "moonshine_streaming", "speech-encoder-decoder")
"""Model types of the encoder-decoders that transcribe."""
TOKENS_OF_A_CHUNK, PROMPT_TOKENS = 256, 8
"""Maximum tokens that transformers' pipeline lets a model write, and places to leave for those before them."""
START_OF_WORD = "▁"
"""SentencePiece's mark of a word's first piece."""
MEASURED_SECONDS = 10
"""Seconds that are added to a sound to count the frames in them."""


@dataclass(frozen=True)
class Word:
    """A word or segment of a transcript, with the ``start`` of its first and the ``end`` of its last frame in seconds."""

    text: str
    start: float
    end: float


@dataclass(frozen=True)
class Transcript:
    """The transcript of an audio file.

    text: the transcript.
    words: its words with their times, by CTC.
    tokens: by CTC the token of each frame. Of an encoder-decoder, the tokens that it wrote in one pass.
    seconds: of the audio file.
    seams: seconds of the borders between chunks, by CTC; empty for one pass.
    segments: a Whisper's sentences or parts of them, with their times; empty for other models.
    """

    text: str
    words: tuple[Word, ...]
    tokens: tuple[int, ...]
    seconds: float
    seams: tuple[float, ...] = ()
    segments: tuple[Word, ...] = ()


def transcribe(
    model: PreTrainedModel,
    processor: Any,
    sound: Sound,
    *,
    chunk_seconds: float | None = None,
    stride_seconds: float | tuple[float, float] | None = None,
    resample: bool = False,
    mono: bool = False,
    generate_kwargs: Mapping[str, Any] = MappingProxyType({}),
) -> Transcript:
    """Transcribe an audio file with a CTC model, by the best token of each frame, or with an encoder-decoder.

    In one pass, a Whisper writes segment after segment with timestamps, as by ``generate(return_timestamps=True)``. Other encoder-decoders
    read the whole sound at once.

    Args:
        model: a ``…ForCTC``, a Whisper, Speech2Text, Moonshine or SpeechEncoderDecoder, short or long.
        processor: its processor, with ``feature_extractor`` and ``tokenizer``.
        sound: see :func:`~hf_longattn.data.audio.read_audio`; silence is read like any other sound.
        chunk_seconds: read it in overlapping chunks of this length; ``None`` = in one pass.
        stride_seconds: overlap to the left and to the right, which is merged or dropped; default: a sixth of a chunk each. Chunks are
            those of ``pipeline("automatic-speech-recognition", chunk_length_s=, stride_length_s=)``.
        resample, mono: see :func:`~hf_longattn.data.audio.read_audio`.
        generate_kwargs: of an encoder-decoder's ``generate``, such as ``language``, ``task`` or ``num_beams``.

    Raises:
        AudioError: the audio file cannot be read, is shorter than a frame, or does not fit into memory in one pass; or an encoder-decoder
            wrote as many tokens as it can before the end of the sound.
        CheckpointError: the model does not transcribe.
        OptionError: a stride without chunks, chunks shorter than their strides, or ``generate_kwargs`` for a CTC model.
    """
    by_ctc = type(model).__name__.endswith(CTC_CLASS)
    if not by_ctc and base_type(model.config.model_type) not in WRITERS:
        raise CheckpointError(
            f"{type(model).__name__} does not transcribe; load a checkpoint by AutoModelForCTC, or by AutoModelForSpeechSeq2Seq one of "
            f"{', '.join(WRITERS)}."
        )
    if by_ctc and generate_kwargs:
        raise OptionError(f"generate_kwargs are for encoder-decoders, and {type(model).__name__} transcribes by CTC; leave them out.")
    if chunk_seconds is None and stride_seconds is not None:
        raise OptionError("stride_seconds requires chunk_seconds; give both, or leave it out.")
    hearing = Hearing(processor.feature_extractor, resample, mono)
    samples = read_audio(sound, hearing.sampling_rate, resample=resample, mono=mono, silence=True)
    read = _by_ctc if by_ctc else _by_writing
    with evaluating(model), torch.inference_mode(), in_memory(model, len(samples) / hearing.sampling_rate):
        return read(model, processor, hearing, samples, chunk_seconds, stride_seconds, dict(generate_kwargs))


def _by_ctc(
    model: PreTrainedModel, processor: Any, hearing: Hearing, samples: Samples, chunk_seconds: Any, stride_seconds: Any, _: Any
) -> Transcript:
    """The transcript of the best token of each frame."""
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


def _by_writing(
    model: Any, processor: Any, hearing: Hearing, samples: Samples, chunk_seconds: Any, stride_seconds: Any, settings: dict[str, Any]
) -> Transcript:
    """The transcript that a decoder writes."""
    seconds, tokenizer = len(samples) / hearing.sampling_rate, processor.tokenizer
    is_whisper = base_type(model.config.model_type) == "whisper"
    if is_whisper:
        settings.setdefault("return_timestamps", writes_timestamps(model))
    if chunk_seconds is not None:
        next(chunks(samples, 1, hearing.sampling_rate, chunk_seconds, stride_seconds))  # refuses strides that fill the chunk
        timed = {"return_timestamps": settings.pop("return_timestamps")} if is_whisper else {}
        if (places := decoder_length(model)) is not None and places < TOKENS_OF_A_CHUNK + PROMPT_TOKENS:
            settings.setdefault("max_new_tokens", places - PROMPT_TOKENS)
        asr = SpeechRecognitionPipeline(model, tokenizer=tokenizer, feature_extractor=hearing.extractor, device=model.device)
        strides = list(strides_of(chunk_seconds, stride_seconds))
        output = asr(
            {"raw": samples, "sampling_rate": hearing.sampling_rate}, chunk_length_s=chunk_seconds, stride_length_s=strides,
            generate_kwargs=settings, ignore_warning=True, **timed,
        )  # fmt: skip
        parts = [(part["text"], *part["timestamp"]) for part in output.get("chunks", ())]
        segments = [Word(text, start, seconds if end is None else end) for text, start, end in parts]
        return Transcript(output["text"], (), (), seconds, segments=tuple(segments))
    whole: dict[str, Any] = {}
    if is_whisper and hearing.most_samples is not None and len(samples) > hearing.most_samples:
        if not settings["return_timestamps"]:
            most = hearing.most_samples / hearing.sampling_rate
            raise AudioError(
                f"{seconds:,.0f} seconds are more than the {most:g} that {type(model).__name__} reads at once, and without timestamps it "
                f"cannot go on after them; give chunk_seconds={most:g}."
            )
        whole = {"truncation": False, "padding": "longest"}
    inputs = hearing.extractor(samples, sampling_rate=hearing.sampling_rate, return_tensors="pt", return_attention_mask=True, **whole)
    inputs = inputs.to(model.device, model.dtype)
    if is_whisper:
        output = model.generate(**inputs, return_segments=True, **settings)
        ids, parts = output["sequences"][0], output["segments"][0]
        written = [(tokenizer.decode(part["tokens"], skip_special_tokens=True), float(part["start"]), float(part["end"])) for part in parts]
    else:
        ids, written = model.generate(**inputs, **settings)[0], []
        check_ended(model, ids)
    text = tokenizer.decode(ids, skip_special_tokens=True)
    return Transcript(text, (), tuple(ids.tolist()), seconds, segments=tuple(Word(*part) for part in written))


def writes_timestamps(model: Any) -> bool:
    """Whether a Whisper writes timestamps. They end at the duration that the decoder was trained with, so a model for more has none."""
    longer = getattr(model.config, "long_audio_seconds", None) is not None
    return not longer and getattr(model.generation_config, "no_timestamps_token_id", None) is not None


def check_ended(model: Any, ids: Tensor) -> None:
    """Refuse a transcript that stops because the decoder writes no more tokens.

    Raises:
        AudioError: the last of ``ids`` (tokens,) ends no text.
    """
    end = model.generation_config.eos_token_id
    ends = set(end if isinstance(end, list) else [end])
    if not ends & set(ids[1:].tolist()):
        raise AudioError(
            f"{type(model).__name__} wrote {len(ids)} tokens, as many as it may, before the end of the sound; give chunk_seconds=20, or "
            "generate_kwargs={'max_new_tokens': …}."
        )


@contextmanager
def in_memory(model: PreTrainedModel, seconds: float) -> Iterator[None]:
    """Turn a lack of memory into a sentence.

    Raises:
        AudioError: the sound does not fit into memory.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not lacks_memory(error):
            raise
        raise AudioError(
            f"{seconds:,.0f} seconds do not fit into memory in one pass of {type(model).__name__}; convert the checkpoint by "
            f"`longattn convert`, or give chunk_seconds=30 ({in_a_line(error)})."
        ) from error


def samples_per_frame(model: PreTrainedModel, hearing: Hearing) -> int:
    """Samples from one frame of a model's logits to the next."""
    lengths = [count * MEASURED_SECONDS * hearing.sampling_rate for count in (1, 2)]
    noise = np.random.default_rng(0).standard_normal(lengths[1], np.float32)
    counts = [output_frames(model, hearing.length(noise[:length])) for length in lengths]
    return round((lengths[1] - lengths[0]) / (counts[1] - counts[0]))


def strides_of(chunk_seconds: float, stride_seconds: float | tuple[float, float] | None) -> tuple[float, float]:
    """Seconds of overlap to the left and to the right."""
    if isinstance(stride_seconds, tuple):
        return stride_seconds
    return (chunk_seconds / 6 if stride_seconds is None else stride_seconds,) * 2


def chunks(
    samples: Samples, step: int, rate: int, chunk_seconds: float | None, stride_seconds: float | tuple[float, float] | None
) -> Iterator[tuple[int, int, int, Samples]]:
    """Yield (start, left, right, samples) of each chunk. ``left`` and ``right`` samples are shared with its neighbours and dropped from its
    result.

    Args:
        step: samples per frame. Lengths are multiples of it.
        rate: samples in a second.

    Raises:
        OptionError: chunks shorter than their strides.
    """
    if chunk_seconds is None:
        yield 0, 0, 0, samples
        return
    strides = strides_of(chunk_seconds, stride_seconds)
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
        AudioError: the sound is shorter than a frame.
    """
    if output_frames(model, hearing.length(samples)) < 1:
        raise AudioError(f"The sound of {len(samples) / hearing.sampling_rate:.3f} seconds is shorter than one frame; give a longer one.")
    inputs = {
        name: value.to(model.device, model.dtype if value.is_floating_point() else None)
        for name, value in hearing.inputs([samples]).items()
    }
    return model(**inputs).logits[0].argmax(-1).cpu().numpy()


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
