"""A band and global tokens by three calls of PyTorch's flash-attention operator, for calls with dropout and machines without Triton.

Part A is the band over the other tokens, part B is their attention to the global keys, and part C is the attention of the global tokens to
all keys. A and B have no key in common, so their outputs are merged by their log-sum-exps (:mod:`.flash_band`), and the operator's backward
pass takes the merged output. Offsets say which queries meet which keys: a stretch of queries without keys has the output 0.

If the global tokens stand in front of each sequence, the parts are stretches of the same rows, and nothing is copied. Otherwise,
they are gathered for B and C; in A, further features give global keys scores of -:data:`HIDDEN`, so that they have no weight.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..batch import SequenceSpan, on_host
from ..call import AttentionCall, Pattern
from . import flash_band

HIDDEN = 30_000.0
"""How far the scores of global keys are lowered in part A. Their weight exp(-HIDDEN) is 0, and fp16 holds the features."""
FEATURES = 8
"""Features that lower scores. Only one is needed, but the operator takes widths in multiples of 8."""


class Part(NamedTuple):
    """The offsets of a call: pairs of stretches of queries and keys, int32, and the longest stretch of each in tokens."""

    queries: Tensor
    keys: Tensor
    longest: tuple[int, int]

    @classmethod
    def of(cls, ends: Sequence[tuple[int, int]], device: torch.device) -> Part:
        """The part whose stretches end at ``ends``, pairs of a query and a key. Empty ones go."""
        ends = [(0, 0), *(end for end, before in zip(ends, [(0, 0), *ends], strict=False) if end != before)]
        longest = [max((later - earlier for earlier, later in itertools.pairwise(side)), default=0) for side in zip(*ends, strict=True)]
        queries, keys = (torch.tensor(side, dtype=torch.int32).to(device) for side in zip(*ends, strict=True))
        return cls(queries, keys, (max(1, longest[0]), max(1, longest[1])))


class Plan(NamedTuple):
    """How the three parts read the concatenated rows of a batch.

    gathered: the places of global tokens, int64, and 1 at these tokens ``(B·N, 1, FEATURES)``; ``None`` if they stand in front.
    rows: ``(B·N, 1, 1)`` bool, True = global token.
    lacking: whether some sequence has no global token.
    """

    a: Part
    b: Part
    c: Part
    gathered: tuple[Tensor, Tensor] | None
    rows: Tensor
    lacking: bool


def plan_of(call: AttentionCall, pattern: Pattern, rows: int, length: int, device: torch.device) -> Plan | str:
    """The plan of a call with global tokens, kept for all layers, or why there is none, as a clause. Reads the host at most once a pass."""
    batch, tokens, positions = call.batch, call.global_mask, call.global_positions
    assert tokens is not None

    def make() -> Plan | str:
        spans = [SequenceSpan(row, 0, length, False) for row in range(rows)] if batch is None else batch.sequences
        if positions is not None:
            places = [[span.start + place for place in positions if place < span.length] for span in spans]
        else:
            chosen = on_host(tokens).numpy()
            places = [(np.flatnonzero(chosen[span.row, span.start : span.stop]) + span.start).tolist() for span in spans]
        in_front = all(of_span == list(range(span.start, span.start + len(of_span))) for span, of_span in zip(spans, places, strict=True))
        if not in_front and pattern.causal:
            return "the operator cannot hide global tokens after a query"
        return _plan(spans, places, rows * length, length, in_front and (pattern.causal or pattern.global_rows), pattern, device)

    return call.kept(("three calls", pattern, rows, length, device), make, lambda _: 16 * rows * length)


def _plan(
    spans: Sequence[SequenceSpan], places: Sequence[Sequence[int]], total: int, length: int, in_front: bool, pattern: Pattern,
    device: torch.device,
) -> Plan:  # fmt: skip
    a: list[tuple[int, int]] = []
    b: list[tuple[int, int]] = []
    c: list[tuple[int, int]] = []
    every: list[int] = []
    # Queries in padding meet keys in padding in A and B: with a key in neither, the merge would compute inf - inf.
    last_c = 0  # the first key after C's last stretch
    for span, of_span in zip(spans, places, strict=True):
        row, count = span.row * length, len(of_span)
        start, stop = row + span.start, row + span.stop
        front = start + count
        every += [row + place for place in of_span]
        if in_front:
            a += [(start, start), (front, start), (front, front), (stop, stop)]
            b += [(start, start), (front, start), (stop, front), (stop, stop)]
            c += [(start, last_c), (start, start), (front, front if pattern.causal else stop), (front, stop), (stop, stop)]
            last_c = stop
        else:
            a += [(start, start), (stop, stop)]
            b += [(start, len(every) - count), (stop, len(every))]
            c += [(len(every) - count, start), (len(every), stop)]
    a.append((total, total))
    b.append((total, total if in_front else len(every)))
    c += [(total, last_c), (total, total)] if in_front else [(len(every), total)]
    index = torch.tensor(every, dtype=torch.int64).to(device)
    marks = torch.zeros(total, 1, 1, dtype=torch.bool, device=device).index_fill_(0, index, True)
    parts = Part.of(a, device), Part.of(b, device), Part.of(c, device)
    return Plan(*parts, None if in_front else (index, marks.float().expand(-1, -1, FEATURES)), marks, not all(places))


def flash_globals(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, call: AttentionCall) -> Tensor:
    """:func:`.flash_band.flash_band` for calls with global tokens.

    Raises:
        NoKernel: this machine has no such kernel, or the three parts do not make this call.
    """
    plan = plan_of(call, pattern, len(k), k.shape[2], k.device)
    if isinstance(plan, str):
        raise flash_band.NoKernel(plan)
    rows, settings = flash_band.prepared(q, k, v, pattern, call, packed=True)
    flat = [x.flatten(0, 1) for x in rows]
    if plan.gathered is None:
        out: Tensor = _InFront.apply(*flat, plan, settings)
    else:
        out = _Gathered.apply(*flat, plan, pattern.global_rows, settings)
    return out.view(rows[0].shape).transpose(1, 2)[..., : q.shape[3]]


def _forward(q: Tensor, k: Tensor, v: Tensor, part: Part, settings: flash_band.Settings, windowed: bool, causal: bool) -> Any:
    """Output ``(T, H, D)``, log-sum-exp ``(H, T)`` and the two tensors of dropout's random state."""
    return flash_band.flash_forward(
        q, k, v, part.queries, part.keys, *part.longest, settings.dropout, causal, False, **settings.keywords(windowed)
    )[:4]


def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, state: Sequence[Tensor], part: Part,
    settings: flash_band.Settings, windowed: bool, causal: bool,
) -> Any:  # fmt: skip
    """Gradients of q, k and v, from the output and log-sum-exp of the whole softmax."""
    return flash_band.flash_backward(
        grad, q, k, v, out, lse, part.queries, part.keys, *part.longest, settings.dropout, causal, *state, **settings.keywords(windowed)
    )


def _merged(a: Tensor, lse_a: Tensor, b: Tensor, lse_b: Tensor, lacking: bool) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp of two parts. Without a key in A, the log-sum-exp is +inf, and the backward pass gives zeros.

    lacking: whether queries may lack a key in B only, where the operator's log-sum-exp is +inf, too.
    """
    if lacking:
        lse_b = lse_b.masked_fill(lse_b.isposinf(), float("-inf"))
    share = (lse_b - lse_a).sigmoid_().T[..., None].to(a.dtype)
    return torch.lerp(a, b, share), torch.logaddexp(lse_a, lse_b)


class _InFront(torch.autograd.Function):
    """Global tokens in front of each sequence. Tensors are ``(B·N, H, D)``. Global queries have no keys in A and B, others none in C."""

    @staticmethod
    def forward(ctx, q, k, v, plan, settings):  # type: ignore[no-untyped-def]
        a, lse_a, *state_a = _forward(q, k, v, plan.a, settings, True, settings.causal)
        b, lse_b, *state_b = _forward(q, k, v, plan.b, settings, False, False)
        c, lse_c, *state_c = _forward(q, k, v, plan.c, settings, False, settings.causal)
        both, lse = _merged(a, lse_a, b, lse_b, plan.lacking)
        out = torch.where(plan.rows, c, both)
        ctx.save_for_backward(q, k, v, out, lse, lse_c, *state_a, *state_b, *state_c)
        ctx.plan, ctx.settings = plan, settings
        return out

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        q, k, v, out, lse, lse_c, *states = ctx.saved_tensors
        plan, settings = ctx.plan, ctx.settings
        grad = grad.contiguous()
        a = _backward(grad, q, k, v, out, lse, states[:2], plan.a, settings, True, settings.causal)
        b = _backward(grad, q, k, v, out, lse, states[2:4], plan.b, settings, False, False)
        c = _backward(grad, q, k, v, out, lse_c, states[4:], plan.c, settings, False, settings.causal)
        return *(x.add_(y).add_(z) for x, y, z in zip(a, b, c, strict=True)), None, None


class _Gathered(torch.autograd.Function):
    """Global tokens anywhere, in both directions. Tensors are ``(B·N, H, D)``. C runs only if global tokens attend to every key."""

    @staticmethod
    def forward(ctx, q, k, v, plan, global_rows, settings):  # type: ignore[no-untyped-def]
        (index, marks), width = plan.gathered, q.shape[-1]
        ctx.plan, ctx.settings, ctx.global_rows = plan, settings, global_rows
        of_k, of_v = k[index], v[index]
        a, lse_a, *state_a = _forward(*_lowered(q, k, v, marks, settings.scale), plan.a, settings, True, False)
        b, lse_b, *state_b = _forward(q, of_k, of_v, plan.b, settings, False, False)
        out, lse = _merged(a[..., :width], lse_a, b, lse_b, plan.lacking)
        c = lse_c = None
        state_c: list[Tensor] = []
        if global_rows:
            c, lse_c, *state_c = _forward(q[index], k, v, plan.c, settings, False, False)
            out, lse = out.index_copy_(0, index, c), lse.index_fill_(1, index, float("inf"))
        ctx.save_for_backward(q, k, v, out, lse, c, lse_c, *state_a, *state_b, *state_c)
        return out

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        q, k, v, out, lse, c, lse_c, *states = ctx.saved_tensors
        plan, settings, width = ctx.plan, ctx.settings, q.shape[-1]
        index, marks = plan.gathered
        wide = [F.pad(x, (0, FEATURES)) for x in (grad, out)]
        a = _backward(wide[0], *_lowered(q, k, v, marks, settings.scale), wide[1], lse, states[:2], plan.a, settings, True, False)
        dq, dk, dv = (x[..., :width] for x in a)
        of_q, of_k, of_v = _backward(grad.contiguous(), q, k[index], v[index], out, lse, states[2:4], plan.b, settings, False, False)
        dq, dk, dv = dq + of_q, dk.index_add(0, index, of_k), dv.index_add(0, index, of_v)
        if ctx.global_rows:
            rows, of_k, of_v = _backward(grad[index], q[index], k, v, c, lse_c, states[4:], plan.c, settings, False, False)
            dq, dk, dv = dq.index_copy_(0, index, rows), dk.add_(of_k), dv.add_(of_v)
        return dq, dk, dv, None, None, None


def _lowered(q: Tensor, k: Tensor, v: Tensor, marks: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """The tensors with features that lower the scores of marked keys by :data:`HIDDEN`."""
    size = math.sqrt(HIDDEN / (FEATURES * scale))
    lowering = (marks * -size).to(k.dtype).expand(-1, k.shape[1], -1)
    return F.pad(q, (0, FEATURES), value=size), torch.cat([k, lowering], -1), F.pad(v, (0, FEATURES))
