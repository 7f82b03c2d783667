"""Mechanisms of texts on a grid whose tokens are read in some order: against the definition on tokens that the test
reorders itself."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_longattn import attend, build_mechanism, list_mechanisms
from hf_longattn.engines.token_grid import Grid
from hf_longattn.errors import InputError, OptionError
from hf_longattn.functional import reference_attend
from hf_longattn.mechanisms.common.registry import mechanism_class
from hf_longattn.mechanisms.common.shared_options import token_order
from tests.cases import every_case
from tests.grids import grid

CPU = torch.device("cpu")
ORDERS = ("hilbert", "tiles:4x8")


def tiles_by_hand(height: int, width: int, prefix: int, tile: tuple[int, int]) -> list[int]:
    """Positions tile by tile, -1 where a tile leaves the grid or the prefix does not fill its tiles."""
    area = tile[0] * tile[1]
    order = list(range(prefix)) + [-1] * (-prefix % area)
    for top, left in itertools.product(range(0, height, tile[0]), range(0, width, tile[1])):
        for row, column in itertools.product(range(top, top + tile[0]), range(left, left + tile[1])):
            order.append(prefix + row * width + column if row < height and column < width else -1)
    return order


@every_case(
    ("height", "width", "prefix", "tile"), [(4, 6, 0, (2, 3)), (5, 7, 1, (2, 3)), (1, 9, 5, (2, 2)), (3, 3, 1, (5, 5))]
)
def test_the_order_of_tiles_is_that_of_a_loop_over_the_grid(
    height: int, width: int, prefix: int, tile: tuple[int, int]
) -> None:
    order = token_order(Grid((height, width), prefix), f"tiles:{tile[0]}x{tile[1]}", CPU)
    assert order.tolist() == tiles_by_hand(height, width, prefix, tile)


def test_the_order_of_tiles_of_a_video_is_that_of_a_loop() -> None:
    """Of time, height and width, with empty places where the grid is not a multiple."""
    grid, order = Grid((4, 3, 6), 1), token_order(Grid((4, 3, 6), 1), "tiles:2x2x3", CPU)
    expected = [0] + [-1] * 11
    for tile in itertools.product(range(0, 4, 2), range(0, 3, 2), range(0, 6, 3)):
        for frame, row, column in itertools.product(
            *(range(first, first + side) for first, side in zip(tile, (2, 2, 3), strict=True))
        ):
            expected.append(1 + (frame * 3 + row) * 6 + column if row < 3 else -1)
    assert order.tolist() == expected
    assert grid.length == sum(place >= 0 for place in expected)


@every_case("sizes", [(8, 8), (16, 16), (4, 4, 4)])
def test_neighbours_on_a_hilbert_curve_are_neighbours_on_the_grid(sizes: tuple[int, ...]) -> None:
    grid = Grid(sizes)
    order = token_order(grid, "hilbert", CPU)
    assert sorted(order.tolist()) == list(range(grid.cells))
    places = torch.stack(grid.coordinates(order), -1)
    assert (places.diff(dim=0).abs().sum(-1) == 1).all()


def qkv(length: int, heads: int = 4, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    return tuple(torch.randn(2, heads, length, 8, dtype=torch.double, **options) for _ in range(3))  # type: ignore[return-value]


@pytest.mark.thorough
@every_case(
    ("name", "order"),
    grid(
        itertools.product(
            [name for name in list_mechanisms(causal=False, grid=False) if name != "recurrent_memory"], ORDERS
        ),
        lambda name, order: order == ORDERS[list_mechanisms().index(name) % 2],
    ),
)
def test_every_ordered_mechanism_equals_itself_on_reordered_tokens(name: str, order: str) -> None:
    kind = mechanism_class(name)
    length = 1 + 12 * 20
    options = {"num_heads": 4, "head_dim": 8, "max_length": 400, **kind.about.sample}
    module, ordered = (
        build_mechanism(name, **options).eval().double(),
        build_mechanism(name, order=order, **options).eval().double(),
    )
    ordered.load_state_dict(module.state_dict())
    q, k, v = qkv(length)
    hidden = torch.randn(2, length, 32, dtype=torch.double) if module.capabilities.takes_hidden_states else None
    out = attend(q, k, v, ordered, grid=(12, 20), prefix=1, hidden_states=hidden)
    torch.testing.assert_close(
        out, reference_attend(q, k, v, ordered, grid=(12, 20), prefix=1, hidden_states=hidden), rtol=1e-9, atol=1e-9
    )
    index = (
        token_order(Grid((12, 20), 1), order, CPU)
        if order == "hilbert"
        else torch.tensor(tiles_by_hand(12, 20, 1, (4, 8)))
    )
    filled, places = index >= 0, index.clamp(min=0)
    hidden = None if hidden is None else hidden[:, places]
    moved = attend(
        *(x[:, :, places] for x in (q, k, v)), module, padding_mask=filled.expand(2, -1), hidden_states=hidden
    )
    back = torch.empty_like(out)
    back[:, :, places[filled]] = moved[:, :, filled]
    torch.testing.assert_close(out, back, rtol=1e-9, atol=1e-9)


def test_gradients_masks_and_score_terms_follow_the_order_of_tokens() -> None:
    q, k, v = qkv(6 * 7, requires_grad=True)
    real = torch.rand(2, 42) > 0.2
    bias = torch.randn(42, 42, dtype=torch.double)
    settings: dict[str, Any] = {
        "grid": (6, 7),
        "order": "hilbert",
        "window": 8,
        "padding_mask": real,
        "score_mod": lambda s, b, h, i, j: s + bias[i, j],
    }
    outs = [run(q, k, v, "window", **settings) for run in (attend, reference_attend)]
    torch.testing.assert_close(outs[0][:, :, real[0]][0], outs[1][:, :, real[0]][0])
    grads = [torch.autograd.grad((out * real[:, None, :, None]).square().sum(), (q, k, v)) for out in outs]
    for fast, exact in zip(*grads, strict=True):
        torch.testing.assert_close(fast, exact)


def test_ordered_mechanisms_read_the_grid_of_each_sequence() -> None:
    q, k, v = qkv(40)
    real = torch.arange(40) < torch.tensor([[40], [24]])
    out = attend(
        q,
        k,
        v,
        "segmented",
        block_size=8,
        integration="none",
        order="tiles:2x4",
        grid=[Grid((5, 8)), Grid((6, 4))],
        padding_mask=real,
    )
    for row, (sizes, length) in enumerate([((5, 8), 40), ((6, 4), 24)]):
        alone = [x[row : row + 1, :, :length] for x in (q, k, v)]
        expected = attend(*alone, "segmented", block_size=8, integration="none", order="tiles:2x4", grid=sizes)
        torch.testing.assert_close(out[row : row + 1, :, :length], expected)


@every_case(
    ("name", "options", "sentence"),
    [
        (
            "window",
            {"order": "hilbert"},
            r"order=hilbert needs the coordinates of tokens; pass grid=\(height, width\)",
        ),
        (
            "window",
            {"order": "hilbert", "grid": (3, 4), "prefix": 1},
            "A sequence has 12 tokens, but its grid has 13: 1 prefix token and 3 × 4",
        ),
        (
            "window",
            {"order": "hilbert", "grid": (3, 4), "causal": True},
            "this call is causal; leave the option 'order' out",
        ),
        (
            "window",
            {"order": "tiles:2x2x2", "grid": (3, 4)},
            r"Option 'order' has 3 numbers, 2\+2\+2, but the grid has 2 axes",
        ),
        ("full", {"prefix": 1}, r"prefix=1 was given without a grid; pass grid=\(height, width\)"),
        ("full", {"grid": 12}, r"grid is 12, but must be sizes such as \(64, 64\)"),
        ("full", {"grid": Grid((3, 4)), "prefix": 1}, "passed together with a Grid; pass it to the Grid instead"),
        ("full", {"grid": (3, 0)}, "every size must be a whole number of at least 1"),
    ],
    ids=str,
)
def test_orders_and_grids_that_do_not_fit_a_call_are_refused(
    name: str, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        attend(*qkv(12), name, **options)


@every_case("order", ["spiral", "tiles", "tiles:0x4", "tiles:8x"])
def test_an_unknown_order_of_tokens_is_refused(order: str) -> None:
    with pytest.raises(
        OptionError, match=r"'order' is .* but must be hilbert, or tiles with their sizes: order=tiles:8x8"
    ):
        build_mechanism("window", num_heads=1, head_dim=8, order=order)
