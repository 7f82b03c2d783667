"""Spans: the best pair of start and end over all windows, as characters of the document."""

from __future__ import annotations

import numpy as np

from hf_longattn.evaluation.qa_reader import n_best_spans

CONTEXT = "aa bb cc dd"
NONE = (-1, -1)
OFFSETS = [NONE, (0, 2), (3, 5), (6, 8), (9, 11)]


def scores(**places: float) -> np.ndarray:
    values = np.zeros(7)
    for place, value in places.items():
        values[int(place[1:])] = value
    return values


def test_n_best_spans_takes_the_best_pair_of_start_and_end() -> None:
    best = n_best_spans(CONTEXT, [OFFSETS], [scores(_2=5)], [scores(_3=4)])
    assert (best[0].text, best[0].start, best[0].end, best[0].score) == ("bb cc", 3, 8, 9.0)


def test_n_best_spans_leaves_out_padding_question_and_reversed_pairs() -> None:
    best = n_best_spans(CONTEXT, [OFFSETS], [scores(_4=5, _5=99)], [scores(_0=0, _2=4, _6=99)])
    assert all(span.start < span.end for span in best)
    assert best[0].text == "dd"


def test_n_best_spans_are_at_most_most_tokens_long() -> None:
    best = n_best_spans(CONTEXT, [OFFSETS], [scores(_1=5)], [scores(_4=5, _2=1)], most_tokens=2)
    assert best[0].text == "aa bb"


def test_n_best_spans_compares_windows_by_their_margin_over_no_answer() -> None:
    unsure = [NONE, (0, 2), (3, 5)]
    sure = [NONE, (6, 8), (9, 11)]
    best = n_best_spans(CONTEXT, [unsure, sure], [scores(_0=9, _1=10), scores(_1=6)], [scores(_0=9, _1=10), scores(_1=6)])
    assert best[0].text == "cc"
    assert best[0].score == 12.0
