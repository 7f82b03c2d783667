"""What a result is checked against: softmax attention written out in float64, a few hundred rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hf_longattn.engines.token_grid import Grid
from hf_longattn.functional import reference_attend
from hf_longattn.mechanisms.common.masked import GatheredMechanism, SparseMechanism

from .case import AttentionInputs

MaskMod = Callable[[Any, Any, Any, Any], Tensor]
ROWS = 512
DENSE_LENGTH = 1024
"""Up to this length a mechanism that is more than a mask is checked through its own N×N reference; beyond it, at this length."""


def mask_of(inputs: AttentionInputs, computes: str = "mechanism") -> MaskMod | None:
    """``mask(b, h, q_idx, kv_idx)`` with causality included, or ``None`` for a mechanism that is not a mask over positions."""
    case, mechanism = inputs.case, inputs.mechanism
    if computes == "full":
        visible: MaskMod = lambda b, h, q_idx, kv_idx: (q_idx >= 0) & (kv_idx >= 0)  # noqa: E731
    elif mechanism.capabilities.needs_grid:
        on_grid: Any = mechanism.on_grid
        visible = on_grid(Grid(tuple(case.grid))).mask_mod(case.causal, None)
    elif isinstance(mechanism, SparseMechanism | GatheredMechanism) and mechanism.options.order is None and mechanism.options.is_mask():
        visible = mechanism.mask_mod(case.causal, inputs.resolved_globals)
    else:
        return None
    if case.causal:
        return lambda b, h, q_idx, kv_idx: visible(b, h, q_idx, kv_idx) & (kv_idx <= q_idx)
    return lambda b, h, q_idx, kv_idx: visible(b, h, q_idx, kv_idx)  # flex_attention takes no bound methods


def define(inputs: AttentionInputs, computes: str, heads: Sequence[int]) -> list[Tensor] | None:
    """Output and, when the case has a backward pass, the gradients of q, k and v, for some heads: float64 (B, heads, N, D).

    ``None`` when the mechanism is not a mask and the length is above :data:`DENSE_LENGTH`.
    """
    case = inputs.case
    mask = mask_of(inputs, computes)
    if mask is None and case.length > DENSE_LENGTH:
        return None
    q, k, v = (tensor.detach()[:, heads].double().requires_grad_(case.backward) for tensor in inputs.qkv)
    upstream = inputs.upstream_heads()[:, heads].double()
    if mask is None:
        q, k, v = (tensor.detach().double().requires_grad_(case.backward) for tensor in inputs.qkv)
        output = reference_attend(q, k, v, inputs.mechanism, causal=case.causal, **inputs.beyond)
        grads = torch.autograd.grad(output, [q, k, v], inputs.upstream_heads().double()) if case.backward else ()
        return [tensor.detach()[:, heads] for tensor in (output, *grads)]
    pieces = []
    index = torch.arange(case.length, device=q.device)
    batch = torch.arange(case.batch, device=q.device).view(-1, 1, 1, 1)
    head = torch.tensor(heads, device=q.device).view(1, -1, 1, 1)
    for start in range(0, case.length, ROWS):
        rows = slice(start, start + ROWS)
        seen = mask(batch, head, index[rows].view(1, 1, -1, 1), index.view(1, 1, 1, -1))
        scores = (q[:, :, rows] @ k.transpose(-1, -2)) * case.head_dim**-0.5
        output = scores.masked_fill(~seen, float("-inf")).softmax(-1) @ v
        if case.backward:
            output.backward(upstream[:, :, rows])
        pieces.append(output.detach())
    grads = tuple(tensor.grad for tensor in (q, k, v) if tensor.grad is not None)
    return [torch.cat(pieces, dim=2), *grads]
