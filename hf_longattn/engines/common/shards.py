"""Sequences sharded across processes: fetch the tokens that a mechanism needs, and return their gradients.

Process r holds the tokens ``bounds[r] = (start, stop)`` of every row; the shards may differ in length. Integer inputs (padding, documents,
global tokens) are small and known to all; queries, keys, values and hidden states are not. Every function is called by all processes of
the group in the same order, and its result must enter the loss everywhere, since its backward pass communicates as well.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from .batch import Batch
from .call import AttentionCall, AttentionFunction, State
from .global_rows import global_index

Bounds = Sequence[tuple[int, int]]
"""``(start, stop)`` for each process: a range of its tokens, or of its heads."""


@dataclasses.dataclass(frozen=True)
class Locality:
    """A query sees only keys from ``back`` tokens before it to ``ahead`` after it, and what ``beside`` says.

    period: shifting all positions by a multiple of this leaves the output unchanged.
    by_block: whether tokens form blocks of ``period``, and all tokens of a block see the same keys ahead, up to the end of a block.
    beside: other keys that are seen, too: none, ``"globals"`` (:meth:`Mechanism.resolve_globals`), or ``"others"``. With others, no process
        or stream can do with its neighbours.
    is_window: whether every key in the range is seen, and nothing else, as in a sliding window.
    in_eval: whether the range is the ``"same"`` in eval mode; otherwise ``"everything"`` is seen there, or the range is ``"unknown"``.
    width_of_keys: distance from a query's first key to its last, in tokens. By default as in a window, or in blocks of ``period``.
    """

    back: int
    ahead: int
    period: int = 1
    by_block: bool = False
    beside: str = ""
    is_window: bool = False
    in_eval: str = "same"
    width_of_keys: int | None = None

    @property
    def width(self) -> int:
        """``width_of_keys``, or its default. A query late in its block has less of the block ahead."""
        if self.width_of_keys is not None:
            return self.width_of_keys
        return self.back + self.ahead - (self.period - 1 if self.ahead else 0)

    def final(self, seen: int) -> int:
        """Number of outputs that are final after ``seen`` tokens. Later tokens do not change them."""
        if not self.by_block or not self.ahead:
            return max(0, seen - self.ahead)
        return max(0, seen - (self.ahead + 1 - self.period)) // self.period * self.period

    def first(self, output: int) -> int:
        """First token that outputs from index ``output`` on depend on, rounded down to a multiple of ``period``."""
        return max(0, output - self.back) // self.period * self.period


@dataclasses.dataclass(frozen=True, eq=False)
class GlobalTokens:
    """The global tokens of the whole sequence.

    mask: ``(B, N)`` bool.
    index, real: ``(B, g)``, the tokens' positions, padded to the longest row, and which entries are not padding.
    """

    mask: Tensor
    index: Tensor
    real: Tensor

    @classmethod
    def of(cls, mask: Tensor) -> GlobalTokens:
        """The global tokens of ``mask (B, N)``; sorts each row once."""
        return cls(mask, *global_index(mask))


@dataclasses.dataclass(frozen=True, eq=False)
class Shard:
    """This process's shard of a batch.

    group: the processes across which the sequence is sharded; ``None`` is all of them.
    bounds: every process's shard.
    rank: this process's place in the group.
    run: ``run(mechanism, q, k, v, call)``, attention of a batch in one process: :func:`hf_longattn.attend.run_batch`.
    mask, documents, global_mask: of the whole rows, ``(B, N)``; ``None`` without padding, several documents, or global tokens.
    """

    group: Any
    bounds: Bounds
    rank: int
    run: Callable[..., Tensor]
    mask: Tensor | None = None
    documents: Tensor | None = None
    global_mask: Tensor | None = None

    @property
    def start(self) -> int:
        """The first token of this process."""
        return self.bounds[self.rank][0]

    @property
    def stop(self) -> int:
        """The token after the last one of this process."""
        return self.bounds[self.rank][1]

    @property
    def length(self) -> int:
        """Tokens of the whole sequence."""
        return self.bounds[-1][1]

    @functools.cached_property
    def starts_at_first(self) -> bool:
        """Whether every row is one sequence from its first token on. It has no left padding, and one document."""
        return self.documents is None and (self.mask is None or bool(self.mask[:, 0].all()))

    def around(self, local: Locality) -> Bounds:
        """The tokens that each process must see to compute its rows."""
        ranges = []
        for start, stop in self.bounds:
            low = max(0, start - local.back) // local.period * local.period
            ranges.append((low, min(self.length, stop + local.ahead)))
        return ranges

    def reach(self, x: Tensor, ranges: Bounds, dim: int = 2) -> Tensor:
        """The tokens ``ranges[rank]``, sent by their owners. Axis ``dim`` of ``x`` holds this process's own tokens."""
        return _Reach.apply(x, self, tuple(ranges), dim)

    def total(self, x: Tensor) -> Tensor:
        """The sum of ``x`` over all processes. Its shape must be the same on each."""
        return _Total.apply(x, self.group)

    def largest(self, x: Tensor) -> Tensor:
        """The elementwise maximum of ``x`` over all processes, without a gradient."""
        x = x.detach().clone()
        dist.all_reduce(x, dist.ReduceOp.MAX, group=self.group)
        return x

    def stacked(self, x: Tensor) -> Tensor:
        """``x`` of every process, stacked to ``(processes, …)``. Its shape must be the same on each."""
        return _Stacked.apply(x, self.group, self.rank, len(self.bounds))

    def before(self, x: Tensor) -> Tensor:
        """``x (processes, …)`` with zeros from this process on. A branch would leave the first process without a backward pass."""
        earlier = torch.arange(len(self.bounds), device=x.device) < self.rank
        return x * earlier.view(-1, *[1] * (x.dim() - 1)).to(x.dtype)

    def owns(self, index: Tensor) -> Tensor:
        """Whether this process owns the tokens ``index`` of the whole sequence. Bool of the same shape."""
        return (index >= self.start) & (index < self.stop)

    def tokens(self, x: Tensor, index: Tensor) -> Tensor:
        """The tokens ``index (B, g)`` of the whole sequence, ``(B, H, g, D)``, on every process. ``x (B, H, n, D)`` holds own tokens."""
        x = F.pad(x, (0, 0, 0, 1))  # a process may have no token to read
        place = torch.where(self.owns(index), index - self.start, self.stop - self.start)
        return self.total(x.gather(2, place[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3])))

    def tokens_to_heads(self, heads: Bounds, groups: Bounds, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Exchange own tokens of all heads for whole sequences of own heads (Jacobs et al. 2023, DeepSpeed Ulysses).

        Args:
            heads, groups: for each process its query heads, and its key and value heads.
            q: ``(B, H, n, D)``; k, v: ``(B, H_kv, n, D)``; each becomes ``(B, own heads, N, D)``.
        """
        return _Swap.apply(self, (heads, groups, groups), True, q, k, v)

    def heads_to_tokens(self, heads: Bounds, x: Tensor) -> Tensor:
        """Exchange whole sequences of own heads ``x (B, own heads, N, D)`` for own tokens of all heads ``(B, H, n, D)``."""
        return _Swap.apply(self, (heads,), False, x)[0]

    def call(self, call: AttentionCall, low: int, high: int) -> AttentionCall:
        """The call for the tokens ``low … high - 1``, as a separate sequence."""
        at = (slice(None), slice(low, high))
        mask, documents, globals_ = (None if x is None else x[at] for x in (self.mask, self.documents, self.global_mask))
        return call.replace(batch=Batch.of(mask, documents), global_mask=globals_).with_term(
            lambda term: term if term.reads_tokens else term.shifted(low)  # :meth:`attend` rebuilds it from tokens
        )

    def local_call(self, call: AttentionCall) -> AttentionCall:
        """The call for this process's tokens, as a separate sequence."""
        return self.call(call, self.start, self.stop)

    def attend(
        self,
        run: AttentionFunction,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        call: AttentionCall,
        local: Locality,
        tokens: GlobalTokens | None = None,
    ) -> Tensor:
        """This process's rows ``(B, H, n, D)`` of a local mechanism ``run(q, k, v, call)``, from own and surrounding tokens.

        Args:
            tokens: global tokens of the whole sequence. A global key outside of the surrounding tokens is added before or after them, so
                that each key is there once.
        """
        ranges = self.around(local)
        low, high = ranges[self.rank]
        parts = [k, v] if call.detached_kv is None else [k, v, *call.detached_kv]
        widths = [x.shape[-1] for x in parts]
        local_kv = torch.cat(parts, -1)
        near = self.reach(local_kv, ranges)
        near_call, beyond = self.call(call, low, high), 0
        if tokens is not None:
            near, near_call, beyond = self._with_globals(local_kv, near, near_call, tokens, low, high, local.period)
        keys, values, *detached = near.split(widths, -1)
        if call.detached_kv is not None:
            near_call = near_call.replace(detached_kv=tuple(detached))
        if call.hidden_states is not None and tokens is None:
            near_call = near_call.replace(hidden_states=self.reach(call.hidden_states, ranges, 1))
        queries = F.pad(q, (0, 0, 0, high - self.stop + beyond))
        if call.term.reads_tokens:
            near_call = near_call.replace(score_mod=call.term.of(queries, keys, range(q.shape[1])))
        return run(queries, keys, values, near_call)[:, :, : self.stop - self.start]

    def _with_globals(
        self, x: Tensor, near: Tensor, call: AttentionCall, tokens: GlobalTokens, low: int, high: int, period: int
    ) -> tuple[Tensor, AttentionCall, int]:
        """Put global tokens of ``x`` around ``near (low … high - 1)``. Returns all keys, their call, and the tokens after ``near``."""
        mask, index, real = tokens.mask, tokens.index, tokens.real
        front = -(-index.shape[1] // period) * period  # so that tokens keep their places in blocks
        index, real = (F.pad(y, (front - y.shape[1], 0)) for y in (index, real))
        chosen = self.tokens(x, index)
        before, after = real & (index < low), real & (index >= high)
        inside = torch.ones_like(mask[:, low:high]) if self.mask is None else self.mask[:, low:high]
        near_call = call.replace(
            batch=Batch(torch.cat([before, inside, after], 1)), global_mask=torch.cat([before, mask[:, low:high], after], 1)
        )
        if call.score_mod is not None:  # counts from the first token of the part
            places = torch.cat([index - low, torch.arange(high - low, device=index.device).expand(len(index), -1), index - low], 1)
            near_call = near_call.replace(score_mod=call.term.indexed(lambda b, at: (b, places[b, at])))
        return torch.cat([chosen, near, chosen], 2), near_call, front


def even_bounds(length: int, processes: int) -> Bounds:
    """Bounds of shards whose lengths differ by at most one token."""
    ends = [length * number // processes for number in range(processes + 1)]
    return list(itertools.pairwise(ends))


def _common(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    return max(a[0], b[0]), min(a[1], b[1])


class _Reach(torch.autograd.Function):
    """Sends every process the tokens that it reads. Their gradients go back to the owner, which adds them up."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shard: Shard, ranges: Bounds, dim: int) -> Tensor:
        ctx.shard, ctx.ranges, ctx.dim, ctx.shape = shard, ranges, dim, x.shape
        low, high = ranges[shard.rank]
        shape = list(x.shape)
        shape[dim] = high - low
        out = x.new_zeros(shape)
        for (first, last), part in _exchange(shard, dim, x, held=shard.bounds, wanted=ranges):
            out.narrow(dim, first - low, last - first).copy_(part)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        shard, dim = ctx.shard, ctx.dim
        total = grads[0].new_zeros(ctx.shape)
        for (first, last), part in _exchange(shard, dim, grads[0], held=ctx.ranges, wanted=shard.bounds):
            total.narrow(dim, first - shard.start, last - first).add_(part)
        return total, None, None, None


def _exchange(shard: Shard, dim: int, x: Tensor, *, held: Bounds, wanted: Bounds) -> list[tuple[tuple[int, int], Tensor]]:
    """Send held tokens that other processes want. Return the tokens that this process wants, in parts with their bounds.

    Args:
        x: the tokens ``held[rank]`` along axis ``dim``.
        held, wanted: the tokens that each process holds, and the tokens that it wants.
    """
    holds, wants = held[shard.rank], wanted[shard.rank]
    sent, shapes, parts = {}, {}, {}
    for peer in range(len(held)):
        first, last = _common(holds, wanted[peer])
        if first < last:
            sent[peer] = x.narrow(dim, first - holds[0], last - first)
        parts[peer] = first, last = _common(held[peer], wants)
        if first < last:
            shapes[peer] = (*x.shape[:dim], last - first, *x.shape[dim + 1 :])
    received = _send_and_receive(shard, sent, shapes, x)
    return [(parts[peer], received[peer]) for peer in sorted(received)]


def _send_and_receive(shard: Shard, sent: Mapping[int, Tensor], shapes: Mapping[int, Sequence[int]], like: Tensor) -> dict[int, Tensor]:
    """Send a tensor to some processes and receive tensors of these ``shapes``. This process's own part is not sent."""
    rank, group = shard.rank, dist.group.WORLD if shard.group is None else shard.group
    copies = {peer: x.contiguous() for peer, x in sent.items() if peer != rank}  # kept alive until everything is sent
    received = {peer: sent[rank] if peer == rank else like.new_empty(tuple(shape)) for peer, shape in shapes.items()}
    operations = [dist.P2POp(dist.isend, x, group=group, group_peer=peer) for peer, x in copies.items()]
    operations += [dist.P2POp(dist.irecv, x, group=group, group_peer=peer) for peer, x in received.items() if peer != rank]
    for request in dist.batch_isend_irecv(operations) if operations else []:
        request.wait()
    return received


class _Swap(torch.autograd.Function):
    """Exchanges tokens for heads, or back. One function for all tensors, so that every process's gradients go back in the same order."""

    @staticmethod
    def forward(ctx: Any, shard: Shard, heads: Sequence[Bounds], to_heads: bool, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.shard, ctx.heads, ctx.to_heads = shard, heads, to_heads
        return tuple(_swapped(x, shard, bounds, to_heads) for x, bounds in zip(tensors, heads, strict=True))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        return None, None, None, *(_swapped(x, ctx.shard, bounds, not ctx.to_heads) for x, bounds in zip(grads, ctx.heads, strict=True))


def _swapped(x: Tensor, shard: Shard, heads: Bounds, to_heads: bool) -> Tensor:
    """``(B, H, n, D)`` as ``(B, own heads, N, D)``, or the reverse."""
    split_dim, joined_dim = (1, 2) if to_heads else (2, 1)
    split, joined = (heads, shard.bounds) if to_heads else (shard.bounds, heads)
    sent = {peer: x.narrow(split_dim, first, last - first) for peer, (first, last) in enumerate(split)}
    shapes = {}
    for peer, (low, high) in enumerate(joined):
        shape = list(sent[shard.rank].shape)
        shape[joined_dim] = high - low
        shapes[peer] = shape
    received = _send_and_receive(shard, sent, shapes, x)
    return torch.cat([received[peer] for peer in sorted(received)], joined_dim)


class _Total(torch.autograd.Function):
    """The sum over all processes. Each process receives the sum of all gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        x = x.contiguous().clone()
        dist.all_reduce(x, group=group)
        return x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        grad = grads[0].contiguous().clone()
        dist.all_reduce(grad, group=ctx.group)
        return grad, None


class _Stacked(torch.autograd.Function):
    """All processes' tensors, stacked. A tensor's gradient is the sum of its gradients on all processes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any, rank: int, processes: int) -> Tensor:
        ctx.group, ctx.rank = group, rank
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(processes)]
        dist.all_gather(parts, x, group=group)
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        grad = grads[0].contiguous().clone()
        dist.all_reduce(grad, group=ctx.group)
        return grad[ctx.rank], None, None, None


def softmax_rows(q: Tensor, k: Tensor, v: Tensor, index: Tensor, scale: float, call: AttentionCall, shard: Shard) -> Tensor:
    """Attention of a few queries to the keys of all processes, ``(B, H, g, D)`` on every process.

    With scores s_j of a row, and c their maximum over all processes r, it is  Σ_r Σ_j exp(s_j - c) v_j / Σ_r Σ_j exp(s_j - c).

    Args:
        q: ``(B, H, g, D)``, the same on every process, of the tokens ``index (B, g)``.
        k, v: ``(B, H, n, D)``, this process's own.
        call: for its causality, score term and dropout; padding is the shard's.
    """
    with torch.autocast(q.device.type, enabled=False):
        return _softmax_rows(q, k, v, index, scale, call, shard)


def _softmax_rows(q: Tensor, k: Tensor, v: Tensor, index: Tensor, scale: float, call: AttentionCall, shard: Shard) -> Tensor:
    wide = torch.promote_types(q.dtype, torch.float32)
    places = torch.arange(shard.start, shard.stop, device=q.device)
    scores = (q.to(wide) @ k.to(wide).mT) * scale
    if call.score_mod is not None:
        b, h = torch.arange(len(q), device=q.device).view(-1, 1, 1, 1), torch.arange(q.shape[1], device=q.device).view(1, -1, 1, 1)
        scores = call.score_mod(scores, b, h, index[:, None, :, None], places)
    seen = torch.ones_like(places, dtype=torch.bool).expand(1, 1, 1, -1)
    if shard.mask is not None:
        seen = seen & shard.mask[:, None, None, shard.start : shard.stop]
    if call.causal:
        seen = seen & (places <= index[:, None, :, None])
    scores = scores.masked_fill(~seen, -math.inf)
    highest = scores.amax(-1, keepdim=True) if scores.shape[-1] else scores.new_full((*scores.shape[:-1], 1), -math.inf)
    highest = shard.largest(highest).clamp(min=torch.finfo(wide).min)
    weights = (scores - highest).exp()
    sums = torch.cat([F.dropout(weights, call.dropout) @ v.to(wide), weights.sum(-1, keepdim=True)], -1)
    sums = shard.total(sums)
    return (sums[..., :-1] / sums[..., -1:].clamp(min=torch.finfo(wide).tiny)).to(v.dtype)


class _Passed(torch.autograd.Function):
    """Sends tensors to the next process and gets their gradients back. ``out`` passes through, so that the loss depends on the send."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, shard: Shard, *tensors: Tensor) -> Tensor:
        ctx.shard, ctx.shapes = shard, [(x.shape, x.dtype) for x in tensors]
        for x in tensors:
            dist.send(x.contiguous(), group=shard.group, group_dst=shard.rank + 1)
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        received: list[Tensor | None] = []
        for shape, dtype in ctx.shapes:
            if not dtype.is_floating_point:
                received.append(None)
                continue
            grad = grads[0].new_empty(shape, dtype=dtype)
            dist.recv(grad, group=ctx.shard.group, group_src=ctx.shard.rank + 1)
            received.append(grad)
        return grads[0], None, *received


class _Received(torch.autograd.Function):
    """Receives tensors from the previous process and sends their gradients back."""

    @staticmethod
    def forward(ctx: Any, like: Tensor, shard: Shard, layout: Sequence[tuple[tuple[int, ...], torch.dtype]]) -> tuple[Tensor, ...]:
        ctx.shard = shard
        received = []
        for shape, dtype in layout:
            x = like.new_empty(shape, dtype=dtype)
            dist.recv(x, group=shard.group, group_src=shard.rank - 1)
            received.append(x)
        ctx.mark_non_differentiable(*(x for x in received if not x.is_floating_point()))
        return tuple(received)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None]:
        like = None
        for grad in grads:
            if grad is not None and grad.is_floating_point():
                dist.send(grad.contiguous(), group=ctx.shard.group, group_dst=ctx.shard.rank - 1)
                like = grad
        return None if like is None else like.new_zeros(()), None, None


def in_turn(advance: Callable[[State | None], tuple[Tensor, State]], like: Tensor, shard: Shard) -> Tensor:
    """The output of a recurrence ``advance(state) -> (output, state)``, one process after another. ``like`` carries the gradient."""
    state: State | None = None
    if shard.rank > 0:
        layout: list[Any] = [None]
        dist.recv_object_list(layout, group=shard.group, group_src=shard.rank - 1)
        if layout[0] is not None:
            zero = like.flatten()[:1].sum() * 0 if like.numel() else like.sum()
            received = _Received.apply(zero, shard, [(shape, dtype) for _, shape, dtype in layout[0]])
            state = {name: x for (name, _, _), x in zip(layout[0], received, strict=True)}
    out, after = advance(state)
    if shard.rank < len(shard.bounds) - 1:
        names = sorted(after)
        dist.send_object_list([[(name, tuple(after[name].shape), after[name].dtype) for name in names]], group=shard.group,
                              group_dst=shard.rank + 1)  # fmt: skip
        out = _Passed.apply(out, shard, *(after[name] for name in names))
    return out
