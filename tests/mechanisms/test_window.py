"""`window`: what sinks, sides and dilation let a token see."""

from __future__ import annotations

from typing import Any

import torch

from hf_longattn import attend, build_mechanism, reference_attend
from hf_longattn.mechanisms.common.capabilities import keys_per_query
from tests.cases import every_case
from tests.mechanisms.definition import assert_equals_its_definition
from tests.mechanisms.listed import image, visible


def seen(length: int, causal: bool, padding: torch.Tensor | None = None, heads: int = 2, **options) -> torch.Tensor:
    mechanism = build_mechanism("window", num_heads=heads, head_dim=4, **options)
    return visible(mechanism, length, causal, padding)


def test_sinks_of_a_window_stay_visible_and_see_no_more_than_others() -> None:
    assert image(seen(8, True, window=2, num_sinks=2)[0, 0]) == [
        "#.......",
        "##......",
        "###.....",
        "####....",
        "##.##...",
        "##..##..",
        "##...##.",
        "##....##",
    ]
    assert image(seen(8, False, window=2, num_sinks=2)[0, 0]) == [
        "##......",
        "###.....",
        "####....",
        "#####...",
        "##.###..",
        "##..###.",
        "##...###",
        "##....##",
    ]


def test_a_window_reaches_as_far_as_left_and_right_say() -> None:
    rows = ["##......", "###.....", "####....", ".####...", "..####..", "...####.", "....####", ".....###"]
    assert image(seen(8, False, left=2, right=1)[0, 0]) == rows
    assert image(seen(8, True, left=2, right=1)[0, 0])[2:4] == ["###.....", ".###...."], "later tokens are not seen when causal"
    assert image(seen(8, False, window=4, right=0)[0, 0])[4] == "..###...", "the side that is not given is the window's"
    assert image(seen(9, False, left=2, right=1, dilation=3)[0, 0])[5] == "..#..#..#"


def test_sinks_of_a_window_are_counted_from_the_first_real_token() -> None:
    padding = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 0, 0]], dtype=torch.bool)
    mask = seen(8, True, padding, window=1, num_sinks=1)[:, 0]
    assert mask[0, 2:, 2].all()
    assert not mask[0, :, :2].any()
    assert mask[1, :6, 0].all()


def test_every_head_of_a_window_has_its_dilation() -> None:
    mask = seen(9, True, window=3, dilation=(1, 2))[0]
    assert image(mask[1]) == [
        "#........",
        ".#.......",
        "#.#......",
        ".#.#.....",
        "#.#.#....",
        ".#.#.#...",
        "..#.#.#..",
        "...#.#.#.",
        "....#.#.#",
    ]
    assert image(mask[0])[5:] == ["...###...", "....###..", ".....###.", "......###"]
    assert image(seen(9, False, window=2, dilation=(3,))[0, 1])[4] == ".#..#..#."


@every_case("causal", [False, True], pairs=True)
@every_case("side", ["none", "left", "right", "inside"])
@every_case(
    "options",
    [
        {"num_sinks": 5},
        {"dilation": (3,)},
        {"dilation": (1, 4, 2, 4), "num_sinks": 5},
        {"left": 40, "right": 3},
        {"left": 0, "right": 17, "dilation": (1, 4, 2, 4), "num_sinks": 5},
    ],
    ids=str,
)
def test_windows_with_sinks_dilation_and_sides_equal_the_definition(options: dict, side: str, causal: bool) -> None:
    length = 300
    q, k, v = (torch.randn(2, heads, length, 16, requires_grad=True) for heads in (4, 2, 2))
    padding = torch.ones(2, length, dtype=torch.bool)
    padding[0, {"none": slice(0), "left": slice(90), "right": slice(200, None), "inside": slice(2, 60)}[side]] = False
    module, arguments = build_mechanism("window", num_heads=4, head_dim=16, window=24, **options), {"causal": causal, "scaling": 0.4}
    out = assert_equals_its_definition(module, q, k, v, padding, **arguments)
    few = attend(q[:, :, -7:], k, v, module, padding_mask=padding, **arguments) * padding[:, None, -7:, None]
    torch.testing.assert_close(few, out[:, :, -7:], atol=1e-5, rtol=0)


def test_a_score_term_meets_the_right_head_of_a_dilated_window() -> None:
    q, k, v = (torch.randn(1, 4, 300, 16) for _ in range(3))

    def per_head(score, b, h, i, j):
        return score - 0.1 * h * (i - j).abs()

    arguments = {"score_mod": per_head, "window": 24, "dilation": (2, 1, 2, 3), "num_sinks": 2}
    torch.testing.assert_close(attend(q, k, v, **arguments), reference_attend(q, k, v, **arguments).float(), atol=1e-5, rtol=0)


@every_case("causal", [False, True])
@every_case(
    "options",
    [
        {"window": 3, "num_sinks": 4},
        {"window": 4, "num_sinks": 9},
        {"window": 2, "dilation": (2,)},
        {"left": 5, "right": 2},
        {"left": 2, "right": 5, "dilation": (2,)},
    ],
    ids=str,
)
def test_covers_and_keys_per_query_of_a_window_are_those_of_the_mask(options: dict, causal: bool) -> None:
    mechanism = build_mechanism("window", num_heads=2, head_dim=4, **options)
    for length in range(1, 16):
        mask = seen(length, causal, **options)
        full = torch.ones(length, length, dtype=torch.bool)
        assert mechanism.covers(length, causal) == torch.equal(mask[0, 0], full.tril() if causal else full), length
    reach = keys_per_query(mechanism)
    if reach is None:
        assert options["num_sinks"]
    else:
        assert seen(40, True, **options)[0, 0, -1].nonzero()[0] == 40 - reach


def test_sinks_of_a_grid_are_its_first_real_cells_as_in_the_definition() -> None:
    q, k, v = (torch.randn(2, 2, 384, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) for seed in range(3))
    real = torch.arange(384) >= torch.tensor([[0], [7]])
    options: dict[str, Any] = {"window": 32, "num_sinks": 4, "order": "raster", "grid": (384,), "padding_mask": real}
    difference = attend(q, k, v, "window", **options) - reference_attend(q, k, v, "window", **options)
    assert difference[real[:, None].expand(2, 2, -1)].abs().max() < 1e-12
