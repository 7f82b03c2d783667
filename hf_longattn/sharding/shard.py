"""Sequences sharded across processes: fetch the tokens that a mechanism needs, and return their gradients.

Process r holds the tokens ``bounds[r] = (start, stop)`` of every row; the shards may differ in length. Integer inputs (padding, documents,
global tokens) are small and known to all; queries, keys, values and hidden states are not. Every function is called by all processes of
the group in the same order, and its result must enter the loss everywhere, since its backward pass communicates as well.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from ..engines.common.batch import Batch
from ..engines.common.call import AttentionCall, AttentionFunction, State
from ..engines.common.dense import at_least_fp32, index_grid, merged, products
from ..engines.common.global_rows import softmax_part
from ..positions.distances import Locality

Bounds = Sequence[tuple[int, int]]
"""``(start, stop)`` for each process: a range of its tokens, or of its heads."""
Expected = tuple[int, Sequence[int], torch.dtype]
"""The sender, shape and dtype of a tensor that an exchange receives."""


@dataclasses.dataclass(frozen=True, eq=False)
class GlobalTokens:
    """The global tokens of the whole sequence.

    mask: ``(B, N)`` bool.
    index, real: ``(B, g)``, the tokens' positions, padded to the longest row, and which entries are not padding.
    """

    mask: Tensor
    index: Tensor
    real: Tensor


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
        """The tokens ``ranges[rank]``, sent by their owners. They include this process's own.

        Gradients go back to the owners, which add them up.

        Args:
            x: holds this process's own tokens on axis ``dim``.
        """
        sent = [
            (peer, x.narrow(dim, first - self.start, last - first)) for peer, (first, last) in _overlaps(ranges, self.bounds[self.rank])
        ]
        received = [_expected(peer, x, dim, last - first) for peer, (first, last) in _overlaps(self.bounds, ranges[self.rank])]
        return torch.cat(self._exchanged(sent, received), dim)

    def _exchanged(self, sent: Sequence[tuple[int, Tensor]], received: Sequence[Expected]) -> tuple[Tensor, ...]:
        """Exchange tensors with other processes, in one step forward and one step back.

        Args:
            sent: tensors, each with its receiver.
            received: the tensors to receive. Parts that this process keeps are in both lists.
        """
        return _Exchange.apply(self, [peer for peer, _ in sent], received, *(x for _, x in sent))

    def total(self, x: Tensor) -> Tensor:
        """The sum of ``x`` over all processes. Its shape must be the same on each. Its gradient is the sum of all gradients."""
        return _Total.apply(x, self.group)

    def stacked(self, x: Tensor) -> Tensor:
        """``x`` of every process, stacked to ``(processes, …)``. Its shape must be the same on each."""
        return _Stacked.apply(x, self)

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

    def tokens_to_heads(self, heads: Bounds, groups: Bounds, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        """Exchange own tokens of all heads for whole sequences of own heads (Jacobs et al. 2023, DeepSpeed Ulysses).

        Args:
            heads, groups: for each process its query heads, and its key and value heads.
            q: ``(B, H, n, D)``; k, v: ``(B, H_kv, n, D)``; each becomes ``(B, own heads, N, D)``.
        """
        parts = [list(enumerate(x.split(_sizes(each), 1))) for x, each in ((q, heads), (k, groups), (v, groups))]
        expected = [_expected(peer, x[self.rank][1], 2, size) for x in parts for peer, size in enumerate(_sizes(self.bounds))]
        received, processes = self._exchanged(list(itertools.chain(*parts)), expected), len(self.bounds)
        return tuple(torch.cat(received[at : at + processes], 2) for at in range(0, len(received), processes))

    def heads_to_tokens(self, heads: Bounds, x: Tensor) -> Tensor:
        """The inverse of :meth:`tokens_to_heads`: ``x (B, own heads, N, D)`` becomes ``(B, H, n, D)``."""
        parts = x.split(_sizes(self.bounds), 2)
        expected = [_expected(peer, parts[self.rank], 1, size) for peer, size in enumerate(_sizes(heads))]
        return torch.cat(self._exchanged(list(enumerate(parts)), expected), 1)

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
        """This process's rows ``(B, H, n, D)`` of a local mechanism, from own and surrounding tokens.

        Args:
            run: the mechanism, ``run(q, k, v, call)``.
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


def _sizes(bounds: Bounds) -> list[int]:
    return [stop - start for start, stop in bounds]


def _overlaps(bounds: Bounds, own: tuple[int, int]) -> Iterator[tuple[int, tuple[int, int]]]:
    """The ranges of ``bounds`` that overlap ``own``, cut to it, with the numbers of their processes."""
    for peer, (start, stop) in enumerate(bounds):
        first, last = max(start, own[0]), min(stop, own[1])
        if first < last:
            yield peer, (first, last)


def _expected(peer: int, x: Tensor, dim: int, size: int) -> Expected:
    """What ``peer`` sends: a tensor like ``x`` with ``size`` on axis ``dim``."""
    return peer, (*x.shape[:dim], size, *x.shape[dim + 1 :]), x.dtype


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
        return _Total.apply(grads[0], ctx.group), None


class _Stacked(torch.autograd.Function):
    """The tensors of all processes, stacked. Each receives the sum of its gradients on all processes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shard: Shard) -> Tensor:
        ctx.shard, x = shard, x.contiguous()
        parts = [torch.empty_like(x) for _ in shard.bounds]
        dist.all_gather(parts, x, group=shard.group)
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.shard.total(grads[0])[ctx.shard.rank], None


class _Exchange(torch.autograd.Function):
    """Sends a tensor to each of ``peers`` and receives others. Their gradients go the other way.

    One function for several tensors, so that all processes exchange their gradients in the same order.
    """

    @staticmethod
    def forward(ctx: Any, shard: Shard, peers: Sequence[int], received: Sequence[Expected], *sent: Tensor) -> Any:
        ctx.shard, ctx.senders = shard, [peer for peer, *_ in received]
        ctx.sent = [(peer, x.shape, x.dtype) for peer, x in zip(peers, sent, strict=True)]
        return tuple(_send_and_receive(shard, peers, sent, received))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        return None, None, None, *_send_and_receive(ctx.shard, ctx.senders, grads, ctx.sent)


def _send_and_receive(
    shard: Shard, peers: Sequence[int], sent: Sequence[Tensor], received: Sequence[Expected]
) -> list[Tensor]:  # fmt: skip
    """Send each tensor to its peer and receive those of others. Parts that this process keeps are returned in their order."""
    rank, group = shard.rank, dist.group.WORLD if shard.group is None else shard.group
    own = iter([x for peer, x in zip(peers, sent, strict=True) if peer == rank])
    copies = [(peer, x.contiguous()) for peer, x in zip(peers, sent, strict=True) if peer != rank]  # alive until everything is sent
    results = [next(own) if peer == rank else sent[0].new_empty(tuple(shape), dtype=dtype) for peer, shape, dtype in received]
    operations = [dist.P2POp(dist.isend, x, group=group, group_peer=peer) for peer, x in copies]
    operations += [
        dist.P2POp(dist.irecv, x, group=group, group_peer=peer) for (peer, *_), x in zip(received, results, strict=True) if peer != rank
    ]
    for request in dist.batch_isend_irecv(operations) if operations else []:
        request.wait()
    return results


def softmax_rows(q: Tensor, k: Tensor, v: Tensor, index: Tensor, scale: float, call: AttentionCall, shard: Shard) -> Tensor:
    """Attention of a few queries to the keys of all processes, ``(B, H, g, D)`` on every process.

    Each process attends to its own keys. The results are merged by their log-sum-exps.

    Args:
        q: ``(B, H, g, D)``, the same on every process, of the tokens ``index (B, g)``.
        k, v: ``(B, H, n, D)``, this process's own.
        call: for its causality, score term and dropout; padding is the shard's.
    """
    places = torch.arange(shard.start, shard.stop, device=q.device)
    seen = torch.ones_like(places, dtype=torch.bool).expand(1, 1, 1, -1)
    if shard.mask is not None:
        seen = seen & shard.mask[:, None, None, shard.start : shard.stop]
    if call.causal:
        seen = seen & (places <= index[:, None, :, None])
    with torch.autocast(q.device.type, enabled=False):
        scores = products(q, k) * scale
        if call.score_mod is not None:
            b, h, _, _ = index_grid(q.shape[0], q.shape[1], 1, 1, q.device)
            scores = call.score_mod(scores, b, h, index[:, None, :, None], places)
        out, lse = softmax_part(scores, seen, at_least_fp32(v), call.dropout)
        return merged(shard.stacked(out).unbind(), shard.stacked(lse).unbind()).to(v.dtype)


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
