"""Block top-k attention: the chosen blocks are really the best, the own one is always seen, unfinished blocks never decide."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hf_longattn import attend, build_mechanism, reference_attend
from hf_longattn.errors import LengthError, OptionError
from tests.cells import every_cell


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def random(length: int, heads: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(torch.randn(2, heads, length, 8) for _ in range(3))  # type: ignore[return-value]


def seen(length: int, **options: object) -> Tensor:
    """Which keys each query weighs, ``(B, H, N, N)``, and the blocks' gates."""
    q, k, _ = random(length)
    causal = bool(options.pop("causal", False))
    return build_mechanism("block_top_k", num_heads=2, head_dim=8, **options).weights(q, k, causal=causal) > 0


def test_a_hand_made_example() -> None:
    """Blocks of two with means 2, -3 and 1; the last query (of block 2) likes the first, the third (of block 1) as well."""
    k = torch.tensor([1.0, 3, -3, -3, 0, 2]).view(1, 1, 6, 1)
    q = torch.tensor([1.0, -1, 1, -1, 1, -1]).view(1, 1, 6, 1)
    module = build_mechanism("block_top_k", num_heads=1, head_dim=1, block_size=2, num_blocks=2)
    rows = {
        False: ["110011", "111100", "111100", "001111", "110011", "001111"],
        True: ["100000", "110000", "111000", "111100", "110010", "001111"],
    }
    for causal, expected in rows.items():
        found = (module.weights(q, k, causal=causal)[0, 0] > 0).int()
        assert ["".join(map(str, row)) for row in found.tolist()] == expected


@pytest.mark.parametrize("causal", [False, True])
def test_the_own_block_and_the_best_of_the_others(causal: bool) -> None:
    q, k, _ = random(300)
    module = build_mechanism("block_top_k", num_heads=2, head_dim=8, block_size=16, num_blocks=4)
    blocks = (module.weights(q, k, causal=causal)[..., :288] > 0).unflatten(-1, (18, 16)).any(-1)[:, :, :288]
    own = torch.arange(288) // 16
    assert blocks[:, :, torch.arange(288), own].all()
    means = k[:, :, :288].unflatten(2, (18, 16)).mean(3)
    gates = (q @ means.transpose(-1, -2))[:, :, :288]
    others = torch.arange(18)
    allowed = (others < own[:, None]) if causal else (others != own[:, None])
    chosen, left = blocks & allowed, ~blocks & allowed
    worst = gates.masked_fill(~chosen, float("inf")).amin(-1)
    assert (worst > gates.masked_fill(~left, float("-inf")).amax(-1)).all()
    if causal:
        assert (blocks.sum(-1) == (own + 1).clamp(max=4)).all()
    else:
        assert (blocks.sum(-1) >= 3).all()  # one of the four may be the unfinished last block


def test_of_equal_blocks_the_earlier_is_chosen() -> None:
    q, k = torch.ones(1, 1, 64, 4), torch.ones(1, 1, 64, 4)
    v = (torch.arange(64.0) // 8).view(1, 1, 64, 1).expand(-1, -1, -1, 4)
    for module in (attend, reference_attend):
        out = module(q, k, v, "block_top_k", block_size=8, num_blocks=2)[0, 0, :, 0]
        assert out[63] == pytest.approx(3.5)
        assert out[0] == pytest.approx(0.5)
        assert out[20] == pytest.approx(1.0)


def test_an_unfinished_block_never_decides_in_the_causal_form() -> None:
    q, k, v = random(400)
    options = {"block_size": 32, "num_blocks": 3}
    whole = attend(q, k, v, "block_top_k", causal=True, **options)
    for n in (33, 64, 100, 385):
        cut = attend(q[:, :, :n], k[:, :, :n], v[:, :, :n], "block_top_k", causal=True, **options)
        torch.testing.assert_close(cut, whole[:, :, :n], atol=1e-5, rtol=0)


@pytest.mark.parametrize("left", [0, 13])
def test_token_by_token_equals_the_whole(left: int) -> None:
    q, k, v = random(330)
    mask = torch.ones(2, 330, dtype=torch.bool)
    mask[0, :left] = False
    options = {"block_size": 16, "num_blocks": 3, "causal": True}
    whole = attend(q, k, v, "block_top_k", padding_mask=mask, **options)
    for n in (15, 100, 329):
        step = attend(q[:, :, n : n + 1], k[:, :, : n + 1], v[:, :, : n + 1], "block_top_k", padding_mask=mask[:, : n + 1], **options)
        torch.testing.assert_close(step, whole[:, :, n : n + 1], atol=1e-5, rtol=0)


@every_cell("padding", ["none", "left", "inside"])
@every_cell("length", [1, 40, 300])
def test_blocks_of_queries_that_choose_together(length: int, padding: str) -> None:
    q, k, v = (x.requires_grad_() for x in random(length))
    mask = torch.ones(2, length, dtype=torch.bool)
    if padding == "left":
        mask[0, : length // 3] = False
    elif padding == "inside":
        mask[0, length // 3 : length // 2] = False
    options = {"block_size": 16, "num_blocks": 3, "per": "query_block", "padding_mask": mask}
    out, expected = attend(q, k, v, "block_top_k", **options), reference_attend(q, k, v, "block_top_k", **options)
    real = mask[:, None, :, None]
    torch.testing.assert_close(out * real, (expected * real).float(), atol=1e-5, rtol=0)
    weight = torch.randn_like(out) * real
    for a, b in zip(*(torch.autograd.grad((x * weight).sum(), (q, k, v)) for x in (out, expected)), strict=True):
        torch.testing.assert_close(a, b, atol=5e-5, rtol=0)


def test_one_choice_for_a_block_of_queries() -> None:
    found = seen(256, block_size=32, num_blocks=3, per="query_block").unflatten(2, (8, 32))
    assert (found == found[:, :, :, :1]).all()
    assert (found.sum(-1) == 96).all()


def test_what_one_call_cannot_do_is_refused() -> None:
    q, k, v = random(64)
    together = {"block_size": 16, "num_blocks": 2, "per": "query_block"}
    with pytest.raises(OptionError, match="exists only with causal=False"):
        attend(q, k, v, "block_top_k", causal=True, **together)
    with pytest.raises(LengthError, match="selects keys for whole blocks of queries"):
        attend(q[:, :, -5:], k, v, "block_top_k", **together)


@every_cell(
    ("options", "sentence"),
    [
        ({"block_size": 0}, "'block_size' of mechanism 'block_top_k' is 0, but must be at least 1"),
        ({"num_blocks": 0}, "'num_blocks' of mechanism 'block_top_k' is 0, but must be at least 1"),
        ({"per": "querry"}, "'per' of mechanism 'block_top_k' is 'querry'.* query"),
    ],
)
def test_impossible_options_are_refused(options: dict, sentence: str) -> None:
    with pytest.raises(OptionError, match=sentence):
        build_mechanism("block_top_k", num_heads=2, head_dim=4, **options)


@every_cell("options", [{}, {"causal": True}, {"per": "query_block"}], ids=str)
def test_pairs_are_what_is_seen_and_what_is_scored(options: dict) -> None:
    causal = "causal" in options
    module = build_mechanism("block_top_k", num_heads=2, head_dim=8, block_size=16, num_blocks=3, per=options.get("per", "query"))
    visible = int(seen(320, block_size=16, num_blocks=3, **options)[0, 0].sum())
    scored = 20 * 20 if "per" in options else sum(i // 16 if causal else 20 for i in range(320))
    assert module.pairs(320, causal) == visible + scored
    assert module.pairs(48, causal) == (48 * 49 // 2 if causal else 48 * 48)
