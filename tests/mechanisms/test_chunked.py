"""`chunked`: what a token sees, and how far back a cache must keep."""

from __future__ import annotations

import pytest
import torch

from hf_longattn import build_mechanism
from tests.mechanisms.listed import image, visible


def seen(length: int, causal: bool, padding: torch.Tensor | None = None, **options: int) -> torch.Tensor:
    return visible(build_mechanism("chunked", num_heads=1, head_dim=4, **options), length, causal, padding)[0, 0]


def test_a_token_sees_its_chunk_and_the_chunks_before() -> None:
    rows = ["###.....", "###.....", "###.....", "######..", "######..", "######..", "...#####", "...#####"]
    assert image(seen(8, False, chunk_size=3, left_chunks=1)) == rows
    assert image(seen(8, True, chunk_size=3, left_chunks=1))[3:7] == ["####....", "#####...", "######..", "...####."]
    assert image(seen(8, False, chunk_size=3, left_chunks=0))[6] == "......##"
    assert image(seen(8, False, chunk_size=3, left_chunks=9))[6] == "########", "more chunks than there are"


def test_chunks_are_counted_from_the_first_real_token() -> None:
    padding = torch.tensor([[0, 0, 1, 1, 1, 1]], dtype=torch.bool)
    assert image(seen(6, False, padding, chunk_size=3, left_chunks=0))[2:] == ["..###.", "..###.", "..###.", ".....#"]


@pytest.mark.parametrize("causal", [False, True])
def test_covers_and_locality_are_those_of_the_mask(causal: bool) -> None:
    mechanism = build_mechanism("chunked", num_heads=1, head_dim=4, chunk_size=4, left_chunks=2)
    for length in range(1, 20):
        mask, full = seen(length, causal, chunk_size=4, left_chunks=2), torch.ones(length, length, dtype=torch.bool)
        assert mechanism.covers(length, causal) == torch.equal(mask, full.tril() if causal else full), length
    queries, keys = seen(40, causal, chunk_size=4, left_chunks=2).nonzero().unbind(1)
    locality = mechanism.locality(causal)
    assert locality is not None
    assert int((queries - keys).max()) == locality.back
    assert int((keys - queries).max()) == locality.ahead
