"""Docstring QA: extractive, without leaks, split by package, the same for the same seed."""

from __future__ import annotations

from collections import Counter

import pytest
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from research import corpus
from research.docstring_qa import Rejections, build_docstring_qa, contains_name, questions
from research.docstrings import normalised, strip_docstrings


@pytest.fixture(scope="module")
def built() -> tuple[Dataset, Rejections]:
    rejections = Rejections()
    return build_docstring_qa("validation", packages=["huggingface_hub"], limit=60, rejections=rejections), rejections


def test_answers_are_definitions_in_the_document(built: tuple[Dataset, Rejections]) -> None:
    data, _ = built
    assert len(data) == 60
    for record in data:
        (answer,), (start,) = record["answers"]["text"], record["answers"]["answer_start"]
        assert record["context"].startswith(answer, start)
        assert record["context"][:start].split()[-1] in {"def", "class"}
        assert 500 <= record["tokens"] <= 8000
    assert len(set(data["id"])) == len(data)


def test_nothing_leaks(built: tuple[Dataset, Rejections]) -> None:
    data, rejections = built
    for record in data:
        assert normalised(record["question"]) not in normalised(record["context"])
        assert not contains_name(record["question"], record["answers"]["text"][0])
    assert rejections.name_in_question > 0


def test_a_few_questions_per_module(built: tuple[Dataset, Rejections]) -> None:
    assert max(Counter(built[0]["title"]).values()) <= 4


def test_same_seed_same_set() -> None:
    arguments = {"packages": ["huggingface_hub"], "limit": 8}
    first = build_docstring_qa("validation", **arguments)
    assert first.to_list() == build_docstring_qa("validation", **arguments).to_list()
    assert first.to_list() != build_docstring_qa("validation", seed=1, **arguments).to_list()


def test_lengths_are_measured_by_the_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    data = build_docstring_qa("validation", packages=["huggingface_hub"], limit=4, tokenizer=tokenizer)
    for record in data:
        assert record["tokens"] == len(tokenizer(record["context"], add_special_tokens=False)["input_ids"])


def test_packages_of_the_splits_are_disjoint() -> None:
    assert not corpus.TEST_PACKAGES & corpus.VALIDATION_PACKAGES


def test_rejections_are_counted() -> None:
    source = '''
def alpha():
    """Return something without a name here."""
def beta():
    """The beta function names itself here."""
def twice():
    """One of two that share a name."""
class A:
    def twice(self):
        """The other of two that share it."""
def gamma():
    """The same sentence in two places here."""
def delta():
    """The same sentence in two places here."""
def epsilon():
    """What a comment says again below."""
# What a comment says, again: below
def zeta():
    """Short."""
'''
    stripped = strip_docstrings(source)
    assert stripped is not None
    rejections = Rejections()
    assert [definition.name for definition, _ in questions(stripped, rejections)] == ["alpha"]
    assert rejections.to_dict() == {
        "unparsable_modules": 0,
        "no_sentence": 1,
        "name_in_question": 1,
        "name_defined_twice": 2,
        "sentence_in_document": 1,
        "sentence_shared": 2,
    }
