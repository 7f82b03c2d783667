"""Word error rate of an untrained result that writes transcripts, measured in the verification of its conversion."""

from __future__ import annotations

import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoFeatureExtractor, AutoModelForSpeechSeq2Seq, AutoTokenizer

from ..checks import MEASURED, NEEDS_TRAINING, Check
from ..data.audio import Samples, read_audio
from ..data.english import PARAGRAPHS
from ..data.transcripts import compared_words
from ..evaluation.metrics.wer import error_rates
from ..evaluation.transcription import transcribe
from ..loading import load_model, load_part

NAME, PROGRAM = "word error rate", "espeak-ng"
GREEDY = {"num_beams": 1}
EQUAL = 1.0
"""Largest difference of word error rates, in per cent, at which the result needs no training. Untuned."""


class Reading:
    """A processor's parts, as :func:`transcribe` reads them."""

    def __init__(self, folder: Path) -> None:
        self.feature_extractor = load_part(AutoFeatureExtractor, folder, "feature extractor", local_files_only=True)
        self.tokenizer = load_part(AutoTokenizer, folder, "tokenizer", local_files_only=True)


def check_words(plan: Any, result: Path, recording: Path | None) -> Check:
    """Compare the transcripts of one sound of the new duration: by the result in one pass, and by the source in chunks of its duration.

    Args:
        plan: of the conversion.
        result: the written folder.
        recording: the user's file, or None. A .txt file beside it holds its transcript. Without one, espeak-ng reads a text.
    """
    sizes = plan.inputs
    missing = [] if find_spec("jiwer") else ["jiwer (pip install jiwer)"]
    script = None if recording is None else recording.with_suffix(".txt")
    if script is None or not script.is_file():
        script = None
        missing += [] if shutil.which(PROGRAM) else [f"{PROGRAM}, or --verify-audio FILE with its transcript in a .txt file beside it"]
    if missing:
        return Check(NAME, NEEDS_TRAINING, f"nothing was measured: the check needs {' and '.join(missing)}")
    rate = plan.architecture.family.rule.sampling_rate
    if script is None:
        samples, text, heard = *spoken(sizes.new.value, rate), f"a text of {sizes.new.words} that {PROGRAM} says"
    else:
        assert recording is not None
        samples, text = read_audio(recording, rate, resample=True, mono=True), script.read_text(encoding="utf-8")
        heard = f"{recording.name} ({len(samples) / rate:.0f} seconds)"
        if len(samples) > sizes.new.value * rate:
            return Check(NAME, NEEDS_TRAINING, f"nothing was measured: {heard} is longer than {sizes.new.words}; give a shorter one")
    rates = {}
    for name, folder, chunks in (("result", result, None), ("source", plan.source.folder, float(sizes.old.value))):
        model = load_model(AutoModelForSpeechSeq2Seq, folder, dtype=torch.float32).eval()
        transcript = transcribe(model, Reading(folder), samples, chunk_seconds=chunks, generate_kwargs=GREEDY)
        rates[name] = error_rates([compared_words(transcript.text)], [compared_words(text)])["wer"]
    status = MEASURED if rates["result"] <= rates["source"] + EQUAL else NEEDS_TRAINING
    detail = (
        f"of {heard}: {rates['result']:.1f} % of the words are wrong in one pass of the untrained result, and {rates['source']:.1f} % "
        f"where the source reads chunks of {sizes.old.words}"
    )
    return Check(NAME, status, detail, {f"{name}_wer": rate for name, rate in rates.items()})


def spoken(seconds: float, rate: int) -> tuple[Samples, str]:
    """Samples of the sentences that fit into so many seconds, as espeak-ng says them, and their text."""
    sentences = [f"{sentence.strip()}." for sentence in " ".join(PARAGRAPHS.split()).split(".") if sentence.strip()]
    pieces: list[Samples] = []
    said: list[str] = []
    while True:
        for sentence in sentences:
            done = subprocess.run([PROGRAM, "--stdout", sentence], capture_output=True, check=True)
            piece = read_audio(done.stdout, rate, resample=True)
            if pieces and sum(map(len, pieces)) + len(piece) > seconds * rate:
                return np.concatenate(pieces), " ".join(said)
            pieces.append(piece)
            said.append(sentence)
