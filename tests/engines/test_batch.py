"""Rows are rolled to where their sequences start, and back."""

from __future__ import annotations

import torch

from hf_longattn.engines.common.batch import roll_left


def test_rows_are_rolled_left_and_back() -> None:
    x = torch.arange(24).view(3, 1, 8, 1)
    start = torch.tensor([0, 3, 8])
    rolled = roll_left(x, start)
    for row, expected, by in zip(rolled, x, start.tolist(), strict=True):
        assert torch.equal(row, expected.roll(-by, 1))
    assert torch.equal(roll_left(rolled, -start), x)
