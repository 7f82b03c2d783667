"""Recordings are transcribed in one pass, and in chunks as transformers' pipeline does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCTC,
    AutoProcessor,
    ParakeetCTCConfig,
    ParakeetFeatureExtractor,
    ParakeetForCTC,
    Wav2Vec2Processor,
    WhisperConfig,
    WhisperForConditionalGeneration,
    pipeline,
)

from hf_longattn.data.audio import Hearing
from hf_longattn.errors import AudioError, CheckpointError, OptionError
from hf_longattn.evaluation.transcription import Transcript, ctc_words, samples_per_frame, transcribe
from tests.cells import every_cell
from tests.families.test_whisper import SIZES as SMALL_WHISPER
from tests.training.speech import RATE, SAMPLES_PER_FRAME, long_speech_checkpoint, speech, speech_checkpoint

LONG = speech("ab ba abab bb " * 8)
"""Five and a half seconds."""


@pytest.fixture(scope="module", params=[speech_checkpoint, long_speech_checkpoint], ids=["short", "long"])
def reader(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Any]:
    """A tiny model with random weights, short and with a window, its processor, and transformers' pipeline of both."""
    folder = request.param(tmp_path_factory.mktemp("model"))
    model, processor = AutoModelForCTC.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    asr = pipeline(
        "automatic-speech-recognition", model=model, tokenizer=processor.tokenizer, feature_extractor=processor.feature_extractor
    )
    return model, processor, asr


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
    with pytest.raises(CheckpointError, match="Wav2Vec2Model does not transcribe by CTC; load the checkpoint by AutoModelForCTC"):
        transcribe(model.wav2vec2, processor, LONG)

    whisper = WhisperForConditionalGeneration(WhisperConfig(**SMALL_WHISPER))  # type: ignore[arg-type]
    advice = r"does not transcribe by CTC; type transformers\.pipeline\('automatic-speech-recognition', .*chunk_length_s=30\)\(sound\)"
    with pytest.raises(CheckpointError, match=advice):
        transcribe(whisper, processor, LONG)

    def full(*_: Any, **__: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")

    monkeypatch.setattr(model, "forward", full)
    with pytest.raises(AudioError, match=r"6 seconds do not fit into memory in one pass of .*Wav2Vec2ForCTC; convert .*chunk_seconds=30"):
        transcribe(model, processor, LONG)
