"""Rows are rolled to where their sequences start, and back; documents lie where real tokens say; global rows where their queries are."""

from __future__ import annotations

import torch

from hf_longattn.engines.batch import Batch, roll_left
from hf_longattn.engines.call import AttentionCall
from hf_longattn.engines.dense import dense_attention
from hf_longattn.engines.global_rows import overwrite_global_rows


def test_rows_of_a_batch_are_rolled_left_and_back() -> None:
    x = torch.arange(24).view(3, 1, 8, 1)
    start = torch.tensor([0, 3, 8])
    rolled = roll_left(x, start)
    for row, expected, by in zip(rolled, x, start.tolist(), strict=True):
        assert torch.equal(row, expected.roll(-by, 1))
    assert torch.equal(roll_left(rolled, -start), x)


def test_the_document_numbers_of_padding_do_not_count() -> None:
    """Whatever number padding has, it belongs to the document before it."""
    mask = torch.tensor([[True, True, False, True, True, False]])
    batch = Batch(mask, torch.tensor([[0, 0, 9, 1, 1, -1]]))
    assert [(span.start, span.stop, span.holes) for span in batch.sequences] == [(0, 2, False), (3, 5, False)]
    assert batch.labels.number.tolist() == [[0, 0, 0, 1, 1, 1]]


def test_a_global_token_before_the_first_query_overwrites_no_row() -> None:
    """The queries are the last three of five tokens; of the global tokens 1 and 3, the second is one of them."""
    q, k, v, out = (torch.randn(1, 2, length, 4) for length in (3, 5, 5, 3))
    index, real = torch.tensor([[1, 3]]), torch.ones(1, 2, dtype=torch.bool)
    found = overwrite_global_rows(out, q, k, v, index, real, AttentionCall(causal=False))
    assert torch.equal(found[:, :, [0, 2]], out[:, :, [0, 2]])
    torch.testing.assert_close(found[:, :, 1], dense_attention(q, k, v, AttentionCall(causal=False))[:, :, 1])
