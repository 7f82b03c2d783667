"""Masks of windows, segments and strides: what a token sees, their parts, their number of pairs, and the
definition."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hf_longattn import attend, build_mechanism, reference_attend
from hf_longattn.engines.batch import Batch
from hf_longattn.engines.call import AttentionCall
from hf_longattn.mechanisms.common.capabilities import keys_per_query
from hf_longattn.mechanisms.common.masked import GatheredMechanism, SparseMechanism, leading_sinks
from hf_longattn.positions.relative import Rotation
from tests.cases import every_case
from tests.comparisons import paths_of
from tests.mechanisms.definition import image, listed, visible


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
    assert image(seen(8, True, left=2, right=1)[0, 0])[2:4] == ["###.....", ".###...."], (
        "later tokens are not seen when causal"
    )
    assert image(seen(8, False, window=4, right=0)[0, 0])[4] == "..###...", (
        "the side that is not given is the window's"
    )
    assert image(seen(9, False, left=2, right=1, dilation=3)[0, 0])[5] == "..#..#..#"


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


HEADS, GROUPS, WIDTH, FREQUENCIES = 4, 2, 10, torch.tensor([1.0, 0.3, 0.02], dtype=torch.float64)
TURNED: dict[str, tuple[int, int, dict[str, Any]]] = {
    "few pairs": (200, 200, {"window": 24, "num_sinks": 3}),
    "blocks": (400, 400, {"window": 24, "num_sinks": 3}),
    "many sinks": (400, 400, {"left": 23, "num_sinks": 12}),
    "one block": (300, 300, {"window": 280, "num_sinks": 3}),
    "fewer queries": (700, 150, {"window": 24, "num_sinks": 3}),
    "one query": (700, 1, {"window": 24, "num_sinks": 3}),
    "leading global tokens": (400, 400, {"left": 23, "global_tokens": (0, 1, 2)}),
}


def rotated(x: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """``x (…, N, D)`` with its first features, as in Llama, at ``places (N,)``."""
    planes = torch.complex(*x[..., :6].double().chunk(2, -1)) * torch.polar(
        torch.ones(()).double(), places[:, None] * FREQUENCIES
    )
    return torch.cat([planes.real, planes.imag, x[..., 6:]], -1)


@every_case("kind", ["float64", "float32", "cap", "learned scores", "right", "inside", "documents"])
@every_case("case", TURNED, pairs=True)
def test_turned_sinks_equal_their_formula_with_gradients(case: str, kind: str) -> None:
    """Sinks are at distance min(i, s + w - 1) - j, before a cap and beside learned sinks. No call falls back to plain
    code."""
    length, queries, options = TURNED[case]
    name, sinks, width = (
        "longformer" if "global_tokens" in options else "window",
        options.get("num_sinks", 3),
        options.get("window", 24),
    )
    module = build_mechanism(name, num_heads=HEADS, head_dim=WIDTH, **options)
    assert isinstance(module, SparseMechanism)
    module.turn_sinks(lambda: Rotation(FREQUENCIES))
    x, y, v = (
        torch.randn(1, heads, length, WIDTH, dtype=torch.float64, requires_grad=True)
        for heads in (HEADS, GROUPS, GROUPS)
    )
    learned = torch.randn(HEADS, dtype=torch.float64, requires_grad=True) if kind == "learned scores" else None
    real, documents = torch.ones(1, length, dtype=torch.bool), torch.zeros(1, length, dtype=torch.long)
    real[:, {"right": slice(length - 90, None), "inside": slice(40, 60)}.get(kind, slice(0))] = False
    documents[:, length // 3 if kind == "documents" else length :] = 1

    text, first = torch.arange(length), length // 3 if kind == "documents" else 0
    place = text - first * documents[0]
    i, j = place[:, None], place
    near = i - j < width
    distance = torch.where(near, i - j, torch.minimum(i, torch.tensor(sinks + width - 1)) - j)
    seen = (near | (j < sinks)) & (text <= text[:, None]) & real[0] & (documents[0] == documents[0][:, None])
    a, b = (torch.complex(*z.repeat_interleave(HEADS // z.shape[1], 1)[..., :6].chunk(2, -1)) for z in (x, y))
    turn = torch.polar(torch.ones(()).double(), distance[..., None] * FREQUENCIES)
    scores = torch.einsum("bhif,bhjf,ijf->bhij", a, b.conj(), turn).real
    scores = (scores + x[..., 6:] @ y.repeat_interleave(2, 1)[..., 6:].mT) * WIDTH**-0.5
    scores = torch.tanh(scores) if kind == "cap" else scores
    scores = scores.masked_fill(~seen, -1e30)
    beside = [] if learned is None else [learned[:, None, None].expand(1, -1, length, 1)]
    weights = torch.cat([scores, *beside], -1).softmax(-1)[..., :length]
    expected = (weights @ v.repeat_interleave(2, 1))[:, :, -queries:] * real[:, None, -queries:, None]

    dtype = torch.float32 if kind == "float32" else torch.float64
    arguments: dict[str, Any] = (
        {"causal": True, "padding_mask": real} if kind in ("right", "inside") else {"causal": True}
    )
    arguments |= {"documents": documents} if kind == "documents" else {}
    arguments |= {"score_mod": lambda score, *_: torch.tanh(score)} if kind == "cap" else {}
    arguments |= {} if learned is None else {"sink_scores": learned}
    q, k = rotated(x, place)[:, :, -queries:].to(dtype), rotated(y, place).to(dtype)
    out, paths = paths_of(lambda: attend(q, k, v.to(dtype), module, **arguments))
    out = out * real[:, None, -queries:, None]
    assert kind == "cap" or "plain" not in paths
    leaves = [x, y, v] if learned is None else [x, y, v, learned]
    weight = torch.randn(out.shape, dtype=torch.float64)
    tolerance: dict[str, float] = {"atol": 1e-4, "rtol": 1e-4} if kind == "float32" else {"atol": 1e-9, "rtol": 0}
    torch.testing.assert_close(out.double(), expected, **tolerance)
    found, wanted = (
        torch.autograd.grad((result * weight).sum(), leaves, materialize_grads=True) for result in (out, expected)
    )
    torch.testing.assert_close(found, wanted, **tolerance)
    with torch.no_grad():
        defined = reference_attend(q, k, v.to(dtype), module, **arguments) * real[:, None, -queries:, None]
        torch.testing.assert_close(defined, expected, **tolerance)


@every_case(
    ("name", "options", "sinks"),
    [
        ("window", {"num_sinks": 4}, 4),
        ("window", {"num_sinks": 4, "sink_positions": "text"}, 0),
        ("window", {"num_sinks": 4, "dilation": 2}, 0),
        ("window", {"num_sinks": 4, "relative": "alibi"}, 0),
        ("longformer", {"global_tokens": (0, 1)}, 2),
        ("longformer", {"global_tokens": (1, 2)}, 0),
        ("longformer", {"global_tokens": (0, 1), "separate_global": True}, 0),
        ("longformer", {"global_tokens": (0, 1), "global_token_ids": (5,)}, 0),
        ("full", {}, 0),
    ],
    ids=str,
)
def test_leading_sinks_whose_positions_may_change(name: str, options: dict[str, Any], sinks: int) -> None:
    assert leading_sinks(build_mechanism(name, num_heads=2, head_dim=4, hidden_size=8, **options)) == sinks


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


CPU = torch.device("cpu")
PATTERNS: list[tuple[str, dict[str, Any]]] = [
    ("strided", {"window": 6, "stride": 4}),
    ("strided", {"window": 1, "stride": 7}),
    ("strided", {"window": 32, "stride": 3}),
    ("strided", {"window": 16, "stride": 512}),  # beyond most texts
    ("fixed", {"block_size": 8, "num_summary": 1}),
    ("fixed", {"block_size": 150, "num_summary": 7}),
    ("fixed", {"block_size": 5, "num_summary": 3}),
    ("segmented", {"block_size": 8, "integration": "none"}),
    ("segmented", {"block_size": 140, "integration": "none"}),
    ("segmented", {"block_size": 8, "integration": "previous"}),
    ("segmented", {"block_size": 1, "integration": "previous"}),
    ("segmented", {"block_size": 133, "integration": "previous"}),
    ("transformer_xl", {"segment_length": 24, "memory_length": 40}),
    ("window", {"window": 1}),
    ("window", {"window": 5}),
    ("window", {"window": 100}),
    ("bigbird", {"block_size": 4, "num_random_blocks": 2}),
    ("full", {}),
]
LENGTHS = (1, 2, 7, 8, 9, 31, 64, 65, 129, 300, 600)


def mask_of(mechanism: Any, length: int, causal: bool) -> torch.Tensor:
    seen = visible(mechanism, length, causal)
    return seen.expand(1, mechanism.num_heads, length, length)[0]


@every_case("causal", [False, True])
@every_case(("name", "options"), PATTERNS, ids=str)
def test_parts_and_pairs_of_static_patterns_are_those_of_the_mask(
    name: str, options: dict[str, Any], causal: bool
) -> None:
    mechanism = build_mechanism(name, num_heads=1, head_dim=4, **options)
    for length in LENGTHS:
        seen = mask_of(mechanism, length, causal)[0]
        if isinstance(mechanism, GatheredMechanism) and mechanism.listed and not mechanism.covers(length, causal):
            assert torch.equal(listed(mechanism.parts(length, causal, CPU), length, length), seen.long()), length
        assert mechanism.covers(length, causal) <= torch.equal(
            seen, mask_of(build_mechanism("full", num_heads=1, head_dim=4), length, causal)[0]
        )
        assert mechanism.pairs(length, causal) == seen.sum(), length


@pytest.mark.parametrize("causal", [False, True])
def test_pairs_of_longformer_are_a_bound_that_is_never_beyond_full_attention(causal: bool) -> None:
    mechanism = build_mechanism("longformer", num_heads=1, head_dim=4, window=4, global_tokens=(0, 30))
    seen = visible(mechanism, 64, causal)
    exact = int(seen.expand(1, 1, 64, 64).sum())
    assert exact <= mechanism.pairs(64, causal) <= exact + 2 * 2 * 5 + 64
    assert mechanism.pairs(2, causal) == (3 if causal else 4)


def test_a_step_in_fp16_hides_keys_whose_scores_exceed_the_dtype() -> None:
    module = build_mechanism("window", num_heads=2, head_dim=16, window=8).eval()
    q, k, v = (torch.rand(1, 2, 40, 16).half() for _ in range(3))
    q = q * 200
    k[:, :, :-8] += 200  # scores of about 80,000 outside of the last window, below 400 within
    step = module.attend_rows(q[:, :, -1:], k, v, AttentionCall(causal=True, batch=Batch()))
    expected = reference_attend(q[:, :, -1:], k, v, module, causal=True)
    torch.testing.assert_close(step.double(), expected, atol=2e-3, rtol=0)
