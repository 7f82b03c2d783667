"""The CPU's softmax engine. It splits a softmax into parts, each a call of the fused kernel on some queries and keys.

A :class:`Source` generates the parts of a call, with their indices and masks: a band, listed pairs, windows on a grid,
or selected blocks. This file implements everything that sources share:

- the operator for autograd and graphs, with loops over the parts forward and backward;
- merging the parts by log-sum-exp (:mod:`.kernels` has the equations);
- dropout, gradients of score terms, and faster calls for few keys and for single queries in half precision.

Names with ``d_`` are gradients.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ..batch import fake_mode, transformed
from ..call import precise_dtype
from ..dense import unit_stride
from .kernels import (
    MASKED,
    MAX_PLAIN_KEYS,
    Dropout,
    Gradients,
    empty_results,
    few_keys,
    flash,
    flash_backward,
    merge_into,
    merge_sinks,
    plain_gradients,
    token_major,
)


class Side(ABC):
    """Which queries or which keys a part has: some tokens of ``x (b, H, N, …)``."""

    copies: ClassVar[bool] = False
    """Whether :meth:`of` returns a copy, not a view."""

    @abstractmethod
    def of(self, x: Any) -> Tensor:
        """These tokens of ``x``, ``(n, H, size, …)``."""

    def put(self, x: Any, values: Tensor) -> None:
        """Write ``values (n, H, size, …)`` to these tokens of ``x``."""
        self.of(x).copy_(values)

    @abstractmethod
    def add(self, x: Any, values: Tensor) -> None:
        """Add ``values (n, H, size, …)`` to these tokens of ``x``. A token may occur several times."""


@dataclasses.dataclass(frozen=True)
class Runs(Side):
    """``rows`` runs of equally spaced tokens, as a view. Run i has the tokens ``start + i * step + j * stride`` with
    j < size.

    first_writer: whether the tokens occur once, and nothing was written to them before. :meth:`add` then does not read
        ``x``.
    """

    start: int
    size: int
    rows: int = 1
    step: int = 0
    stride: int = 1
    first_writer: bool = False

    def of(self, x: Tensor) -> Tensor:
        return tokens_of((self, x))[0]

    def add(self, x: Tensor, values: Tensor) -> None:
        if self.first_writer:
            self.put(x, values)
            return
        runs, width = self, self.size
        if self.rows > 1 and self.step == 0:  # every run has the same tokens
            runs = dataclasses.replace(self, rows=1)
            values = values.sum(0, keepdim=True, dtype=x.dtype)
        # runs may overlap; pieces of at most one step do not, and are added at once
        elif self.rows > 1 and (self.rows - 1) * self.step >= self.stride:
            if self.step % self.stride:  # a step is no whole number of tokens: add run by run
                for number, row in enumerate(values.split(1)):
                    dataclasses.replace(self, start=self.start + number * self.step, rows=1).add(x, row)
                return
            width = self.step // self.stride
        for at in range(0, self.size, width):
            size = min(width, self.size - at)
            runs.part(at, size).of(x).add_(values[:, :, at : at + size])

    def part(self, first: int, size: int) -> Runs:
        """The tokens ``first`` to ``first + size - 1`` of every run."""
        return dataclasses.replace(self, start=self.start + first * self.stride, size=size)


def tokens_of(*pairs: tuple[Side, Any]) -> list[Tensor]:
    """:meth:`Side.of` for all tensors of a part in one call, which saves time if there are many parts."""
    tokens = []
    for side, x in pairs:
        if not isinstance(side, Runs):
            tokens.append(side.of(x))
        elif side.rows == 1 and side.stride == 1:
            tokens.append(x.narrow(2, side.start, side.size))
        else:
            _, by_head, by_token, *inner = x.stride()
            shape = (side.rows, x.shape[1], side.size, *x.shape[3:])
            strides = (side.step * by_token, by_head, side.stride * by_token, *inner)
            tokens.append(x.as_strided(shape, strides, x.storage_offset() + side.start * by_token))
    return tokens


@dataclasses.dataclass(frozen=True)
class Listed(Side):
    """Tokens by their indices ``(n,)``, which must be distinct."""

    tokens: Tensor

    copies: ClassVar[bool] = True

    def of(self, x: Tensor) -> Tensor:
        return x.index_select(2, self.tokens)

    def put(self, x: Tensor, values: Tensor) -> None:
        x.index_copy_(2, self.tokens, values)

    def add(self, x: Tensor, values: Tensor) -> None:
        x.index_add_(2, self.tokens, values.to(x.dtype))


class Part(NamedTuple):
    """Queries and keys of one kernel call, which computes a part of the softmax."""

    queries: Side
    keys: Side
    mask: Tensor | None = None
    """Additive, broadcastable to ``(n, H, queries, keys)``; ``None`` if no pair is hidden."""
    label: tuple[int, ...] = ()
    """Numbers that identify the part within its scope. They seed its dropout."""
    merges: bool = False
    """Whether results are merged with the results of earlier parts for the same queries. Otherwise they overwrite
    these."""
    overrides: bool = False
    """Whether the outputs of its queries ignore all other parts. Such a part must run last in forward and first in
    backward."""
    causal: bool = False
    """Whether the kernel may skip keys after a query. The mask hides them too."""
    of_scores: Callable[[Tensor], Any] | None = None
    """Callback that sums the gradients of a score term. It gets the gradient of the scores ``(n, H, queries, keys)``,
    read-only."""
    memory: Tensor | None = None
    """Buffer into which the gradient of the scores is written; the source reads it. If there is one, the mask may be
    overwritten."""


class Scope:
    """The parts of some tokens of a batch, such as one batch row. It may copy these tokens for its parts."""

    whole: bool = False
    """Whether the scope has a single part with all queries and keys of the batch."""

    def __init__(self, parts: Iterable[Part], rows: slice | None = None) -> None:
        """rows: the batch rows of the scope; ``None`` for all."""
        self.parts, self.rows = parts, rows

    def read(self, name: str, x: Tensor) -> Any:
        """The tensor from which parts read ``x``. ``name`` is q, k, v, out, lse or grad."""
        if self.rows is None:
            return x
        return x[self.rows]

    def into(self, name: str, x: Tensor) -> Any:
        """The tensor to which parts write results for ``x``. ``name`` is out, lse, dq, dk or dv."""
        return self.read(name, x)

    def finish(self, results: dict[str, Tensor]) -> None:
        """After the last part, write results that are still in buffers to ``results``.

        These are the call's ``out`` and ``lse`` or, in the backward pass, ``dq``, ``dk`` and ``dv``.
        """


class Source(ABC):
    """Generates the parts of one call. Subclasses read their arguments in :meth:`read_arguments`.

    learned: tensors that may need gradients. fixed: tensors without gradients. numbers: integer settings.
    learns: whether the gradients of learned tensors are needed.
    totals: sums for these gradients, see :meth:`learned_gradients`.
    """

    name: ClassVar[str]
    sums_in_fp32: ClassVar[bool] = True
    """Whether gradients are summed in at least fp32 instead of the dtype of q."""
    may_see_nothing: ClassVar[bool] = False
    """Whether a query may have no visible key. Its log-sum-exp and output are 0."""

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        learned: Sequence[Tensor],
        fixed: Sequence[Tensor | None],
        numbers: Sequence[int],
        dropout: float,
        seed: Tensor | None,
        learns: bool = False,
    ) -> None:
        self.q, self.k, self.v, self.dtype = q, k, v, precise_dtype(q)
        self.dropout = None if seed is None else Dropout(dropout, int(seed))
        self.learned, self.fixed, self.numbers = learned, fixed, numbers
        self.learns, self.totals = learns, list[Tensor]()
        self.read_arguments()

    @abstractmethod
    def read_arguments(self) -> None:
        """Read ``learned``, ``fixed`` and ``numbers``, whose meaning each subclass defines."""

    @abstractmethod
    def scopes(self, backward: bool) -> Iterator[Scope]:
        """The scopes of the call. Each is generated after the parts of the previous one have run."""

    def prepare(self, out: Tensor, lse: Tensor) -> None:
        """Initialise ``out`` and ``lse`` for queries that no part contains."""
        return

    def sums(self) -> list[Tensor]:
        """Zero-initialised sums for the gradients of q, k and v."""
        dtype = self.dtype if self.sums_in_fp32 else self.q.dtype
        return [x.zero_() for x in token_major(dtype, self.q, self.k, self.v)]

    def learned_gradients(self) -> list[Tensor]:
        """The gradients of the learned tensors. Called after the last scope."""
        return self.totals


SOURCES: dict[str, type[Source]] = {}


def source(cls: type[Source]) -> type[Source]:
    SOURCES[cls.name] = cls
    return cls


def part_backward(
    part: Part,
    label: tuple[int, ...],
    inputs: Sequence[Tensor],
    totals: Sequence[Any],
    scale: float,
    drop: Dropout | None,
) -> Gradients | None:
    """The gradients of a part's q, k and v. If plain products compute them, they are added to ``totals``, and the
    result is ``None``.

    Args:
        inputs: grad, q, k, v, out and lse of the part; grad, out and lse belong to the whole softmax.
        totals: tensors for the gradients of q, k and v, for :meth:`Side.add`.
    """
    grad, q, k, v, out, lse = inputs
    if drop is not None:
        return drop.backward(label, grad, q, k, v, out, lse, part.mask, scale)

    # A score term needs the gradient of the scores, which the fused kernel does not return.
    if k.shape[2] <= MAX_PLAIN_KEYS or part.of_scores is not None or part.memory is not None:
        grad, q, k, v, out = (x.to(lse.dtype) for x in (grad, q, k, v, out))
        d_scores, weights = plain_gradients(part.mask, scale, grad, q, k, v, out, lse, part.memory)
        if part.of_scores is not None:
            part.of_scores(d_scores)
        products = (
            (part.queries, d_scores, k, scale),
            (part.keys, d_scores.mT, q, scale),
            (part.keys, weights.mT, grad, 1.0),
        )
        for total, (side, left, right, factor) in zip(totals, products, strict=True):
            if isinstance(side, Runs) and not side.first_writer and len(left) == 1:
                add_product(side.of(total), left, right, factor)
            else:
                side.add(total, (left @ right).mul_(factor))
        return None

    if q.shape[2] > 1 or q.element_size() >= 4:
        return flash_backward(grad, q, k, v, out, lse, 0.0, part.causal, attn_mask=part.mask, scale=scale)
    grad = torch.nn.functional.pad(grad, (0, 0, 0, 1))  # the repeated query gets no gradient
    q, out, lse = _doubled(q, out, lse)
    mask = _doubled_mask(part.mask)
    dq, dk, dv = flash_backward(grad, q, k, v, out, lse, 0.0, False, attn_mask=mask, scale=scale)
    return dq[:, :, :1], dk, dv


def add_product(total: Tensor, left: Tensor, right: Tensor, factor: float = 1.0) -> None:
    """Add ``factor * left @ right`` to ``total``, for ``left (n, H, …)`` and ``right (n or 1, H, …)``."""
    if len(total) == 1 and total.dtype == left.dtype:
        total[0].baddbmm_(left[0], right[0], alpha=factor)
    else:
        total.add_(left @ right, alpha=factor)


def _doubled(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Repeat the query of tensors ``(n, H, 1, …)``. In half precision, the kernel is several times slower for one
    query than for two."""
    return tuple(torch.cat([x, x], 2) for x in tensors)


def _doubled_mask(mask: Tensor | None) -> Tensor | None:
    if mask is None:
        return None
    return mask.expand(-1, -1, 2, -1)


def softmax_forward(
    source_name: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    learned: Sequence[Tensor],
    fixed: Sequence[Tensor | None],
    numbers: Sequence[int],
    scale: float,
    dropout: float,
    seed: Tensor | None,
    sink_scores: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Softmax attention over the parts of a source.

    Args:
        source_name: key of :data:`SOURCES`. The source class documents ``learned``, ``fixed`` and ``numbers``.
        q, k, v: ``(B, H, Nq, D)``, ``(B, H, Nk, D)``.
        dropout, seed: dropout of the weights, see :class:`.kernels.Dropout`. Not supported together with score terms.
            The seed is a tensor ``()`` int64, so that a graph draws another one in every step; ``None`` without
            dropout.
        sink_scores: ``(H,)``, see :class:`~..call.AttentionCall`. The backward pass of the parts needs no change,
            since it takes the merged output and log-sum-exp.
    Returns:
        Output ``(B, H, Nq, D)``, stored token-major, and log-sum-exp ``(B, H, Nq)``.
    """
    parts_source = SOURCES[source_name](q, k, v, learned, fixed, numbers, dropout, seed)
    drops = parts_source.dropout
    out, lse = empty_results(parts_source.q, parts_source.dtype)
    parts_source.prepare(out, lse)
    results: Any
    for number, scope in enumerate(parts_source.scopes(backward=False)):
        queries, keys, values = scope.read("q", parts_source.q), scope.read("k", k), scope.read("v", v)
        scope_out, scope_lse = scope.into("out", out), scope.into("lse", lse)
        for part in scope.parts:
            # Read the part's tensors, and the results that its queries have so far: views, or copies to merge with.
            q_side, k_side = part.queries, part.keys
            earlier = ((q_side, scope_out), (q_side, scope_lse)) if part.merges or not q_side.copies else ()
            part_q, part_k, part_v, *written = tokens_of((q_side, queries), (k_side, keys), (k_side, values), *earlier)
            if drops is not None:
                results = drops.forward((number, *part.label), part_q, part_k, part_v, part.mask, scale)
            elif part.merges and part_k.shape[2] <= MAX_PLAIN_KEYS:
                results = few_keys(part_q, part_k, part_v, part.mask, scale)
            elif part_q.shape[2] == 1 and part_q.element_size() < 4:
                two = flash(*_doubled(part_q), part_k, part_v, attn_mask=_doubled_mask(part.mask), scale=scale)
                results = tuple(x[:, :, :1] for x in two)
            else:
                results = flash(part_q, part_k, part_v, 0.0, part.causal, attn_mask=part.mask, scale=scale)

            # If the kernel's tensors cover the batch in the right layout, they are the result. This saves a copy.
            if scope.whole and results[0].stride() == out.stride() and results[1].stride() == lse.stride():
                if sink_scores is not None:
                    merge_sinks(results[0], results[1], sink_scores)
                return results
            if part.merges:
                merge_into(written[0], written[1], *results)
                results = written
            if q_side.copies:
                q_side.put(scope_out, results[0])
                q_side.put(scope_lse, results[1])
            elif not part.merges:
                written[0].copy_(results[0])
                written[1].copy_(results[1])
        scope.finish({"out": out, "lse": lse})
    if parts_source.may_see_nothing or sink_scores is not None:
        _finish(out, lse, parts_source.may_see_nothing, sink_scores)
    return out, lse


def _finish(out: Tensor, lse: Tensor, may_see_nothing: bool, sink_scores: Tensor | None) -> None:
    """Set the results of queries without a visible key to 0, and merge the sinks, in place."""
    if may_see_nothing:
        unseen = lse <= MASKED / 2
        if bool(unseen.any()):
            out.masked_fill_(unseen[..., None], 0)
            lse.masked_fill_(unseen, 0)
    if sink_scores is not None:
        merge_sinks(out, lse, sink_scores)


cpu_softmax = torch.library.custom_op("hf_longattn::cpu_softmax", softmax_forward, mutates_args=(), device_types="cpu")


@torch.library.custom_op("hf_longattn::cpu_softmax_backward", mutates_args=(), device_types="cpu")
def cpu_softmax_backward(
    grad: Tensor,
    out: Tensor,
    lse: Tensor,
    learns: bool,
    source_name: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    learned: Sequence[Tensor],
    fixed: Sequence[Tensor | None],
    numbers: Sequence[int],
    scale: float,
    dropout: float,
    seed: Tensor | None,
) -> list[Tensor]:
    """The gradients of q, k and v in :func:`cpu_softmax`, then those of the learned tensors if ``learns``."""
    parts_source = SOURCES[source_name](q, k, v, learned, fixed, numbers, dropout, seed, learns)
    inputs = {"grad": grad, "q": parts_source.q, "k": k, "v": v, "out": out, "lse": lse}
    sums = parts_source.sums()
    names = ("dq", "dk", "dv")
    results: list[Tensor] | None = None
    for number, scope in enumerate(parts_source.scopes(backward=True)):
        tensors = {name: scope.read(name, x) for name, x in inputs.items()}
        totals = [scope.into(name, x) for name, x in zip(names, sums, strict=True)]
        for part in scope.parts:
            pairs = [(part.keys if name in ("k", "v") else part.queries, x) for name, x in tensors.items()]
            part_inputs = tokens_of(*pairs)
            gradients = part_backward(part, (number, *part.label), part_inputs, totals, scale, parts_source.dropout)
            if gradients is not None:
                # As in the forward pass, tensors of the kernel may be the result.
                same_layout = (x.stride() == total.stride() for x, total in zip(gradients, totals, strict=True))
                if scope.whole and all(same_layout):
                    results = [*gradients]
                    break
                for total, side, gradient in zip(totals, (part.queries, part.keys, part.keys), gradients, strict=True):
                    side.add(total, gradient)
            if part.overrides:  # its queries get no gradients from other parts
                tensors["grad"] = tensors["grad"].clone()
                part.queries.put(tensors["grad"], torch.zeros_like(part_inputs[0]))
        scope.finish(dict(zip(names, sums, strict=True)))
    d_learned = []
    if learns:
        d_learned = [x.to(like.dtype) for x, like in zip(parts_source.learned_gradients(), learned, strict=True)]
    if results is None:
        results = []
        for total, x in zip(sums, token_major(q.dtype, q, k, v), strict=True):
            if (total.dtype, total.stride()) != (x.dtype, x.stride()):
                total = x.copy_(total)
            results.append(total)
    return [*results, *d_learned]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.source_name, q, k, v, learned, fixed, *ctx.settings, seed, sink_scores = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.learned = len(learned)
    ctx.save_for_backward(*output, seed, sink_scores, q, k, v, *learned, *fixed)


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    """The gradients of all arguments of :func:`cpu_softmax`."""
    out, lse, seed, sinks, q, k, v, *tensors = ctx.saved_tensors
    learned, fixed = tensors[: ctx.learned], tensors[ctx.learned :]
    learns = any(ctx.needs_input_grad[4])
    dq, dk, dv, *d_learned = cpu_softmax_backward(
        grad, out, lse, learns, ctx.source_name, q, k, v, learned, fixed, *ctx.settings, seed
    )
    # For an argument that is a list, PyTorch expects a list of gradients, or a single None if the list contains None.
    d_fixed = None if any(x is None for x in fixed) else [None] * len(fixed)
    if not learns:
        d_learned = [None] * len(learned)
    d_sinks = None
    if sinks is not None:  # a sink has the value 0, so the gradient of its score is -weight · (grad · out)
        weights = (sinks.to(lse.dtype)[:, None] - lse).exp()
        d_sinks = -(weights * (grad.to(lse.dtype) * out).sum(-1)).sum((0, 2)).to(sinks.dtype)
    d_settings = [None] * len(ctx.settings)
    return None, dq, dk, dv, d_learned, d_fixed, *d_settings, None, d_sinks


def _empty_gradients(*arguments: Any) -> list[Tensor]:
    _, _, _, learns, _, q, k, v, learned, *_ = arguments
    gradients = [*token_major(q.dtype, q, k, v)]
    if learns:
        for x in learned:
            gradients += token_major(x.dtype, x) if x.dim() == 4 else [x.new_empty(x.shape)]
    return gradients


cpu_softmax.register_fake(lambda source_name, q, *_: empty_results(q, precise_dtype(q)))
cpu_softmax_backward.register_fake(_empty_gradients)
cpu_softmax.register_autograd(_backward, setup_context=_setup_context)


def attend_parts(
    source_name: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    learned: Sequence[Tensor],
    fixed: Sequence[Tensor | None],
    numbers: Sequence[int],
    dropout: float = 0.0,
    sink_scores: Tensor | None = None,
) -> Tensor:
    """The output of :func:`softmax_forward`. Autograd and graphs call it as an operator, which costs 0.1 ms more.

    dropout: probability of dropping a weight. PyTorch's generator draws the seed.
    """
    if not q.stride(-1) == k.stride(-1) == v.stride(-1) == 1:  # kernels assume this without a check
        q, k, v = (unit_stride(x) for x in (q, k, v))
    learned = [*learned]
    recorded = torch.is_grad_enabled() and (
        q.requires_grad
        or k.requires_grad
        or v.requires_grad
        or any(x.requires_grad for x in learned)
        or (sink_scores is not None and sink_scores.requires_grad)
    )
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing() or fake_mode() is not None or transformed()
    run = cpu_softmax if recorded or traced else softmax_forward
    seed = torch.randint(1 << 62, (), device=q.device) if dropout else None
    return run(source_name, q, k, v, learned, [*fixed], [*numbers], scale, dropout, seed, sink_scores)[0]
