"""Mechanisms on a grid against what their papers say, written here as loops over cells, whatever the rank, the prefix and the path."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from hf_longattn import attend, build_mechanism, list_mechanisms
from hf_longattn.attend import reference_attend
from hf_longattn.engines.common.byte_cache import BYTE_CACHE
from hf_longattn.engines.common.grid import Grid
from hf_longattn.engines.common.paths import observe
from hf_longattn.engines.common.score_terms import GridBias
from hf_longattn.errors import GridError, OptionError
from hf_longattn.mechanisms.common.on_grid import GridMechanism
from hf_longattn.mechanisms.common.registry import mechanism_class
from tests.cells import every_cell
from tests.grids import alternately, pairwise

Cell = tuple[int, ...]
HEADS, DIM = 2, 4


def per_axis(value: Any, axis: int) -> Any:
    return value if isinstance(value, int | bool) else value[axis] if len(value) > 1 else value[0]


def same_window(cells: int, window: int, shifted: bool) -> list[set[int]]:
    """Swin: windows side by side; in a shifted layer the first ends after half a window, unless one window holds all."""
    first = window // 2 if shifted and window < cells else window
    cuts = [0, *range(first, cells, window), cells] if first else [*range(0, cells, window), cells]
    windows = [set(range(start, stop)) for start, stop in itertools.pairwise(cuts)]
    return [next(members for members in windows if cell in members) for cell in range(cells)]


def near(cells: int, radius: int, chunks: bool) -> list[set[int]]:
    """Vision Longformer: a window around each cell, or its own chunk and the two next to it."""
    if chunks:
        return [{key for key in range(cells) if abs(key // radius - query // radius) < 2} for query in range(cells)]
    return [{key for key in range(cells) if abs(key - query) <= radius} for query in range(cells)]


def nearest(cells: int, kernel: int, stride: int, dilation: int, causal: bool) -> list[set[int]]:
    """Neighborhood attention: the window of the leader of each group of queries, pushed inwards by as much as it leaves the input."""
    seen = []
    for query in range(cells):
        members = list(range(query % dilation, cells, dilation))
        place = members.index(query)
        group = [i for i in range(len(members)) if i // stride == place // stride]
        if causal:
            keys = [i for i in range(len(members)) if group[0] + stride - 1 - kernel < i <= place]
            if group[0] + stride > len(members):  # the last group is short: its leader is the last cell
                keys = [i for i in range(len(members)) if len(members) - 1 - kernel < i <= place]
        else:
            leader = min(group[0] + stride // 2, len(members) - 1)
            window = list(range(leader - kernel // 2, leader - kernel // 2 + kernel))
            outside = -window[0] if window[0] < 0 else min(0, len(members) - 1 - window[-1])
            keys = [i + outside for i in window]
        seen.append({members[i] for i in keys})
    return seen


def stretches(name: str, sizes: Cell, options: dict[str, Any]) -> list[list[set[int]]]:
    """What every place of every axis sees, of mechanisms that are a product of axes."""
    along = []
    for axis, cells in enumerate(sizes):
        at = {option: per_axis(value, axis) for option, value in options.items() if not isinstance(value, str)}
        if name == "window2d":
            along.append(same_window(cells, at["window"], options.get("shift") == "alternate"))
        elif name == "local2d":
            along.append(near(cells, at["radius"], at.get("chunks", False)))
        else:
            along.append(nearest(cells, at["kernel_size"], at.get("stride", 1), at.get("dilation", 1), at.get("is_causal", False)))
    return along


def of_all_axes(along: Sequence[Tensor]) -> Tensor:
    """Which pairs of cells of a grid ``(N, N)`` see each other along every axis, of pairs of places on each axis."""
    return functools.reduce(torch.kron, [seen.int() for seen in along]).bool()


@functools.cache
def definition(name: str, sizes: Cell, prefix: int, mode: str, options: tuple[tuple[str, Any], ...]) -> Tensor:
    """The keys that every token sees, ``(N, N)`` bool."""
    values = dict(options)
    if name == "axial":
        axes = {"rows": [len(sizes) - 1], "columns": [len(sizes) - 2], "both": range(len(sizes))}.get(values["axes"])
        lines = [int(axis) for axis in values["axes"].split("+")] if axes is None else axes
        seen = torch.zeros(math.prod(sizes), math.prod(sizes), dtype=torch.bool)
        for line in lines:  # two cells that differ along no other axis
            seen |= of_all_axes([torch.ones(size, size) if axis == line else torch.eye(size) for axis, size in enumerate(sizes)])
    else:
        along = stretches(name, sizes, values)
        seen = of_all_axes([torch.tensor([[key in keys for key in range(len(rows))] for keys in rows]) for rows in along])
    full = torch.ones(prefix + len(seen), prefix + len(seen), dtype=torch.bool)
    full[prefix:, prefix:] = seen
    full[prefix:, :prefix] = mode == "global"
    full[:prefix, prefix:] = mode != "none"
    return full


CASES: list[tuple[str, dict[str, Any]]] = [
    ("window2d", {"window": 4}),
    ("window2d", {"window": 5, "shift": "alternate"}),
    ("window2d", {"window": 1000, "shift": "alternate"}),
    ("local2d", {"radius": 2}),
    ("local2d", {"radius": 0}),
    ("local2d", {"radius": 3, "chunks": True}),
    ("local2d", {"radius": 1000}),
    ("neighborhood", {"kernel_size": 3}),
    ("neighborhood", {"kernel_size": 4, "stride": 3}),
    ("neighborhood", {"kernel_size": 2, "dilation": 3}),
    ("neighborhood", {"kernel_size": 3, "stride": 2, "dilation": 2, "is_causal": True}),
    ("axial", {"axes": "both"}),
    ("axial", {"axes": "rows"}),
    ("axial", {"axes": "columns"}),
]
OF_EACH_AXIS: list[tuple[str, dict[str, Any], Cell]] = [
    ("window2d", {"window": (2, 9), "shift": "alternate"}, (17, 19)),
    ("local2d", {"radius": (1, 4)}, (17, 19)),
    ("local2d", {"radius": (0, 3, 1)}, (6, 7, 8)),
    ("neighborhood", {"kernel_size": (5, 2), "stride": (2, 1), "dilation": (1, 4), "is_causal": (False, True)}, (17, 19)),
    ("window2d", {"window": (2, 3, 5), "shift": "alternate"}, (6, 7, 8)),
    ("local2d", {"radius": (1, 2, 3), "chunks": True}, (6, 7, 8)),
    ("neighborhood", {"kernel_size": (2, 3, 3), "stride": (1, 2, 3), "dilation": (3, 1, 2)}, (6, 7, 8)),
    ("neighborhood", {"kernel_size": (6, 7, 8)}, (6, 7, 8)),
    ("neighborhood", {"kernel_size": (3, 3, 4), "is_causal": (True, False, False)}, (6, 7, 8)),
    ("axial", {"axes": "0+2"}, (6, 7, 8)),
]
GRIDS: list[Cell] = [(17, 19), (12, 23), (271,), (3, 97), (6, 7, 8)]
PREFIXES = [(0, "global"), (1, "global"), (5, "reads"), (1, "none"), (10, "global")]


def cells_of_table() -> list[Any]:
    """Every case on every grid, each with the next kind of prefix in turn."""
    prefixes, table = itertools.cycle(PREFIXES), []
    for (name, options), sizes in itertools.product(CASES, GRIDS):
        needed = options.get("kernel_size", 1) * options.get("dilation", 1)
        if needed > min(sizes) or (options.get("axes") == "columns" and len(sizes) == 1):
            continue
        table.append((name, options, sizes, *next(prefixes)))
    return table + [(*case, *next(prefixes)) for case in OF_EACH_AXIS]


def built(name: str, options: dict[str, Any], mode: str = "global") -> GridMechanism:
    mechanism = build_mechanism(name, num_heads=HEADS, head_dim=DIM, prefix_tokens=mode, **options)
    mechanism.layer = 1  # whose windows are shifted
    assert isinstance(mechanism, GridMechanism)
    return mechanism.eval()


def expected(name: str, options: dict[str, Any], sizes: Cell, prefix: int, mode: str) -> Tensor:
    return definition(name, sizes, prefix, mode, tuple(options.items()))


def qkv(grid: Grid, batch: int = 2, dtype: torch.dtype = torch.double) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(batch, HEADS, grid.length, DIM, dtype=dtype, requires_grad=True) for _ in range(3)]


def softmax_over(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    scores = (q @ k.transpose(-1, -2)) * DIM**-0.5
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    return torch.where(seen.any(-1, keepdim=True), weights, 0.0) @ v


def same_with_gradients(ours: Tensor, theirs: Tensor, inputs: Sequence[Tensor], real: Tensor | None = None) -> None:
    assert ours.shape == theirs.shape
    weight = torch.randn_like(theirs) if real is None else torch.randn_like(theirs) * real
    torch.testing.assert_close(ours * (weight != 0), theirs * (weight != 0))
    pairs = (torch.autograd.grad((x * weight).sum(), inputs) for x in (ours, theirs))
    for got, wanted in zip(*pairs, strict=True):
        torch.testing.assert_close(got, wanted)


@every_cell(("name", "options", "sizes", "prefix", "mode"), cells_of_table(), by="name")
def test_definition(name: str, options: dict[str, Any], sizes: Cell, prefix: int, mode: str) -> None:
    """The mask, the listed pairs, their number and the output with its gradients."""
    grid, mechanism = Grid(sizes, prefix), built(name, options, mode)
    bound, seen = mechanism.on(grid), expected(name, options, sizes, prefix, mode)
    positions = torch.arange(grid.length)
    assert torch.equal(bound.mask_mod(False, None)(0, 0, positions[:, None], positions), seen)
    assert bound.pairs(grid.length) == int(seen.sum())
    assert bound.covers(grid.length) == bool(seen.all())
    listed = torch.zeros(grid.length, grid.length, dtype=torch.int)
    for tile in bound.plan(grid, torch.device("cpu")):
        queries, keys = torch.broadcast_tensors(tile.queries[0, 0, :, :, None], tile.keys[0, 0, :, None, :])
        visible = tile.sees(queries - keys) & (queries >= 0) & (keys >= 0)
        if tile.bias is not None:
            visible = visible & tile.bias[0, 0]
        listed.index_put_((queries[visible], keys[visible]), torch.ones((), dtype=torch.int), accumulate=True)
    assert torch.equal(listed, seen.int())  # each pair once
    inputs = qkv(grid)
    same_with_gradients(attend(*inputs, mechanism, grid=sizes, prefix=prefix), softmax_over(*inputs, seen), inputs)


PATH_CASES = [case for case in cells_of_table() if case[2] in [(17, 19), (6, 7, 8)]][::2]


@every_cell(("name", "options", "sizes", "prefix", "mode"), PATH_CASES, of=9, alike=lambda name, *rest: name)
@every_cell("path", ["without fused kernels", "with a score term", "with holes", "with holes, without fused kernels"])
def test_every_path(path: str, name: str, options: dict[str, Any], sizes: Cell, prefix: int, mode: str) -> None:
    """Gathered tiles, listed pairs, and padding between the cells."""
    grid, mechanism = Grid(sizes, prefix), built(name, options, mode)
    seen, inputs = expected(name, options, sizes, prefix, mode)[None, None], qkv(grid)
    arguments: dict[str, Any] = {"score_mod": lambda score, b, h, q_idx, kv_idx: score + 0.0} if "score" in path else {}
    real = None
    if "holes" in path:
        real = torch.rand(2, grid.length) > 0.3
        real[1, : grid.length // 2] = False  # some cells see nothing at all
        arguments["padding_mask"], seen = real, seen & real[:, None, None]
    with sdpa_kernel(SDPBackend.MATH) if "without fused" in path else torch.enable_grad():
        ours = attend(*inputs, mechanism, grid=sizes, prefix=prefix, **arguments)
    same_with_gradients(ours, softmax_over(*inputs, seen), inputs, None if real is None else real[:, None, :, None])


def test_windows_of_a_neighborhood_slide_inwards() -> None:
    """By hand: seven cells, three keys, two queries in turn share the window of the second, that of the last is pushed back."""
    mechanism = built("neighborhood", {"kernel_size": 3, "stride": 2}).on(Grid((7,)))
    positions = torch.arange(7)
    windows = [row.nonzero()[:, 0].tolist() for row in mechanism.mask_mod(False, None)(0, 0, positions[:, None], positions)]
    assert windows == [[0, 1, 2], [0, 1, 2], [2, 3, 4], [2, 3, 4], [4, 5, 6], [4, 5, 6], [4, 5, 6]]


@pytest.mark.thorough
@every_cell(("sizes", "tile", "tiles"), [((6, 12, 9), (2, 4, 3), 3), ((9, 5, 10), (3, 1, 2), 3), ((8, 12), (2, 3), 3), ((30,), (3,), 5)])
def test_sliding_tiles_are_a_neighborhood_with_a_stride_of_a_tile(sizes: Cell, tile: Cell, tiles: int) -> None:
    """Sliding Tile Attention (Zhang et al. 2025): all queries of a tile see whole tiles, as many along each axis, that slide inwards."""
    grid = Grid(sizes)
    mechanism = built("neighborhood", {"kernel_size": tuple(tiles * side for side in tile), "stride": tile}).on(grid)
    along = []
    for cells, side in zip(sizes, tile, strict=True):
        first = [min(max(number - tiles // 2, 0), cells // side - tiles) for number in range(cells // side)]
        along.append([set(range(first[cell // side] * side, (first[cell // side] + tiles) * side)) for cell in range(cells)])
    cells = list(itertools.product(*map(range, sizes)))
    seen = torch.tensor([[all(k in line[q] for line, q, k in zip(along, query, key, strict=True)) for key in cells] for query in cells])
    positions = torch.arange(grid.length)
    assert torch.equal(mechanism.mask_mod(False, None)(0, 0, positions[:, None], positions), seen)


LARGE: list[tuple[str, dict[str, Any], str]] = [
    ("window2d", {"window": 7}, "windows"),
    ("local2d", {"radius": 3}, "cpu-halo"),
    ("local2d", {"radius": 4, "chunks": True}, "cpu-halo"),
    ("neighborhood", {"kernel_size": 7}, "cpu-halo"),
    ("neighborhood", {"kernel_size": 5, "dilation": 3, "stride": 2}, "cpu-halo"),
    ("axial", {"axes": "columns"}, "windows"),
    ("axial", {"axes": "both"}, "cpu-gathered"),
]


OF_A_VIDEO: list[tuple[str, dict[str, Any], str]] = [
    ("window2d", {"window": (2, 5, 7)}, "windows"),
    ("local2d", {"radius": (1, 3, 3)}, "cpu-halo"),
    ("neighborhood", {"kernel_size": (3, 7, 7), "stride": (1, 2, 3)}, "cpu-halo"),
    ("neighborhood", {"kernel_size": (3, 6, 6), "stride": (1, 2, 2)}, "cpu-halo"),
    ("axial", {"axes": "0"}, "windows"),
    ("axial", {"axes": "both"}, "cpu-gathered"),
]


@pytest.mark.thorough
@every_cell(
    ("sizes", "name", "options", "path"),
    [((29, 31), *case) for case in LARGE] + [((5, 13, 11), *case) for case in OF_A_VIDEO],
    of=9,
    alike=lambda sizes, name, *rest: name,
)
def test_float32_and_bfloat16_on_a_larger_grid(sizes: Cell, name: str, options: dict[str, Any], path: str) -> None:
    grid, mechanism, paths = Grid(sizes, 1), built(name, options), []
    inputs = qkv(grid, dtype=torch.float32)
    wanted = reference_attend(*inputs, mechanism, grid=grid)
    with observe(lambda _, choice: paths.append(choice.path)):
        ours = attend(*inputs, mechanism, grid=grid)
    assert path in paths
    assert (ours - wanted).abs().max() < 2e-6
    weight = torch.randn_like(ours)
    pairs = zip(*(torch.autograd.grad((x * weight.to(x.dtype)).sum(), inputs) for x in (ours, wanted)), strict=True)
    assert all((got - exact).abs().max() < 2e-5 for got, exact in pairs)
    half = attend(*(x.bfloat16() for x in inputs), mechanism, grid=grid)
    assert half.dtype == torch.bfloat16
    assert (half.double() - wanted).abs().max() < 4e-2


@every_cell(("name", "options"), [(name, options) for name, options, _ in LARGE])
def test_gradcheck(name: str, options: dict[str, Any]) -> None:
    mechanism, grid = built(name, options), Grid((15, 18), 1)
    q, k, v = (torch.randn(1, HEADS, grid.length, DIM, dtype=torch.double) for _ in range(3))
    direction = [torch.randn_like(q) for _ in range(3)]

    def along(step: Tensor) -> Tensor:  # three numbers in place of 6,504
        return attend(*(x + step[i] * d for i, (x, d) in enumerate(zip((q, k, v), direction, strict=True))), mechanism, grid=grid)[
            ..., ::97, :
        ]

    assert torch.autograd.gradcheck(along, torch.zeros(3, dtype=torch.double, requires_grad=True))


GRID_NAMES = list_mechanisms(grid=True)
SMALL: dict[str, dict[str, Any]] = {
    "window2d": {"window": 3},
    "local2d": {"radius": 2},
    "neighborhood": {"kernel_size": 3},
    "axial": {"axes": "both"},
}


def test_every_mechanism_on_a_grid_is_tested_here() -> None:
    assert {name for name, _ in CASES} == set(SMALL) == set(GRID_NAMES)


@every_cell("grid", [Grid((5, 5), 1), Grid((1, 7)), Grid((2, 3, 4), 2)], ids=str)
@every_cell("name", GRID_NAMES)
def test_covering_options_equal_full_softmax_attention(name: str, grid: Grid) -> None:
    options = mechanism_class(name).covering_grid(grid)
    if options is None:
        assert name == "axial"
        assert grid.rank > 1
        return
    mechanism, (q, k, v) = built(name, options), qkv(grid)
    assert mechanism.on(grid).covers(grid.length)
    torch.testing.assert_close(attend(q, k, v, mechanism, grid=grid), reference_attend(q, k, v, "full"))


@every_cell("name", GRID_NAMES)
def test_every_sequence_of_a_batch_has_its_grid(name: str) -> None:
    grids = [Grid((5, 60), 1), Grid((17, 16), 2), Grid((7, 7, 6), 0)]
    longest = max(grid.length for grid in grids)
    q, k, v = (torch.randn(3, HEADS, longest, DIM, dtype=torch.double, requires_grad=True) for _ in range(3))
    mask = torch.zeros(3, longest, dtype=torch.bool)
    for row, grid in enumerate(grids):
        start = (longest - grid.length) * (row % 2)  # padding after the tokens, or before them
        mask[row, start : start + grid.length] = True
    out = attend(q, k, v, name, padding_mask=mask, grid=grids, **SMALL[name])
    for row, grid in enumerate(grids):
        alone = [x[row : row + 1, :, mask[row]] for x in (q, k, v)]
        torch.testing.assert_close(out[row : row + 1, :, mask[row]], attend(*alone, name, grid=grid, **SMALL[name]))


@pytest.mark.thorough
@every_cell("name", GRID_NAMES)
def test_two_grids_of_one_length_in_turn(name: str) -> None:
    mechanism, inputs = built(name, SMALL[name]), qkv(Grid((12, 24)))
    for sizes in [(12, 24), (24, 12), (12, 24), (8, 6, 6), (288,)]:
        same_with_gradients(attend(*inputs, mechanism, grid=sizes), reference_attend(*inputs, mechanism, grid=sizes), inputs)


@pytest.mark.thorough
@every_cell("name", GRID_NAMES)
def test_twenty_threads(name: str) -> None:
    grids = [Grid((12 + number % 3, 30 - number), number % 2) for number in range(20)]

    def largest_error(grid: Grid) -> float:
        q, k, v = (torch.randn(1, HEADS, grid.length, DIM, dtype=torch.double, requires_grad=True) for _ in range(3))
        mechanism = built(name, SMALL[name])
        ours, theirs = attend(q, k, v, mechanism, grid=grid), reference_attend(q, k, v, mechanism, grid=grid)
        gradients = zip(*(torch.autograd.grad(x.square().sum(), (q, k, v)) for x in (ours, theirs)), strict=True)
        return float(max((ours - theirs).abs().max(), *((a - b).abs().max() for a, b in gradients)))

    with ThreadPoolExecutor(20) as pool:
        assert max(pool.map(largest_error, grids)) < 1e-11


class OnGrid(torch.nn.Module):
    """One mechanism on one grid, with or without padding between the cells."""

    def __init__(self, name: str, grid: Grid, **options: Any) -> None:
        super().__init__()
        self.mechanism, self.grid = built(name, options), grid

    def forward(self, q: Tensor, k: Tensor, v: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        return attend(q, k, v, self.mechanism, grid=self.grid, padding_mask=padding_mask)


GRAPH_CASES: list[tuple[str, dict[str, Any]]] = [
    ("window2d", {"window": 5, "shift": "alternate"}),
    ("local2d", {"radius": 2}),
    ("neighborhood", {"kernel_size": 3, "stride": 2, "dilation": 2}),
    ("axial", {"axes": "rows"}),
    ("axial", {"axes": "both"}),
]
"""Each mechanism is compiled or exported by the quick tests."""
COMPILED = [case for case in GRAPH_CASES if case[0] in ("window2d", "neighborhood")]
EXPORTED = [case for case in GRAPH_CASES if case[0] == "local2d" or case[1] == {"axes": "both"}]


def of_graphs(quick: Sequence[Any], first: bool = False) -> list[Any]:
    """The cases with and without padding, of which the slow tests have those that are not ``quick``."""
    every = alternately(GRAPH_CASES, first)
    return [one if one.values[0] in quick else pytest.param(*one.values, marks=pytest.mark.slow) for one in every]


def holes(grid: Grid) -> Tensor:
    """A padding mask in which the first rows of cells, and cells all over the grid, are padding; the first token is real."""
    real = torch.rand(2, grid.length, generator=torch.Generator().manual_seed(0)) > 0.4
    real[:, 1 : grid.length // 3] = False
    real[:, 0] = True
    return real


@pytest.mark.thorough
@pytest.mark.parametrize(("case", "padded"), of_graphs(EXPORTED, True), ids=str)
def test_exported_graphs_are_linear_in_the_cells(case: tuple[str, dict[str, Any]], padded: bool) -> None:
    name, options = case
    model, grid = OnGrid(name, Grid((29, 31), 1), **options), Grid((29, 31), 1)
    inputs = [x.detach() for x in qkv(grid, dtype=torch.float32)] + [holes(grid)] * padded
    program = torch.export.export(model, tuple(inputs))
    difference = program.module()(*inputs) - model(*inputs)
    assert (difference * holes(grid)[:, None, :, None] if padded else difference).abs().max() < 2e-6
    nodes = program.run_decompositions().graph.nodes
    assert not [node for node in nodes if "hf_longattn" in str(node.target)]  # which no other runtime has
    shapes = [node.meta["val"].shape for node in nodes if isinstance(node.meta.get("val"), Tensor)]
    assert not [shape for shape in shapes if sum(size >= grid.cells for size in shape) > 1]
    assert 0 < max(math.prod(shape) for shape in shapes) < HEADS * grid.length**2


@pytest.mark.thorough
@pytest.mark.parametrize(("case", "padded"), of_graphs(COMPILED), ids=str)
def test_compiled_in_one_graph(case: tuple[str, dict[str, Any]], padded: bool) -> None:
    name, options = case
    model, grid = OnGrid(name, Grid((15, 18), 1), **options), Grid((15, 18), 1)
    torch.compiler.reset()
    compiled: Callable[..., Tensor] = torch.compile(model, backend="aot_eager", fullgraph=True)
    inputs = qkv(grid)
    mask = [holes(grid)] * padded
    same_with_gradients(compiled(*inputs, *mask), model(*inputs, *mask), inputs, mask[0][:, None, :, None] if padded else None)


@every_cell(
    ("name", "options", "sizes", "words"),
    [
        ("neighborhood", {"kernel_size": 9}, (20, 8), "9 · 1 is more than the 8"),
        ("neighborhood", {"kernel_size": 5, "dilation": 5}, (20, 30), "5 · 5 is more than the 20"),
        ("neighborhood", {"kernel_size": (7, 3), "stride": 4}, (20, 30), "stride of at most"),
        ("local2d", {"radius": (1, 2, 3)}, (20, 30), "'radius' has 3 numbers"),
        ("axial", {"axes": "columns"}, (300,), "the grid has 1 axis"),
        ("axial", {"axes": "0+2"}, (20, 30), "numbers below 2"),
        ("local2d", {}, (20, 31), "has 600 tokens"),
        ("local2d", {}, None, "pass grid=(height, width)"),
    ],
)
def test_grids_that_are_refused(name: str, options: dict[str, Any], sizes: Cell | None, words: str) -> None:
    length = math.prod(sizes) if sizes and "600" not in words else 600
    q = torch.randn(1, HEADS, length, DIM)
    with pytest.raises(GridError) as refused:
        attend(q, q, q, built(name, options), grid=sizes)
    assert words in str(refused.value)


@every_cell(
    ("name", "options", "words"),
    [
        ("neighborhood", {"kernel_size": 3, "stride": 4}, "stride of at most kernel_size"),
        ("neighborhood", {"kernel_size": ()}, "'kernel_size' of mechanism 'neighborhood' is empty"),
        ("neighborhood", {"kernel_size": 0}, "at least 1"),
        ("local2d", {"radius": 0, "chunks": True}, "at least one cell"),
        ("local2d", {"radius": -1}, "at least 0"),
        ("local2d", {"order": "columns"}, "leave order=columns out"),
        ("axial", {"axes": "diagonals"}, "rows, columns, both"),
        ("axial", {"prefix_tokens": "all"}, "one of: global, reads, none"),
    ],
)
def test_options_that_are_refused(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError) as refused:
        build_mechanism(name, num_heads=HEADS, head_dim=DIM, **options)
    assert words in str(refused.value)


def test_causal_axes_of_a_command_line() -> None:
    mechanism = build_mechanism("neighborhood", num_heads=1, head_dim=4, kernel_size="3+5", is_causal="true+false")
    assert mechanism.options.to_dict()["is_causal"] == [True, False]
    assert build_mechanism("neighborhood", num_heads=1, head_dim=4, is_causal=True).options.to_dict()["is_causal"] == [True]


FILLED: list[tuple[dict[str, Any], Cell]] = [
    ({"window": 4}, (7, 9)),
    ({"window": 4, "shift": "alternate"}, (7, 9)),
    ({"window": (5, 3), "shift": "alternate"}, (13, 17)),
    ({"window": 6}, (3, 4)),
    ({"window": 4}, (8, 12)),
    ({"window": 7}, (31,)),
    ({"window": (2, 4, 3), "shift": "alternate"}, (5, 6, 7)),
]


@every_cell(
    ("filled", "prefixes", "path"),
    pairwise(FILLED, PREFIXES[:4], ("fused", "without fused kernels", "with a score term", "with a bias", "with holes")),
)
def test_padding_takes_a_share(filled: tuple[dict[str, Any], Cell], prefixes: tuple[int, str], path: str) -> None:
    """Cells of zeros at the end of every axis, of which a loop here counts how many are in the window of a cell."""
    (options, sizes), (prefix, mode) = filled, prefixes
    grid, mechanism = Grid(sizes, prefix), built("window2d", {**options, "padding": "zeros"}, mode).double()
    torch.manual_seed(1)
    for parameter in mechanism.parameters():
        torch.nn.init.normal_(parameter)
    inputs, arguments = [*qkv(grid), *mechanism.parameters()], {}
    q, k, v, pad_key, pad_value = inputs
    windows = [per_axis(options["window"], axis) for axis in range(len(sizes))]
    cells = [range(-(-size // window) * window) for size, window in zip(sizes, windows, strict=True)]
    larger = tuple(map(len, cells))
    seen = expected("window2d", options, larger, 0, mode)
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
        distances = torch.tensor(places)[~outside][:, None] - torch.cat([torch.tensor(places)[part] for part in (~outside, outside)])
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
        visible = visible & torch.nn.functional.pad(real, (0, scores.shape[3] - grid.length), value=True)[:, None, None]
    weights = scores.masked_fill(~visible, -torch.inf).softmax(-1)
    wanted = torch.where(visible.any(-1, keepdim=True), weights, 0.0) @ values
    with sdpa_kernel(SDPBackend.MATH) if path.startswith("without") else torch.enable_grad():
        ours = attend(q, k, v, mechanism, grid=grid, **arguments)
    rows = None if real is None else real[:, None, :, None]
    same_with_gradients(ours, wanted, inputs if outside.any() else [x for x in inputs if x is not pad_key and x is not pad_value], rows)
    defined = reference_attend(q, k, v, mechanism, grid=grid, **arguments)
    torch.testing.assert_close(defined if rows is None else defined * rows, wanted if rows is None else wanted * rows)


@pytest.mark.parametrize("name", ["local2d", "neighborhood"])
def test_the_windows_of_a_grid_are_computed_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cls, asked = mechanism_class(name), []
    stretch = cls.stretch
    monkeypatch.setattr(cls, "stretch", lambda self, grid, axis, place: asked.append((axis, place)) or stretch(self, grid, axis, place))
    BYTE_CACHE.clear()
    q = torch.randn(1, 2, 17 * 18, 16)
    for _ in range(2):
        attend(q, q, q, name, grid=(17, 18), **cls.sample)
    assert sorted(asked) == [(axis, place) for axis, size in enumerate((17, 18)) for place in range(size)]
