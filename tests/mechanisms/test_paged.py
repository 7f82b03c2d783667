"""Bounds of pages: never below a score, and the keys chosen by them are those of the search over all keys."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hf_longattn.engines.best import best_keys
from hf_longattn.mechanisms import paged
from hf_longattn.mechanisms.paged import PAGE, page_tables, paged_best
from hf_longattn.mechanisms.summarised import Summaries

LENGTH = 160


def cache(spread: float, starts: list[int], width: int = 8) -> tuple[Tensor, Summaries]:
    """Keys that differ by ``spread`` within a page, and their summaries; sequences begin at ``starts``."""
    torch.manual_seed(0)
    begins = torch.tensor(starts)
    page = torch.div(torch.arange(LENGTH) - begins[:, None], PAGE, rounding_mode="floor").clamp(min=0)
    centres = torch.randn(len(starts), 2, LENGTH, width).gather(2, page[:, None, :, None].expand(-1, 2, -1, width))
    k = centres + spread * torch.randn_like(centres)
    real = torch.arange(LENGTH) >= begins[:, None]
    columns = (begins[:, None] + torch.arange(LENGTH)).clamp(max=LENGTH - 1)
    there = (begins[:, None] + torch.arange(LENGTH)) < LENGTH
    turned = k.gather(2, columns[:, None, :, None].expand_as(k))
    tables = page_tables(turned.unflatten(2, (-1, PAGE)), there.unflatten(1, (-1, PAGE)))
    return k, Summaries(tables, begins, real)


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paged, "LEAST", 1)


@pytest.mark.parametrize("starts", [[0, 0], [0, 37]], ids=["no-padding", "left-padded"])
@pytest.mark.parametrize("heads", [2, 4])
@pytest.mark.parametrize("queries", [1, 5])
def test_the_choice_is_that_of_all_keys(queries: int, heads: int, starts: list[int]) -> None:
    k, summaries = cache(0.01, starts)
    q = torch.randn(2, heads, queries, 8)
    found = paged_best(q, k, summaries, 5, 0.3)
    assert found is not None
    assert summaries.notes["visited"] < paged.WORTHWHILE
    assert torch.equal(found, best_keys(q, k, summaries.real, 5, True, 0.3))


def test_of_equal_keys_the_earlier_are_chosen() -> None:
    k, summaries = cache(0.0, [0])
    k[:, :, 96:112] = k[:, :, :16]
    summaries = Summaries(
        page_tables(k.unflatten(2, (-1, PAGE)), torch.ones(1, LENGTH // PAGE, PAGE, dtype=torch.bool)), torch.zeros(1).long(), None
    )
    q = k[:, :, :1].clone()
    found = paged_best(q, k, summaries, 20, 1.0)
    expected = (q.double() @ k.double().transpose(-1, -2)).argsort(dim=-1, descending=True, stable=True)[..., :20].sort(-1).values
    assert found is not None
    assert torch.equal(found, expected)


def test_bounds_that_leave_nothing_out_are_not_tried_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    k, summaries = cache(3.0, [0, 0])
    q = torch.randn(2, 2, 1, 8)
    assert paged_best(q, k, summaries, 5, 0.3) is None
    assert summaries.notes["visited"] > paged.WORTHWHILE
    monkeypatch.setattr(paged, "_bounds", lambda *_: pytest.fail("tried again"))
    assert paged_best(q, k, summaries, 5, 0.3) is None
    summaries.notes["tried"] -= paged.AGAIN
    with pytest.raises(pytest.fail.Exception, match="tried again"):
        paged_best(q, k, summaries, 5, 0.3)
