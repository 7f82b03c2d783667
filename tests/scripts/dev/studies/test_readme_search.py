"""READMEs and queries about them, and the ranks of what they ask for."""

from __future__ import annotations

import random

import numpy as np
import pytest

from scripts.dev.studies.readme_search import Readme, ranks


def test_queries_are_taken_out_of_their_readme() -> None:
    sentence = "The second sentence of this text is long enough to be asked for by a query."
    readme = Readme("copier-box", "copies files to places", f"This copies files to\nplaces. {sentence} So it ends.\n")
    assert readme.queries(random.Random(0)) == ("This .  So it ends.\n", ["copies files to places", sentence])


@pytest.mark.parametrize("named", ["copier box", "box"])
def test_sentence_that_names_its_readme_is_no_query(named: str) -> None:
    sentence = f"The second sentence of the {named} is long enough to be asked for by a query."
    assert (
        Readme("copier-box", "copies files to places", f"This copies files to places. {sentence} So it ends.\n").queries(random.Random(0))
        is None
    )


@pytest.mark.parametrize("count", [1, 3])
def test_ranks_of_readmes_are_those_of_comparing_each_vector(count: int) -> None:
    rng = np.random.default_rng(0)
    documents = {f"d{number}": rng.normal(size=(1 + number % 4, 8)).astype("float32") for number in range(12)}
    queries = {f"q{number}": rng.normal(size=(count, 8)).astype("float32") for number in range(6)}
    rights = {f"q{number}": f"d{2 * number}" for number in range(6)}
    found = ranks(queries, documents, rights)
    for name, query in queries.items():
        scores = {key: sum(max(float(one @ other) for other in rows) for one in query) for key, rows in documents.items()}
        order = sorted(scores, key=lambda key: -scores[key])
        assert found[name] == pytest.approx(1 / (1 + order.index(rights[name])))
