"""The study of Whisper's lengths: sentences of articles, talks without the programs that read aloud, and the table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hf_longattn.errors import AudioError
from scripts.dev.studies import read_aloud
from scripts.dev.studies.read_aloud import RATE, Reader, sentences, talk, write
from scripts.dev.studies.whisper_lengths import markdown


def test_sentences_without_numbers_and_gaps(tmp_path: Path) -> None:
    (tmp_path / "articles.txt").write_text(
        " = Lobster = \n The lobster lives in deep , cold water near the coast . It was 3 years old when it was found there . Its "
        "<unk> claws are of two kinds and grow all the time .\n"
    )
    assert sentences(tmp_path / "articles.txt") == ["The lobster lives in deep, cold water near the coast."]


def test_a_talk_has_the_sentences_that_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_aloud, "say", lambda text, reader: np.full(RATE, 0.1, np.float32))
    made = talk(["One.", "Two.", "Three."], read_aloud.HELD_OUT[0], 3.2, np.random.default_rng(0))
    assert made.text == "One. Two."
    assert 2.3 * RATE < len(made.samples) <= 3.2 * RATE
    write([made], tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0000.txt", "0000.wav"]


def test_a_missing_program_is_a_sentence() -> None:
    with pytest.raises(AudioError, match="this study needs no-such-reader, which is not installed"):
        read_aloud.say("One.", Reader("no-such-reader", "a", 1.0))


def test_the_table() -> None:
    row = {
        "talks": "test",
        "model": "stock",
        "reading": "one segment",
        "n": 12,
        "wer": 3.21,
        "wer_se": 0.5,
        "encoder_seconds": 1.0,
        "seconds": 2.0,
    }
    record = {
        "machine": {"threads": 1, "torch": "2", "transformers": "5", "processor": "x", "date": "2026-01-01", "cores": 2},
        "about": "", "rows": [row],
    }  # fmt: skip
    assert "| 12 of 60 s | stock | one segment | 3.2 ± 0.5 % | 1.00 | 2.00 |" in markdown(record)
