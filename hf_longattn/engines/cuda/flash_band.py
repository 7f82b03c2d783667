"""The ``flash`` path: PyTorch's flash-attention operator for bands, padding, packed documents, global tokens and
dropout.

It needs no compiler. The operator (``aten::_flash_attention_forward``; Dao 2023, FlashAttention-2) takes the width of
a window to the left and to the right, fewer key heads than query heads, dropout, and the offsets of concatenated
sequences. Padding at the ends of a batch row is passed as another sequence: nothing is copied, and no token is paired
with padding.
``torch.nn.attention.activate_flash_attention_impl`` replaces the operator by FlashAttention-3 or 4. The public
function for the same operator, ``torch.nn.attention.varlen.varlen_attn``, is not used: it has no dropout, and its
backward pass takes no merged output.

Let part p of a softmax have output o_p and log-sum-exp l_p. Then l = log Σ_p exp(l_p) and o = Σ_p exp(l_p - l) o_p.
For a gradient g of o, the gradient of score s_ij is exp(s_ij - l_i) (g_i·v_j - g_i·o_i) (ibid., section 3.1), so the
operator's backward pass takes the merged o and l. This also holds with dropout: l does not change, and o sums the
remaining weights.

A band with global tokens is three calls (:func:`flash_globals`), for calls with dropout and machines without Triton.
Part A is the band over the other tokens, part B is their attention to the global keys, and part C is the attention of
the global tokens to all keys. A and B have no key in common, so their outputs are merged. Offsets say which queries
meet which keys: a run of queries without keys has the output 0. If the global tokens stand in front of each sequence,
the parts are runs of the same rows, and nothing is copied. Otherwise, global tokens are gathered for B and C. In A,
additional features then lower the scores of global keys by :data:`HIDDEN`, so that these keys have no weight.

To find out whether the machine has the kernel, the operator runs on a few tokens for each kind of call, and its
results are checked.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import current_flash_attention_impl

from ...names import look_up
from ..batch import Batch, SequenceSpan, differentiated, in_graph, no_fused_kernels, on_host
from ..blockwise import blockwise_attention
from ..call import ELSEWHERE, NOT_IN_AN_EXPORTED_GRAPH, AttentionCall, DispatchContext, Pattern
from ..dense import at_least_fp32, repeat_heads, unit_stride
from .flex_kernel import MACHINE_ERRORS, NoKernel, first_line, warn_once

flash_forward = look_up("cuda_flash", when_called=True)
flash_backward = look_up("cuda_flash", 1, when_called=True)
MAX_FEATURES = 256
"""Maximum width of a head."""
DTYPES = (torch.bfloat16, torch.float16)
"""Dtypes in which the operator computes."""
WIDTH_STEP = 8
"""Head widths are zero-padded to a multiple of this many features."""


def why_not(context: DispatchContext) -> str | None:
    """Why the operator does not run a band, as a clause. ``None`` if it may run."""
    call = context.call
    if context.device != "cuda":
        return ELSEWHERE
    if context.exporting:
        return NOT_IN_AN_EXPORTED_GRAPH
    if call.score_mod is not None:
        return "the flash-attention operator adds no score term"
    if context.dtype not in DTYPES:
        return "the flash-attention operator computes in half precision only"
    if context.features > MAX_FEATURES:
        return f"the flash-attention operator takes heads of up to {MAX_FEATURES} numbers"
    why = no_fused_kernels()
    if why is not None:
        return why
    if call.batch is None and call.global_mask is None:
        return None
    if in_graph():
        return "a graph knows neither where sequences start nor how many tokens are global"
    if context.q_len != context.kv_len:
        return "the queries are some tokens of a batch with padding or global tokens"
    if call.global_mask is not None and call.sink_scores is not None:
        return "it merges global tokens or sinks, but not both"
    if call.batch is not None and call.batch.has_holes:
        return "there is padding between the tokens of a sequence"
    return None


class Part(NamedTuple):
    """Offsets of a call on concatenated rows: run n of queries sees run n of keys.

    queries, keys: ``(runs + 1,)`` int32, where each run begins, and where the last one ends.
    longest: tokens of the longest run of queries, and of keys.
    """

    queries: Tensor
    keys: Tensor
    longest: tuple[int, int]

    @classmethod
    def of(cls, ends: Sequence[tuple[int, int]], device: torch.device) -> Part:
        """The part with runs that end at ``ends``, pairs of a query and a key. Empty runs are removed."""
        borders = [(0, 0)]
        for end in ends:
            if end != borders[-1]:
                borders.append(end)
        offsets = [*zip(*borders, strict=True)]
        queries, keys = (torch.tensor(x, dtype=torch.int32).to(device) for x in offsets)
        most_queries, most_keys = (max([1, *(b - a for a, b in itertools.pairwise(x))]) for x in offsets)
        return cls(queries, keys, (most_queries, most_keys))


class Settings(NamedTuple):
    """The operator's arguments besides tensors. ``left`` and ``right`` are the tokens of the window on each side of
    the query, -1 if unbounded."""

    left: int
    right: int
    causal: bool
    scale: float
    dropout: float

    def run(self, q: Tensor, k: Tensor, v: Tensor, part: Part | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The output, the log-sum-exp ``(B, H, Nq)`` and two tensors of dropout's random state, for
        ``q (B, Nq, H, D)``. With a part, q, k, v and the output are ``(tokens, H, D)``, and the log-sum-exp is
        ``(H, tokens)``."""
        out, lse, *state, _ = flash_forward(
            q, k, v, *_offsets(q, k, part), self.dropout, self.causal, False, **self.keywords
        )
        return out, lse, *state

    def gradients(
        self,
        grad: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        lse: Tensor,
        state: Sequence[Tensor],
        part: Part | None,
    ) -> list[Tensor]:
        """Gradients of q, k and v. ``out`` and ``lse`` belong to the whole softmax, which may include other parts."""
        tensors = grad, q, k, v, out, lse.contiguous(), *_offsets(q, k, part)
        return flash_backward(*tensors, self.dropout, self.causal, *state, **self.keywords)

    @property
    def keywords(self) -> dict[str, Any]:
        """The operator's keyword arguments."""
        return {"scale": self.scale, "window_size_left": self.left, "window_size_right": self.right}

    def over_all(self, causal: bool = False) -> Settings:
        """These settings without a window."""
        return self._replace(left=-1, right=-1, causal=causal)


def _offsets(q: Tensor, k: Tensor, part: Part | None) -> tuple[Any, ...]:
    """The operator's arguments for the offsets of queries and keys, and for the lengths of the longest runs."""
    if part is None:
        return None, None, q.shape[1], k.shape[1]
    return part.queries, part.keys, *part.longest


class _Band(torch.autograd.Function):
    """Attention over a band, for tensors as in :meth:`Settings.run`. ``sinks (H,)`` are scores of one more part, whose
    output is 0; ``None`` without it."""

    @staticmethod
    def forward(ctx, q, k, v, sinks, part, settings):  # type: ignore[no-untyped-def]
        """The output of the band, merged with the sinks."""
        ctx.settings, ctx.part = settings, part
        out, lse, *state = settings.run(q, k, v, part)
        if sinks is not None:
            total = torch.logaddexp(lse, at_least_fp32(sinks)[:, None])  # finite: a query sees itself in the band
            out = out * _share(lse, total, out)
            lse = total
        ctx.save_for_backward(q, k, v, sinks, out, lse, *state)
        return out

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        q, k, v, sinks, out, lse, *state = ctx.saved_tensors
        d_sinks = None
        if sinks is not None:
            weights = _share(at_least_fp32(sinks)[:, None], lse, lse)[..., 0] * (grad * at_least_fp32(out)).sum(-1)
            d_sinks = -weights.flatten(0, -2).sum(0).to(sinks.dtype)
        return *ctx.settings.gradients(grad, q, k, v, out, lse, state, ctx.part), d_sinks, None, None


def _share(part: Tensor, total: Tensor, like: Tensor) -> Tensor:
    """The weight ``(…, N, H, 1)`` of a part in the merged output, from the log-sum-exps ``(…, H, N)`` of the part and
    of the total, in the dtype of ``like``."""
    return (part - total).exp().mT[..., None].to(like.dtype)


def flash_band(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, call: AttentionCall) -> Tensor:
    """Compute :func:`hf_longattn.engines.block_sparse.block_sparse_attention`, without a score term and global tokens.

    k and v may have fewer heads than q. A query sees only its own document. Padding must lie at the ends of sequences.
    Calls with padding or documents must have as many queries as keys.

    Raises:
        NoKernel: this machine has no such kernel; logged once.
    """
    part = None
    if call.batch is not None:
        part = part_of_sequences(call.batch, len(k), k.shape[2], k.device)
    rows, settings = prepared(q, k, v, pattern, call, part is not None)
    return _band(rows, call.sink_scores, part, settings).transpose(1, 2)[..., : q.shape[3]]


def _band(rows: Sequence[Tensor], sinks: Tensor | None, part: Part | None, settings: Settings) -> Tensor:
    """The output ``(B, Nq, H, D)`` for q, k and v of :func:`prepared`."""
    tensors = rows if part is None else [x.flatten(0, 1) for x in rows]
    out: Tensor = _Band.apply(*tensors, sinks, part, settings)
    return out.view(rows[0].shape)


def prepared(
    q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, call: AttentionCall, packed: bool
) -> tuple[list[Tensor], Settings]:
    """q, k and v in the operator's layout, ``(B, N, H, D)`` with a width that it takes, and its settings.

    packed: whether the operator gets offsets of sequences.

    Raises:
        NoKernel: this machine has no such kernel; logged once.
    """
    index = operator.index  # plain ints, even in a graph
    heads, groups, width = index(q.shape[1]), index(k.shape[1]), index(q.shape[3])
    left = index(pattern.left) if pattern.left < 1 << 31 else -1
    right = index(pattern.right) if pattern.right < 1 << 31 else -1
    padded_width = width + -width % WIDTH_STEP
    settings = Settings(left, right, pattern.causal, call.scale_for(width), call.dropout)
    properties = padded_width, groups != heads, left >= 0, right >= 0, pattern.causal, packed, call.dropout > 0
    reason = refused(q.device, q.dtype, *properties, differentiated(q, k, v))
    if reason is not None:
        raise NoKernel(reason)
    rows = []
    for x in (q, k, v):  # if no feature is missing, a projection's output is not copied
        row = x.transpose(1, 2)
        if width != padded_width:
            row = F.pad(row, (0, padded_width - width))
        rows.append(unit_stride(row))
    return rows, settings


def part_of_sequences(batch: Batch, rows: int, length: int, device: torch.device) -> Part | None:
    """The offsets of a batch's sequences in its concatenated rows. Each run of padding counts as a sequence. ``None``
    if every batch row is one sequence."""

    def make() -> Part | None:
        borders = {*range(0, rows * length + 1, length)}
        for span in batch.sequences:
            borders |= {span.row * length + span.start, span.row * length + span.stop}
        if len(borders) == rows + 1:
            return None
        return Part.of([(border, border) for border in sorted(borders)], device)

    return batch.cached(("sequences as a part", length, device), make)


# ---- global tokens

HIDDEN = 30_000.0
"""Amount by which part A lowers the scores of global keys. Their weight exp(-HIDDEN) rounds to 0, and the features fit
into fp16."""
FEATURES = 8
"""Features that lower scores. Only one is needed, but the operator takes widths in multiples of 8."""


class Plan(NamedTuple):
    """How the three parts of the module's docstring read the concatenated rows of a batch.

    a, b, c: the offsets of the parts A, B and C.
    gathered: if global tokens are gathered, their positions, int64, and ``(B·N, 1, FEATURES)`` with 1 at these tokens
        and 0 elsewhere. ``None`` if global tokens stand in front of each sequence.
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
    """The plan of a call with global tokens, or a clause that says why there is none. It is cached for all layers, and
    needs one transfer to the host.

    rows, length: number of batch rows, and of the tokens of a row.
    """
    key = "three calls", pattern, rows, length, device
    return call.cached(key, lambda: _plan(call, pattern, rows, length, device), lambda _: 16 * rows * length)


def _plan(call: AttentionCall, pattern: Pattern, rows: int, length: int, device: torch.device) -> Plan | str:
    """:func:`plan_of` without the cache."""
    batch, positions, total = call.batch, call.global_positions, rows * length
    assert call.global_mask is not None
    if batch is None:
        spans: Sequence[SequenceSpan] = [SequenceSpan(row, 0, length, False) for row in range(rows)]
    else:
        spans = batch.sequences
    # For each sequence, the positions of its global tokens in the batch row, and whether they are its first tokens.
    if positions is not None:
        span_globals = [[span.start + number for number in positions if number < span.length] for span in spans]
    else:
        mask = on_host(call.global_mask)
        span_globals = [
            (np.flatnonzero(mask[span.row, span.start : span.stop]) + span.start).tolist() for span in spans
        ]
    in_front = all(
        tokens == list(range(span.start, span.start + len(tokens)))
        for span, tokens in zip(spans, span_globals, strict=True)
    )
    if pattern.causal and not in_front:
        return "the operator cannot hide global tokens after a query"
    in_front = in_front and (pattern.causal or pattern.global_rows)
    # The ends of the runs of each part, (query, key) in the concatenated rows. If global tokens are gathered, the keys
    # of B and the queries of C are their numbers among all global tokens.
    # Queries in padding see keys in padding. Without a key in A and B, the merge would compute inf - inf.
    a, b, c = (list[tuple[int, int]]() for _ in range(3))
    global_tokens = list[int]()
    last_c = 0  # the first key after C's last run
    for span, tokens in zip(spans, span_globals, strict=True):
        row = span.row * length
        start, stop = row + span.start, row + span.stop
        front = start + len(tokens)  # the end of global tokens that are in front
        first_global = len(global_tokens)
        global_tokens += [row + token for token in tokens]
        end_global = len(global_tokens)
        if in_front:
            a += [(start, start), (front, start), (front, front), (stop, stop)]
            b += [(start, start), (front, start), (stop, front), (stop, stop)]
            end = front if pattern.causal else stop
            c += [(start, last_c), (start, start), (front, end), (front, stop), (stop, stop)]
            last_c = stop
        else:
            a += [(start, start), (stop, stop)]
            b += [(start, first_global), (stop, end_global)]
            c += [(first_global, start), (end_global, stop)]
    # The last runs are padding after the last sequence.
    a.append((total, total))
    if in_front:
        b.append((total, total))
        c += [(total, last_c), (total, total)]
    else:
        b.append((total, len(global_tokens)))
        c.append((len(global_tokens), total))
    index = torch.tensor(global_tokens, dtype=torch.int64).to(device)
    is_global = torch.zeros(total, 1, 1, dtype=torch.bool, device=device).index_fill_(0, index, True)
    gathered = None
    if not in_front:
        gathered = index, is_global.float().expand(-1, -1, FEATURES)
    parts = Part.of(a, device), Part.of(b, device), Part.of(c, device)
    return Plan(*parts, gathered, is_global, not all(span_globals))


def flash_globals(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, call: AttentionCall) -> Tensor:
    """:func:`flash_band` for calls with global tokens.

    Raises:
        NoKernel: this machine has no such kernel, or the three parts do not make this call.
    """
    plan = plan_of(call, pattern, len(k), k.shape[2], k.device)
    if isinstance(plan, str):
        raise NoKernel(plan)
    rows, settings = prepared(q, k, v, pattern, call, packed=True)
    flat = [x.flatten(0, 1) for x in rows]
    if plan.gathered is None:
        out: Tensor = _InFront.apply(*flat, plan, settings)
    else:
        out = _Gathered.apply(*flat, plan, pattern.global_rows, settings)
    return out.view(rows[0].shape).transpose(1, 2)[..., : q.shape[3]]


def _merged(a: Tensor, lse_a: Tensor, b: Tensor, lse_b: Tensor, lacking: bool) -> tuple[Tensor, Tensor]:
    """The merged output and log-sum-exp of the parts A and B. For a query without a key in A, the log-sum-exp is +inf,
    and gradients are zeros.

    lacking: whether a query may have keys in A but none in B. The operator's log-sum-exp in B is then +inf and must be
        replaced.
    """
    if lacking:
        lse_b = lse_b.masked_fill(lse_b.isposinf(), float("-inf"))
    share = (lse_b - lse_a).sigmoid_().T[..., None].to(a.dtype)
    return torch.lerp(a, b, share), torch.logaddexp(lse_a, lse_b)


class _InFront(torch.autograd.Function):
    """Attention with global tokens in front of each sequence, for tensors ``(B·N, H, D)``. Global queries have no keys
    in A and B, and other queries have none in C."""

    @staticmethod
    def forward(ctx, q, k, v, plan, settings):  # type: ignore[no-untyped-def]
        """The output: C for global queries, and A merged with B for the others."""
        a, lse_a, *state_a = settings.run(q, k, v, plan.a)
        b, lse_b, *state_b = settings.over_all().run(q, k, v, plan.b)
        c, lse_c, *state_c = settings.over_all(settings.causal).run(q, k, v, plan.c)
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
        a = settings.gradients(grad, q, k, v, out, lse, states[:2], plan.a)
        b = settings.over_all().gradients(grad, q, k, v, out, lse, states[2:4], plan.b)
        c = settings.over_all(settings.causal).gradients(grad, q, k, v, out, lse_c, states[4:], plan.c)
        return *(x.add_(y).add_(z) for x, y, z in zip(a, b, c, strict=True)), None, None


class _Gathered(torch.autograd.Function):
    """Bidirectional attention with global tokens anywhere, for tensors ``(B·N, H, D)``. C runs only if global tokens
    attend to every key."""

    @staticmethod
    def forward(ctx, q, k, v, plan, global_rows, settings):  # type: ignore[no-untyped-def]
        """The output: A merged with B, overwritten by C for global queries."""
        ctx.plan, ctx.settings, ctx.global_rows = plan, settings, global_rows
        index, is_global = plan.gathered
        a, lse_a, *state_a = settings.run(*_lowered(q, k, v, is_global, settings.scale), plan.a)
        b, lse_b, *state_b = settings.over_all().run(q, k[index], v[index], plan.b)
        out, lse = _merged(a[..., : q.shape[-1]], lse_a, b, lse_b, plan.lacking)
        c = lse_c = None
        state_c: list[Tensor] = []
        if global_rows:
            c, lse_c, *state_c = settings.over_all().run(q[index], k, v, plan.c)
            out.index_copy_(0, index, c)
            lse.index_fill_(1, index, float("inf"))  # in A and B, these rows then get no gradients
        ctx.save_for_backward(q, k, v, out, lse, c, lse_c, *state_a, *state_b, *state_c)
        return out

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        """The gradients of q, k and v, summed over A, B and C."""
        q, k, v, out, lse, c, lse_c, *states = ctx.saved_tensors
        plan, settings, width = ctx.plan, ctx.settings, q.shape[-1]
        index, is_global = plan.gathered
        wide = [F.pad(x, (0, FEATURES)) for x in (grad, out)]
        lowered = _lowered(q, k, v, is_global, settings.scale)
        a = settings.gradients(wide[0], *lowered, wide[1], lse, states[:2], plan.a)
        d_q, d_k, d_v = (x[..., :width] for x in a)
        everything = settings.over_all()
        b_q, b_k, b_v = everything.gradients(grad.contiguous(), q, k[index], v[index], out, lse, states[2:4], plan.b)
        d_q, d_k, d_v = d_q + b_q, d_k.index_add(0, index, b_k), d_v.index_add(0, index, b_v)
        if ctx.global_rows:
            c_q, c_k, c_v = everything.gradients(grad[index], q[index], k, v, c, lse_c, states[4:], plan.c)
            d_q, d_k, d_v = d_q.index_copy_(0, index, c_q), d_k.add_(c_k), d_v.add_(c_v)
        return d_q, d_k, d_v, None, None, None


def _lowered(q: Tensor, k: Tensor, v: Tensor, is_global: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v with :data:`FEATURES` more features, which lower the scores of global keys by :data:`HIDDEN`. The
    features are ``size`` in queries and ``-size`` in global keys: FEATURES · size² · scale = HIDDEN."""
    size = math.sqrt(HIDDEN / (FEATURES * scale))
    lowering = (is_global * -size).to(k.dtype).expand(-1, k.shape[1], -1)
    return F.pad(q, (0, FEATURES), value=size), torch.cat([k, lowering], -1), F.pad(v, (0, FEATURES))


# ---- whether this machine has a kernel


def refused(device: torch.device, dtype: torch.dtype, width: int, *properties: Any) -> str | None:
    """Why the operator cannot run calls with these properties, or None. ``properties``: the other arguments of
    :func:`_tried`. In a graph, the result is a constant of the traced code."""
    return _refusal(current_flash_attention_impl(), device, dtype, width, *properties)


refused._dynamo_marked_constant = True  # type: ignore[attr-defined]  # assume_constant_result, without importing the compiler


@functools.cache
def _refusal(
    implementation: str | None, device: torch.device, dtype: torch.dtype, width: int, *properties: Any
) -> str | None:
    """The result of :func:`refused`, tried once for each implementation of the operator and each kind of call."""
    try:
        with torch.inference_mode(False), torch.autocast(device.type, enabled=False):
            reason = _tried(device, dtype, width, *properties)
    except MACHINE_ERRORS:
        raise
    except Exception as error:  # any error means that there are no results
        reason = first_line(error)
    if reason is not None:
        warn_once("PyTorch's flash attention", width, dtype, device, reason)
    return reason


def _tried(
    device: torch.device,
    dtype: torch.dtype,
    width: int,
    grouped: bool,
    left: bool,
    right: bool,
    causal: bool,
    packed: bool,
    drops: bool,
    gradients: bool,
) -> str | None:
    """Test the operator on 24 tokens. Returns a clause that says why its results are wrong, or None. Results with
    dropout must only be finite. Errors of the operator are raised.

    Args:
        device, dtype, width: of q, k and v ``(1, 24, ·, width)``.
        grouped: whether k and v have fewer heads than q.
        left, right: whether the window is bounded on these sides.
        packed: whether offsets of sequences are passed.
        drops: whether calls have dropout.
        gradients: whether to try the backward pass, too.
    """
    # The kind of call: a window of 3 keys before the query and 2 after it, and two sequences of 15 and 9 tokens.
    pattern = Pattern.everything(causal)
    settings = Settings(-1, -1, causal, width**-0.5, 0.0)
    if left:
        pattern = dataclasses.replace(pattern, left=3)
        settings = settings._replace(left=3)
    if right:
        ahead = 0 if causal else 2
        pattern = dataclasses.replace(pattern, right=ahead)
        settings = settings._replace(right=ahead)
    ends, part = [0, 24], None
    if packed:
        ends = [0, 15, 24]
        part = Part.of([(end, end) for end in ends], device)
    # q, k, v and a gradient of the output, with arbitrary numbers.
    groups = 1 if grouped else 2
    *tensors, grad = (
        torch.sin(torch.arange(24 * heads * width, device=device) * step)
        .view(1, 24, heads, width)
        .to(dtype)
        .requires_grad_(gradients)
        for heads, step in ((2, 1.7), (groups, 0.9), (groups, 2.3), (2, 1.1))
    )
    results = checked = _with_gradients(_band(tensors, None, part, settings), tensors, grad)
    if drops:
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            out = _band(tensors, None, part, settings._replace(dropout=0.5))
            checked = [*results, *_with_gradients(out, tensors, grad)]
    if not all(bool(x.isfinite().all()) for x in checked):
        return "its results for a few tokens are not finite"
    # The expected results, in fp32 by plain operations, sequence by sequence.
    wide = [x.detach().float().requires_grad_(gradients) for x in tensors]
    q, k, v = (repeat_heads(x.transpose(1, 2), 2) for x in wide)
    sequences = [
        blockwise_attention(q[:, :, at], k[:, :, at], v[:, :, at], pattern, AttentionCall(scale=settings.scale))
        for at in itertools.starmap(slice, itertools.pairwise(ends))
    ]
    expected = _with_gradients(torch.cat(sequences, 2).transpose(1, 2), wide, grad.float())
    difference = max(float((x.float() - y).abs().max()) for x, y in zip(results, expected, strict=True))
    if difference >= 0.1:
        return f"its results for a few tokens differ from the definition by {difference:.2g}"
    return None


def _with_gradients(out: Tensor, inputs: list[Tensor], grad: Tensor) -> list[Tensor]:
    """``out`` and, if it requires grad, the gradients of ``inputs``."""
    if not out.requires_grad:
        return [out]
    return [out.detach(), *torch.autograd.grad(out, inputs, grad.detach())]
