"""The path ``terms-triton``: the softmax terms of a window by one Triton kernel of our own, forward.

The kernel visits the tiles that a block of queries sees, as flash attention does, and writes the sums of the terms in place of their
quotient, so that others can be added: linear attention to the keys beyond, by ``add_kernel_linear_attention``. The backward pass runs the
plain operations once more and differentiates them.

Products are rounded to TF32 for half precision, which is exact for scores; for fp32 each is three products of TF32. Whether this machine
runs the kernel is tried once for each kind of call, with a few tokens whose results are compared with the definition.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..common.dense import unit_stride
from ..common.derivatives import RunByKernel
from .linear_kernel import BLOCK, LAUNCH, capability_refused, difference, one_refusal, precision_for, tile_side

Rule = Callable[..., tuple[Tensor, Tensor, Tensor]]
"""The three sums of q, k, v, γ, left, right, scale and the labels, in plain operations of their dtype."""
Labels = tuple[Tensor, Tensor]
"""Of queries ``(B, Nq)`` and keys ``(B, Nk)``, int32, below zero where none sees a key."""


def kernel_softmax_terms(
    rule: Rule, q: Tensor, k: Tensor, v: Tensor, factor: Tensor, left: int, right: int, scale: float, labels: Labels | None
) -> tuple[Tensor, Tensor, Tensor]:
    """γ Σ_j exp(s_ij - c_i) v_j, γ Σ_j exp(s_ij - c_i) and c_i = max_j s_ij over the keys with i - left ≤ j ≤ i + right, in fp32.

    Args:
        rule: the same in plain operations.
        q: ``(B, H, Nq, F)``, the last Nq positions of ``k (B, H_kv, Nk, F)`` and ``v (B, H_kv, Nk, D)``.
        factor: γ of the heads, ``(H,)`` in fp32.
        scale: factor on q·k, of which s_ij is the product.
        labels: a query sees only the keys with its own label.
    Returns:
        ``(B, H, Nq, D)``, ``(B, H, Nq)`` and ``(B, H, Nq)``; zeros where a query sees no key.
    Raises:
        NoKernel: this machine does not run the kernel, which is logged once.
    """
    kind = q.device, v.dtype, q.shape[3], v.shape[3], labels is not None
    one_refusal(_refusals, kind, lambda: _tried(rule, *kind), "softmax terms")
    options: dict[str, Any] = {"left": left, "right": right, "scale": scale, "labels": labels}
    total, weight, largest = RunByKernel.apply(functools.partial(_run, **options), functools.partial(rule, **options), q, k, v, factor)
    return total, weight, largest


def _run(
    q: Tensor, k: Tensor, v: Tensor, factor: Tensor, left: int, right: int, scale: float, labels: Labels | None
) -> tuple[Tensor, Tensor, Tensor]:
    (batch, heads, length, features), (kv_len, width) = q.shape, v.shape[2:]
    q, k, v, factor = (unit_stride(x) for x in (q, k, v, factor))
    out = torch.empty(batch, heads, length, width, dtype=torch.float32, device=q.device)
    weights, tops = (out.new_empty(batch, heads, length) for _ in range(2))
    of_queries, of_keys = (weights, weights) if labels is None else (x.contiguous() for x in labels)
    value_side = tile_side(width)
    with torch.cuda.device_of(q):
        triton_kernels().softmax_terms[(-(-length // BLOCK), -(-width // value_side), batch * heads)](
            q, k, v, of_queries, of_keys, factor, out, weights, tops, length, kv_len, features, width,
            min(left, kv_len), min(right, kv_len), scale, heads, heads // k.shape[1], heads // v.shape[1],
            *q.stride()[:3], *k.stride()[:3], *v.stride()[:3],
            BLOCK=BLOCK, FEATURES=tile_side(features), WIDTH=value_side, LABELLED=labels is not None, PRECISION=precision_for(v), **LAUNCH,
        )  # fmt: skip
    return out, weights, tops


def triton_kernels() -> Any:
    """The module with the kernel, which imports Triton."""
    from . import terms_triton

    return terms_triton


_refusals: dict[tuple[Any, ...], str | None] = {}


def _tried(rule: Rule, device: torch.device, dtype: torch.dtype, features: int, width: int, labelled: bool) -> str | None:
    """Why results for a few tokens are not those of the definition, where they are not; what the kernel raises is raised."""
    if (why := capability_refused(device)) is not None:
        return why
    length, left, right = 2 * BLOCK + 20, 70, 10
    q, k, v = (
        torch.sin(torch.arange(math.prod(shape), device=device) * step).view(1, *shape).to(dtype)
        for shape, step in (((2, length - 5, features), 1.7), ((1, length, features), 0.9), ((1, length, width), 2.3))
    )
    factor, labels = torch.arange(1.0, 3.0, device=device), None
    if labelled:
        numbers = (torch.arange(length, device=device, dtype=torch.int32) // 100)[None]
        labels = numbers[:, -q.shape[2] :], numbers.masked_fill(numbers == 1, -1)
    scale = features**-0.5
    expected = rule(*(x.double() for x in (q, k, v, factor)), left, right, scale, labels)
    return difference(_run(q, k, v, factor, left, right, scale, labels), expected, dtype)
