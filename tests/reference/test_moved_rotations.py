"""Self-Extend equals its paper's formula, pair by pair, in float64, with gradients."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_longattn import attend, reference_attend
from hf_longattn.engines import dense
from hf_longattn.engines.call import AttentionCall
from hf_longattn.mechanisms.common.registry import mechanism_from
from hf_longattn.positions.relative import SelfExtend
from tests.cases import every_case

HEADS, GROUPS, WIDTH, LENGTH = 2, 1, 8, 29
FREQUENCIES = 10_000.0 ** -(torch.arange(0, WIDTH, 2, dtype=torch.float64) / WIDTH)


def self_extend(i: int, j: int) -> int:
    """Jin et al. 2024, section 3, for a key before the query: w_n = 6 and G_s = 3."""
    return i - j if i - j < 6 else (i // 3 + 6 - 6 // 3) - j // 3


RULE = "self_extend:window=6,group=3"


def rotated(x: Tensor, positions: Tensor) -> Tensor:
    """``x (…, N, D)`` as a model gives it to attention, with complex numbers for the planes of features n and n + D/2."""
    planes = torch.complex(*x.chunk(2, -1)) * torch.polar(torch.ones(()).double(), positions[:, None] * FREQUENCIES)
    return torch.cat([planes.real, planes.imag], -1)


def defined(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """The attention of unrotated ``q (H, N, D)`` and ``k, v (H_kv, N, D)``, by a loop over pairs."""
    length, rows = k.shape[1], []
    for h, i in itertools.product(range(q.shape[0]), range(length)):
        keys = range(i + 1 if causal else length)
        distances = [self_extend(i, j) if j <= i else -self_extend(j, i) for j in keys]
        group = h * k.shape[0] // q.shape[0]
        turned = [rotated(q[h, i][None], torch.tensor([d]).double())[0] @ k[group, j] for j, d in zip(keys, distances, strict=True)]
        rows.append((torch.stack(turned) / WIDTH**0.5).softmax(0) @ v[group, : len(keys)])
    return torch.stack(rows).view(*q.shape)


def drawn(batch: int = 1) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(batch, heads, LENGTH, WIDTH, dtype=torch.float64, requires_grad=True) for heads in (HEADS, GROUPS, GROUPS)]


@every_case("causal", [True, False])
@every_case("blocks", [False, True])
def test_self_extend_equals_its_formula_with_gradients(causal: bool, blocks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if blocks:  # as for long texts
        monkeypatch.setattr(dense, "MAX_SCORES", 5 * HEADS * LENGTH)
    (q, k, v), places = drawn(), torch.arange(LENGTH).double()
    expected = defined(q[0], k[0], v[0], causal)[None]
    weight = torch.randn_like(expected)
    wanted = torch.autograd.grad((expected * weight).sum(), (q, k, v))
    for run in (attend, reference_attend):
        out = run(rotated(q, places), rotated(k, places), v, "full", causal=causal, relative=RULE)
        torch.testing.assert_close(out, expected, atol=1e-12, rtol=0)
        found = torch.autograd.grad((out * weight).sum(), (q, k, v))
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a, b, atol=1e-11, rtol=0)


@every_case("causal", [True, False])
def test_self_extend_counts_positions_from_each_sequence(causal: bool) -> None:
    """With padding on either side, packed documents, and fewer queries than keys. The model's own positions may count padding."""
    (q, k, v), places = drawn(2), torch.arange(LENGTH).double()
    turned = (rotated(q, places), rotated(k, places), v)
    arguments: dict[str, Any] = {"causal": causal, "relative": RULE}
    mask = torch.ones(2, LENGTH, dtype=torch.bool)
    mask[0, :9], mask[1, 20:] = False, False
    padded = attend(*turned, "full", padding_mask=mask, **arguments)
    torch.testing.assert_close(padded[0, :, 9:], defined(q[0, :, 9:], k[0, :, 9:], v[0, :, 9:], causal), atol=1e-12, rtol=0)
    torch.testing.assert_close(padded[1, :, :20], defined(q[1, :, :20], k[1, :, :20], v[1, :, :20], causal), atol=1e-12, rtol=0)
    packed = attend(*turned, "full", documents=(torch.arange(LENGTH) >= 11).long().expand(2, -1), **arguments)
    torch.testing.assert_close(packed[1, :, 11:], defined(q[1, :, 11:], k[1, :, 11:], v[1, :, 11:], causal), atol=1e-12, rtol=0)
    last = attend(turned[0][:, :, -4:], *turned[1:], "full", padding_mask=mask, **arguments)
    torch.testing.assert_close(last[0], padded[0, :, -4:], atol=1e-12, rtol=0)


@every_case("causal", [True, False])
@every_case("blocks", [False, True])
def test_a_cap_and_padding_meet_the_scores_of_self_extend(causal: bool, blocks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the definition over all pairs. A cap sees the score of one pair, whatever listing of the key gave it."""
    if blocks:
        monkeypatch.setattr(dense, "MAX_SCORES", 5 * HEADS * LENGTH)
    mask = torch.ones(2, LENGTH, dtype=torch.bool)
    mask[0, :9], mask[1, 20:] = False, False
    arguments: dict[str, Any] = {"causal": causal, "relative": RULE, "padding_mask": mask}
    arguments["score_mod"] = lambda score, b, h, i, j: 3 * torch.tanh(score / 3) + 0.01 * (h + 1) * (i - j)
    out, expected = (run(*drawn(2), "full", **arguments) * mask[:, None, :, None] for run in (attend, reference_attend))
    torch.testing.assert_close(out, expected, atol=1e-12, rtol=0)


def test_self_extend_changes_nothing_in_short_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts without distant pairs have no vectors for them, either."""
    for length in (6, 5):
        q, k, v = (x.detach()[:, :, :length] for x in drawn())
        places = torch.arange(length).double()
        out = attend(rotated(q, places), rotated(k, places), v, "full", causal=True, relative=RULE)
        torch.testing.assert_close(out, attend(rotated(q, places), rotated(k, places), v, "full", causal=True), atol=1e-12, rtol=0)
        monkeypatch.setattr(SelfExtend, "moved", lambda *_: pytest.fail("vectors for distant pairs"))


def test_self_extend_takes_values_wider_than_keys() -> None:
    """As in MiMo, whatever the length of the text."""
    for length in (4, LENGTH):
        q, k, v = (x.detach()[:, :, :length] for x in drawn())
        mechanism = mechanism_from("full", {"relative": RULE}, num_heads=HEADS, head_dim=WIDTH, max_length=None)
        out = mechanism(q, k, torch.cat([v, v[..., :4]], -1), AttentionCall(causal=True))
        torch.testing.assert_close(out[..., :WIDTH], mechanism(q, k, v, AttentionCall(causal=True)), atol=1e-12, rtol=0)
        assert out.shape[-1] == WIDTH + 4
