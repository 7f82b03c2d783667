"""A module with parameters against its float64 definition: outputs, and gradients of the inputs and of every parameter."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hf_longattn import Mechanism, attend, reference_attend


class Attention(nn.Module):
    """``attend`` with one mechanism as a module, to be compiled or exported."""

    def __init__(self, mechanism: Mechanism, **arguments: Any) -> None:
        super().__init__()
        self.mechanism, self.arguments = mechanism, arguments

    def forward(self, q: Tensor, k: Tensor, v: Tensor, **arguments: Any) -> Tensor:
        return attend(q, k, v, self.mechanism, **self.arguments, **arguments)


def assert_equals_its_definition(module: Mechanism, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **arguments: Any) -> Tensor:
    """``mask (B, N)``: which tokens are real; the rows of the others do not count. Returns the output, zeros in these rows."""
    real = torch.ones(q.shape[0], 1, q.shape[2], 1) if mask is None else mask[:, None, -q.shape[2] :, None]
    out, expected = (run(q, k, v, module, padding_mask=mask, **arguments) * real for run in (attend, reference_attend))
    torch.testing.assert_close(out, expected.float(), atol=1e-5, rtol=0)
    weight = torch.randn(out.shape)
    leaves = (q, k, v, *module.parameters())
    found, wanted = (torch.autograd.grad((x * weight).sum(), leaves) for x in (out, expected))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=5e-5, rtol=1e-4)
    return out
