"""Word and character error rates are jiwer's."""

from __future__ import annotations

import random

import pytest

from hf_longattn.evaluation import load_metric


def test_random_transcripts_have_the_rates_of_jiwer() -> None:
    """Also of empty predictions and references, doubled spaces and other scripts."""
    jiwer = pytest.importorskip("jiwer")
    choose, words = random.Random(0), ["a", "naïve", "他", "Лиса", "don't", "x.", ""]
    predictions, references = ([" ".join(choose.choices(words, k=choose.randint(0, 6))) for _ in range(200)] for _ in range(2))
    result = load_metric("wer").compute(predictions=predictions, references=references)
    assert result["wer"] == pytest.approx(100 * jiwer.wer(references, predictions))
    assert result["cer"] == pytest.approx(100 * jiwer.cer(references, predictions))
    assert (result["word_accuracy"], result["word_accuracy_se"]) == (pytest.approx(100 - result["wer"]), result["wer_se"])
