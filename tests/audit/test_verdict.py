"""What an audit says of what was measured."""

from __future__ import annotations

import torch

from hf_longattn.audit.measure import Embedding
from hf_longattn.audit.verdict import of_embedding


def embedding(changed: list[bool], allowed: list[bool]) -> Embedding:
    return Embedding((0, 7, 30), torch.tensor(changed), torch.tensor(allowed), certain=True, noise=0.0, runs=3, exhaustive_runs=40)


def test_a_token_out_of_reach_that_changes_an_embedding_is_named() -> None:
    stage = of_embedding(embedding([True, True, True], [True, True, False]))
    assert stage.problem.startswith("token 30 changes the embedding")


def test_an_embedding_that_reads_what_it_may_has_no_problem() -> None:
    assert of_embedding(embedding([True, True, False], [True, True, False])).problem == ""
