"""Measures what a system of the study of seams costs, in the process of ``python -m`` this module."""

from __future__ import annotations

import time

import numpy as np

from hf_longattn.evaluation.transcription import transcribe
from scripts.dev.benchmarks.memory import answer, growth
from scripts.dev.studies.speech_seams import read_by, small_model
from scripts.dev.studies.speech_seams_page import STOCK, SYSTEMS
from scripts.dev.studies.speech_synthesis import RATE

WARM_UP_SECONDS = 10.0
"""Of noise, read before anything is measured."""


def costs(name: str, seconds: float) -> dict[str, float]:
    """``mebibytes`` by which this process grows while a system reads noise, after it has read a little of it, and its ``seconds``."""
    model, processor = small_model(0)
    system = SYSTEMS["full"]._replace(attention=None) if name == STOCK else SYSTEMS[name]
    noise = np.random.default_rng(0).standard_normal(round(seconds * RATE), np.float32)
    reader = read_by(system, model.eval())
    transcribe(reader, processor, noise[: round(WARM_UP_SECONDS * RATE)])
    begun = time.process_time()
    mebibytes = growth(lambda: transcribe(reader, processor, noise, **system.settings))
    return {"mebibytes": round(mebibytes, 1), "seconds": round(time.process_time() - begun, 2)}


if __name__ == "__main__":
    answer(costs)
