"""`chunked` against the mask of transformers' streaming encoder of Nemotron."""

from __future__ import annotations

import torch
from transformers.models.nemotron_asr_streaming.modeling_nemotron_asr_streaming import chunked_limited_mask_function

from hf_longattn import build_mechanism
from tests.cells import every_cell
from tests.mechanisms.listed import visible


@every_cell(("left", "right"), [(70, 13), (70, 6), (56, 0), (5, 1), (-1, 2)])
def test_the_context_of_nemotron_is_chunk_size_and_left_chunks(left: int, right: int) -> None:
    length, size = 97, right + 1
    theirs = chunked_limited_mask_function(left, right)
    expected = theirs(0, 0, torch.arange(length)[:, None], torch.arange(length))
    chunks = left // size if left >= 0 else length
    mechanism = build_mechanism("chunked", num_heads=1, head_dim=4, chunk_size=size, left_chunks=chunks)
    assert torch.equal(visible(mechanism, length, False)[0, 0], expected)
