"""Lookup: every question can be answered by following the lines, and two hops lie further apart than a window."""

from __future__ import annotations

import itertools
import random
import re

import pytest
from transformers import PreTrainedTokenizerBase

from hf_longattn.errors import LengthError
from scripts.dev.studies import corpus
from scripts.dev.studies.variable_tracking import MARKER, NAMES, VALUES, DocumentShape, Filler, build_variable_tracking, make_document

LINE = re.compile(rf"^{MARKER} (\w+) (\w+)$", re.MULTILINE)


def follow(context: str, question: str) -> tuple[str, int]:
    """Answer by following the lines; also return the number of hops."""
    lines = dict(LINE.findall(context))
    word, hops = question.split()[-1], 0
    while word in lines:
        word, hops = lines[word], hops + 1
    return word, hops


@pytest.mark.parametrize("tokens", [160, 480, 2048])
def test_answers_follow_from_the_lines(tokens: int, filler: Filler, tokenizer: PreTrainedTokenizerBase) -> None:
    for seed in range(5):
        records = make_document(filler, tokens, DocumentShape.for_length(tokens), random.Random(seed), tokenizer)
        *answerable, absent = records
        assert [r["hops"] for r in answerable] == [2] * 4 + [1] * 4
        assert len({r["answers"]["text"][0] for r in answerable}) == 8
        for record in answerable:
            (answer,), (start,) = record["answers"]["text"], record["answers"]["answer_start"]
            assert follow(record["context"], record["question"]) == (answer, record["hops"])
            assert record["context"].startswith(answer, start)
            assert len(tokenizer(record["question"], record["context"])["input_ids"]) <= tokens
        assert follow(absent["context"], absent["question"])[1] == 0
        assert absent["answers"]["text"] == []


def test_the_trail_points_at_the_names(filler: Filler, tokenizer: PreTrainedTokenizerBase) -> None:
    for record in make_document(filler, 400, DocumentShape(), random.Random(0), tokenizer)[:-1]:
        lines = dict(LINE.findall(record["context"]))
        asked = record["question"].split()[-1]
        words = [re.match(r"\w+", record["context"][place:]).group() for place in record["trail"]]  # type: ignore[union-attr]
        last = asked if record["hops"] == 1 else lines[asked]
        assert words == [asked, lines[asked], last]
        assert lines[last] == record["answers"]["text"][0]


def test_hops_are_further_apart_than_a_window(filler: Filler, tokenizer: PreTrainedTokenizerBase) -> None:
    for record in make_document(filler, 1024, DocumentShape.for_length(1024), random.Random(0), tokenizer)[:4]:
        first, _, second = record["trail"]
        between = record["context"][min(first, second) : max(first, second)]
        assert len(tokenizer(between, add_special_tokens=False)["input_ids"]) > 480


@pytest.mark.slow
def test_built_set(tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the first modules of a package; that a split has all of its packages' is in test_corpus.py."""
    modules = corpus.iter_modules
    monkeypatch.setattr(corpus, "iter_modules", lambda *chosen: itertools.islice(modules(*chosen), 20))
    arguments = {"lengths": (480, 1024), "documents": 2, "packages": ["huggingface_hub"]}
    data = build_variable_tracking("validation", tokenizer, **arguments)
    assert data["length"] == [480] * 8 + [1024] * 8
    assert sorted(data["hops"]) == [1] * 8 + [2] * 8
    assert len(set(data["id"])) == len(data)
    assert data.to_list() == build_variable_tracking("validation", tokenizer, **arguments).to_list()


def test_too_short_is_refused(filler: Filler, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(LengthError, match="do not fit into 30 tokens"):
        make_document(filler, 30, DocumentShape(), random.Random(0), tokenizer)


def test_words_are_distinct() -> None:
    assert len(set(NAMES)) == len(NAMES)
    assert len(set(VALUES)) == len(VALUES)
    assert not set(NAMES) & set(VALUES)
