"""Every static pattern equals PyTorch's scaled_dot_product_attention under the materialised mask, forward and backward.

The masks are written here from the papers' formulas, not taken from the mechanisms.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_longattn import attend
from tests.cells import every_cell

LENGTH, HEADS = 700, 3
Mask = Callable[[Tensor, Tensor, bool], Tensor]


def near(i: Tensor, j: Tensor, causal: bool, window: int, dilation: int = 1) -> Tensor:
    away = i - j
    inside = (away >= 0) & (away < window * dilation) if causal else away.abs() <= window // 2 * dilation
    return inside & (away % dilation == 0)


def dilated_heads(i: Tensor, j: Tensor, causal: bool) -> Tensor:
    return torch.stack([near(i, j, causal, 32, dilation) | (j < 4) for dilation in (1, 2, 5)])


PATTERNS: dict[str, tuple[str, dict[str, Any], Mask]] = {
    "window": ("window", {"window": 64}, lambda i, j, c: near(i, j, c, 64)),
    "window with sinks": ("window", {"window": 64, "num_sinks": 4}, lambda i, j, c: near(i, j, c, 64) | (j < 4)),
    "window, dilated, with sinks": ("window", {"window": 32, "num_sinks": 4, "dilation": (1, 2, 5)}, dilated_heads),
    "strided": ("strided", {"window": 40, "stride": 25}, lambda i, j, c: near(i, j, c, 40) | ((i - j) % 25 == 0)),
    "strided, absolute": (
        "strided",
        {"window": 40, "stride": 25, "columns": "absolute"},
        lambda i, j, c: near(i, j, c, 40) | (j % 25 == 24),
    ),
    "fixed": ("fixed", {"block_size": 48, "num_summary": 6}, lambda i, j, c: (i // 48 == j // 48) | (j % 48 >= 42)),
    "segmented": ("segmented", {"block_size": 48, "integration": "none"}, lambda i, j, c: i // 48 == j // 48),
    "segmented, previous": (
        "segmented",
        {"block_size": 48, "integration": "previous"},
        lambda i, j, c: (i // 48 - j // 48).abs() <= 1,
    ),
}


@every_cell("causal", [False, True])
@every_cell("pattern", PATTERNS)
def test_outputs_and_gradients(pattern: str, causal: bool) -> None:
    name, options, mask = PATTERNS[pattern]
    q, k, v = (torch.randn(2, HEADS, LENGTH, 32, requires_grad=True) for _ in range(3))
    i, j = torch.arange(LENGTH)[:, None], torch.arange(LENGTH)[None]
    seen = mask(i, j, causal)
    seen = seen & (j <= i) if causal else seen
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
    out = attend(q, k, v, name, causal=causal, **options)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)
    weight = torch.randn_like(out)
    for a, b in zip(*(torch.autograd.grad((x * weight).sum(), (q, k, v)) for x in (out, expected)), strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=0)
