"""Recordings of tasks with far-apart evidence: nothing but the evidence tells the label; how they are read; a tiny run of each study."""

from __future__ import annotations

import argparse
import itertools
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")
from scripts.dev.studies import far_running, far_sounds, speech_synthesis
from scripts.dev.studies.far_events import (
    ANYWHERE,
    BANDS,
    FALLING,
    HISSING,
    PULSED,
    RISING,
    ROWS_PER_SECOND,
    SCALE,
    SOUNDING,
    Events,
    hiss,
    places,
    tone,
)
from scripts.dev.studies.far_running import arguments
from scripts.dev.studies.far_sounds import MARGIN, Sound, SoundTask, babble, hint_labels, in_chunks, log_mel, with_sounds
from scripts.dev.studies.far_speech import FRAMES_PER_SECOND, Keywords, Voices, far_starts
from scripts.dev.studies.far_task import Shown
from scripts.dev.studies.speech_synthesis import HELD_OUT, LEVEL, RATE, TRAINED

TASKS: tuple[type[SoundTask], ...] = (Keywords, Voices, Events)
needs_espeak = pytest.mark.skipif(
    shutil.which(speech_synthesis.PROGRAM) is None,
    reason="speech is synthesised by espeak-ng, which is not installed: apt install espeak-ng",
)


@pytest.fixture(scope="module", autouse=True)
def short_babble() -> Iterator[None]:
    """A minute of digits in place of many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(far_sounds, "BABBLE", 60.0)
        far_sounds.long_babble.cache_clear()
        yield
    far_sounds.long_babble.cache_clear()


def test_keywords_are_half_the_recording_apart_and_inside_it() -> None:
    random = np.random.default_rng(0)
    for seconds in (8, 40, 240):
        for _ in range(200):
            first, second = far_starts(seconds, (0.6, 0.9), random)
            assert first >= MARGIN
            assert second - first - 0.6 >= seconds / 2
            assert second + 0.9 + MARGIN <= seconds + 1e-9


@needs_espeak
def test_labels_of_keywords_are_balanced_and_depend_on_their_order_alone() -> None:
    """Each keyword is as often the first as the second, wherever the first one is."""
    task, random = Keywords(), np.random.default_rng(0)
    pairs: Counter[tuple[tuple[int, ...], ...]] = Counter()
    starts: dict[int, list[float]] = {label: [] for label in range(task.classes)}
    for _ in range(240):
        samples, label, placed = task.recording(Shown(8, held_out=True), random)
        (first, first_label), (second, second_label) = placed
        assert first.start < second.start
        assert (label,) == first_label
        assert len(samples) == 8 * RATE
        pairs[first_label, second_label] += 1
        starts[label].append(first.start)
    assert len(pairs) == task.classes * (task.classes - 1)
    assert max(pairs.values()) < 3 * min(pairs.values())
    means = [np.mean(places) for places in starts.values()]
    assert np.ptp(means) < 0.4


@needs_espeak
def test_labels_of_voices_are_balanced_and_the_same_voice_says_the_phrase() -> None:
    task, random = Voices(), np.random.default_rng(0)
    drawn = [task.recording(Shown(8, held_out=True), random) for _ in range(200)]
    same = [label for _, label, _ in drawn]
    assert 0.4 < np.mean(same) < 0.6
    count, pairs = len(task.speakers), Counter[tuple[int, ...]]()
    for _, label, ((first, (speaker,)), (second, (pair,))) in drawn:
        assert divmod(pair - count, count)[0] == speaker < count
        assert (divmod(pair - count, count)[1] == speaker) == label
        assert first.end < second.start
        assert pair < task.hint_classes - 1
        pairs[speaker, (pair - count) % count] += 1
    assert len(pairs) > 0.6 * count**2
    durations = {label: np.mean([len(placed[0][0].samples) for _, kind, placed in drawn if kind == label]) for label in (0, 1)}
    assert abs(durations[0] - durations[1]) < 0.1 * durations[0]


@needs_espeak
def test_each_event_is_as_often_the_one_that_is_named() -> None:
    random = np.random.default_rng(0)
    labels = [Events().recording(Shown(8, held_out=True), random)[1] for _ in range(240)]
    assert np.abs(np.bincount(labels, minlength=3) / len(labels) - 1 / 3).max() < 0.08


@pytest.mark.parametrize("band", BANDS)
def test_tones_are_in_their_band_and_of_their_kind(band: tuple[int, int]) -> None:
    random = np.random.default_rng(0)
    for kind in (RISING, FALLING, PULSED):
        samples = tone(kind, band, SOUNDING[0], random)
        power = np.abs(np.fft.rfft(samples)) ** 2
        frequencies = np.fft.rfftfreq(len(samples), 1 / RATE)
        inside = (frequencies > band[0] - 50) & (frequencies < band[1] + 50)
        assert power[inside].sum() > 0.97 * power.sum()
        halves = [np.abs(np.fft.rfft(half)) ** 2 for half in np.split(samples, 2)]
        early, late = (float((half * np.fft.rfftfreq(len(samples) // 2, 1 / RATE)).sum() / half.sum()) for half in halves)
        assert [late > early + 100, early > late + 100, abs(late - early) < 30][kind]
        assert 0.6 * LEVEL < np.sqrt(np.mean(samples**2)) < 1.5 * LEVEL


@needs_espeak
@pytest.mark.parametrize("kind", TASKS)
def test_recordings_are_as_long_as_asked_and_no_louder_for_one_label_than_for_another(kind: type[SoundTask]) -> None:
    task, random = kind(), np.random.default_rng(0)
    levels: dict[int, list[float]] = {label: [] for label in range(task.classes)}
    for _ in range(60 * task.classes):
        samples, label, _ = task.recording(Shown(8, held_out=True), random)
        assert samples.shape == (8 * RATE,)
        levels[label].append(float(np.sqrt(np.mean(samples**2))))
    for one_label, another in itertools.combinations(levels.values(), 2):
        error = np.sqrt(np.var(one_label) / len(one_label) + np.var(another) / len(another))
        assert abs(np.mean(one_label) - np.mean(another)) < 4 * error


@needs_espeak
@pytest.mark.parametrize("kind", TASKS)
def test_the_control_lacks_what_tells_the_label(kind: type[SoundTask]) -> None:
    task = kind()
    full, control = (task.recording(Shown(8, control=control), np.random.default_rng(3)) for control in (False, True))
    assert full[1] == control[1]
    assert len(control[2]) < len(full[2])
    assert not np.allclose(full[0], control[0])


@pytest.mark.parametrize("number", range(len(BANDS)))
def test_sounds_of_a_band_are_in_its_row_of_patches(number: int) -> None:
    """The rows that are hinted at: the first is below all bands."""
    random = np.random.default_rng(0)
    for sound in (tone(FALLING, BANDS[number], 1.0, random), hiss(BANDS[number], random)):
        samples = (0.01 * random.standard_normal(2 * RATE)).astype(np.float32)
        samples[RATE : RATE + len(sound)] += sound
        rows = SCALE.levels([samples])[0].unflatten(1, (Events.hinted_rows, -1))
        sounding = slice(round(1.1 * ROWS_PER_SECOND), round(1.9 * ROWS_PER_SECOND))
        quiet = slice(round(0.1 * ROWS_PER_SECOND), round(0.9 * ROWS_PER_SECOND))
        rise = rows[sounding].mean((0, 2)) - rows[quiet].mean((0, 2))
        assert rise.argmax() == 1 + number


def test_events_are_anywhere_in_short_recordings_and_half_the_rest_apart_in_longer_ones() -> None:
    random = np.random.default_rng(0)
    for seconds in (8, 16, 240):
        drawn = np.array([places(seconds, SOUNDING[1], random) for _ in range(400)])
        apart = drawn[:, 1] - drawn[:, 0] - HISSING
        assert drawn[:, 0].min() >= MARGIN
        assert apart.min() >= 2 * MARGIN + (seconds - ANYWHERE) / 2 - 1e-9
        assert drawn[:, 1].max() + SOUNDING[1] + MARGIN <= seconds + 1e-9
        assert np.ptp(drawn, 0).min() > 0.8 * (apart.max() - apart.min())


@needs_espeak
def test_a_hiss_changes_the_spectrogram_nowhere_else() -> None:
    """Levels are not normalised over the recording, which would tell each patch of a short one where the hiss is."""
    task = Events()
    full, control = (task.recording(Shown(8, control=left_out), np.random.default_rng(3)) for left_out in (False, True))
    sound = full[2][-1][0]
    spectrogram, without = task.spectrograms([full[0], control[0]])
    times = torch.arange(len(spectrogram)) / ROWS_PER_SECOND
    near = (times > sound.start - 0.2) & (times < sound.end + 0.2)
    changed = (spectrogram - without).abs().amax(1) > 1e-3
    assert changed[near].any()
    assert not changed[~near].any()


@needs_espeak
def test_a_sound_is_where_it_is_put_with_noise_around_it() -> None:
    random = np.random.default_rng(0)
    background = babble(random, TRAINED, 8)
    sound = Sound(tone(RISING, BANDS[1], 1.0, random), 3.0)
    samples = with_sounds(background, [sound], random)
    begin, end = round(3.0 * RATE), round(sound.end * RATE)
    assert np.corrcoef(samples[begin:end], sound.samples)[0, 1] > 0.95
    margin = round(MARGIN * RATE)
    assert np.array_equal(samples[: begin - margin], background[: begin - margin])
    assert np.array_equal(samples[end + margin :], background[end + margin :])
    assert np.abs(samples[begin - margin : begin]).max() < LEVEL


@needs_espeak
def test_held_out_recordings_have_other_voices() -> None:
    assert not {voice.name for voice in TRAINED} & {voice.name for voice in HELD_OUT}
    assert not np.array_equal(far_sounds.long_babble(TRAINED)[:RATE], far_sounds.long_babble(HELD_OUT)[:RATE])


def test_tokens_in_a_sound_have_its_label_in_each_row() -> None:
    sound = Sound(np.zeros(RATE, np.float32), 1.0)
    columns = round(3 * FRAMES_PER_SECOND)
    labels = hint_labels([(sound, (2, 3))], 2, columns, FRAMES_PER_SECOND, 4)
    times = (np.arange(columns) + 0.5) / FRAMES_PER_SECOND
    assert labels.tolist() == [label if 1 < time < 2 else 4 for label in (2, 3) for time in times]


def test_features_are_normalised_over_the_recording() -> None:
    recordings = list(np.random.default_rng(0).standard_normal((2, 3 * RATE), np.float32))
    features = log_mel(recordings, 40)
    assert features.shape == (2, 150, 40)
    torch.testing.assert_close(features.mean(1), torch.zeros(2, 40), atol=1e-2, rtol=0)


def test_logits_of_chunks_are_pooled_by_their_mean_or_maximum() -> None:
    class Maxima(torch.nn.Module):
        def forward(self, inputs: torch.Tensor) -> argparse.Namespace:
            assert inputs.shape[1:] == (5, 2)
            return argparse.Namespace(logits=inputs.amax(1))

    inputs = torch.rand(3, 20, 2)
    logits = inputs.unflatten(1, (4, 5)).amax(2)
    torch.testing.assert_close(in_chunks(5, "mean")(Maxima(), inputs, "class"), logits.mean(1))
    torch.testing.assert_close(in_chunks(5, "max")(Maxima(), inputs, "class"), logits.amax(1))


@needs_espeak
@pytest.mark.parametrize("kind", TASKS)
def test_a_tiny_run_measures_every_system(kind: type[SoundTask], tmp_path: Path) -> None:
    line = [
        "--task", kind.name, "--seeds", "0", "--stages", "16:2:2", "--width", "32", "--layers", "2", "--short-minutes", "0.002",
        "--short-batch", "2", "--test-examples", "2", "--other-examples", "2", "--work-dir", str(tmp_path),
    ]  # fmt: skip
    args, task = arguments([kind], line), kind()
    small = far_running.pretrained(task, args, 0)
    assert small["held_out"]["n"] == 4
    for name, system in task.systems(args).items():
        result = far_running.run_system(task, args, 0, system)
        assert 0 <= result["after"]["accuracy"] <= 100, name
        assert result["stages"][0]["examples"] == 2, name


@needs_espeak
@pytest.mark.parametrize("kind", TASKS)
def test_hints_are_labels_of_tokens_that_a_saved_model_does_not_have(kind: type[SoundTask], tmp_path: Path) -> None:
    task = kind()
    args = arguments([kind], ["--width", "32", "--layers", "1"])
    inputs, labels = task.batch(Shown(args.short_size, hints=True), 2, np.random.default_rng(0))
    assert labels.shape == (2, 1 + task.hinted_rows * task.columns(args.short_size))
    assert labels[:, 1:].max() == task.hint_classes - 1
    model = task.small_model(args, 0).eval()
    both = task.small_logits(model, inputs, "both")
    torch.testing.assert_close(both[:, 0, : task.classes], task.small_logits(model, inputs, "class"))
    assert both[:, 0].argmax(-1).max() < task.classes
    model.save_pretrained(tmp_path)
    _, report = type(model).__base__.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["unexpected_keys"]
    assert not report["missing_keys"]
