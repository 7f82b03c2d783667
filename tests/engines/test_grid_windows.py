"""Windows of a grid and a learned bias by distance on it equal their definitions, on every path, with gradients."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_longattn import attend, build_mechanism
from hf_longattn.engines import grid_windows
from hf_longattn.engines.score_terms import GridBias
from hf_longattn.engines.token_grid import Grid
from hf_longattn.errors import InputError
from hf_longattn.functional import reference_attend
from tests.cases import every_case
from tests.comparisons import assert_equal_with_gradients, paths_of

# ---- Windows by view: a few at a time without gradients, all at once with them.


FORMS = [
    ((23, 31), {"window": 4}),
    ((9, 20), {"window": (3, 8), "shift": "alternate"}),
    ((3, 7, 8), {"window": 2}),
    ((40,), {"window": 7}),
]


@every_case(("sizes", "options"), FORMS, pairs=True)
@every_case("prefix", [0, 2])
@every_case("call_bytes", [1, 4096, 1 << 22])
def test_a_few_grid_windows_at_a_time_equal_all_at_once(
    sizes: tuple[int, ...], options: dict[str, object], prefix: int, call_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grid_windows, "CALL_BYTES", call_bytes)
    grid = Grid(sizes, prefix)
    q, k, v = (torch.randn(2, 3, grid.length, 8) for _ in range(3))
    together = attend(q.requires_grad_(), k, v, "window2d", grid=grid, **options)
    with torch.no_grad():
        in_parts = attend(q, k, v, "window2d", grid=grid, **options)
    torch.testing.assert_close(in_parts, together.detach(), atol=1e-6, rtol=0)
    assert in_parts.transpose(1, 2).is_contiguous()


def test_grid_windows_under_autocast_have_its_dtype() -> None:
    grid = Grid((12, 12), 1)
    q, k, v = (torch.randn(1, 2, grid.length, 16) for _ in range(3))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert attend(q, k, v, "window2d", grid=grid, window=4).dtype == torch.bfloat16


def test_a_grid_bias_alone_can_be_trained() -> None:
    grid = Grid((6, 9), 1)
    q, k, v = (torch.randn(1, 2, grid.length, 8) for _ in range(3))
    table = torch.randn(2, 7 * 7 + 3, requires_grad=True)
    attend(q, k, v, "window2d", grid=grid, window=4, score_mod=GridBias(table, (4, 4))).sum().backward()
    assert table.grad is not None
    assert bool(table.grad.any())


@pytest.mark.thorough
@every_case(("sizes", "options"), FORMS, pairs=True)
@every_case("prefix_tokens", ["global", "reads", "none"])
@every_case("term", [None, "bias"])
def test_grid_windows_with_padding_equal_the_definition(
    sizes: tuple[int, ...],
    options: dict[str, Any],
    prefix_tokens: str,
    term: str | None,
) -> None:
    """Windows without a real key among them; output and gradients of real cells, and all rows finite, with and without
    gradients."""
    grid = Grid(sizes, 2)
    generator = torch.Generator().manual_seed(0)
    real = torch.rand(2, grid.length, generator=generator) > 0.4
    real[0, : grid.length // 2] = False
    inputs = [
        torch.randn(2, 2, grid.length, 8, dtype=torch.double, generator=generator, requires_grad=True)
        for _ in range(3)
    ]
    q, k, v = inputs
    arguments: dict[str, Any] = {"grid": grid, "padding_mask": real, "prefix_tokens": prefix_tokens, **options}
    if term == "bias":
        table = torch.randn(2, 5 ** len(sizes) + 3, dtype=torch.double, generator=generator, requires_grad=True)
        inputs.append(table)
        arguments["score_mod"] = GridBias(table, (3,) * len(sizes))
    rows = real[:, None, :, None]
    ours, paths = paths_of(lambda: attend(q, k, v, "window2d", **arguments))
    assert "windows" in paths
    assert bool(ours.isfinite().all())
    theirs = reference_attend(q, k, v, "window2d", **arguments)
    assert_equal_with_gradients(ours, theirs, inputs, real)
    with torch.no_grad():
        torch.testing.assert_close(attend(q, k, v, "window2d", **arguments) * rows, ours * rows)


# ---- A learned bias: its definition is a loop over pairs.


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


WAYS = ("fused", "with holes", "mask over pairs", "bound grid")


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
    term: Any = (lambda *arguments: bias.on(grid)(*arguments)) if way == "mask over pairs" else bias
    if way == "bound grid":
        term = bias.on(grid)
    ours = attend(q, k, v, mechanism, grid=grid, score_mod=term, padding_mask=real if way == "with holes" else None)
    assert_equal_with_gradients(ours, theirs, (q, k, v, table), real)


def test_a_grid_bias_refuses_tables_and_grids_that_do_not_fit() -> None:
    q = torch.randn(1, HEADS, 300, DIM)
    with pytest.raises(InputError, match=r"must be \(heads, 9\), or \(heads, 12\) with entries for prefix tokens"):
        GridBias(torch.zeros(HEADS, 10), (2, 2))
    with pytest.raises(InputError, match="pass grid= with 2 sizes"):
        attend(q, q, q, "window", score_mod=GridBias(torch.zeros(HEADS, 9), (2, 2)))
    with pytest.raises(InputError, match="on another grid"):
        attend(q, q, q, "window2d", window=4, grid=(300,), score_mod=GridBias(torch.zeros(HEADS, 9), (2, 2)))
