"""The fallback for a PyTorch that takes conditions which hold for violated."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_longattn.export import graphs
from hf_longattn.export.graphs import trace_errors


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2


class OfFourTokens(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(-1, 4) * 2


@pytest.fixture
def violated(monkeypatch: pytest.MonkeyPatch) -> None:
    """``torch.export.export`` as in PyTorch 2.15: named axes of several layers are refused."""
    real, error = torch.export.export, trace_errors()[0]

    def export(*args: Any, dynamic_shapes: dict[str, Any], **named: Any) -> Any:
        if any(isinstance(size, torch.export.Dim) for axes in dynamic_shapes.values() for size in axes.values()):
            raise error.__new__(error, "Constraints violated (length)!")
        return real(*args, dynamic_shapes=dynamic_shapes, **named)

    monkeypatch.setattr(torch.export, "export", export)


SIZES = {"x": {0: torch.export.Dim("batch", min=1), 1: torch.export.Dim("length", min=2, max=64)}}


@pytest.mark.usefixtures("violated")
def test_export_finds_free_axes_where_torch_refuses_named_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    program = graphs.exported(Doubled(), {"x": torch.ones(2, 8)}, SIZES)
    for shape in ((3, 5), (1, 64)):
        assert program.module()(x=torch.ones(shape)).shape == shape


@pytest.mark.usefixtures("violated")
def test_export_refuses_an_axis_that_is_not_free() -> None:
    with pytest.raises(trace_errors(), match="Constraints violated"):
        graphs.exported(OfFourTokens(), {"x": torch.ones(1, 4)}, SIZES)
