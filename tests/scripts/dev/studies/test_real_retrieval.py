"""Manual pages and queries about them, and the ranks of what they ask for."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from scripts.dev.studies.manual_pages import Manual, page_queries, passage_queries, without_shared
from scripts.dev.studies.real_retrieval import by_words, clusters, grouped, ranks

TEXT = "copies files to a place on another machine and says how many bytes it has sent over the network in all of its runs"
WORDS = TEXT.split()


def page(name: str, seed: int) -> Manual:
    rng = random.Random(seed)

    def prose(count: int) -> str:
        return " ".join(rng.choice(WORDS) for _ in range(count))

    text = f"""NAME
       {name} - a tool that {prose(6)}

SYNOPSIS
       {name} [--verbose] FILE

DESCRIPTION
       {name} {prose(90)}

       The {prose(20)}.

OPTIONS
       -v, --verbose
              Say {prose(40)}

       -q, --quiet
              {name} {prose(40)}

EXIT STATUS
       Zero {prose(150)}

       One {prose(60)}

AUTHOR
       Somebody {prose(40)}
"""
    return Manual(name, "package", f"a tool that {' '.join(text.split()[6:12])}", text)


def test_a_page_is_cut_into_passages_and_asked_for_those_that_do_not_name_it() -> None:
    one = page("copier-box", 0)
    assert "".join(one.text[start:end] for start, end in one.passages) == one.text
    assert all(len(one.text[start:end].split()) <= 160 for start, end in one.passages)
    asked = {what: one.text[start:end] for what, start, end in one.asked}
    assert set(asked) == {"--verbose", "exit status"}
    assert asked["--verbose"].lstrip().startswith("-v, --verbose")
    assert asked["exit status"].startswith("EXIT STATUS\n       Zero")
    assert "One" not in asked["exit status"]
    queries = passage_queries([one, *(page(f"copier-{number}", number) for number in range(1, 5))], random.Random(0))
    assert {text for text, *_ in queries if text.endswith("copier-box")} == {"--verbose of copier-box", "exit status of copier-box"}
    assert not passage_queries([one], random.Random(0))
    spaced = Manual("copier-box", "package", "", one.text.replace("Zero", "Zero if copier box"))
    assert {what for what, _, _ in spaced.asked} == {"--verbose"}
    last = Manual("copier-box", "package", "", one.text.replace("Zero", "Zero if the box"))
    assert {what for what, _, _ in last.asked} == {"--verbose"}


def test_what_is_asked_of_a_page_is_taken_out_of_it() -> None:
    one = page("copier", 3)
    found = page_queries(one, random.Random(1))
    assert found is not None
    text, asked = found
    (about, first), (sentence, second) = asked
    assert about == one.about
    assert sentence.startswith("The ")
    assert 0 < first < second < 1
    for words in (about, sentence):
        assert words in " ".join(one.text.split())
        assert words not in " ".join(text.split())


def test_a_readme_without_headings_is_asked_for_its_description_and_a_sentence() -> None:
    sentence = "The second sentence of this text is long enough to be asked for by a query."
    readme = Manual("one", "one", "copies files to places", f"This copies files to places. {sentence} So it ends.\n")
    found = page_queries(readme, random.Random(0))
    assert found is not None
    assert [words for words, _ in found[1]] == ["copies files to places", sentence]
    assert not readme.passages


def test_a_page_that_shares_text_with_the_test_is_not_trained_on() -> None:
    test, other = page("copier", 0), page("mover", 1)
    same = Manual("mover", "package", "", test.text.replace("copier", "mover"))
    assert without_shared([other, same], [test]) == [other]


@pytest.mark.parametrize("count", [1, 3])
def test_ranks_are_those_of_comparing_vector_by_vector(count: int) -> None:
    rng = np.random.default_rng(0)
    documents = {f"d{number}": rng.normal(size=(1 + number % 4, 8)).astype("float32") for number in range(12)}
    queries = {f"q{number}": rng.normal(size=(count, 8)).astype("float32") for number in range(6)}
    rights = {f"q{number}": f"d{2 * number}" for number in range(6)}
    found = ranks(queries, documents, rights)
    for name, query in queries.items():
        scores = {key: sum(max(float(one @ other) for other in rows) for one in query) for key, rows in documents.items()}
        order = sorted(scores, key=lambda key: -scores[key])
        assert found[name] == pytest.approx(1 / (1 + order.index(rights[name])))


def test_chunks_are_grouped_by_their_page_and_tokens_by_nearness() -> None:
    vectors: dict[str, Any] = {"a#b#0": np.array([[1.0, 0.0]]), "a#b#1": np.array([[0.0, 1.0]]), "c#0": np.array([[1.0, 0.0]])}
    assert {name: len(rows) for name, rows in grouped(vectors).items()} == {"a#b": 2, "c": 1}
    np.testing.assert_allclose(grouped(vectors, mean=True)["a#b"], [[0.5**0.5, 0.5**0.5]])
    rows = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
    found = clusters({"a": rows, "b": rows[:1]}, 2)
    assert found["a"].shape == (2, 2)
    np.testing.assert_allclose(np.linalg.norm(found["a"], axis=1), 1.0)
    assert found["b"].shape == (1, 2)


def test_words_rank_texts() -> None:
    texts = [{"id": name, "text": text} for name, text in (("a", "red apples grow"), ("b", "green pears fall"), ("c", "blue plums rot"))]
    assert by_words(texts, [{"id": "0", "text": "pears", "right": "b"}]) == {"0": 1.0}
