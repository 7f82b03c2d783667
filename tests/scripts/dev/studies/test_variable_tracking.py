"""Lookup: every question can be answered by following the lines, and two hops lie further apart than a window."""

from __future__ import annotations

import itertools
import random
import re

import pytest
from transformers import PreTrainedTokenizerBase

from hf_longattn.errors import InputError
from scripts.dev.studies import corpus
from scripts.dev.studies.variable_tracking import MARKER, Filler, build_variable_tracking, make_document

LINE = re.compile(rf"^{MARKER} (\w+) (\w+)$", re.MULTILINE)


def follow(context: str, question: str) -> tuple[str, int]:
    """Answer by following the lines; also return the number of hops."""
    lines = dict(LINE.findall(context))
    word, hops = question.split()[-1], 0
    while word in lines:
        word, hops = lines[word], hops + 1
    return word, hops


@pytest.mark.parametrize("tokens", [160, 480, 2048])
def test_lookup_answers_follow_from_the_lines(tokens: int, filler: Filler, tokenizer: PreTrainedTokenizerBase) -> None:
    for seed in range(5):
        records = make_document(filler, tokens, random.Random(seed), tokenizer)
        assert [r["hops"] for r in records] == [2] * 4 + [1] * 4
        assert len({r["answers"]["text"][0] for r in records}) == 8
        for record in records:
            (answer,), (start,) = record["answers"]["text"], record["answers"]["answer_start"]
            assert follow(record["context"], record["question"]) == (answer, record["hops"])
            assert record["context"].startswith(answer, start)
            assert len(tokenizer(record["question"], record["context"])["input_ids"]) <= tokens


def test_hops_of_a_lookup_are_further_apart_than_a_window(filler: Filler, tokenizer: PreTrainedTokenizerBase) -> None:
    for record in make_document(filler, 1024, random.Random(0), tokenizer)[:4]:
        first = next(line for line in LINE.finditer(record["context"]) if line[1] == record["question"].split()[-1])
        second = next(line for line in LINE.finditer(record["context"]) if line[1] == first[2])
        between = record["context"][min(first.start(), second.start()) : max(first.start(), second.start())]
        assert len(tokenizer(between, add_special_tokens=False)["input_ids"]) > 480


@pytest.mark.slow
def test_lookup_set_has_each_length_and_hop(tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the first modules of a split."""
    modules = corpus.iter_modules
    monkeypatch.setattr(corpus, "iter_modules", lambda *chosen: itertools.islice(modules(*chosen), 20))
    arguments = {"lengths": (480, 1024), "documents": 2}
    data = build_variable_tracking("validation", tokenizer, **arguments)
    assert [record["length"] for record in data] == [480] * 8 + [1024] * 8
    assert [record["hops"] for record in data] == [1, 1, 2, 2] * 4
    assert len({record["id"] for record in data}) == len(data)
    assert data == build_variable_tracking("validation", tokenizer, **arguments)


def test_lookup_documents_too_short_for_their_lines_are_refused(filler: Filler, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(InputError, match="found no stretch of source text that fills 30 tokens"):
        make_document(filler, 30, random.Random(0), tokenizer)
