"""Relative positions along each axis of a grid: equal to the term written pair by pair, in every mechanism, with gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hf_longattn import attend
from hf_longattn.attend import reference_attend
from hf_longattn.engines.common.grid import Grid
from hf_longattn.mechanisms.common.base import Mechanism
from hf_longattn.mechanisms.common.registry import build_mechanism
from hf_longattn.positions.axis_term import AxisTerm
from tests.cells import every_cell

MECHANISMS: list[dict[str, Any]] = [
    {"mechanism": "full"},
    {"mechanism": "window2d", "window": 3},
    {"mechanism": "window2d", "window": 3, "shift": "alternate"},
    {"mechanism": "window2d", "window": 4, "padding": "zeros"},
    {"mechanism": "window2d", "window": 20},
    {"mechanism": "segmented", "block_size": 4, "order": "tiles:2x2"},
    {"mechanism": "block_top_k", "block_size": 4, "num_blocks": 2, "order": "hilbert"},
]
GRIDS = [Grid((7, 5)), Grid((6, 10), prefix=1), Grid((3, 9), prefix=5)]


def inputs(grid: Grid, rows: int = 4, **of: Any) -> tuple[Tensor, ...]:
    """q, k, v, and a table for each axis, some shorter than the axis."""
    torch.manual_seed(0)
    of = {"dtype": torch.double, **of}
    qkv = [torch.randn(2, 2, grid.length, 8, **of) for _ in range(3)]
    return tuple(x.requires_grad_() for x in (*qkv, *(torch.randn(2 * rows - 1, 8, **of) for _ in grid.sizes)))


def on_grid(mechanism: Mechanism | str, grid: Grid) -> dict[str, Any]:
    """The argument ``grid`` for a mechanism that reads it; the term has its own."""
    reads = mechanism != "full" if isinstance(mechanism, str) else mechanism.reads_grid
    return {"grid": grid} if reads else {}


def pairs(q: Tensor, tables: tuple[Tensor, ...], grid: Grid) -> Tensor:
    """The term ``(B, H, N, N)``, pair by pair: of each axis the query times the row of its distance, which is counted here cell by cell."""
    places = [tuple(int(place) for place in grid.places(position)) for position in range(grid.prefix, grid.length)]
    term = q.new_zeros(*q.shape[:2], grid.length, grid.length)
    of_cells = term[..., grid.prefix :, grid.prefix :]
    for axis, table in enumerate(tables):
        most = len(table) // 2
        rows = [[most + min(most, max(-most, of_query[axis] - of_key[axis])) for of_key in places] for of_query in places]
        of_cells += torch.einsum("bhid,ijd->bhij", q[:, :, grid.prefix :], table[torch.tensor(rows)])
    return term


@every_cell("grid", GRIDS, ids=str)
@every_cell("chosen", MECHANISMS, ids=lambda chosen: "-".join(map(str, chosen.values())))
def test_equal_to_the_term_pair_by_pair(chosen: dict[str, Any], grid: Grid) -> None:
    options = dict(chosen)
    mechanism = build_mechanism(options.pop("mechanism"), num_heads=2, head_dim=8, **options).double().eval()
    mechanism.layer = 1
    grads, outs, where = [], [], on_grid(mechanism, grid)
    for written_out in (False, True):
        q, k, v, *tables = inputs(grid)
        if written_out:
            term = pairs(q, tuple(tables), grid)
            change: Any = lambda score, b, h, i, j, term=term: score + term[b, h, i, j]  # noqa: E731
        else:
            change = AxisTerm(q, tuple(tables), grid)
        if chosen.get("padding") == "zeros" and written_out:  # padding has distances, too: the definition in float64
            out = reference_attend(q, k, v, mechanism, **where, score_mod=AxisTerm(q, tuple(tables), grid))
        else:
            out = attend(q, k, v, mechanism, **where, score_mod=change)
        outs.append(out)
        grads.append(torch.autograd.grad(out.sin().sum(), (q, k, v, *tables)))
    torch.testing.assert_close(outs[0], outs[1])
    for ours, expected in zip(*grads, strict=True):
        torch.testing.assert_close(ours, expected)
    with torch.no_grad():
        q, k, v, *tables = inputs(grid)
        torch.testing.assert_close(attend(q, k, v, mechanism, **where, score_mod=AxisTerm(q, tuple(tables), grid)), outs[1])


@pytest.mark.parametrize("sizes", [(11,), (3, 4, 5)], ids=str)
def test_any_number_of_axes(sizes: tuple[int, ...]) -> None:
    grid = Grid(sizes, prefix=2)
    q, k, v, *tables = inputs(grid)
    term = pairs(q, tuple(tables), grid)
    for name, options in (("full", {}), ("window2d", {"window": 2})):
        options = {**options, **on_grid(name, grid)}
        expected = attend(q, k, v, name, score_mod=lambda score, b, h, i, j: score + term[b, h, i, j], **options)
        torch.testing.assert_close(attend(q, k, v, name, score_mod=AxisTerm(q, tuple(tables), grid), **options), expected)


def test_full_attention_has_no_matrix_of_all_pairs() -> None:
    """The largest tensor of a graph is linear in the cells, times the places of an axis."""
    grid = Grid((16, 16))

    def run(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        return attend(q, k, v, "full", score_mod=AxisTerm(q, (rows, columns), grid))

    q, k, v, rows, columns = (x.detach() for x in inputs(grid, rows=16))
    shapes = []

    class Shapes(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = function(*args, **(kwargs or {}))
            if isinstance(out, Tensor):
                shapes.append(out.numel() // (q.shape[0] * q.shape[1]))
            return out

    with Shapes():
        run(q, k, v, rows, columns)
    assert 0 < max(shapes) <= grid.cells * (8 + 16 + 16)
    assert grid.cells * (8 + 16 + 16) < grid.cells**2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    grid = Grid((12, 10), prefix=1)
    tensors = [x.detach() for x in inputs(grid)]
    for name, options in (("full", {}), ("window2d", {"window": 4})):
        options = {**options, **on_grid(name, grid)}
        q, k, v, *tables = (x.to(dtype) for x in tensors)
        ours = attend(q, k, v, name, score_mod=AxisTerm(q, tuple(tables), grid), **options)
        q, k, v, *tables = (x.to(dtype).double() for x in tensors)
        expected = attend(q, k, v, name, score_mod=AxisTerm(q, tuple(tables), grid), **options)
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.double(), expected, rtol=3e-2, atol=6e-2)
