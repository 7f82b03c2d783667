"""A learned bias by distance on a grid: its definition as a loop over pairs, every path that adds it, and its gradients."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from hf_longattn import attend, build_mechanism
from hf_longattn.engines.score_terms import GridBias
from hf_longattn.engines.token_grid import Grid
from hf_longattn.errors import InputError
from tests.cases import every_case

HEADS, DIM = 2, 4
Cell = tuple[int, ...]


def bias_by_hand(table: Tensor, sizes: Cell, grid: Grid) -> Tensor:
    """``(H, N, N)``: the entry of the distance of every pair; the last three are for the prefix."""
    return table[:, entries_by_hand(table.shape[1], sizes, grid)].view(len(table), grid.length, grid.length)


@functools.cache
def entries_by_hand(entries_of_table: int, sizes: Cell, grid: Grid) -> list[int]:
    """The entry of every pair, row by row."""
    cells = [None] * grid.prefix + list(itertools.product(*map(range, grid.sizes)))  # type: ignore[list-item]
    distances = entries_of_table - (3 if grid.prefix else 0)
    entries = []
    for query, key in itertools.product(cells, cells):
        if query is None or key is None:
            entries.append(distances + (0 if key is not None else 1 if query is not None else 2))
            continue
        entry = 0
        for q, k, size in zip(query, key, sizes, strict=True):
            entry = entry * (2 * size - 1) + max(1 - size, min(size - 1, q - k)) + size - 1
        entries.append(entry)
    return entries


def table_for(sizes: Cell, prefix: int) -> Tensor:
    torch.manual_seed(1)
    entries = torch.Size(2 * size - 1 for size in sizes).numel() + (3 if prefix else 0)
    return torch.randn(HEADS, entries, dtype=torch.double, requires_grad=True)


CASES: list[tuple[str, dict[str, Any], Grid, Cell]] = [
    ("window2d", {"window": 5}, Grid((12, 23)), (5, 5)),
    ("window2d", {"window": 5, "shift": "alternate"}, Grid((17, 11), 2), (5, 5)),
    ("window2d", {"window": (2, 3, 4)}, Grid((5, 7, 8), 1), (2, 3, 4)),
]


WAYS = ("fused", "without fused kernels", "with holes", "listed pairs", "bound grid")


@every_case(("name", "options", "grid", "sizes", "way"), [(*case, way) for case in CASES for way in WAYS], of=3)
def test_a_grid_bias_and_its_gradient_equal_a_loop_over_pairs_on_every_path(
    way: str, name: str, options: dict[str, Any], grid: Grid, sizes: Cell
) -> None:
    mechanism = build_mechanism(name, num_heads=HEADS, head_dim=DIM, **options).eval()
    mechanism.layer = 1
    table = table_for(sizes, grid.prefix)
    bias = GridBias(table, sizes)
    q, k, v = (torch.randn(2, HEADS, grid.length, DIM, dtype=torch.double, requires_grad=True) for _ in range(3))
    real = torch.rand(2, grid.length) > 0.2 if way == "with holes" else torch.ones(2, grid.length, dtype=torch.bool)
    positions = torch.arange(grid.length)
    seen = mechanism.on_grid(grid).mask_mod(False, None)(0, 0, positions[:, None], positions) & real[:, None, None]  # type: ignore[operator]
    scores = (q @ k.transpose(-1, -2)) * DIM**-0.5 + bias_by_hand(table, sizes, grid)
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    theirs = torch.where(seen.any(-1, keepdim=True), weights, 0.0) @ v
    term: Any = (lambda *arguments: bias.on(grid)(*arguments)) if way == "listed pairs" else bias
    if way == "bound grid":
        term = bias.on(grid)
    with sdpa_kernel(SDPBackend.MATH) if way == "without fused kernels" else torch.enable_grad():
        ours = attend(q, k, v, mechanism, grid=grid, score_mod=term, padding_mask=real if way == "with holes" else None)
    weight = torch.randn_like(theirs) * real[:, None, :, None]
    torch.testing.assert_close(ours * (weight != 0), theirs * (weight != 0))
    gradients = (torch.autograd.grad((x * weight).sum(), (q, k, v, table)) for x in (ours, theirs))
    for got, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(got, wanted)


def test_a_grid_bias_reads_the_grid_of_each_sequence() -> None:
    grids = [Grid((16, 20), 1), Grid((25, 14), 1)]
    longest = max(grid.length for grid in grids)
    mask = torch.arange(longest) < torch.tensor([[grid.length] for grid in grids])
    q, k, v = (torch.randn(2, HEADS, longest, DIM, dtype=torch.double) for _ in range(3))
    bias = GridBias(table_for((3, 3), 1), (3, 3))
    out = attend(q, k, v, "window2d", window=4, grid=grids, padding_mask=mask, score_mod=bias)
    for row, grid in enumerate(grids):
        alone = [x[row : row + 1, :, : grid.length] for x in (q, k, v)]
        torch.testing.assert_close(out[row : row + 1, :, : grid.length], attend(*alone, "window2d", window=4, grid=grid, score_mod=bias))


def test_a_grid_bias_refuses_tables_and_grids_that_do_not_fit() -> None:
    q = torch.randn(1, HEADS, 300, DIM)
    with pytest.raises(InputError, match=r"must be \(heads, 9\), or \(heads, 12\) with entries for prefix tokens"):
        GridBias(torch.zeros(HEADS, 10), (2, 2))
    with pytest.raises(InputError, match="pass grid= with 2 sizes"):
        attend(q, q, q, "window", score_mod=GridBias(torch.zeros(HEADS, 9), (2, 2)))
    with pytest.raises(InputError, match="on another grid"):
        attend(q, q, q, "window2d", window=4, grid=(300,), score_mod=GridBias(torch.zeros(HEADS, 9), (2, 2)))
