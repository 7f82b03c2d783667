"""Speech of studies is the same for a seed, with exact words and times; errors are counted where they are."""

from __future__ import annotations

import argparse
import json
import shutil
from itertools import groupby

import numpy as np
import pytest
import torch
from transformers import pipeline

from hf_longattn.data.audio import Hearing
from hf_longattn.errors import AudioError
from hf_longattn.evaluation.transcription import Transcript, Word, samples_per_frame, transcribe
from scripts.dev import RESULTS
from scripts.dev.studies import speech_synthesis
from scripts.dev.studies.speech_seams import (
    Stage,
    batch,
    frame_labels,
    labels_of,
    measured,
    mistakes,
    pieces,
    read_by,
    small_model,
    stage,
    trained_further,
)
from scripts.dev.studies.speech_seams_costs import costs
from scripts.dev.studies.speech_seams_page import (
    COMPARED,
    FRAME_SECONDS,
    FULL,
    MODELS,
    STOCK,
    SYSTEMS,
    WINDOW,
    difference_pairs,
    kinds_in_words,
    markdown,
    pairs_of,
    rows_of,
)
from scripts.dev.studies.speech_synthesis import (
    DIGITS,
    HELD_OUT,
    RATE,
    TRAINED,
    VOICES,
    Recording,
    Sentence,
    Spoken,
    digits,
    long_digits,
    recording,
    say,
)

needs_espeak = pytest.mark.skipif(
    shutil.which(speech_synthesis.PROGRAM) is None,
    reason="speech is synthesised by espeak-ng, which is not installed: apt install espeak-ng",
)
FEW = TRAINED[:3]


def test_voices_differ_and_those_held_out_are_not_trained_on() -> None:
    assert len(set(VOICES)) == len(VOICES) == len(TRAINED) + len(HELD_OUT)
    assert {voice.name.partition("+")[0] for voice in HELD_OUT} == {voice.name.partition("+")[0] for voice in VOICES}


@needs_espeak
def test_a_seed_says_the_same() -> None:
    first, again, other = (digits(np.random.default_rng(seed), FEW, 4) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.samples, again.samples)
    assert first.words == again.words
    assert first.words != other.words


@needs_espeak
def test_words_are_where_they_are_said() -> None:
    spoken = recording(["7", "hello"], Sentence([FEW[0]], noise=(90.0, 90.0)), np.random.default_rng(0))
    assert spoken.text == "7 hello"
    for word, text in zip(spoken.words, (DIGITS["7"], "hello"), strict=True):
        start, end = round(word.start * RATE), round(word.end * RATE)
        np.testing.assert_allclose(spoken.samples[start:end], say(text, FEW[0]), atol=1e-4)
        assert np.abs(spoken.samples[start - 100 : start]).max() < 1e-3
    assert spoken.words[0].end < spoken.words[1].start


@needs_espeak
def test_long_recordings() -> None:
    random = np.random.default_rng(0)
    spoken = long_digits(random, FEW, 20.0)
    assert 20.0 <= len(spoken.samples) / RATE < 30.0
    times = [time for word in spoken.words for time in (word.start, word.end)]
    assert times == sorted(times)


def test_without_espeak_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speech_synthesis.shutil, "which", lambda name: None)
    with pytest.raises(AudioError, match=r"espeak-ng, which is not installed; type apt install espeak-ng"):
        say("a word that no test has said", FEW[0])


def test_errors_are_counted_at_their_words() -> None:
    words = tuple(Spoken(str(number), number, number + 0.5) for number in range(5))
    heard = (Word("0", 0, 0.4), Word("9", 1, 1.4), Word("2", 2, 2.4), Word("8", 2.6, 2.8), Word("3", 3, 3.4))
    units = mistakes(Transcript("", heard, (), 5.0), Recording(np.zeros(5 * RATE, np.float32), words))
    substituted, deleted, inserted = 1, 2, 3
    assert [(round(place, 2), kind) for place, kind in sorted(units) if kind] == [(1.25, substituted), (2.7, inserted), (4.25, deleted)]
    assert sum(kind != inserted for _, kind in units) == 5


def test_rates_and_differences_of_stretches() -> None:
    """Ten words near seams with two errors and twenty elsewhere with one, in two stretches, against a system without errors near seams."""
    worse = {"stretches": [[0, 0, 6, 1, 0, 1, 10, 0, 0, 0], [0, 1, 4, 0, 0, 0, 10, 0, 1, 0]]}
    better = {"stretches": [[0, 0, 6, 0, 0, 0, 10, 0, 0, 0], [0, 1, 4, 0, 0, 0, 10, 0, 1, 0]]}
    rows = rows_of(worse)
    assert [pairs_of(rows, kind) for kind in ("all", "seams", "elsewhere")] == [
        [(2, 16), (1, 14)],
        [(2, 6), (0, 4)],
        [(0, 10), (1, 10)],
    ]
    assert difference_pairs(rows, rows_of(better)) == [(2, 16), (0, 14)]
    assert kinds_in_words([worse]) == "3.3 / 3.3 / 3.3"


@needs_espeak
def test_every_system_reads_a_recording() -> None:
    model, processor = small_model(0)
    hearing = Hearing(processor.feature_extractor)
    inputs, _ = batch(hearing, processor.tokenizer, np.random.default_rng(0))
    assert inputs["labels"].max() < model.config.vocab_size
    assert np.isfinite(model(**inputs).loss.item())
    assert samples_per_frame(model, hearing) == FRAME_SECONDS * RATE
    recordings = [long_digits(np.random.default_rng(0), FEW, 45.0)]
    for system in SYSTEMS.values():
        result = measured(read_by(system, model.eval()), processor, system, recordings)
        assert sum(words for _, words in pairs_of(rows_of(result))) == len(recordings[0].words)


def test_costs_of_a_system() -> None:
    assert all(number >= 0 for name in ("window", STOCK) for number in costs(name, 12.0).values())


@needs_espeak
def test_chunks_are_those_of_the_pipeline() -> None:
    """Given the samples of a frame, which it does not count of models that read spectrograms, transformers' pipeline writes the same."""
    model, processor = small_model(0)
    recording = long_digits(np.random.default_rng(0), FEW, 25.0)
    with torch.no_grad():  # no token is the best of all frames
        logits = model.eval()(**Hearing(processor.feature_extractor).inputs([recording.samples])).logits
        model.ctc_head.bias -= logits.mean((0, 1))
    transcript = transcribe(model, processor, recording.samples, chunk_seconds=10.0, stride_seconds=2.0)
    model.config.inputs_to_logits_ratio = round(FRAME_SECONDS * RATE)
    reader = pipeline(
        "automatic-speech-recognition", model=model, tokenizer=processor.tokenizer, feature_extractor=processor.feature_extractor
    )
    assert len(set(transcript.text)) > 8
    assert reader(recording.samples.copy(), chunk_length_s=10.0, stride_length_s=2.0)["text"] == transcript.text


@needs_espeak
def test_pieces_are_the_recording_and_their_words_are_where_they_were() -> None:
    recording = long_digits(np.random.default_rng(0), FEW, 30.0)
    parts = list(pieces(recording, 8.0))
    np.testing.assert_array_equal(np.concatenate([part.samples for part in parts]), recording.samples)
    assert " ".join(part.text for part in parts) == recording.text
    place = 0.0
    for part in parts:
        assert len(part.samples) <= 8.5 * RATE
        for word in part.words:
            match = next(spoken for spoken in recording.words if abs(spoken.start - place - word.start) < 1e-3)
            assert match.text == word.text
        place += len(part.samples) / RATE


@needs_espeak
def test_further_training_gives_transformers_class_and_leaves_the_small_model() -> None:
    short, processor = small_model(0)
    before = {name: tensor.clone() for name, tensor in short.state_dict().items()}
    args = argparse.Namespace(stages=[stage("3:1"), Stage(6.0, 1)], further_rate=1e-3)
    for further in (MODELS["window"], MODELS["pieces"]):
        assert further is not None
        model, log = trained_further(short, processor, further._replace(piece=further.piece and 2.0), args, seed=0)
        assert type(model) is type(short)
        assert not torch.equal(model.ctc_head.weight, short.ctc_head.weight)
        assert (log["steps"], np.isfinite(log["loss"])) == (2, True)
    assert all(torch.equal(tensor, before[name]) for name, tensor in short.state_dict().items())


@needs_espeak
def test_frames_are_labelled_in_the_middle_of_their_words() -> None:
    _, processor = small_model(0)
    random = np.random.default_rng(0)
    recordings = [digits(random, FEW, 3), digits(random, FEW, 1)]
    labels = frame_labels(recordings, processor.tokenizer, 80)
    for row, spoken in zip(labels.tolist(), recordings, strict=True):
        runs = [label for label, _ in groupby(row) if label not in (processor.tokenizer.pad_token_id, -100)]
        assert runs == labels_of(spoken, processor.tokenizer)
        assert row.count(-100) == 80 - round(len(spoken.samples) / RATE / FRAME_SECONDS)


@needs_espeak
def test_full_attention_is_that_of_transformers() -> None:
    model, processor = small_model(0)
    samples = long_digits(np.random.default_rng(0), FEW, 6.0).samples
    covering = {**WINDOW, "left": 1000, "right": 1000}
    stock, *same = (
        transcribe(read_by(SYSTEMS["full"]._replace(attention=attention), model.eval()), processor, samples)
        for attention in (None, FULL, covering)
    )
    assert same == [stock, stock]


def test_the_stored_page_is_made_from_the_stored_figures() -> None:
    stored = json.loads((RESULTS / "speech_seams.json").read_text(encoding="utf-8"))
    assert (RESULTS / "speech_seams.md").read_text(encoding="utf-8") == markdown(stored)
    assert SYSTEMS.keys() <= {name for run in stored["runs"] for name in run["results"]}
    assert {*SYSTEMS, STOCK} == stored["costs"].keys()
    assert {name for names in COMPARED for name in names} <= SYSTEMS.keys()
