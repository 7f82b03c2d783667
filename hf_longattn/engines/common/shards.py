"""A sequence cut over several processes: what a mechanism needs of the other processes' tokens, and the gradients back to them.

Process r holds the tokens ``bounds[r] = (start, stop)`` of every row; the pieces may differ in length. Integer inputs (padding, documents,
global tokens) are small and known to all; queries, keys, values and hidden states are not. Every function is called by all processes of
the group in the same order, and its result must take part in the loss everywhere, since its backward pass communicates as well.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from .batch import Batch
from .call import AttentionCall, DistanceBias, Run, ScoreMod, State, TokenTerm
from .global_rows import global_index

Bounds = Sequence[tuple[int, int]]
"""For each process the first token and the one after the last."""


@dataclasses.dataclass(frozen=True)
class Locality:
    """A token's output depends on nothing but the tokens from ``back`` before it to ``ahead`` after it.

    period: the output stays the same when tokens are counted from another one, as long as their numbers differ by a multiple of this.
    """

    back: int
    ahead: int
    period: int = 1


@dataclasses.dataclass(frozen=True, eq=False)
class GlobalTokens:
    """The global tokens of the whole sequence.

    mask: ``(B, N)`` bool.
    index, real: ``(B, g)``, their positions, padded to the longest row, and which entries are no padding.
    """

    mask: Tensor
    index: Tensor
    real: Tensor

    @classmethod
    def of(cls, mask: Tensor) -> GlobalTokens:
        """Those of ``mask (B, N)``; sorts each row once."""
        return cls(mask, *global_index(mask))


@dataclasses.dataclass(frozen=True, eq=False)
class Shard:
    """This process's piece of a batch.

    group: the processes among which the sequence is cut; ``None`` is all of them.
    bounds: every process's piece.
    rank: this process's place in the group.
    run: ``run(mechanism, q, k, v, call)``, attention of a batch in one process: :func:`hf_longattn.attend.run_batch`.
    mask, documents, global_mask: of the whole rows, ``(B, N)``; ``None`` where there is no padding, one document, no global token.
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
        """Whether every row is one sequence that starts at its first token: no left padding, one document."""
        return self.documents is None and (self.mask is None or bool(self.mask[:, 0].all()))

    def around(self, local: Locality) -> Bounds:
        """What each process must see of the sequence to compute its own rows."""
        found = []
        for start, stop in self.bounds:
            low = max(0, start - local.back) // local.period * local.period
            found.append((low, min(self.length, stop + local.ahead)))
        return found

    def reach(self, x: Tensor, ranges: Bounds, dim: int = 2) -> Tensor:
        """The tokens ``ranges[rank]`` of a tensor whose axis ``dim`` holds this process's own: parts come from their owners."""
        return _Reach.apply(x, self, tuple(ranges), dim)

    def total(self, x: Tensor) -> Tensor:
        """The sum of every process's ``x``, all of one shape."""
        return _Total.apply(x, self.group)

    def largest(self, x: Tensor) -> Tensor:
        """The largest of every process's ``x``, a constant for the gradient."""
        x = x.detach().clone()
        dist.all_reduce(x, dist.ReduceOp.MAX, group=self.group)
        return x

    def stacked(self, x: Tensor) -> Tensor:
        """Every process's ``x``, all of one shape: ``(processes, …)``."""
        return _Stacked.apply(x, self.group, self.rank, len(self.bounds))

    def before(self, x: Tensor) -> Tensor:
        """``x (processes, …)`` with zeros from this process on: a branch would leave the first process without a backward pass."""
        earlier = torch.arange(len(self.bounds), device=x.device) < self.rank
        return x * earlier.view(-1, *[1] * (x.dim() - 1)).to(x.dtype)

    def owns(self, index: Tensor) -> Tensor:
        """Whether the tokens ``index`` of the whole sequence are this process's, as bool of the same shape."""
        return (index >= self.start) & (index < self.stop)

    def tokens(self, x: Tensor, index: Tensor) -> Tensor:
        """The tokens ``index (B, g)`` of the whole sequence, on every process: ``x (B, H, n, D)``, this one's own -> ``(B, H, g, D)``."""
        own = self.owns(index)
        x = F.pad(x, (0, 0, 0, 1))  # a process may have no token to read
        place = torch.where(own, index - self.start, self.stop - self.start)
        return self.total(x.gather(2, place[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3])))

    def whole(self, heads: Bounds, groups: Bounds, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Whole sequences of this process's heads, for its own tokens of all heads (Jacobs et al. 2023, DeepSpeed Ulysses).

        Args:
            heads, groups: for each process its query heads, and its key and value heads.
            q: ``(B, H, n, D)``; k, v: ``(B, H_kv, n, D)``; in exchange ``(B, own heads, N, D)``.
        """
        return _Swap.apply(self, (heads, groups, groups), True, q, k, v)

    def own(self, heads: Bounds, x: Tensor) -> Tensor:
        """This process's tokens of all heads ``(B, H, n, D)``, for whole sequences of its heads ``x (B, own heads, N, D)``."""
        return _Swap.apply(self, (heads,), False, x)[0]

    def call(self, call: AttentionCall, low: int, high: int) -> AttentionCall:
        """The call for the tokens ``low … high - 1`` as a sequence by themselves."""
        at = (slice(None), slice(low, high))
        mask, documents, globals_ = (None if x is None else x[at] for x in (self.mask, self.documents, self.global_mask))
        return call.replace(batch=Batch.of(mask, documents), global_mask=globals_, score_mod=counted_from(call.score_mod, low))

    def own_call(self, call: AttentionCall) -> AttentionCall:
        """The call for this process's tokens as a sequence by themselves."""
        return self.call(call, self.start, self.stop)

    def attend(
        self, run: Run, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall, local: Locality, tokens: GlobalTokens | None = None
    ) -> Tensor:
        """This process's rows ``(B, H, n, D)`` of a local mechanism ``run(q, k, v, call)``, from its own tokens and those around them.

        Args:
            tokens: global tokens of the whole sequence: their keys come before and after the others where they lie outside of what the
                rows see, so that each is there once.
        """
        ranges = self.around(local)
        low, high = ranges[self.rank]
        parts = [k, v] if call.detached_kv is None else [k, v, *call.detached_kv]
        widths = [x.shape[-1] for x in parts]
        whole = torch.cat(parts, -1)
        near = self.reach(whole, ranges)
        own, beyond = self.call(call, low, high), 0
        if tokens is not None:
            near, own, beyond = self._with_globals(whole, near, own, tokens, low, high, local.period)
        found = near.split(widths, -1)
        if call.detached_kv is not None:
            own = own.replace(detached_kv=tuple(found[2:]))
        if call.hidden_states is not None and tokens is None:
            own = own.replace(hidden_states=self.reach(call.hidden_states, ranges, 1))
        queries = F.pad(q, (0, 0, 0, high - self.stop + beyond))
        if isinstance(call.score_mod, TokenTerm):
            own = own.replace(score_mod=call.score_mod.of(queries, found[0], range(q.shape[1])))
        return run(queries, found[0], found[1], own)[:, :, : self.stop - self.start]

    def _with_globals(
        self, x: Tensor, near: Tensor, call: AttentionCall, tokens: GlobalTokens, low: int, high: int, period: int
    ) -> tuple[Tensor, AttentionCall, int]:
        """Global tokens' parts of ``x`` around ``near``, which has the tokens ``low … high - 1``; the call, and how many come after."""
        mask, index, real = tokens.mask, tokens.index, tokens.real
        front = -(-index.shape[1] // period) * period  # so that tokens keep their places in blocks
        index, real = (F.pad(y, (front - y.shape[1], 0)) for y in (index, real))
        chosen = self.tokens(x, index)
        before, after = real & (index < low), real & (index >= high)
        inside = torch.ones_like(mask[:, low:high]) if self.mask is None else self.mask[:, low:high]
        score_mod = call.score_mod
        if score_mod is not None:
            inner = score_mod  # which counts from the first token of the part
            places = torch.cat([index - low, torch.arange(high - low, device=index.device).expand(len(index), -1), index - low], 1)

            def score_mod(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
                return inner(score, b, h, places[b, q_idx], places[b, kv_idx])

        own = call.replace(
            batch=Batch(torch.cat([before, inside, after], 1)),
            global_mask=torch.cat([before, mask[:, low:high], after], 1),
            score_mod=score_mod,
        )
        return torch.cat([chosen, near, chosen], 2), own, front


def counted_from(score_mod: ScoreMod | None, first: int) -> ScoreMod | None:
    """``score_mod`` for tokens whose numbers begin with ``first``."""
    if score_mod is None or isinstance(score_mod, DistanceBias | TokenTerm) or not first:
        return score_mod
    return lambda score, b, h, q_idx, kv_idx: score_mod(score, b, h, q_idx + first, kv_idx + first)


def cut_evenly(length: int, processes: int) -> Bounds:
    """Pieces whose lengths differ by at most one token."""
    ends = [length * number // processes for number in range(processes + 1)]
    return list(itertools.pairwise(ends))


def _common(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    return max(a[0], b[0]), min(a[1], b[1])


class _Reach(torch.autograd.Function):
    """Sends every process the tokens that it asks for; their gradients go back and are added up by the owner."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shard: Shard, ranges: Bounds, dim: int) -> Tensor:
        ctx.shard, ctx.ranges, ctx.dim, ctx.shape = shard, ranges, dim, x.shape
        low, high = ranges[shard.rank]
        shape = list(x.shape)
        shape[dim] = high - low
        out = x.new_zeros(shape)
        pieces = _exchange(shard, dim, x, [(own, ranges) for own in shard.bounds], ranges[shard.rank], list(shard.bounds))
        for (first, last), piece in pieces:
            out.narrow(dim, first - low, last - first).copy_(piece)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        shard, ranges, dim = ctx.shard, ctx.ranges, ctx.dim
        total = grads[0].new_zeros(ctx.shape)
        own = shard.bounds[shard.rank]
        for (first, last), piece in _exchange(shard, dim, grads[0], [(asked, shard.bounds) for asked in ranges], own, list(ranges)):
            total.narrow(dim, first - own[0], last - first).add_(piece)
        return total, None, None, None


def _exchange(
    shard: Shard, dim: int, x: Tensor, have: list[tuple[tuple[int, int], Bounds]], want: tuple[int, int], held: Bounds
) -> list[tuple[tuple[int, int], Tensor]]:
    """Send what this process holds of what the others want, and return the parts of ``want``, its own one included.

    have: for each process what it holds and what all of them want; of which this one's entry is used.
    held: what each process holds.
    """
    mine, wanted = have[shard.rank]
    group = dist.group.WORLD if shard.group is None else shard.group
    operations, found, kept = [], [], []
    for other in range(len(held)):
        if other == shard.rank:
            continue
        first, last = _common(mine, wanted[other])
        if first < last:
            part = x.narrow(dim, first - mine[0], last - first).contiguous()
            kept.append(part)
            operations.append(dist.P2POp(dist.isend, part, group=group, group_peer=other))
        first, last = _common(held[other], want)
        if first < last:
            shape = list(x.shape)
            shape[dim] = last - first
            part = x.new_empty(shape)
            found.append(((first, last), part))
            operations.append(dist.P2POp(dist.irecv, part, group=group, group_peer=other))
    for request in dist.batch_isend_irecv(operations) if operations else []:
        request.wait()
    first, last = _common(mine, want)
    if first < last:
        found.append(((first, last), x.narrow(dim, first - mine[0], last - first)))
    return sorted(found, key=lambda one: one[0])


class _Swap(torch.autograd.Function):
    """Exchanges tokens for heads, or back. One function for all tensors, so that every process's gradients go back in the same order."""

    @staticmethod
    def forward(ctx: Any, shard: Shard, heads: Sequence[Bounds], to_heads: bool, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.shard, ctx.heads, ctx.to_heads = shard, heads, to_heads
        return tuple(_swapped(x, shard, own, to_heads) for x, own in zip(tensors, heads, strict=True))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        found = (_swapped(x, ctx.shard, own, not ctx.to_heads) for x, own in zip(grads, ctx.heads, strict=True))
        return None, None, None, *found


def _swapped(x: Tensor, shard: Shard, heads: Bounds, to_heads: bool) -> Tensor:
    """``(B, H, n, D)`` as ``(B, own heads, N, D)``, or the reverse."""
    gives, takes = (1, 2) if to_heads else (2, 1)
    given, taken = (heads, shard.bounds) if to_heads else (shard.bounds, heads)
    group = dist.group.WORLD if shard.group is None else shard.group
    operations, sent, found = [], [], []
    for other, ((first, last), (low, high)) in enumerate(zip(given, taken, strict=True)):
        part = x.narrow(gives, first, last - first).contiguous()
        if other == shard.rank:
            found.append(part)
            continue
        shape = list(x.shape)
        shape[gives], shape[takes] = given[shard.rank][1] - given[shard.rank][0], high - low
        sent.append(part)
        found.append(x.new_empty(shape))
        operations += [
            dist.P2POp(dist.isend, part, group=group, group_peer=other),
            dist.P2POp(dist.irecv, found[-1], group=group, group_peer=other),
        ]
    for request in dist.batch_isend_irecv(operations) if operations else []:
        request.wait()
    return torch.cat(found, takes)


class _Total(torch.autograd.Function):
    """The sum over the processes; each is given the sum of all gradients."""

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
    """All processes' tensors; the gradient of a process's own is the sum of those that all processes have for it."""

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
    """Attention of few queries to the keys of all processes, by the sums of each: ``(B, H, g, D)``, on every process.

    With s_j the scores of a row, c their largest on any process, it is  Σ_r Σ_j exp(s_j - c) v_j / Σ_r Σ_j exp(s_j - c).

    Args:
        q: ``(B, H, g, D)``, the same on every process, of the tokens ``index (B, g)``.
        k, v: ``(B, H, n, D)``, this process's own.
        call: its causality and score term; padding is the shard's.
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
    most = scores.amax(-1, keepdim=True) if scores.shape[-1] else scores.new_full((*scores.shape[:-1], 1), -math.inf)
    most = shard.largest(most).clamp(min=torch.finfo(wide).min)
    weights = (scores - most).exp()
    sums = torch.cat([F.dropout(weights, call.dropout) @ v.to(wide), weights.sum(-1, keepdim=True)], -1)
    sums = shard.total(sums)
    return (sums[..., :-1] / sums[..., -1:].clamp(min=torch.finfo(wide).tiny)).to(v.dtype)


class _Passed(torch.autograd.Function):
    """Sends tensors to the next process; its gradients come back. The output is handed through, so that the loss depends on it."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, shard: Shard, *tensors: Tensor) -> Tensor:
        ctx.shard, ctx.shapes = shard, [(x.shape, x.dtype) for x in tensors]
        for x in tensors:
            dist.send(x.contiguous(), group=shard.group, group_dst=shard.rank + 1)
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        found: list[Tensor | None] = []
        for shape, dtype in ctx.shapes:
            if not dtype.is_floating_point:
                found.append(None)
                continue
            grad = grads[0].new_empty(shape, dtype=dtype)
            dist.recv(grad, group=ctx.shard.group, group_src=ctx.shard.rank + 1)
            found.append(grad)
        return grads[0], None, *found


class _Received(torch.autograd.Function):
    """Tensors of the process before; their gradients go back to it."""

    @staticmethod
    def forward(ctx: Any, like: Tensor, shard: Shard, layout: Sequence[tuple[tuple[int, ...], torch.dtype]]) -> tuple[Tensor, ...]:
        ctx.shard = shard
        found = []
        for shape, dtype in layout:
            x = like.new_empty(shape, dtype=dtype)
            dist.recv(x, group=shard.group, group_src=shard.rank - 1)
            found.append(x)
        ctx.mark_non_differentiable(*(x for x in found if not x.is_floating_point()))
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None]:
        like = None
        for grad in grads:
            if grad is not None and grad.is_floating_point():
                dist.send(grad.contiguous(), group=ctx.shard.group, group_dst=ctx.shard.rank - 1)
                like = grad
        return None if like is None else like.new_zeros(()), None, None


def in_turn(advance: Callable[[State | None], tuple[Tensor, State]], like: Tensor, shard: Shard) -> Tensor:
    """The output of a recurrence ``advance(state) -> (output, state)``, process after process; ``like`` carries the gradient."""
    state: State | None = None
    if shard.rank > 0:
        layout: list[Any] = [None]
        dist.recv_object_list(layout, group=shard.group, group_src=shard.rank - 1)
        if layout[0] is not None:
            found = _Received.apply(like.flatten()[:1].sum() * 0 if like.numel() else like.sum(), shard, [one[1:] for one in layout[0]])
            state = {name: x for (name, _, _), x in zip(layout[0], found, strict=True)}
    out, after = advance(state)
    if shard.rank < len(shard.bounds) - 1:
        names = sorted(after)
        dist.send_object_list([[(name, tuple(after[name].shape), after[name].dtype) for name in names]], group=shard.group,
                              group_dst=shard.rank + 1)  # fmt: skip
        out = _Passed.apply(out, shard, *(after[name] for name in names))
    return out
