"""Speech by `longattn train seq2seq`: a Whisper is fed what transformers' example prepares, learns, and is scored."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor
from transformers import AutoFeatureExtractor, AutoModelForSpeechSeq2Seq, AutoProcessor, AutoTokenizer, pipeline

from hf_longattn import LongWhisperForConditionalGeneration
from hf_longattn.cli.train import evaluate
from hf_longattn.conversion import convert_checkpoint
from hf_longattn.errors import CheckpointError, OptionError
from hf_longattn.training.tasks import seq2seq
from tests.training.conftest import FAST, start_task
from tests.training.speech import RATE, sentences, speech, speech_checkpoint
from tests.whisper import whisper_checkpoint


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Audio files of up to 0.55 seconds, each with a .txt file; one of them is longer than the model's second."""
    folder = tmp_path_factory.mktemp("talks")
    for number, text in enumerate([*sentences(12), "ab " * 8]):
        soundfile.write(folder / f"{number:02}.wav", speech(text, number), RATE)
        (folder / f"{number:02}.txt").write_text(text)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return whisper_checkpoint(tmp_path_factory.mktemp("whisper"))


def start(model: str, output: Path, data: Path, **changes: Any) -> Any:
    """Run the task on all of the data, and evaluate on them."""
    values = {"max_steps": 2, "per_device_train_batch_size": 4, "validation": str(data), **FAST, **changes}
    return start_task("seq2seq", **{"model": model, "output_dir": str(output), "data": [str(data)], **values})


def as_the_example_prepares(folder: str, sounds: Sequence[np.ndarray[Any, Any]], texts: Sequence[str], mask: bool) -> dict[str, Tensor]:
    """The batch of ``run_speech_recognition_seq2seq``: features of each sound, padded by the feature extractor; tokens, padded by the
    tokenizer, with -100 for padding, and without the first one where every row begins with the decoder's first token."""
    extractor, tokenizer = AutoFeatureExtractor.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    rows = [extractor(sound, sampling_rate=RATE, return_attention_mask=mask) for sound in sounds]
    batch = extractor.pad([{"input_features": row["input_features"][0]} for row in rows], return_tensors="pt")
    if mask:
        batch["attention_mask"] = torch.tensor(np.stack([row["attention_mask"][0] for row in rows]))
    tokens = tokenizer.pad([{"input_ids": tokenizer(text).input_ids} for text in texts], return_tensors="pt")
    labels = tokens["input_ids"].masked_fill(tokens.attention_mask.ne(1), -100)
    start = AutoModelForSpeechSeq2Seq.from_pretrained(folder).config.decoder_start_token_id
    return {**batch, "labels": labels[:, 1:] if bool((labels[:, 0] == start).all()) else labels}


@pytest.mark.parametrize("augment", [False, True])
def test_whisper_batches_are_what_the_example_of_transformers_prepares(
    augment: bool, recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With SpecAugment also the mask of the padding, as the example's ``forward_attention_mask``."""
    folder = whisper_checkpoint(tmp_path / "model", apply_spec_augment=augment)
    monkeypatch.setattr(seq2seq, "finish", lambda trainer, *_, **__: trainer)
    trainer = start(folder, tmp_path / "out", recordings)
    assert "1 of 13 utterances are longer than 1 seconds or have" in caplog.text
    assert f"left out; the first is {recordings / '12.wav'}." in caplog.text
    rows = [trainer.train_dataset[number] for number in (0, 3)]
    batch = trainer.data_collator(rows)
    files = [Path(row["audio"]["path"]) for row in rows]
    sounds = [soundfile.read(file, dtype="float32")[0] for file in files]
    expected = as_the_example_prepares(folder, sounds, [file.with_suffix(".txt").read_text() for file in files], augment)
    assert set(batch) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(batch[name], tensor.to(batch[name].dtype)), name


@pytest.mark.slow
def test_whisper_learns_to_transcribe_with_scores(model: str, recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The scores of `longattn evaluate` are those at the end of the training; a converted model reads the longest file, too."""
    settings_of_window = {"mechanism": "window", "window": 8, "audio_seconds": 2, "needs_training": True, "verify": False}
    convert_checkpoint(model, tmp_path / "long", **settings_of_window)
    run = {"max_steps": 40, "learning_rate": 5e-3, "per_device_train_batch_size": 8, "per_device_eval_batch_size": 13}
    log = start(str(tmp_path / "long"), tmp_path / "out", recordings, **run)
    assert log["rows"] == log["scored_rows"]["n"] == 13
    before, after = log["metrics"]["before"], log["metrics"]["after"]
    assert after["loss"] < 0.5 * before["loss"]
    assert after["cer"] < 0.7 * before["cer"]
    assert len((tmp_path / "out" / "predictions.txt").read_text().splitlines()) == 13
    trained, processor = AutoModelForSpeechSeq2Seq.from_pretrained(tmp_path / "out"), AutoProcessor.from_pretrained(tmp_path / "out")
    assert isinstance(trained, LongWhisperForConditionalGeneration)
    parts = {"tokenizer": processor.tokenizer, "feature_extractor": processor.feature_extractor}
    said = pipeline("automatic-speech-recognition", model=trained, **parts)({"raw": speech("ab ba", 99), "sampling_rate": RATE})["text"]
    assert set(said) <= {"a", "b", " "}
    card = (tmp_path / "out" / "README.md").read_text()
    assert "type: wer" in card
    capsys.readouterr()
    line = ["--model", str(tmp_path / "out"), "--data", str(recordings), "--output", str(tmp_path / "scores")]
    assert evaluate("seq2seq", [*line, "--no-bf16", "--split", "train", "--per-device-eval-batch-size", "13"]) == 0
    shown = capsys.readouterr().err
    assert "scored (13 rows): word error rate" in shown
    scores = json.loads((tmp_path / "scores" / "scores.json").read_text())["metrics"]["after"]
    assert scores["wer"] == pytest.approx(after["wer"])
    assert scores["loss"] == pytest.approx(after["loss"], rel=1e-4)


def test_evaluate_ctc_scores_a_model(recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = speech_checkpoint(tmp_path / "ctc")
    line = ["--model", folder, "--data", str(recordings), "--output", str(tmp_path / "scores"), "--split", "train"]
    assert evaluate("ctc", line) == 0
    assert "scored (13 rows): word error rate" in capsys.readouterr().err


def test_transcribing_refuses_models_and_options_that_do_not_fit(model: str, recordings: Path, tmp_path: Path) -> None:
    cases: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (OptionError, "--language en is for a multilingual Whisper", {"language": "en"}),
        (OptionError, "--prefix has no effect on a model that hears sound", {"prefix": "summarize: "}),
        (OptionError, "--letter-case must be one of lower, upper, not 'title'", {"letter_case": "title"}),
        (OptionError, "--max-target-length 41 exceeds the 40 tokens", {"max_target_length": 41}),
        (
            CheckpointError,
            "Wav2Vec2Config'> for this kind of AutoModel: AutoModelForSeq2SeqLM",
            {"model": speech_checkpoint(tmp_path / "ctc")},
        ),
    ]
    for error, words, changes in cases:
        with pytest.raises(error, match=words):
            start(**{"model": model, "output": tmp_path / "o", "data": recordings, **changes})
        assert not (tmp_path / "o").exists()
