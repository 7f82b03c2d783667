"""Markers of paragraphs and sentences: put in, found again as tokens, and never part of an answer; labels against their definition."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from hf_longattn.data.qa_features import QAEncodingConfig, QAFeature, encode_qa, kind_number
from hf_longattn.data.qa_markers import EVIDENCE, insert, marked_document, marked_texts
from hf_longattn.data.qa_schemas import SCHEMAS, _convert
from hf_longattn.evaluation.qa_heads import chosen_evidence
from hf_longattn.evaluation.qa_reader import n_best_spans
from tests.byte_tokenizer import train_tokenizer
from tests.grids import drawn
from tests.trained import tokenizer_of
from tests.training.conftest import SOURCES

HOTPOT = next(schema for schema in SCHEMAS if schema.name == "HotpotQA")
TOKENIZERS: dict[str, PreTrainedTokenizerBase] = {}


def tokenizer_with_markers(kind: str) -> PreTrainedTokenizerBase:
    """Of the project (lower-case WordPiece or the like), or byte-level as RoBERTa's."""
    if kind not in TOKENIZERS:
        TOKENIZERS[kind] = train_tokenizer(SOURCES, vocab_size=1024) if kind == "ours" else tokenizer_of(kind)
        TOKENIZERS[kind].add_tokens(list(EVIDENCE), special_tokens=True)
    return TOKENIZERS[kind]


def record_of(paragraphs: list[list[Any]], facts: list[list[Any]], answer: str) -> dict[str, Any]:
    row = {"_id": "1", "question": "which?", "answer": answer, "context": paragraphs, "supporting_facts": facts}
    record = _convert(HOTPOT, row, 0)
    assert not record["problem"]
    return record


def test_marked_texts() -> None:
    paragraphs = [["Red Fox", ["It runs.", " It is [s] old."]], ["Owl", ["It flies. "]], ["Empty", []]]
    record = record_of(paragraphs, [["Owl", 0]], "yes")
    question, document = marked_texts(record)
    assert question == "[q] which? [/q]"
    assert document == "<t> Red Fox </t> \nIt runs. [s] It is (s] old. [s]\n<t> Owl </t> \nIt flies. [s] \n<t> Empty </t> \n\n"
    marked = marked_document(record)
    assert [document[: place + 1].rsplit(maxsplit=1)[-1] for place in marked.places] == ["<t>"] * 3 + ["[s]"] * 3
    for at, character in enumerate(record["context"]):
        assert character in (document[marked.origin.index(at) :][:40])
    assert insert("abc", [(1, "x"), (1, "yz"), (3, "w ")]).text == "axyzbcw "


WORDS = st.sampled_from(["tree", "file", "a node", "path", "the value", "naïve ☃", "x.y", "[s]", "return self", "Ann-Lee"])
SENTENCES = st.lists(st.lists(WORDS, min_size=1, max_size=5).map(" ".join), min_size=1, max_size=4)


@st.composite
def hotpot_rows(draw: st.DrawFn) -> tuple[list[list[Any]], list[list[Any]], str]:
    texts = draw(st.lists(SENTENCES, min_size=1, max_size=6))
    paragraphs = [
        [f"title {number}", [draw(st.sampled_from(["", " "])) + text + "." for text in some]] for number, some in enumerate(texts)
    ]
    places = [[title, number] for title, some in paragraphs for number in range(len(some))]
    facts = draw(st.lists(st.sampled_from(places), max_size=3))
    answer = draw(st.sampled_from(["yes", "no", "span"]))
    return paragraphs, facts, draw(st.sampled_from([text for some in texts for text in some])) if answer == "span" else answer


@pytest.mark.thorough
@drawn(120)
@given(
    hotpot_rows(),
    st.sampled_from(["ours", "roberta"]),
    st.sampled_from([(40, 8), (64, 24), (400, 16), (60, None)]),
    st.booleans(),
)
def test_windows_are_never_mislabelled(row: tuple[Any, Any, str], kind: str, form: tuple[int, int | None], markers: bool) -> None:
    """Against the definition, from the characters that a window holds: an answer or a sentence counts where it lies as a whole."""
    record, tokenizer = record_of(*row), tokenizer_with_markers(kind)
    context, sentences = record["context"], record["sentences"]
    for feature in encode_qa(record, tokenizer, QAEncodingConfig(form[0], form[1], markers=markers)):
        inside = [place for place in feature.offsets if place is not None and place[0] < place[1]]
        held = (inside[0][0], inside[-1][1]) if inside else (0, 0)
        check_spans(record, feature, held)
        whole = {number for number, one in enumerate(sentences) if held[0] <= one["start"] and one["end"] <= held[1]}
        found = {number: (token, supports) for number, token, supports in feature.sentences}
        assert set(found) <= whole
        for number, (token, supports) in found.items():
            assert supports == sentences[number]["supports"]
            if markers:
                assert feature.inputs["input_ids"][token] == tokenizer.convert_tokens_to_ids("[s]")
                assert feature.offsets[token] == (sentences[number]["end"],) * 2
            else:
                place = feature.offsets[token]
                assert place is not None
                assert place[0] < sentences[number]["end"] <= place[1]
        missing = whole - set(found)
        assert missing <= ({max(whole)} if markers and whole else set())  # only the last one's marker can lie outside
        supported = {sentences[number]["paragraph"] for number, (_, supports) in found.items() if supports}
        for number, token, relevant in feature.paragraphs:
            assert feature.inputs["input_ids"][token] == tokenizer.convert_tokens_to_ids("<t>")
            assert feature.offsets[token] == (record["paragraphs"][number]["start"],) * 2
            ever = any(one["supports"] and one["paragraph"] == number for one in sentences)
            assert relevant == (1 if number in supported else -1 if ever else 0)
        if record["kind"] != "span":
            told = not any(one["supports"] for one in sentences) or bool(supported)
            assert kind_number(record, feature) == ({"yes": 1, "no": 2}[record["kind"]] if told else -100)
        text = {span.text for span in spans_of(context, feature)}
        assert not any(marker in one for one in text for marker in ("<t>", "</t>"))


def check_spans(record: Mapping[str, Any], feature: QAFeature, held: tuple[int, int]) -> None:
    """The labelled spans are those of the answers that lie in the window as a whole, and no others."""
    answers = {(at, at + len(text)) for text, at in zip(record["answers"]["text"], record["answers"]["answer_start"], strict=True)}
    here = {(start, end) for start, end in answers if held[0] <= start and end <= held[1]}
    if not here:
        assert feature.spans == [(0, 0)]
        return
    labelled = set()
    for first, last in feature.spans:
        start, end = feature.offsets[first], feature.offsets[last]
        assert start is not None
        assert end is not None
        labelled |= {(a, b) for a, b in answers if start[0] <= a < start[1] and end[0] < b <= end[1]}
    assert labelled == here


def spans_of(context: str, feature: QAFeature) -> list[Any]:
    scores = np.linspace(0, 1, len(feature))
    return n_best_spans(context, [feature], [scores], [scores])


@pytest.mark.parametrize(
    ("sentences", "paragraphs", "count", "expected"),
    [
        ({0: 1.0, 1: -1.0, 2: 0.5}, {}, None, [0, 2]),
        ({0: -1.0, 1: -2.0}, {}, None, []),
        ({0: 1.0, 1: -1.0, 2: -0.5, 3: -3.0}, {0: 0.0, 1: 0.0, 2: 0.0}, 2, [0, 2]),  # the best of the second paragraph, below zero
        ({0: 1.0, 1: 0.5, 2: 0.2, 3: 0.1}, {0: 0.0, 1: -5.0, 2: 1.0}, 2, [0, 1, 3]),  # both of the first, and the third's
        ({0: 1.0}, {0: 1.0}, 2, [0]),
        ({}, {}, 2, []),
    ],
)
def test_evidence_comes_from_so_many_paragraphs(
    sentences: dict[int, float], paragraphs: dict[int, float], count: int | None, expected: list[int]
) -> None:
    assert chosen_evidence(sentences, paragraphs, {0: 0, 1: 0, 2: 1, 3: 2}, count) == expected
