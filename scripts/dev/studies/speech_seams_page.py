"""What is compared over five minutes of speech, and the page about it: word errors near the seams of chunks and elsewhere."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from hf_longattn.evaluation.summaries import ratio_and_error
from scripts.dev.benchmarks.report import markdown_table

INTRODUCTION = """
A small Parakeet (log-mel features, frames of 40 ms) learns to write digits that espeak-ng says in many voices, from utterances of one to
eight digits: first what each frame is, from the times of words, then by CTC. It reads recordings of five minutes by voices that it has not
heard: in one pass with full attention, in one pass with a window, and in chunks with and without strides. Then it is trained further, with
a window, with full attention, and with full attention on pieces of 30 seconds, each time on the same sound in the same order; and reads
the same recordings.
"""
LONGEST = 8
"""Digits of the longest utterance of the training."""
FRAME_SECONDS = 0.04
NEAR = 1.0
"""Seconds from a seam within which a word is near it."""
WINDOW: dict[str, Any] = {"mechanism": "window", "left": 64, "right": 64}
"""The window of the converted model, in frames: 2.6 seconds to either side, as much as an utterance of the training."""
FULL = {"mechanism": "full"}
WIDTHS = (8, 16, 32, 128, 256, 512)
"""Frames to either side of other windows, which are read without further training."""
STRETCH = 20.0
"""Seconds whose words are counted together: the step of chunks of 30 seconds with strides of 5."""
STRIDE = 5.0
CHUNKS = {"chunk_seconds": STRETCH + 2 * STRIDE, "stride_seconds": STRIDE}
BARE_CHUNKS = {"chunk_seconds": STRETCH, "stride_seconds": 0.0}
PIECE = 30.0
"""Seconds of the pieces of recordings that one of the models is trained on."""
COUNTS = ("words", "substituted", "deleted", "inserted")
"""What is counted near the seams and elsewhere; the last three are jiwer's substitutions, deletions and insertions."""


class Further(NamedTuple):
    """How a model is trained further, on long recordings.

    about: what it reads, for the table.
    attention: what it attends by.
    piece: seconds of the pieces into which the recordings are cut; ``None`` = whole.
    """

    about: str
    attention: Mapping[str, Any]
    piece: float | None = None


SHORT = "short"
MODELS: dict[str, Further | None] = {
    SHORT: None,
    "window": Further("whole recordings", WINDOW),
    "pieces": Further(f"pieces of {PIECE:g} s", FULL, PIECE),
    "full": Further("whole recordings", FULL),
}
"""The small model that has learned from utterances, and those that it becomes."""


class System(NamedTuple):
    """A way to read a long recording.

    about: its row in the table.
    model: of :data:`MODELS`.
    attention: of the converted model; ``None`` = transformers' class with full attention.
    settings: of :func:`transcribe`.
    """

    about: str
    model: str
    attention: Mapping[str, Any] | None
    settings: Mapping[str, Any]


SYSTEMS = {
    "full": System("full attention, one pass", SHORT, FULL, {}),
    "window": System("window, one pass", SHORT, WINDOW, {}),
    "chunks": System("full attention, chunks of 30 s, stride 5 s", SHORT, None, CHUNKS),
    "bare chunks": System("full attention, chunks of 20 s, no stride", SHORT, None, BARE_CHUNKS),
    "window in chunks": System("window, chunks of 30 s, stride 5 s", SHORT, WINDOW, CHUNKS),
    "trained full": System("full attention, one pass", "full", FULL, {}),
    "trained window": System("window, one pass", "window", WINDOW, {}),
    "trained chunks": System("full attention, chunks of 30 s, stride 5 s", "pieces", None, CHUNKS),
    "trained bare chunks": System("full attention, chunks of 20 s, no stride", "pieces", None, BARE_CHUNKS),
    "trained window in chunks": System("window, chunks of 30 s, stride 5 s", "window", WINDOW, CHUNKS),
}
STOCK, UTTERANCES = "stock", "utterances"
"""Full attention in one pass by transformers' class, of which only costs are measured, and the row of short utterances."""
COMPARED = (
    ("trained window", "trained full"),
    ("trained window", "trained chunks"),
    ("trained window", "trained window in chunks"),
    ("window", "full"),
    ("window", "chunks"),
    ("window", "window in chunks"),
)
"""Systems whose difference in word errors is told, on the same words."""


Rows = list[tuple[tuple[int, int], int, int, int, int]]
"""(stretch, words near seams, errors near them, words elsewhere, errors elsewhere)"""


def rows_of(result: Mapping[str, Any]) -> Rows:
    """The words and the errors of each stretch of a result of :func:`measured`."""
    return [
        ((number, place), near[0], sum(near[1:]), far[0], sum(far[1:]))
        for number, place, *counts in result["stretches"]
        for near, far in [(counts[: len(COUNTS)], counts[len(COUNTS) :])]
    ]


ALL, SEAMS, ELSEWHERE = "all", "seams", "elsewhere"


def pairs_of(rows: Rows, kind: str = ALL) -> list[tuple[int, int]]:
    """(errors, words) of each stretch, of all its words, of those near seams or of those elsewhere."""
    near, far = kind != ELSEWHERE, kind != SEAMS
    pairs = [(near * errors + far * far_errors, near * words + far * far_words) for _, words, errors, far_words, far_errors in rows]
    return [pair for pair in pairs if any(pair)]


def rate_in_words(seeds: Sequence[Rows], kind: str = ALL) -> str:
    """ "2.1 ± 0.3 (2.0, 2.2: ± 0.1)": per cent with its standard error over the stretches of all seeds, and those of each seed with the
    standard error over seeds."""
    rate, error = ratio_and_error([pair for rows in seeds for pair in pairs_of(rows, kind)])
    return f"{100 * rate:.1f}{error_in_words(error, 1)}{by_seed([100 * ratio_and_error(pairs_of(rows, kind))[0] for rows in seeds])}"


def error_in_words(error: float | None, digits: int) -> str:
    """ " ± 0.3": a standard error in per cent; nothing of fewer than ten stretches."""
    return "" if error is None else f" ± {100 * error:.{digits}f}"


def by_seed(values: Sequence[float]) -> str:
    """ " (2.0, 2.2: ± 0.1)": numbers of each seed and the standard error of their mean; nothing of a single seed."""
    if len(values) < 2:
        return ""
    return f" ({', '.join(f'{value:.1f}' for value in values)}: ± {statistics.stdev(values) / len(values) ** 0.5:.1f})"


def difference_in_words(seeds: Sequence[Sequence[Rows]]) -> str:
    """The word error rate of the first less that of the second, in points, on the same stretches, as :func:`rate_in_words` says it."""
    pairs = [difference_pairs(*both) for both in seeds]
    rate, error = ratio_and_error([pair for of_seed in pairs for pair in of_seed])
    return f"{100 * rate:+.2f}{error_in_words(error, 2)}{by_seed([100 * ratio_and_error(of_seed)[0] for of_seed in pairs])}"


def difference_pairs(first: Rows, second: Rows) -> list[tuple[int, int]]:
    """(errors of the first less those of the second, words) of each stretch."""
    counts: dict[tuple[int, int], list[int]] = {}
    for sign, rows in ((1, first), (-1, second)):
        for place, words, errors, far_words, far_errors in rows:
            row = counts.setdefault(place, [0, 0])
            row[0] += sign * (errors + far_errors)
            row[1] = max(row[1], words + far_words)
    return [(errors, words) for errors, words in counts.values()]


def seam_difference(seeds: Sequence[Rows]) -> str:
    """Points by which the word error rate near seams is above that elsewhere, with the standard error of both."""
    (near, near_error), (far, far_error) = (
        ratio_and_error([pair for rows in seeds for pair in pairs_of(rows, kind)]) for kind in (SEAMS, ELSEWHERE)
    )
    error = None if near_error is None or far_error is None else math.hypot(near_error, far_error)
    return f"{100 * (near - far):+.1f}{error_in_words(error, 1)}"


def kinds_in_words(results: Sequence[Mapping[str, Any]]) -> str:
    """ "1.2 / 0.3 / 0.4": substitutions, deletions and insertions in per cent of words."""
    totals = np.sum([row[2:] for result in results for row in result["stretches"]], 0).reshape(2, -1).sum(0)
    return " / ".join(f"{100 * total / totals[0]:.1f}" for total in totals[1:])


def markdown(stored: Mapping[str, Any]) -> str:
    """The page of a stored result: the systems, what differs, and the windows; those that some seeds lack say of how many they are."""
    runs, seconds = stored["runs"], stored["seconds"]
    names = list(dict.fromkeys(name for run in runs for name in run["results"]))
    results = {name: [run["results"][name] for run in runs if name in run["results"]] for name in names}
    rows = {name: [rows_of(result) for result in results[name]] for name in names}
    table = [system_row(name, rows[name], results[name], stored) for name in SYSTEMS if name in names]
    heads = ["read by", "trained further on", "word errors, %", f"within {NEAR:g} s of a seam", "elsewhere", "more at seams",
             "substituted / deleted / inserted", "processor s", "MiB"]  # fmt: skip
    differences = []
    for pair in COMPARED:
        both = [[rows_of(run["results"][name]) for name in pair] for run in runs if set(pair) <= run["results"].keys()]
        if both:
            differences.append([*map(row_name, pair), difference_in_words(both) + missing_seeds(both, runs)])
    widths: dict[int, str] = {**{width: f"window {width}" for width in WIDTHS}, WINDOW["left"]: "window"}
    windows = [
        [f"{width} frames, {width * FRAME_SECONDS:.2g} s", rate_in_words(rows[name]) + missing_seeds(rows[name], runs)]
        for width, name in sorted(widths.items())
        if name in names
    ]
    return "\n".join(
        [
            "# Speech: seams\n",
            " ".join(INTRODUCTION.split()) + "\n",
            markdown_table(heads, table) + "\n",
            notes(stored, rows) + "\n",
            "## Differences\n",
            "Word errors of the first less those of the second, in points, on the same words of the same recordings.\n",
            markdown_table(["first", "second", "points"], differences) + "\n",
            "## Other windows\n",
            f"Without further training, {seconds:g} seconds in one pass.\n",
            markdown_table(["to either side", "word errors, %"], windows) + "\n",
        ]
    )


def missing_seeds(seeds: Sequence[Any], runs: Sequence[Any]) -> str:
    """ ", 2 seeds" where fewer seeds have it than were run."""
    return "" if len(seeds) == len(runs) else f", {len(seeds)} seed{'s' if len(seeds) > 1 else ''}"


def row_name(name: str) -> str:
    """A system with what its model was trained on."""
    system = SYSTEMS[name]
    further = MODELS[system.model]
    return system.about if further is None else f"{system.about}; trained further on {further.about}"


def system_row(name: str, seeds: Sequence[Rows], results: Sequence[Mapping[str, Any]], stored: Mapping[str, Any]) -> list[str]:
    """The row of a system."""
    system = SYSTEMS[name]
    further = MODELS[system.model]
    return [
        system.about + missing_seeds(seeds, stored["runs"]),
        "–" if further is None else further.about,
        rate_in_words(seeds),
        rate_in_words(seeds, SEAMS).partition(" (")[0],
        rate_in_words(seeds, ELSEWHERE).partition(" (")[0],
        seam_difference(seeds),
        kinds_in_words(results),
        f"{np.mean([result['seconds'] for result in results]):,.2f}",
        f"{stored['costs'][name]['mebibytes']:,.0f}" if name in stored["costs"] else "–",
    ]


def notes(stored: Mapping[str, Any], rows: Mapping[str, Sequence[Rows]]) -> str:
    """How the figures were made."""
    about, runs, stock = stored["machine"], stored["runs"], stored["costs"].get(STOCK)
    count = len(runs)
    spent = {
        name: np.mean(seconds)
        for name, further in MODELS.items()
        if further is not None and (seconds := [run["training"][name]["seconds"] for run in runs if name in run["training"]])
    }
    stages = ", then ".join(f"{recordings} of {seconds:g} s" for seconds, recordings in stored["stages"])
    lines = [
        f"{count} {'seed' if count == 1 else 'seeds'}, each with a small model of its own, {stored['minutes']:g} minutes of the processor; "
        f"{stored['recordings']} recordings of {stored['seconds']:g} seconds for each. Word errors in per cent ± the standard error over "
        f"stretches of {STRETCH:g} seconds of all seeds; in brackets each seed's, with the standard error over seeds.",
        "In one pass, seams are the places where those of chunks of 30 s are, so that both count the same words.",
        f"Further training: the same recordings for every model, {stages}, by CTC alone, at a third of the rate; it took "
        + ", ".join(f"{seconds:.0f} s ({name})" for name, seconds in spent.items())
        + " of the processor. Pieces are the same recordings, cut in pauses.",
        "Chunks and what is left out of them are those of transformers' pipeline (`tests/scripts/dev/studies/test_speech.py`).",
        "Full attention in one pass is the mechanism `full`, which equals transformers' class and takes memory in proportion to the "
        "duration; in chunks it is that class. MiB: by how much a new process grows while it reads one recording."
        + (" Transformers' class in one pass: {mebibytes:,.0f} MiB.".format(**stock) if stock else ""),
        f"One thread of {about['processor']}; PyTorch {about['torch']}, transformers {about['transformers']}, {about['date']}.",
    ]
    if UTTERANCES in rows:
        lines.insert(1, f"Utterances of {LONGEST} digits, as in training: {rate_in_words(rows[UTTERANCES])} %.")
    return "\n".join(f"- {line}" for line in lines)
