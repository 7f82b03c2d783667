"""What an audit says of what was measured."""

from __future__ import annotations

import torch

from hf_longattn.families import LongBertConfig, LongBertModel
from hf_longattn.inspect import audit_reach
from hf_longattn.inspect.replacing import Embedding
from hf_longattn.inspect.verdict import of_embedding


def embedding(changed: list[bool], allowed: list[bool]) -> Embedding:
    return Embedding((0, 7, 30), torch.tensor(changed), torch.tensor(allowed), certain=True, noise=0.0, runs=3, exhaustive_runs=40)


def test_a_token_out_of_reach_that_changes_an_embedding_is_named() -> None:
    stage = of_embedding(embedding([True, True, True], [True, True, False]))
    assert stage.problem.startswith("token 30 changes the embedding")


def test_an_embedding_that_reads_what_it_may_has_no_problem() -> None:
    assert of_embedding(embedding([True, True, False], [True, True, False])).problem == ""


def test_a_text_that_is_attended_in_full_agrees_with_its_config() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 300}
    model = LongBertModel(LongBertConfig(**sizes, long_attention={"mechanism": "window", "window": 8, "exact_length": 32}))
    in_full, longer = (audit_reach(model, length=length) for length in (32, 33))
    assert in_full.agrees
    assert longer.agrees
    assert (in_full.stages[0].measured, longer.stages[0].measured) == ((31, 31), (4, 4))
