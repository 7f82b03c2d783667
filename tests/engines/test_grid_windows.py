"""Windows by view: a few at a time without gradients, all at once with them; the numbers are the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hf_longattn import attend
from hf_longattn.engines import grid_windows
from hf_longattn.engines.dispatch import observe
from hf_longattn.engines.score_terms import GridBias
from hf_longattn.engines.token_grid import Grid
from hf_longattn.functional import reference_attend
from tests.cases import every_case

FORMS = [((23, 31), {"window": 4}), ((9, 20), {"window": (3, 8), "shift": "alternate"}), ((3, 7, 8), {"window": 2}), ((40,), {"window": 7})]


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
    sizes: tuple[int, ...], options: dict[str, Any], prefix_tokens: str, term: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows without a real key among them; output and gradients of real cells, and all rows finite, with and without gradients."""
    monkeypatch.setattr(grid_windows, "why_not_tiles", lambda context: "its kernel is not built")  # which is preferred without a term
    grid, paths = Grid(sizes, 2), []
    generator = torch.Generator().manual_seed(0)
    real = torch.rand(2, grid.length, generator=generator) > 0.4
    real[0, : grid.length // 2] = False
    inputs = [torch.randn(2, 2, grid.length, 8, dtype=torch.double, generator=generator, requires_grad=True) for _ in range(3)]
    q, k, v = inputs
    arguments: dict[str, Any] = {"grid": grid, "padding_mask": real, "prefix_tokens": prefix_tokens, **options}
    if term == "bias":
        table = torch.randn(2, 5 ** len(sizes) + 3, dtype=torch.double, generator=generator, requires_grad=True)
        inputs.append(table)
        arguments["score_mod"] = GridBias(table, (3,) * len(sizes))
    rows = real[:, None, :, None]
    with observe(lambda _, choice: paths.append(choice.path)):
        ours = attend(q, k, v, "window2d", **arguments)
    assert "windows" in paths
    assert bool(ours.isfinite().all())
    theirs = reference_attend(q, k, v, "window2d", **arguments)
    torch.testing.assert_close(ours * rows, theirs * rows)
    weight = torch.randn(ours.shape, dtype=torch.double, generator=generator) * rows
    gradients = [torch.autograd.grad((x * weight).sum(), inputs, retain_graph=True) for x in (ours, theirs)]
    for mine, exact in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, exact)
    with torch.no_grad():
        torch.testing.assert_close(attend(q, k, v, "window2d", **arguments) * rows, ours * rows)
