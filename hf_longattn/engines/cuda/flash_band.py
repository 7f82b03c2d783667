"""The ``flash`` path: PyTorch's flash-attention operator for bands, padding, packed documents and dropout.

It needs no compiler. The operator (``aten::_flash_attention_forward``; Dao 2023, FlashAttention-2) takes the two sides of a window, fewer
key heads than query heads, dropout, and the offsets of concatenated sequences. Padding at the ends of a batch row is passed as another
sequence: nothing is copied, and no token is paired with padding. ``torch.nn.attention.activate_flash_attention_impl`` replaces the operator
by FlashAttention-3 or 4. The public function for the same operator, ``torch.nn.attention.varlen.varlen_attn``, is not used: it has no
dropout, and its backward pass ignores the gradient of the log-sum-exp, which is needed to merge global columns.

Plain operations compute the few global columns outside the band. Let part p have output o_p and log-sum-exp l_p. Then l = log Σ_p exp(l_p)
and o = Σ_p exp(l_p - l) o_p. For a gradient g of o, the gradient of score s_ij is exp(s_ij - l_i) (g_i·v_j - g_i·o_i) (ibid., section 3.1),
so the operator's backward pass takes the merged o and l. This also holds with dropout: l does not change, and o sums the remaining weights.

To find out whether the machine has the kernel, the operator runs on a few tokens for each kind of call, and its results are checked.
"""

from __future__ import annotations

import functools
import itertools
import operator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...names import look_up
from ..common.batch import Batch, in_graph, no_fused_kernels
from ..common.call import ELSEWHERE, NOT_IN_AN_EXPORTED_GRAPH, UNBOUNDED, AttentionCall, DispatchContext, Pattern
from ..common.dense import at_least_fp32, repeat_heads, unit_stride
from ..common.global_rows import global_columns, index_of_globals, overwrite_global_rows
from ..common.plain import blockwise_attention
from .flex_kernel import MACHINE_ERRORS, NoKernel, first_line, warn_once

flash_forward, flash_backward = look_up("cuda_flash", when_called=True), look_up("cuda_flash", 1, when_called=True)
MAX_FEATURES = 256
"""Maximum width of a head."""
DTYPES = (torch.bfloat16, torch.float16)
"""Dtypes of the operator."""
WIDTH_STEP = 8
"""Head widths are zero-padded to a multiple of this many features."""


def why_not(context: DispatchContext) -> str | None:
    """Why the operator does not run a band, as a clause. ``None`` if it may run."""
    call = context.call
    if context.device != "cuda":
        return ELSEWHERE
    if torch.compiler.is_exporting():
        return NOT_IN_AN_EXPORTED_GRAPH
    if call.score_mod is not None:
        return "the flash-attention operator adds no score term"
    if context.dtype not in DTYPES:
        return "the flash-attention operator computes in half precision only"
    if context.features > MAX_FEATURES:
        return f"the flash-attention operator takes heads of up to {MAX_FEATURES} numbers"
    if (why := no_fused_kernels()) is not None:
        return why
    return None if call.batch is None and call.global_mask is None else _why_not_sequences(context)


def _why_not_sequences(context: DispatchContext) -> str | None:
    """Why the operator does not run a band with global tokens, padding or packed sequences."""
    batch = context.call.batch
    if in_graph():
        return "a graph knows neither where sequences start nor how many tokens are global"
    if batch is None:
        return None
    if batch.documents is not None and context.call.global_mask is not None:
        return "the global tokens of a document are visible in this document only"
    if context.q_len != context.kv_len:
        return "the queries are some tokens of a batch with padding"
    if any(span.holes for span in batch.sequences):
        return "there is padding between the tokens of a sequence"
    return None


class Settings(NamedTuple):
    """The operator's arguments besides tensors. ``left`` and ``right`` are the sides of the window in tokens, -1 for unbounded."""

    left: int
    right: int
    causal: bool
    scale: float
    dropout: float
    longest: int
    """Tokens of the longest sequence; 0 if every batch row is one sequence."""

    def run(self, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Output ``(B, Nq, H, D)``, log-sum-exp ``(B, H, Nq)`` and two tensors of dropout's random state, for ``q (B, Nq, H, D)``."""
        tensors = [x if offsets is None else x.flatten(0, 1) for x in (q, k, v)]
        lengths = self._lengths(q, k, offsets)
        out, lse, *state, _ = flash_forward(*tensors, offsets, offsets, *lengths, self.dropout, self.causal, False, **self._keywords())
        if offsets is not None:
            out, lse = out.view(q.shape), lse.view(lse.shape[0], *q.shape[:2]).transpose(0, 1)
        return out, lse, *state

    def gradients(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, offsets: Tensor | None, *state: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of q, k and v. ``out`` and ``lse`` belong to the whole softmax, which may include global columns."""
        tensors: list[Tensor] = [grad, q, k, v, out]
        if offsets is not None:
            tensors, lse = [x.flatten(0, 1) for x in tensors], lse.transpose(0, 1).flatten(1)
        numbers = (*self._lengths(q, k, offsets), self.dropout, self.causal)
        found = flash_backward(*tensors, lse.contiguous(), offsets, offsets, *numbers, *state, **self._keywords())
        dq, dk, dv = (x.view(like.shape) for x, like in zip(found, (q, k, v), strict=True))
        return dq, dk, dv

    def _lengths(self, q: Tensor, k: Tensor, offsets: Tensor | None) -> tuple[int, int]:
        return (q.shape[1], k.shape[1]) if offsets is None else (self.longest, self.longest)

    def _keywords(self) -> dict[str, Any]:
        return {"scale": self.scale, "window_size_left": self.left, "window_size_right": self.right}


class _Band(torch.autograd.Function):
    """Attention over a band, merged with the attention to other keys, if any. q and the output are ``(B, Nq, H, D)``, k and v
    ``(B, Nk, H_kv, D)``. ``other`` and ``other_lse`` are the output ``(B, Nq, H, D)`` and log-sum-exp ``(B, H, Nq)`` of the other keys."""

    @staticmethod
    def forward(ctx, q, k, v, other, other_lse, offsets, left, right, causal, scale, dropout, longest):  # type: ignore[no-untyped-def]
        ctx.settings = settings = Settings(left, right, causal, scale, dropout, longest)
        out, lse, *state = settings.run(q, k, v, offsets)
        if other is not None:
            total = torch.logaddexp(lse, other_lse)  # finite: a query sees itself in the band
            out, lse = torch.lerp(other, out, _share(lse, total, out)), total
        ctx.save_for_backward(q, k, v, other, other_lse, offsets, out, lse, *state)
        return out

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        q, k, v, other, other_lse, offsets, out, lse, *state = ctx.saved_tensors
        d_other = d_lse = None
        if other is not None:
            d_other = grad * _share(other_lse, lse, grad)
            d_lse = (d_other * (other - at_least_fp32(out))).sum(-1).transpose(1, 2)
        return *ctx.settings.gradients(grad, q, k, v, out, lse, offsets, *state), d_other, d_lse, *[None] * 7


def _share(part: Tensor, total: Tensor, like: Tensor) -> Tensor:
    """The weight ``(B, N, H, 1)`` of a part in the merged output, from log-sum-exps ``(B, H, N)``."""
    return (part - total).exp().transpose(1, 2)[..., None].to(like.dtype)


def flash_band(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, call: AttentionCall) -> Tensor:
    """The output of :func:`hf_longattn.engines.block_sparse.block_sparse_attention`, without a score term.

    k and v may have fewer heads than q. A query sees only its own document. Requirements: padding lies at the ends of sequences; calls
    with padding or documents have as many queries as keys; calls with documents have no global tokens.

    Raises:
        NoKernel: this machine has no such kernel; logged once.
    """
    heads, groups, width = (operator.index(size) for size in (q.shape[1], k.shape[1], q.shape[3]))  # plain ints, even in a graph
    sides = [operator.index(side) if side < 1 << 31 else -1 for side in (pattern.left, pattern.right)]
    offsets, longest = (None, 0) if call.batch is None else sequence_offsets(call.batch, len(k), k.shape[2], k.device)
    padded_width = width + -width % WIDTH_STEP
    settings = Settings(sides[0], sides[1], pattern.causal, call.scale_for(width), call.dropout, longest)
    needs_gradients = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    kind = padded_width, groups != heads, settings.left >= 0, settings.right >= 0, pattern.causal, offsets is not None
    reason = refused(q.device, q.dtype, *kind, 0.5 if call.dropout else 0.0, needs_gradients)
    if reason is not None:
        raise NoKernel(reason)
    rows = [_stored(x, padded_width) for x in (q, k, v)]

    def run(other: Tensor | None = None, other_lse: Tensor | None = None) -> Tensor:
        out: Tensor = _Band.apply(*rows, other, other_lse, offsets, *settings)
        return out.transpose(1, 2)[..., :width]

    index, real = (None, None) if call.global_mask is None else index_of_globals(call)
    if index is None or real is None or not index.shape[1]:
        return run() if call.sink_scores is None else run(*_of_sinks(call.sink_scores, rows[0]))
    queries, keys, values = (x.transpose(1, 2) for x in rows)
    other, other_lse = global_columns(queries, keys, values, index, real, pattern, call.replace(scale=settings.scale))
    other = other.transpose(1, 2)
    if call.sink_scores is not None:
        total = torch.logaddexp(other_lse, _of_sinks(call.sink_scores, rows[0])[1])
        other, other_lse = other * _share(other_lse, total, other), total
    out = run(other, other_lse)
    return overwrite_global_rows(out, q, k, v, index, real, call.replace(causal=pattern.causal)) if pattern.global_rows else out


def _of_sinks(sink_scores: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """The output, which is 0, and the log-sum-exp ``(B, H, N)`` of sinks ``(H,)``, as another part for ``q (B, N, H, D)``."""
    return q.new_zeros(1).expand_as(q), at_least_fp32(sink_scores)[:, None].expand(len(q), -1, q.shape[1])


def _stored(x: Tensor, width: int) -> Tensor:
    """``x (B, H, N, D)`` in the operator's layout ``(B, N, H, width)``. If D is ``width``, a projection's output is not copied."""
    return unit_stride(x.transpose(1, 2) if x.shape[3] == width else F.pad(x.transpose(1, 2), (0, width - x.shape[3])))


def sequence_offsets(batch: Batch, rows: int, length: int, device: torch.device) -> tuple[Tensor | None, int]:
    """Offsets of sequences in the concatenated batch rows, int32, and the longest length in tokens. Each stretch of padding counts as a
    sequence, and the last offset is the total length. ``None`` and 0 if every batch row is one sequence."""

    def make() -> tuple[Tensor | None, int]:
        borders = {*range(0, rows * length + 1, length)}
        for span in batch.sequences:
            borders |= {span.row * length + span.start, span.row * length + span.stop}
        if len(borders) == rows + 1:
            return None, 0
        longest = max(later - earlier for earlier, later in itertools.pairwise(sorted(borders)))
        return torch.tensor(sorted(borders), dtype=torch.int32).to(device), longest

    return batch.cached(("offsets of sequences", length, device), make)


# ---- whether this machine has a kernel

_implementation = getattr(torch.nn.attention, "current_flash_attention_impl", lambda: None)
"""Function that returns the name of the implementation activated by ``activate_flash_attention_impl``, or None."""


def refused(device: torch.device, dtype: torch.dtype, width: int, *kind: Any) -> str | None:
    """Why the operator cannot run a kind of call, or None. ``kind``: arguments of :func:`_tried`. A graph gets the result at tracing."""
    return _refusal(_implementation(), device, dtype, width, *kind)


refused._dynamo_marked_constant = True  # type: ignore[attr-defined]  # assume_constant_result, without importing the compiler


@functools.cache
def _refusal(implementation: str | None, device: torch.device, dtype: torch.dtype, width: int, *kind: Any) -> str | None:
    """:func:`refused`, tried once for each implementation and kind of call."""
    try:
        with torch.inference_mode(False), torch.autocast(device.type, enabled=False):
            reason = _tried(device, dtype, width, *kind)
    except MACHINE_ERRORS:
        raise
    except Exception as error:  # any error means that there are no results
        reason = first_line(error)
    if reason is not None:
        warn_once("PyTorch's flash attention", width, dtype, device, reason)
    return reason


def _tried(
    device: torch.device, dtype: torch.dtype, width: int, grouped: bool, left: bool, right: bool, causal: bool, packed: bool,
    dropout: float, gradients: bool,
) -> str | None:  # fmt: skip
    """Why the operator's results for a few tokens are wrong, or None. With dropout, they need only be finite. Errors are raised.

    Args:
        grouped: whether k and v have fewer heads than q.
        left, right: whether the window is bounded on these sides.
        packed: whether offsets of sequences are passed.
        gradients: whether to try the backward pass, too.
    """
    ends = [0, 15, 24] if packed else [0, 24]
    pattern = Pattern(3 if left else UNBOUNDED, 0 if causal else 2 if right else UNBOUNDED, causal)
    offsets = torch.tensor(ends, dtype=torch.int32).to(device) if packed else None
    settings = Settings(3 if left else -1, pattern.right if right else -1, causal, width**-0.5, 0.0, 15 if packed else 0)
    *tensors, grad = (
        torch.sin(torch.arange(24 * heads * width, device=device) * step).view(1, 24, heads, width).to(dtype).requires_grad_(gradients)
        for heads, step in ((2, 1.7), (1 if grouped else 2, 0.9), (1 if grouped else 2, 2.3), (2, 1.1))
    )
    with torch.random.fork_rng([device] if device.type == "cuda" else [], enabled=dropout > 0):
        runs = [
            _with_gradients(_Band.apply(*tensors, None, None, offsets, *settings._replace(dropout=share)), tensors, grad)
            for share in sorted({0.0, dropout})
        ]
    if not all(bool(x.isfinite().all()) for x in itertools.chain(*runs)):
        return "its results for a few tokens are not finite"
    wide = [x.detach().float().requires_grad_(gradients) for x in tensors]
    q, k, v = (repeat_heads(x.transpose(1, 2), 2) for x in wide)
    sequences = [slice(*pair) for pair in itertools.pairwise(ends)]
    parts = [blockwise_attention(q[:, :, at], k[:, :, at], v[:, :, at], pattern, AttentionCall(scale=settings.scale)) for at in sequences]
    expected = _with_gradients(torch.cat(parts, 2).transpose(1, 2), wide, grad.float())
    off = max(float((x.float() - y).abs().max()) for x, y in zip(runs[0], expected, strict=True))
    return None if off < 0.1 else f"its results for a few tokens differ from the definition by {off:.2g}"


def _with_gradients(out: Tensor, inputs: list[Tensor], grad: Tensor) -> list[Tensor]:
    """``out`` and, if it requires grad, the gradients of ``inputs``."""
    return [out.detach(), *(torch.autograd.grad(out, inputs, grad.detach()) if out.requires_grad else ())]
