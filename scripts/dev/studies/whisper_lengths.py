"""The real Whisper tiny.en within its 30 seconds and beyond: word errors and the encoder's time of stock and converted models.

    python -m scripts.dev.studies.whisper_lengths --talks FOLDER [--trained FOLDER]

Talks are read aloud by espeak-ng and flite, in voices that no training had (:mod:`scripts.dev.studies.read_aloud`). ``--trained`` is the
result of ``longattn train seq2seq --audio`` for 60 seconds, on ``FOLDER/train``.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor

from hf_longattn import convert_checkpoint
from hf_longattn.data.audio import read_audio
from hf_longattn.data.transcripts import compared_words
from hf_longattn.evaluation.metrics.wer import error_rates
from hf_longattn.evaluation.transcription import transcribe
from scripts.dev import RESULTS
from scripts.dev.benchmarks.report import footnote, machine, markdown_table, store_study
from scripts.dev.real_whisper import installed_folder, write_checkpoint
from scripts.dev.studies.read_aloud import HELD_OUT, RATE, TRAINED, sentences, talks, write

OUTPUT = RESULTS / "whisper_lengths"
WINDOW = 256
GREEDY: dict[str, Any] = {"num_beams": 1}
UNTIMED: dict[str, Any] = {**GREEDY, "return_timestamps": False}
TIMED: dict[str, Any] = {**GREEDY, "return_timestamps": True}
SHORT, LONG = "short", "test"
"""Folders of talks of 26 to 29 seconds, and of 58 to 60."""
HEADER = ("talks", "model", "reading", "word errors", "encoder, s", "all, s")


def make_talks(articles: Path, folder: Path, train: int, test: int) -> None:
    """Write the talks of training and test, from ``valid.txt`` and ``test.txt`` of a folder of articles."""
    learned, held_out = sentences(articles / "valid.txt"), sentences(articles / "test.txt")
    write(talks(learned, TRAINED, train, (40, 60), seed=0), folder / "train")
    write(talks(held_out, HELD_OUT, test, (58, 60), seed=1), folder / LONG)
    write(talks(held_out, HELD_OUT, test, (26, 29), seed=2), folder / SHORT)


class Timed:
    """A model with its processor, and the processor time of its encoder."""

    def __init__(self, folder: Path) -> None:
        self.model: Any = AutoModelForSpeechSeq2Seq.from_pretrained(folder).eval()
        self.processor = AutoProcessor.from_pretrained(folder)
        self.seconds, self.begun = 0.0, 0.0
        encoder = self.model.get_encoder()
        encoder.register_forward_pre_hook(self.begin)
        encoder.register_forward_hook(self.end)

    def begin(self, *_: Any) -> None:
        self.begun = time.process_time()

    def end(self, *_: Any) -> None:
        self.seconds += time.process_time() - self.begun

    def read(self, files: Sequence[Path], **settings: Any) -> dict[str, Any]:
        """Error rates of all talks, and seconds of the encoder and of everything a talk."""
        self.seconds, started = 0.0, time.process_time()
        said = [transcribe(self.model, self.processor, read_audio(file, RATE), **settings).text for file in files]
        whole = time.process_time() - started
        references = [compared_words(file.with_suffix(".txt").read_text(encoding="utf-8")) for file in files]
        rates = error_rates(list(map(compared_words, said)), references)
        return {**rates, "encoder_seconds": self.seconds / len(files), "seconds": whole / len(files)}


def readings(source: Path, trained: Path | None, folder: Path) -> list[tuple[str, str, str, Path, dict[str, Any]]]:
    """Talks, model, reading, folder of the checkpoint and settings of ``transcribe``, for each row of the table."""
    inside, beyond = folder / "inside", folder / "beyond"
    window: dict[str, Any] = {"mechanism": "window", "window": WINDOW, "verify": False}
    convert_checkpoint(source, inside, **window)
    convert_checkpoint(source, beyond, audio_seconds=60, needs_training=True, **window)
    chunks: dict[str, Any] = {"chunk_seconds": 30.0, "generate_kwargs": GREEDY}
    rows = [
        (SHORT, "stock", "one segment", source, {"generate_kwargs": TIMED}),
        (SHORT, f"window {WINDOW}", "one segment", inside, {"generate_kwargs": TIMED}),
        (LONG, "stock", "chunks of 30 s, as the pipeline", source, chunks),
        (LONG, "stock", "segment after segment", source, {"generate_kwargs": TIMED}),
        (LONG, f"window {WINDOW}", "chunks of 30 s, as the pipeline", inside, chunks),
        (LONG, f"window {WINDOW}", "segment after segment", inside, {"generate_kwargs": TIMED}),
        (LONG, f"window {WINDOW}, 60 s, untrained", "one segment", beyond, {"generate_kwargs": UNTIMED}),
        (LONG, f"window {WINDOW}, 60 s, untrained", "one segment, timestamps", beyond, {"generate_kwargs": TIMED}),
    ]
    if trained is not None:
        rows.append((LONG, f"window {WINDOW}, 60 s, trained", "one segment", trained, {"generate_kwargs": UNTIMED}))
    return rows


def markdown(record: dict[str, Any]) -> str:
    """The table of a stored record."""
    rows = []
    for row in record["rows"]:
        error = "" if row.get("wer_se") is None else f" ± {row['wer_se']:.1f}"
        rows.append((
            f"{row['n']} of {'28' if row['talks'] == SHORT else '60'} s", row["model"], row["reading"], f"{row['wer']:.1f}{error} %",
            f"{row['encoder_seconds']:.2f}", f"{row['seconds']:.2f}",
        ))  # fmt: skip
    return f"{markdown_table(HEADER, rows)}\n\n{footnote(record['machine'], '; processor time a talk, greedy decoding')}\n"


def main() -> None:
    """Read the talks with every model, and store the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--talks", type=Path, required=True, help="folder of the talks")
    parser.add_argument("--articles", type=Path, help="make the talks from valid.txt and test.txt of this folder, and stop")
    parser.add_argument("--trained", type=Path, help="a model that was trained for 60 seconds")
    parser.add_argument("--count", type=int, default=12, help="talks of each length")
    parser.add_argument("--train", type=int, default=220, help="talks to train on")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="path of the result without suffix")
    args = parser.parse_args()
    if args.articles is not None:
        make_talks(args.articles, args.talks, args.train, args.count)
        return
    source = installed_folder()
    if source is None:
        raise SystemExit("The real tiny.en is not installed; see scripts/dev/real_whisper.py.")
    torch.set_num_threads(1)
    record: dict[str, Any] = {"machine": machine(), "rows": []}
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = write_checkpoint(source, Path(folder, "tiny.en"))
        for talk_kind, model, reading, place, settings in readings(checkpoint, args.trained, Path(folder)):
            files = sorted((args.talks / talk_kind).glob("*.wav"))[: args.count]
            scores = Timed(place).read(files, **settings)
            values = {name: round(value, 3) for name, value in scores.items() if isinstance(value, (int, float, np.floating))}
            record["rows"].append({"talks": talk_kind, "model": model, "reading": reading, **values})
            store_study(args.output, record, markdown(record))
            print(model, reading, values, flush=True)
    print(markdown(record))


if __name__ == "__main__":
    main()
