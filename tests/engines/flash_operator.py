"""PyTorch's flash-attention operator in plain float operations, after its schema and its source (``flash_api.cpp``).

Both functions have the arguments of ``aten::_flash_attention_forward`` and ``aten::_flash_attention_backward``, and
refuse what these refuse. They also take double precision, in which log-sum-exps are double, too.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

CALLS: list[dict[str, Any]] = []
"""The arguments of every forward call outside of a graph."""


def _window(causal: bool, left: int | None, right: int | None) -> tuple[int, int]:
    left, right = -1 if left is None else left, -1 if right is None else right
    right = 0 if causal else right
    return (1 << 40 if left < 0 else left), (1 << 40 if right < 0 else right)


def _check(q: Tensor, k: Tensor, v: Tensor, offsets: tuple[Tensor | None, Tensor | None]) -> None:
    assert q.dtype == k.dtype == v.dtype != torch.float32, "FlashAttention only support fp16 and bf16 data type"
    assert all(x.stride(-1) == 1 for x in (q, k, v)), "Input tensor must have contiguous last dimension"
    assert q.shape[-1] % 8 == 0, "head_size must be a multiple of 8, this is ensured by padding!"
    assert q.shape[-1] <= 256, "FlashAttention forward only supports head dimension at most 256"
    assert q.shape[-2] % k.shape[-2] == 0, "Number of heads in key/value must divide number of heads in query"
    assert k.shape == v.shape
    assert k.shape[-1] == q.shape[-1]
    assert (offsets[0] is None) == (offsets[1] is None), (
        "cumulative_sequence_length_q and _k must be both set or both not set"
    )
    assert q.dim() == (4 if offsets[0] is None else 3)
    for offset, x in zip(offsets, (q, k), strict=True):
        if offset is not None:
            assert offset.dtype == torch.int32, "cu_seqlens must have dtype int32"
            assert offset.is_contiguous()
            assert offset[0] == 0
            assert offset[-1] == x.shape[0]


def _sequences(
    q: Tensor, k: Tensor, offsets_q: Tensor | None, offsets_k: Tensor | None, most: tuple[int, int]
) -> Iterator[tuple[Any, Any, slice | None]]:
    """Where each sequence lies in queries and in keys, and in a log-sum-exp that is packed."""
    if offsets_q is None or offsets_k is None:
        yield from ((row, row, None) for row in range(q.shape[0]))
        return
    of_queries, of_keys = (itertools.pairwise(offsets.tolist()) for offsets in (offsets_q, offsets_k))
    for (start, stop), (first, last) in zip(of_queries, of_keys, strict=True):
        assert stop - start <= most[0]
        assert last - first <= most[1]
        yield slice(start, stop), slice(first, last), slice(start, stop)


def _weights(q: Tensor, k: Tensor, scale: float, window: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Scores ``(H, n, m)``, -inf where the window hides a key, and keys ``(H, m, D)`` for ``q (n, H, D)``: the last
    queries of the keys."""
    queries, keys = q.transpose(0, 1), k.transpose(0, 1).repeat_interleave(q.shape[1] // k.shape[1], 0)
    rows, columns = (torch.arange(x.shape[0], device=q.device) for x in (q, k))
    distance = rows[:, None] + k.shape[0] - q.shape[0] - columns
    hidden = (distance > window[0]) | (-distance > window[1])
    precise = torch.promote_types(q.dtype, torch.float32)
    return (queries.to(precise) @ keys.to(precise).mT * scale).masked_fill(hidden, float("-inf")), keys.to(precise)


def _kept(scores: Tensor, dropout: float, state: Tensor, number: Any) -> Tensor | float:
    """The share by which dropout multiplies each weight: a hash of its place, the state and the sequence."""
    if not dropout:
        return 1.0
    seed = state[0] % 1009 + (number if isinstance(number, int) else number.start)
    numbers = torch.arange(scores.numel(), dtype=torch.float64).view(scores.shape) + seed * 1e-3
    return (((numbers * 12.9898).sin() * 43758.5453).frac().abs() >= dropout).to(scores.dtype) / (1 - dropout)


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets_q: Tensor | None,
    offsets_k: Tensor | None,
    most_q: int,
    most_k: int,
    dropout: float,
    causal: bool,
    debug: bool,
    *,
    scale: float | None = None,
    window_size_left: int | None = None,
    window_size_right: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Queries that see no key have zeros, and a log-sum-exp of +inf, as in FlashAttention-2."""
    assert not debug
    in_graph = torch.compiler.is_compiling()
    _check(q, k, v, (offsets_q, offsets_k))
    state = torch.zeros(2, dtype=torch.int64, device=q.device)
    if dropout:
        state = torch.randint(1 << 30, (2,))  # the state of the default generator
    if not in_graph:
        CALLS.append(
            {
                "q": q.shape,
                "k": k.shape,
                "offsets": offsets_q,
                "dropout": dropout,
                "causal": causal,
                "state": state,
                "window": (window_size_left, window_size_right),
                "most": (most_q, most_k),
            }
        )
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    window = _window(causal, window_size_left, window_size_right)
    outs, lses = [], []
    for at, keys_at, _ in _sequences(q, k, offsets_q, offsets_k, (most_q, most_k)):
        scores, _ = _weights(q[at], k[keys_at], scale, window)
        lse = scores.logsumexp(-1)
        weights = (scores - lse.masked_fill(lse.isinf(), 0)[..., None]).exp() * _kept(scores, dropout, state, at)
        values = v[keys_at].transpose(0, 1).repeat_interleave(q.shape[-2] // k.shape[-2], 0)
        outs.append((weights @ values.to(weights.dtype)).transpose(0, 1).to(q.dtype))
        lses.append(lse.masked_fill(lse.isinf(), float("inf")))
    packed = offsets_q is not None
    out, lse = (torch.cat(outs), torch.cat(lses, 1)) if packed else (torch.stack(outs), torch.stack(lses))
    return out, lse.contiguous(), state, torch.zeros((), dtype=torch.int64, device=q.device), q.new_empty(0)


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    offsets_q: Tensor | None,
    offsets_k: Tensor | None,
    most_q: int,
    most_k: int,
    dropout: float,
    causal: bool,
    state: Tensor,
    unused: Tensor,
    *,
    scale: float | None = None,
    window_size_left: int | None = None,
    window_size_right: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Of the forward pass it takes ``lse``, since weights are ``exp(scores - lse)``, and ``out``, as
    ``grad · out``."""
    _check(q, k, v, (offsets_q, offsets_k))
    assert lse.is_contiguous(), "the kernel reads it by its address alone"
    assert grad.shape == out.shape == q.shape
    assert grad.dtype == out.dtype == q.dtype
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    window, repeats = _window(causal, window_size_left, window_size_right), q.shape[-2] // k.shape[-2]
    parts: list[list[Tensor]] = [[], [], []]
    for at, keys_at, place in _sequences(q, k, offsets_q, offsets_k, (most_q, most_k)):
        scores, keys = _weights(q[at], k[keys_at], scale, window)
        weights = (scores - (lse[at] if place is None else lse[:, place])[..., None]).exp()
        kept = _kept(scores, dropout, state, at)
        of_out, queries, outs, values = (
            x.transpose(0, 1).to(scores.dtype) for x in (grad[at], q[at], out[at], v[keys_at])
        )
        values = values.repeat_interleave(repeats, 0)
        of_scores = weights * ((of_out @ values.mT) * kept - (of_out * outs).sum(-1, keepdim=True)) * scale
        dk, dv = of_scores.mT @ queries, (weights * kept).mT @ of_out
        found = (of_scores @ keys, *(x.unflatten(0, (-1, repeats)).sum(1) for x in (dk, dv)))
        for part, x in zip(parts, found, strict=True):
            part.append(x.transpose(0, 1).to(q.dtype))
    join = torch.stack if offsets_q is None else torch.cat
    dq, dk, dv = (join(part) for part in parts)
    return dq, dk, dv
