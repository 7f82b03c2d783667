"""The ``flash`` path: PyTorch's flash-attention operator for bands, padding, packed documents and dropout.

It needs no compiler. The operator (``aten::_flash_attention_forward``; Dao 2023, FlashAttention-2) takes the two sides of a window, fewer
key heads than query heads, dropout, and the offsets of concatenated sequences. Padding at the ends of a row is passed as another sequence:
nothing is copied, and no token is paired with padding. Plain operations compute the few global columns outside the band, and both parts
are merged into one softmax. ``torch.nn.attention.activate_flash_attention_impl`` replaces the operator by FlashAttention-3 or 4.

Let part p have output o_p and log-sum-exp l_p. Then l = log Σ_p exp(l_p) and o = Σ_p exp(l_p - l) o_p. For a gradient g of o, the gradient
of score s_ij is exp(s_ij - l_i) (g_i·v_j - g_i·o_i) (ibid., section 3.1), so the backward pass of each part takes the merged o and l.
Dropout does not change l, and o sums the weights that remain, so the same holds with dropout.

To find out whether this machine has the kernel, the operator runs once for each kind of call on a few tokens. The results are compared with
the definition.
"""

from __future__ import annotations

import itertools
import logging
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import BackendError
from ...private_apis import look_up
from ..common.batch import Batch, in_graph
from ..common.call import UNBOUNDED, AttentionCall, Pattern
from ..common.context import ELSEWHERE, NOT_IN_AN_EXPORTED_GRAPH, DispatchContext
from ..common.dense import repeat_heads, unit_stride
from ..common.derivatives import first_derivatives_only, no_fused_kernels, one_gradient_at_a_time
from ..common.global_rows import gather_tokens, index_of_globals, overwrite_global_rows
from .flex_kernel import MACHINE_ERRORS, NoKernel

logger = logging.getLogger(__name__)
ARGUMENTS = frozenset(("window_size_left", "window_size_right", "cum_seq_q", "cum_seq_k", "dropout_p", "scale"))


def _arguments(which: int) -> frozenset[str]:
    """The names of the operator's arguments; empty where PyTorch does not have it."""
    try:
        return frozenset(argument.name for argument in look_up("cuda_flash", which).default._schema.arguments)
    except BackendError:
        return frozenset()


HAS_WINDOWS = all(_arguments(which) >= ARGUMENTS for which in (0, 1))
LACKS = None if HAS_WINDOWS else "PyTorch's flash-attention operator has no windows in this version"
"""Why this PyTorch version cannot run the path, or None."""
flash_forward, flash_backward = look_up("cuda_flash", when_called=True), look_up("cuda_flash", 1, when_called=True)
MAX_FEATURES = 256
"""Maximum width of a head."""
DTYPES = (torch.bfloat16, torch.float16)
"""Dtypes of the operator."""
WIDTH_STEP = 8
"""Head widths are zero-padded to a multiple of this many features."""
COLUMN_CELLS = 1 << 25
"""Maximum number of column scores in memory at once: batch × heads × queries × global columns."""


def why_not(context: DispatchContext) -> str | None:
    """Why the operator does not run a band, as a clause. ``None`` if it may."""
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
    if (why := LACKS or no_fused_kernels()) is not None:
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
        return "the global tokens of a document are seen by it alone"
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
    """Tokens of the longest sequence; 0 if every row is one sequence."""

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


class _Columns:
    """The global columns of a call, by plain operations in at least fp32. They are computed for a slice of the queries at a time."""

    def __init__(self, q: Tensor, k: Tensor, index: Tensor, real: Tensor, settings: Settings) -> None:
        """q: ``(B, Nq, H, D)``; k: all keys; index: positions ``(B, g)`` of the columns; real: ``(B, g)`` bool, False for filler."""
        self.index, self.real, self.settings = index, real, settings
        self.q_len, self.offset = q.shape[1], k.shape[1] - q.shape[1]
        self.step = max(1, COLUMN_CELLS // max(1, q.shape[0] * q.shape[2] * index.shape[1]))

    def slices(self) -> list[slice]:
        return [slice(start, min(start + self.step, self.q_len)) for start in range(0, self.q_len, self.step)]

    def scores(self, q: Tensor, keys: Tensor, rows: slice) -> Tensor:
        """Scores ``(B, H, n, g)`` of ``q (B, H, Nq, D)`` and ``keys (B, H, g, D)``; -inf for pairs that are hidden or in the band."""
        settings, j = self.settings, self.index[:, None]
        distance = torch.arange(rows.start + self.offset, rows.stop + self.offset, device=q.device)[:, None] - j
        hidden = ~self.real[:, None] | ((distance <= _bound(settings.left)) & (distance >= -_bound(settings.right)))
        hidden = hidden | (distance < 0) if settings.causal else hidden
        scores = (q[:, :, rows] @ keys.transpose(-1, -2)) * settings.scale
        return scores.masked_fill(hidden[:, None], float("-inf"))


def _bound(side: int) -> int:
    return UNBOUNDED if side < 0 else side


def _wide(dtype: torch.dtype, q: Tensor, *tensors: Tensor) -> list[Tensor]:
    """Tensors ``(B, N, H or H_kv, D)`` as ``(B, H, N, D)`` of ``dtype``."""
    return [repeat_heads(x.transpose(1, 2).to(dtype), q.shape[2]) for x in (q, *tensors)]


class _Band(torch.autograd.Function):
    """Attention over a band and optional global columns. q and the output are ``(B, Nq, H, D)``, k and v ``(B, Nk, H_kv, D)``."""

    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx, q, k, v, column_keys, column_values, index, real, offsets, left, right, causal, scale, dropout, longest
    ):
        ctx.settings = settings = Settings(left, right, causal, scale, dropout, longest)
        out, lse, *state = settings.run(q, k, v, offsets)
        kept: list[Tensor] = []
        if index is not None:
            out, lse = _merge_columns(q, k, out, lse, column_keys, column_values, index, real, settings, kept)
        ctx.save_for_backward(q, k, v, column_keys, column_values, index, real, offsets, out, lse, *state, *kept)
        return out

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        if torch.compiler.is_compiling():
            return _gradients(ctx, grad)
        with one_gradient_at_a_time():
            return first_derivatives_only(_gradients(ctx, grad))


def _merge_columns(
    q: Tensor, k: Tensor, out: Tensor, lse: Tensor, column_keys: Tensor, column_values: Tensor, index: Tensor, real: Tensor,
    settings: Settings, kept: list[Tensor],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Output ``(B, Nq, H, D)`` and log-sum-exp ``(B, H, Nq)`` of band and columns. Masks of dropout are appended to ``kept``."""
    columns, dtype = _Columns(q, k, index, real, settings), lse.dtype
    queries, keys = _wide(dtype, q, column_keys)
    values = repeat_heads(column_values.transpose(1, 2), q.shape[2])
    merged, total = torch.empty_like(out, memory_format=torch.contiguous_format), torch.empty_like(lse)
    for rows in columns.slices():
        scores = columns.scores(queries, keys, rows)
        total[:, :, rows] = torch.logaddexp(lse[:, :, rows], scores.logsumexp(-1))  # finite: a query sees itself in the band
        weights = (scores - total[:, :, rows, None]).exp()
        if settings.dropout:
            kept.append(torch.rand_like(weights) >= settings.dropout)
            weights = weights * kept[-1].to(dtype) / (1 - settings.dropout)
        share = (lse[:, :, rows] - total[:, :, rows]).exp()[..., None].to(out.dtype)
        merged[:, rows] = torch.addcmul((weights.to(out.dtype) @ values).transpose(1, 2), share.transpose(1, 2), out[:, rows])
    return merged, total


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, column_keys, column_values, index, real, offsets, out, lse, rng_state, unused, *kept = ctx.saved_tensors
    settings = ctx.settings
    dq, dk, dv = settings.gradients(grad, q, k, v, out, lse, offsets, rng_state, unused)
    dkeys = dvalues = None
    if index is not None:
        columns, dtype = _Columns(q, k, index, real, settings), lse.dtype
        queries, keys, values, wide_grad, wide_out = _wide(dtype, q, column_keys, column_values, grad, out)
        dkeys, dvalues = torch.zeros_like(keys), torch.zeros_like(values)
        for rows, left in itertools.zip_longest(columns.slices(), kept):
            of_out, total = wide_grad[:, :, rows], lse[:, :, rows, None]
            weights = (columns.scores(queries, keys, rows) - total).exp()
            of_weights = of_out @ values.transpose(-1, -2)
            share = 1 if left is None else left.to(dtype) / (1 - settings.dropout)
            dvalues += (weights * share).transpose(-1, -2) @ of_out
            of_scores = weights * (of_weights * share - (of_out * wide_out[:, :, rows]).sum(-1, keepdim=True)) * settings.scale
            dkeys += of_scores.transpose(-1, -2) @ queries[:, :, rows]
            dq[:, rows] += (of_scores @ keys).transpose(1, 2).to(dq.dtype)
        groups = k.shape[2]
        dkeys, dvalues = (x.unflatten(1, (groups, -1)).sum(2).transpose(1, 2).to(k.dtype) for x in (dkeys, dvalues))
    return dq, dk, dv, dkeys, dvalues, *[None] * 9


def flash_band(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, call: AttentionCall) -> Tensor:
    """The output of :func:`hf_longattn.engines.block_sparse.block_sparse_attention`, without a score term.

    k and v may have fewer heads than q. A query sees only its own document. Padding lies at the ends of sequences. With padding or
    documents there are as many queries as keys, and with documents no global tokens.

    Raises:
        NoKernel: this machine has no such kernel; logged once.
    """
    heads, groups, width = (operator.index(size) for size in (q.shape[1], k.shape[1], q.shape[3]))  # plain ints, even in a graph
    sides = [operator.index(side) if side < 1 << 31 else -1 for side in (pattern.left, pattern.right)]
    offsets, longest = (None, 0) if call.batch is None else sequence_offsets(call.batch, len(k), k.shape[2], k.device)
    padded_width = width + -width % WIDTH_STEP
    settings = Settings(sides[0], sides[1], pattern.causal, call.scale_for(width), call.dropout, longest)
    needs_gradients = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    reason = refused(
        q.device, q.dtype, padded_width, groups != heads, settings.left >= 0, settings.right >= 0, pattern.causal, offsets is not None,
        0.5 if call.dropout else 0.0, needs_gradients, _implementation(),
    )  # fmt: skip
    if reason is not None:
        raise NoKernel(reason)
    columns: tuple[Tensor | None, ...] = None, None, None, None
    if call.global_mask is not None:
        index, real = index_of_globals(call)
        if index.shape[1]:
            columns = *(_stored(gather_tokens(x, index), padded_width) for x in (k, v)), index, real
    tensors = [_stored(x, padded_width) for x in (q, k, v)]
    out = _Band.apply(*tensors, *columns, offsets, *settings).transpose(1, 2)[..., :width]
    if columns[2] is None or columns[3] is None or not pattern.global_rows:
        return out
    return overwrite_global_rows(out, q, k, v, columns[2], columns[3], call.replace(causal=pattern.causal))


def _stored(x: Tensor, width: int) -> Tensor:
    """``x (B, H, N, D)`` in the operator's layout ``(B, N, H, width)``. A projection's output of this width is not copied."""
    return unit_stride(x.transpose(1, 2) if x.shape[3] == width else F.pad(x.transpose(1, 2), (0, width - x.shape[3])))


def sequence_offsets(batch: Batch, rows: int, length: int, device: torch.device) -> tuple[Tensor | None, int]:
    """Offsets of sequences in the concatenated rows, int32, and the longest length in tokens. Each stretch of padding counts as a
    sequence, and the last offset is the end. ``None`` and 0 if every row is one sequence."""

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

_refusals: dict[tuple[Any, ...], str | None] = {}
_implementation = getattr(torch.nn.attention, "current_flash_attention_impl", lambda: None)
"""Function that returns the name of the implementation activated by ``activate_flash_attention_impl``, or None."""


def constant_in_graph(function: Callable[..., Any]) -> Callable[..., Any]:
    """``torch.compiler.assume_constant_result`` without importing the compiler."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@constant_in_graph
def refused(device: torch.device, dtype: torch.dtype, *kind: Any) -> str | None:
    """Why the operator cannot run a kind of call, or None. ``kind`` goes to :func:`_tried`, once per kind; in a graph, at tracing."""
    key = device, dtype, *kind
    if key not in _refusals:
        reason = None
        try:
            with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
                reason = _tried(device, dtype, *kind)
        except MACHINE_ERRORS:
            raise
        except Exception as error:  # any error means that there are no results
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        is_new = (*key[:3], reason) not in ((*other[:3], earlier) for other, earlier in _refusals.items())
        _refusals[key] = reason
        if reason is not None and is_new:
            logger.warning(
                "PyTorch's flash attention does not run for heads of %d in %s on %s (%s); other operations run instead, which are slower.",
                kind[0], str(dtype).removeprefix("torch."), device, reason
            )  # fmt: skip
    return _refusals[key]


def _tried(
    device: torch.device, dtype: torch.dtype, width: int, grouped: bool, left: bool, right: bool, causal: bool, packed: bool,
    dropout: float, gradients: bool, implementation: str | None,
) -> str | None:  # fmt: skip
    """Why the operator's results for a few tokens are wrong, or None. Errors of the operator are raised.

    Args:
        grouped: whether k and v have fewer heads than q.
        left, right: whether the window is bounded on these sides.
        packed: whether offsets of sequences are passed.
        gradients: whether to try the backward pass, too.
        implementation: the one that ``activate_flash_attention_impl`` activated; distinguishes cached answers only.
    """
    length, heads = 24, 2
    places = torch.arange(length, device=device)
    documents = (places >= 15) if packed else torch.zeros_like(places, dtype=torch.bool)
    offsets = torch.tensor([0, 15, length], dtype=torch.int32).to(device) if packed else None
    settings = Settings(3 if left else -1, (0 if causal else 2) if right else -1, causal, width**-0.5, dropout, 15 if packed else 0)
    q, k, v, grad = (
        torch.sin(torch.arange(length * count * width, device=device) * step).view(1, length, count, width).to(dtype)
        for count, step in ((heads, 1.7), (1 if grouped else heads, 0.9), (1 if grouped else heads, 2.3), (heads, 1.1))
    )
    with torch.random.fork_rng([device] if device.type == "cuda" else [], enabled=dropout > 0):
        out, lse, *state = settings.run(q, k, v, offsets)
        found = [out, lse]
        if gradients:
            found += settings.gradients(grad, q, k, v, out, lse, offsets, *state)
    distance = places[:, None] - places
    seen = (documents[:, None] == documents) & (distance <= _bound(settings.left)) & (distance >= -_bound(settings.right))
    with torch.enable_grad():
        leaves = [x.detach().float().requires_grad_() for x in (q, k, v)]
        queries, keys, values = (repeat_heads(x.transpose(1, 2), heads) for x in leaves)
        scores = (queries @ keys.mT * settings.scale).masked_fill(~seen, float("-inf"))
        expected = [(scores.softmax(-1) @ values).transpose(1, 2), scores.logsumexp(-1)]
        if gradients:
            expected += torch.autograd.grad(expected[0], leaves, grad.float())
    return _difference(found, expected, only=1 if dropout else None)


def _difference(found: Sequence[Tensor], expected: Sequence[Tensor], only: int | None) -> str | None:
    """How the results differ, or None. All must be finite; with ``only``, the number of a result, just that one is compared."""
    pairs = [*zip(found, expected, strict=True)]
    off = max(float((x.float() - y).abs().max()) for x, y in (pairs if only is None else pairs[only : only + 1]))
    if not all(bool(x.isfinite().all()) for x in found):
        return "its results for a few tokens are not finite"
    return None if off < 0.1 else f"its results for a few tokens differ from the definition by {off:.2g}"
