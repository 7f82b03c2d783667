"""Queries sorted by the blocks they chose: every choice is visited once, and nothing else."""

import pytest
import torch

from hf_longattn.engines.visits import visits


@pytest.mark.parametrize(("length", "size", "ranks", "rows"), [(50, 8, 3, 4), (50, 8, 1, 16), (7, 10, 1, 2), (64, 4, 6, 8)])
@pytest.mark.parametrize("missing", [0.0, 0.5, 1.0])
def test_every_choice_once(length: int, size: int, ranks: int, rows: int, missing: float) -> None:
    torch.manual_seed(0)
    blocks = -(-length // size)
    chosen = torch.rand(2, 3, length, blocks).argsort(-1)[..., :ranks]
    chosen = chosen.masked_fill(torch.rand(chosen.shape) < missing, -1)
    expected = torch.zeros(2, 3, length, length, dtype=torch.int64)
    for b, h, i, j in (chosen >= 0).nonzero().tolist():
        block = int(chosen[b, h, i, j])
        expected[b, h, i, block * size : (block + 1) * size] += 1
    found = torch.zeros_like(expected)
    for part in visits(chosen, blocks, size, length, rows):
        queries = part.queries[part.queries >= 0]
        assert len(queries) <= 2 * 3 * length
        for b, h, r in torch.cartesian_prod(*(torch.arange(n) for n in part.queries.shape[:3])).tolist():
            q, k = part.queries[b, h, r], part.keys[b, h, r]
            found[b, h, q[q >= 0][:, None], k[k >= 0][None]] += 1
    assert torch.equal(found, expected)


def test_few_rows_stay_unfilled() -> None:
    torch.manual_seed(0)
    chosen = torch.rand(1, 4, 4096, 32).argsort(-1)[..., :3]
    slots = sum(part.queries.numel() for part in visits(chosen, 32, 128, 4096, 64))
    assert slots < 1.5 * chosen.numel()
