"""Windows on a grid against what their papers say, written here as loops over cells, whatever the rank, the prefix and
the path."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_longattn import attend, build_mechanism
from hf_longattn.engines.score_terms import GridBias
from hf_longattn.engines.token_grid import Grid
from hf_longattn.errors import InputError
from hf_longattn.functional import reference_attend
from hf_longattn.mechanisms.window2d import Window2d
from tests.cases import every_case
from tests.comparisons import assert_equal_with_gradients

Cell = tuple[int, ...]
HEADS, DIM = 2, 4


def per_axis(value: Any, axis: int) -> Any:
    return value if isinstance(value, int | bool) else value[axis] if len(value) > 1 else value[0]


def same_window(cells: int, window: int, shifted: bool) -> list[set[int]]:
    """Swin: windows side by side; in a shifted layer the first ends after half a window, unless one window holds
    all."""
    first = window // 2 if shifted and window < cells else window
    cuts = [0, *range(first, cells, window), cells] if first else [*range(0, cells, window), cells]
    windows = [set(range(start, stop)) for start, stop in itertools.pairwise(cuts)]
    return [next(members for members in windows if cell in members) for cell in range(cells)]


@functools.cache
def definition(sizes: Cell, prefix: int, mode: str, options: tuple[tuple[str, Any], ...]) -> Tensor:
    """The keys that every token sees, ``(N, N)`` bool."""
    values = dict(options)
    shifted = values.get("shift") == "alternate"
    along = [same_window(cells, per_axis(values["window"], axis), shifted) for axis, cells in enumerate(sizes)]
    pairs = [torch.tensor([[key in keys for key in range(len(rows))] for keys in rows]) for rows in along]
    seen = functools.reduce(torch.kron, [of_axis.int() for of_axis in pairs]).bool()
    full = torch.ones(prefix + len(seen), prefix + len(seen), dtype=torch.bool)
    full[prefix:, prefix:] = seen
    full[prefix:, :prefix] = mode == "global"
    full[:prefix, prefix:] = mode != "none"
    return full


CASES: list[dict[str, Any]] = [
    {"window": 4},
    {"window": 5, "shift": "alternate"},
    {"window": 1000, "shift": "alternate"},
]
OF_EACH_AXIS: list[tuple[dict[str, Any], Cell]] = [
    ({"window": (2, 9), "shift": "alternate"}, (17, 19)),
    ({"window": (2, 3, 5), "shift": "alternate"}, (6, 7, 8)),
]
GRIDS: list[Cell] = [(17, 19), (12, 23), (271,), (3, 97), (6, 7, 8)]
PREFIXES = [(0, "global"), (1, "global"), (5, "reads"), (1, "none"), (10, "global")]


def cells_of_table() -> list[Any]:
    """Every case on every grid, each with the next kind of prefix in turn."""
    prefixes = itertools.cycle(PREFIXES)
    return [(*case, *next(prefixes)) for case in (*itertools.product(CASES, GRIDS), *OF_EACH_AXIS)]


def built(options: dict[str, Any], mode: str = "global") -> Window2d:
    mechanism = build_mechanism("window2d", num_heads=HEADS, head_dim=DIM, prefix_tokens=mode, **options)
    mechanism.layer = 1  # whose windows are shifted
    assert isinstance(mechanism, Window2d)
    return mechanism.eval()


def expected(options: dict[str, Any], sizes: Cell, prefix: int, mode: str) -> Tensor:
    return definition(sizes, prefix, mode, tuple(options.items()))


def qkv(grid: Grid) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, HEADS, grid.length, DIM, dtype=torch.double, requires_grad=True) for _ in range(3)]


same = functools.partial(assert_equal_with_gradients, atol=1e-7, gradients=1e-7, rtol=1e-7)


def softmax_over(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    scores = (q @ k.transpose(-1, -2)) * DIM**-0.5
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    return torch.where(seen.any(-1, keepdim=True), weights, 0.0) @ v


@every_case(("options", "sizes", "prefix", "mode"), cells_of_table())
def test_window2d_equals_its_definition_in_mask_pairs_and_gradients(
    options: dict[str, Any], sizes: Cell, prefix: int, mode: str
) -> None:
    """The mask, the number of its pairs and the output with its gradients."""
    grid, mechanism = Grid(sizes, prefix), built(options, mode)
    bound, seen = mechanism.on_grid(grid), expected(options, sizes, prefix, mode)
    positions = torch.arange(grid.length)
    assert torch.equal(bound.mask_mod(False, None)(0, 0, positions[:, None], positions), seen)
    assert bound.pairs(grid.length) == int(seen.sum())
    assert bound.covers(grid.length) == bool(seen.all())
    inputs = qkv(grid)
    same(attend(*inputs, mechanism, grid=sizes, prefix=prefix), softmax_over(*inputs, seen), inputs)


class OnGrid(torch.nn.Module):
    """Shifted windows on one grid, with or without padding between the cells."""

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.mechanism, self.grid = built({"window": 5, "shift": "alternate"}), grid

    def forward(self, q: Tensor, k: Tensor, v: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        return attend(q, k, v, self.mechanism, grid=self.grid, padding_mask=padding_mask)


def holes(grid: Grid) -> Tensor:
    """A padding mask in which the first rows of cells, and cells all over the grid, are padding; the first token is
    real."""
    real = torch.rand(2, grid.length, generator=torch.Generator().manual_seed(0)) > 0.4
    real[:, 1 : grid.length // 3] = False
    real[:, 0] = True
    return real


@pytest.mark.thorough
@pytest.mark.parametrize("padded", [False, True])
def test_window2d_compiles_to_one_graph(padded: bool) -> None:
    model, grid = OnGrid(Grid((15, 18), 1)), Grid((15, 18), 1)
    torch.compiler.reset()
    compiled: Callable[..., Tensor] = torch.compile(model, backend="aot_eager", fullgraph=True)
    inputs = qkv(grid)
    mask = holes(grid) if padded else None
    same(compiled(*inputs, mask), model(*inputs, mask), inputs, mask)


FILLED: list[tuple[dict[str, Any], Cell]] = [
    ({"window": 4}, (7, 9)),
    ({"window": 4, "shift": "alternate"}, (7, 9)),
    ({"window": (5, 3), "shift": "alternate"}, (13, 17)),
    ({"window": 6}, (3, 4)),
    ({"window": 4}, (8, 12)),
    ({"window": 7}, (31,)),
    ({"window": (2, 4, 3), "shift": "alternate"}, (5, 6, 7)),
]


@every_case("filled", FILLED, pairs=True)
@every_case("prefixes", PREFIXES[:4])
@every_case("path", ["fused", "with a score term", "with a bias", "with holes"])
def test_window2d_with_padding_zeros_equals_a_loop_over_the_padded_grid(
    filled: tuple[dict[str, Any], Cell], prefixes: tuple[int, str], path: str
) -> None:
    """Cases of zeros at the end of every axis, of which a loop here counts how many are in the window of a cell."""
    (options, sizes), (prefix, mode) = filled, prefixes
    grid, mechanism = Grid(sizes, prefix), built({**options, "padding": "zeros"}, mode).double()
    torch.manual_seed(1)
    for parameter in mechanism.parameters():
        torch.nn.init.normal_(parameter)
    inputs, arguments = [*qkv(grid), *mechanism.parameters()], {}
    q, k, v, pad_key, pad_value = inputs
    windows = [per_axis(options["window"], axis) for axis in range(len(sizes))]
    cells = [range(-(-size // window) * window) for size, window in zip(sizes, windows, strict=True)]
    larger = tuple(map(len, cells))
    seen = expected(options, larger, 0, mode)
    places = list(itertools.product(*cells))
    outside = torch.tensor([any(place >= size for place, size in zip(cell, sizes, strict=True)) for cell in places])
    keys = torch.cat([k[:, :, prefix:], pad_key[None, :, None].expand(2, -1, int(outside.sum()), -1)], 2)
    values = torch.cat([v[:, :, prefix:], pad_value[None, :, None].expand(2, -1, int(outside.sum()), -1)], 2)
    ordered = torch.cat([seen[~outside][:, ~outside], seen[~outside][:, outside]], 1)  # real cells, then padding
    keys, values = torch.cat([k[:, :, :prefix], keys], 2), torch.cat([v[:, :, :prefix], values], 2)
    visible = torch.zeros(grid.length, keys.shape[2], dtype=torch.bool)
    visible[prefix:, prefix:], visible[:, :prefix], visible[:prefix, : grid.length] = ordered, True, True
    visible[prefix:, :prefix], visible[:prefix, prefix : grid.length] = mode == "global", mode != "none"
    scores = (q @ keys.transpose(-1, -2)) * DIM**-0.5
    if path == "with a bias":
        distances = torch.tensor(places)[~outside][:, None] - torch.cat(
            [torch.tensor(places)[part] for part in (~outside, outside)]
        )
        table = torch.randn(HEADS, math.prod(2 * size - 1 for size in larger), dtype=torch.double, requires_grad=True)
        entries = torch.zeros(distances.shape[:2], dtype=torch.long)
        for axis, size in enumerate(larger):
            entries = entries * (2 * size - 1) + distances[..., axis] + size - 1
        scores = scores + torch.nn.functional.pad(table[:, entries], (prefix, 0, prefix, 0))
        arguments["score_mod"], inputs = GridBias(table, larger), [*inputs, table]
    elif path == "with a score term":
        term = torch.randn(grid.length, grid.length, dtype=torch.double)
        scores = scores + torch.nn.functional.pad(term, (0, scores.shape[3] - grid.length))
        arguments["score_mod"] = lambda score, b, h, q_idx, kv_idx: score + term[q_idx, kv_idx]
    real = None
    if path == "with holes":
        arguments["padding_mask"] = real = torch.rand(2, grid.length) > 0.3
        visible = (
            visible & torch.nn.functional.pad(real, (0, scores.shape[3] - grid.length), value=True)[:, None, None]
        )
    weights = scores.masked_fill(~visible, -torch.inf).softmax(-1)
    wanted = torch.where(visible.any(-1, keepdim=True), weights, 0.0) @ values
    ours = attend(q, k, v, mechanism, grid=grid, **arguments)
    same(ours, wanted, inputs, real)
    defined = reference_attend(q, k, v, mechanism, grid=grid, **arguments)
    rows = 1 if real is None else real[:, None, :, None]
    torch.testing.assert_close(defined * rows, wanted * rows)


@every_case(
    ("name", "arguments", "sentence"),
    [
        ("window2d", {"window": 14}, r"pass grid=\(height, width\)"),
        ("window2d", {"window": (1, 2, 3), "grid": (3, 4)}, "'window' has 3 numbers"),
        ("window2d", {"grid": (3, 4), "prefix": 1}, "A sequence has 12 tokens, but its grid has 13: 1 prefix token"),
        ("full", {"prefix": 1}, r"prefix=1 was given without a grid; pass grid=\(height, width\)"),
        ("full", {"grid": 12}, r"grid is 12, but must be sizes such as \(64, 64\)"),
        ("full", {"grid": Grid((3, 4)), "prefix": 1}, "passed together with a Grid; pass it to the Grid instead"),
        ("full", {"grid": (3, 0)}, "every size must be a whole number of at least 1"),
    ],
    ids=str,
)
def test_grids_that_do_not_fit_a_call_are_refused(name: str, arguments: dict[str, Any], sentence: str) -> None:
    q = torch.randn(1, 2, 12, 8)
    with pytest.raises(InputError, match=sentence):
        attend(q, q, q, name, **arguments)
