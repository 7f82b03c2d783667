"""Recordings are transcribed in one pass, and in chunks as transformers' pipeline does."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCTC,
    AutoModelForSpeechSeq2Seq,
    AutoProcessor,
    MoonshineConfig,
    MoonshineForConditionalGeneration,
    ParakeetCTCConfig,
    ParakeetFeatureExtractor,
    ParakeetForCTC,
    Speech2TextConfig,
    Speech2TextFeatureExtractor,
    Speech2TextForConditionalGeneration,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Processor,
    pipeline,
)

from hf_longattn.conversion import convert_checkpoint
from hf_longattn.data.audio import Hearing
from hf_longattn.data.transcripts import compared_words
from hf_longattn.errors import AudioError, CheckpointError, OptionError
from hf_longattn.evaluation.metrics.wer import error_rates
from hf_longattn.evaluation.transcription import Transcript, ctc_words, samples_per_frame, transcribe
from hf_longattn.inputs.spoken_words import spoken
from tests.cells import every_cell
from tests.modeling.audio_models import whisper_processor
from tests.training.speech import RATE, SAMPLES_PER_FRAME, long_speech_checkpoint, speech, speech_checkpoint
from tests.whisper import whisper_checkpoint

LONG = speech("ab ba abab bb " * 8)
"""Five and a half seconds."""


@pytest.fixture(scope="module", params=[speech_checkpoint, long_speech_checkpoint], ids=["short", "long"])
def reader(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Any]:
    """A tiny model with random weights, short and with a window, its processor, and transformers' pipeline of both."""
    folder = request.param(tmp_path_factory.mktemp("model"))
    model, processor = AutoModelForCTC.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    return model, processor, pipeline_of(model, processor)


def pipeline_of(model: Any, processor: Any) -> Any:
    parts = {"tokenizer": processor.tokenizer, "feature_extractor": processor.feature_extractor}
    return pipeline("automatic-speech-recognition", model=model, **parts)


def said_by(asr: Any, **settings: Any) -> tuple[str, list[tuple[str, float, float]]]:
    output = asr({"raw": LONG.copy(), "sampling_rate": RATE}, return_timestamps="word", **settings)
    return output["text"], [(chunk["text"], *chunk["timestamp"]) for chunk in output["chunks"]]


def words_of(transcript: Transcript) -> list[tuple[str, float, float]]:
    return [(word.text, pytest.approx(word.start), pytest.approx(word.end)) for word in transcript.words]


@every_cell(
    "settings",
    [
        {},
        {"chunk_seconds": 1.0},
        {"chunk_seconds": 2.0, "stride_seconds": 0.5},
        {"chunk_seconds": 1.03, "stride_seconds": (0.1, 0.3)},
        {"chunk_seconds": 60.0},
    ],
    ids=str,
)
def test_equal_to_the_pipeline_of_transformers(reader: tuple[Any, Any, Any], settings: dict[str, Any]) -> None:
    model, processor, asr = reader
    transcript = transcribe(model, processor, LONG, **settings)
    names = {"chunk_seconds": "chunk_length_s", "stride_seconds": "stride_length_s"}
    text, words = said_by(asr, **{names[name]: list(value) if isinstance(value, tuple) else value for name, value in settings.items()})
    assert transcript.text == text
    assert words == words_of(transcript)
    assert transcript.seconds == pytest.approx(len(LONG) / RATE)


def test_one_pass_has_no_seams_and_chunks_have(reader: tuple[Any, Any, Any]) -> None:
    model, processor, _ = reader
    assert transcribe(model, processor, LONG).seams == ()
    seams = transcribe(model, processor, LONG, chunk_seconds=2.0, stride_seconds=0.5).seams
    assert seams == (1.5, 2.5, 3.5, 4.5)


def test_a_token_for_each_frame(reader: tuple[Any, Any, Any]) -> None:
    model, processor, _ = reader
    assert samples_per_frame(model, Hearing(processor.feature_extractor)) == SAMPLES_PER_FRAME
    inputs = processor(LONG, sampling_rate=RATE, return_tensors="pt")
    with torch.no_grad():
        assert list(transcribe(model, processor, LONG).tokens) == model(**inputs).logits[0].argmax(-1).tolist()


def test_silence_is_read_as_the_pipeline_reads_it(reader: tuple[Any, Any, Any]) -> None:
    model, processor, asr = reader
    silence = np.zeros(2 * RATE, np.float32)
    assert transcribe(model, processor, silence).text == asr({"raw": silence.copy(), "sampling_rate": RATE})["text"]


def test_a_window_over_everything_is_full_attention(tmp_path: Path) -> None:
    """What the model with the whole sound in its window writes is what the short one writes."""
    covering = {"mechanism": "window", "left": 2000, "right": 2000}
    folders = [speech_checkpoint(tmp_path / "short"), long_speech_checkpoint(tmp_path / "long", **covering)]
    models, processor = [AutoModelForCTC.from_pretrained(folder) for folder in folders], AutoProcessor.from_pretrained(folders[0])
    assert transcribe(models[1], processor, LONG) == transcribe(models[0], processor, LONG)


def test_models_that_read_spectrograms(reader: tuple[Any, Any, Any]) -> None:
    """Parakeet's frames are 80 ms, of eight rows of features each; the pipeline of transformers does not count them."""
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "subsampling_conv_channels": 8}
    model = ParakeetForCTC(ParakeetCTCConfig(vocab_size=5, pad_token_id=0, encoder_config=shape)).eval()
    processor = Wav2Vec2Processor(ParakeetFeatureExtractor(), reader[1].tokenizer)
    assert samples_per_frame(model, Hearing(processor.feature_extractor)) == 1280
    whole = transcribe(model, processor, LONG)
    inputs = processor.feature_extractor([LONG], sampling_rate=RATE, return_tensors="pt")
    with torch.no_grad():
        assert list(whole.tokens) == model(**inputs).logits[0].argmax(-1).tolist()
    chunked = transcribe(model, processor, LONG, chunk_seconds=1.6, stride_seconds=0.32)
    assert abs(len(chunked.tokens) - len(whole.tokens)) <= 1


def test_words_of_characters_and_of_pieces(reader: tuple[Any, Any, Any]) -> None:
    processor = reader[1]
    blank, space, a, b = (processor.tokenizer.convert_tokens_to_ids(token) for token in ("[PAD]", "|", "a", "b"))
    words = ctc_words([blank, a, a, blank, a, b, space, space, blank, b, blank], processor.tokenizer, 0.02)
    assert [(word.text, round(word.start, 2), round(word.end, 2)) for word in words] == [("aab", 0.02, 0.12), ("b", 0.18, 0.2)]
    assert ctc_words([blank, blank], processor.tokenizer, 0.02) == []

    class Pieces:
        pad_token_id = 0

        def convert_ids_to_tokens(self, number: int) -> str:
            return ["<blank>", "▁he", "llo", "▁you"][number]

    words = ctc_words([1, 1, 0, 2, 0, 0, 3, 3], Pieces(), 0.08)  # type: ignore[arg-type]
    assert [(word.text, round(word.start, 2), round(word.end, 2)) for word in words] == [("hello", 0.0, 0.32), ("you", 0.48, 0.64)]


def test_bad_input_is_a_sentence(reader: tuple[Any, Any, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model, processor, _ = reader
    cases: list[tuple[Any, str, Any, dict[str, Any]]] = [
        (OptionError, "stride_seconds requires chunk_seconds", LONG, {"stride_seconds": 1.0}),
        (OptionError, "Chunks of 1 seconds hold nothing but strides of 0.5 and 0.5", LONG, {"chunk_seconds": 1.0, "stride_seconds": 0.5}),
        (AudioError, "is shorter than one frame", LONG[:100], {}),
        (AudioError, "does not exist", tmp_path / "none.wav", {}),
        (AudioError, "8,000 samples a second", {"array": LONG, "sampling_rate": 8000}, {}),
    ]
    for error, words, sound, settings in cases:
        with pytest.raises(error, match=words):
            transcribe(model, processor, sound, **settings)
    with pytest.raises(CheckpointError, match=r"Wav2Vec2Model does not transcribe; load .* by AutoModelForCTC, or .* one of whisper,"):
        transcribe(model.base_model, processor, LONG)
    with pytest.raises(OptionError, match="generate_kwargs are for encoder-decoders"):
        transcribe(model, processor, LONG, generate_kwargs={"num_beams": 2})

    def full(*_: Any, **__: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")

    monkeypatch.setattr(model, "forward", full)
    with pytest.raises(AudioError, match=r"6 seconds do not fit into memory in one pass of .*Wav2Vec2ForCTC; convert .*chunk_seconds=30"):
        transcribe(model, processor, LONG)


@pytest.fixture(scope="module", params=[pytest.param("short", marks=pytest.mark.slow), "long"])
def whisper(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A tiny Whisper with random weights that hears a second at a time, short and with a window, and its processor."""
    folder = tmp_path_factory.mktemp("whisper")
    path = whisper_checkpoint(folder / "short")
    if request.param == "long":
        convert_checkpoint(path, folder / "long", mechanism="window", window=8, verify=False)
        path = str(folder / "long")
    return AutoModelForSpeechSeq2Seq.from_pretrained(path).eval(), AutoProcessor.from_pretrained(path)


@pytest.mark.thorough
@pytest.mark.parametrize("seconds", [0.7, 2.5])
def test_a_whisper_writes_the_tokens_of_its_own_generate(seconds: float, whisper: tuple[Any, Any]) -> None:
    model, processor = whisper
    sound = LONG[: round(seconds * RATE)]
    transcript = transcribe(model, processor, sound)
    whole = {"truncation": False, "padding": "longest"} if seconds > 1 else {}
    inputs = processor(sound, sampling_rate=RATE, return_tensors="pt", return_attention_mask=True, **whole)
    output = model.generate(**inputs, return_timestamps=True, return_segments=True)
    assert list(transcript.tokens) == output["sequences"][0].tolist()
    assert transcript.text == processor.batch_decode(output["sequences"], skip_special_tokens=True)[0]
    assert [word.start for word in transcript.segments] == [float(part["start"]) for part in output["segments"][0]]
    assert transcript.seconds == pytest.approx(seconds)


@pytest.mark.thorough
@every_cell("settings", [{"chunk_seconds": 1.0}, {"chunk_seconds": 0.8, "stride_seconds": (0.1, 0.2)}], ids=str)
def test_chunks_of_a_whisper_are_those_of_the_pipeline(whisper: tuple[Any, Any], settings: dict[str, Any]) -> None:
    model, processor = whisper
    limit = {"max_new_tokens": 12, "num_beams": 2}
    transcript = transcribe(model, processor, LONG[: 2 * RATE], **settings, generate_kwargs=limit)
    asr = pipeline(
        "automatic-speech-recognition", model=model, tokenizer=processor.tokenizer, feature_extractor=processor.feature_extractor
    )
    names = {"chunk_seconds": "chunk_length_s", "stride_seconds": "stride_length_s"}
    of_pipeline = {names[name]: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}
    sound = {"raw": LONG[: 2 * RATE].copy(), "sampling_rate": RATE}
    output = asr(sound, return_timestamps=True, generate_kwargs=limit, **of_pipeline)
    assert transcript.text == output["text"]
    assert [(part.text, part.start) for part in transcript.segments] == [(part["text"], part["timestamp"][0]) for part in output["chunks"]]


def test_a_whisper_of_more_seconds_than_its_timestamps_has_none(tmp_path: Path) -> None:
    convert_checkpoint(whisper_checkpoint(tmp_path / "short"), tmp_path / "long", audio_seconds=2, needs_training=True, verify=False)
    model, processor = AutoModelForSpeechSeq2Seq.from_pretrained(tmp_path / "long"), AutoProcessor.from_pretrained(tmp_path / "long")
    inputs = processor(LONG[: 2 * RATE], sampling_rate=RATE, return_tensors="pt")
    assert list(transcribe(model, processor, LONG[: 2 * RATE]).tokens) == model.generate(**inputs)[0].tolist()
    with pytest.raises(AudioError, match=r"more than the 2 that LongWhisper.* reads at once, .*; give chunk_seconds=2\."):
        transcribe(model, processor, LONG)


def speech2text() -> tuple[Any, Any]:
    shape = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "d_model": 16}
    sizes = {"encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "vocab_size": 97, "conv_channels": 16, "max_target_positions": 64}
    torch.manual_seed(0)
    return Speech2TextForConditionalGeneration(Speech2TextConfig(**shape, **sizes)).eval(), Speech2TextFeatureExtractor()


def moonshine() -> tuple[Any, Any]:
    shape = {"hidden_size": 32, "intermediate_size": 32, "encoder_num_hidden_layers": 1, "decoder_num_hidden_layers": 1, "vocab_size": 97}
    heads = {"encoder_num_attention_heads": 2, "decoder_num_attention_heads": 2}
    torch.manual_seed(0)
    extractor = Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True)
    return MoonshineForConditionalGeneration(MoonshineConfig(**shape, **heads)).eval(), extractor


@pytest.mark.parametrize("made", [speech2text, moonshine])
def test_other_encoder_decoders_write_what_generate_writes(made: Any) -> None:
    """The last token must end the text; a decoder that stops before is refused."""
    model, extractor = made()
    processor = SimpleNamespace(feature_extractor=extractor, tokenizer=whisper_processor(16, 1).tokenizer)
    inputs = extractor(LONG, sampling_rate=RATE, return_tensors="pt", return_attention_mask=True)
    ids = model.generate(**inputs, max_new_tokens=8)[0].tolist()
    with pytest.raises(AudioError, match=r"as many as it may, before the end of the sound; give chunk_seconds=20"):
        transcribe(model, processor, LONG, generate_kwargs={"max_new_tokens": 8})
    model.generation_config.eos_token_id = [2, ids[4]]
    stopped = model.generate(**inputs, max_new_tokens=8)[0].tolist()
    assert list(transcribe(model, processor, LONG, generate_kwargs={"max_new_tokens": 8}).tokens) == stopped


@pytest.mark.slow
@pytest.mark.parametrize("name", ["source", "window"])
def test_the_real_whisper(name: str, real_whisper: Path, tmp_path: Path) -> None:
    """A minute that espeak-ng says: tokens of ``generate``, text of the pipeline, and few wrong words."""
    folder = real_whisper
    if name == "window":
        convert_checkpoint(real_whisper, tmp_path / "long", mechanism="window", window=256)
        folder = tmp_path / "long"
    model, processor = AutoModelForSpeechSeq2Seq.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    sound, text = spoken(60, RATE)
    transcript = transcribe(model, processor, sound)
    whole = {"truncation": False, "padding": "longest", "return_attention_mask": True}
    inputs = processor(sound, sampling_rate=RATE, return_tensors="pt", **whole)
    assert list(transcript.tokens) == model.generate(**inputs, return_timestamps=True)[0].tolist()
    assert error_rates([compared_words(transcript.text)], [compared_words(text)])["wer"] < 30  # 18 for the source
    asr = pipeline(
        "automatic-speech-recognition", model=model, tokenizer=processor.tokenizer, feature_extractor=processor.feature_extractor
    )
    expected = asr({"raw": sound.copy(), "sampling_rate": RATE}, chunk_length_s=30, return_timestamps=True)
    chunked = transcribe(model, processor, sound, chunk_seconds=30)
    assert chunked.text == expected["text"]
    assert len(chunked.segments) == len(expected["chunks"]) > 1
