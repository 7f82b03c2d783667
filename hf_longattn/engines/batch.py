"""Positions of the sequences in a batch, with left padding, holes and packed documents.

A :class:`Batch` is made once per forward pass. :mod:`.sequences` reads it, and either runs rows unchanged or moves
every sequence to index 0. After a move, a key mask marks padding inside or after a sequence.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from ..names import look_up

Derived = TypeVar("Derived")
MAX_NORM = 1e10
"""Norm below which tensors are moderate (:func:`all_moderate`): in scores and gradients, products of two such tensors
are far smaller than the -1e30 of the CPU's additive masks. NaN and infinity are not moderate."""
TRANSFORMED = "torch.func transforms the call, for which fused kernels have no rule"
_shapes_only: ContextVar[bool] = ContextVar("shapes_only", default=False)
"""Whether the context :func:`shapes_only` is active."""
transformed = look_up("functorch", when_called=True)
"""``transformed() -> bool``: whether a transformation of ``torch.func`` runs, such as ``grad`` or ``vmap``."""
fake_mode = functools.partial(look_up("fake_tensors", when_called=True), look_up("fake_tensors", 1, when_called=True))
"""``fake_mode()``: PyTorch's active FakeTensorMode, in which tensors have shapes only, or ``None``."""
Span = tuple[int, int, int]
"""``(row, start, stop)``: tokens ``start … stop - 1`` of a batch row."""
Spans = Sequence[Span]


class graph_property(functools.cached_property[Derived]):
    """A cached property that caches nothing while compiling. Before Python 3.12, caching takes a lock, which Dynamo
    cannot trace."""

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        if instance is not None and torch.compiler.is_compiling():
            return self.func(instance)
        return super().__get__(instance, owner)


class SequenceSpan(NamedTuple):
    """A sequence: tokens ``start … stop - 1`` of a batch row, from its first real token to its last."""

    row: int
    start: int
    stop: int
    holes: bool
    """Whether there is padding between the real tokens."""

    @property
    def length(self) -> int:
        """Number of tokens, holes included."""
        return self.stop - self.start


class DocumentLabels(NamedTuple):
    """The document of every token, for operations on whole rows. Padding belongs to the document before it."""

    number: Tensor
    """``(B, N)`` int64, the document's number, counted from 0 in each row."""
    most: int
    """Maximum number of documents in a row. Left padding counts as one."""


class PassCache:
    """Values that all layers of one forward pass share."""

    def cached(self, key: Hashable, make: Callable[[], Derived]) -> Derived:
        """The result of ``make()``, stored for all layers that share this object. A graph stores nothing."""
        if in_graph():
            return make()
        if key not in self._cache:
            # outside of inference mode, since later calls may need gradients
            with torch.inference_mode(False), torch.no_grad():
                self._cache[key] = make()
        return self._cache[key]

    @functools.cached_property
    def _cache(self) -> dict[Hashable, Any]:
        return {}


@dataclasses.dataclass(frozen=True, eq=False)
class Batch(PassCache):
    """The sequences of ``(B, N)`` tokens.

    mask: ``(B, N)`` bool, True = real token; ``None`` if all are real.
    documents: ``(B, N)`` integers that ascend along each row. Equal numbers are one document. ``None`` if each row is
        one document.
    host_mask: ``mask`` in the host's memory, if it has been read already.
    counts_padding: whether sequences include padding. Padding belongs to the document before it, and at the start of a
        row to the first document.
    """

    mask: Tensor | None = None
    documents: Tensor | None = None
    host_mask: np.ndarray[Any, Any] | None = None
    counts_padding: bool = False

    @classmethod
    def of(cls, mask: Tensor | None, documents: Tensor | None = None) -> Batch | None:
        """The batch, or ``None`` if both arguments are ``None``: every row is then one sequence without padding."""
        return None if mask is None and documents is None else cls(mask, documents)

    @functools.cached_property
    def sequences(self) -> tuple[SequenceSpan, ...]:
        """Every sequence that has a real token, row by row. It reaches from its first real token to its last, or with
        :attr:`counts_padding` over all its padding. Not available in a graph."""
        real, borders = self._on_host
        width = real.shape[1]
        index = np.arange(real.size).reshape(real.shape)
        included = real
        if self.counts_padding:
            included = np.ones_like(real)
            # The first document begins at index 0, not at its first real token.
            borders = borders.copy()
            borders[np.arange(len(real)), real.argmax(1)] = False
            borders[:, 0] = True
        # All numbers count through the flattened rows.
        begins = np.flatnonzero(borders)
        starts = np.minimum.reduceat(np.where(included, index, real.size).ravel(), begins)
        stops = np.maximum.reduceat(np.where(included, index + 1, 0).ravel(), begins)
        counts = np.add.reduceat(real.ravel(), begins, dtype=np.int64)

        spans = []
        for start, stop, count in np.stack([starts, stops, counts], 1).tolist():
            if count:
                row = start // width
                spans.append(SequenceSpan(row, start - row * width, stop - row * width, count < stop - start))
        return tuple(spans)

    def rolled(self) -> tuple[Tensor, Batch]:
        """The index ``(B,)`` of each row's first real token, and a batch whose rows are rolled to begin with that
        token. Cached for all layers."""
        mask = self.mask
        assert mask is not None

        def make() -> tuple[Tensor, Batch]:
            start = first_real(mask)
            host_mask = None
            if not in_graph():
                real = self._on_host[0]
                index = np.arange(real.shape[1]) + real.argmax(1)[:, None]
                host_mask = np.take_along_axis(real, index % real.shape[1], 1)
            return start, Batch(roll_left(mask, start, 1), host_mask=host_mask)

        return self.cached("rolled", make)

    def counting_padding(self) -> Batch:
        """The batch for a mechanism whose output depends on padding (:attr:`counts_padding`). Cached for all
        layers."""
        return self.cached("counting padding", lambda: dataclasses.replace(self, counts_padding=True))

    @functools.cached_property
    def has_holes(self) -> bool:
        """Whether there is padding between the real tokens of a sequence. Not available in a graph."""
        return any(span.holes for span in self.sequences)

    @property
    def labels(self) -> DocumentLabels:
        """The document of each token. Not available in a graph."""

        def make() -> DocumentLabels:
            most = int(self._on_host[1].sum(1).max(initial=0))
            return DocumentLabels(self._borders[0].cumsum(1) - 1, most)

        return self.cached("labels", make)

    @functools.cached_property
    def _borders(self) -> tuple[Tensor, Tensor]:
        """Which tokens start a document, ``(B, N)`` bool, and whether the document number of any real token is smaller
        than one before it, ``()`` bool."""
        mask, documents = self.mask, self.documents
        assert documents is not None
        numbers = documents
        if mask is not None:
            numbers = documents.masked_fill(~mask, torch.iinfo(documents.dtype).min)
        highest = numbers.cummax(1).values  # padding belongs to the document before it
        borders = F.pad(highest[:, 1:] != highest[:, :-1], (1, 0), value=True)
        descending = numbers < highest
        if mask is not None:
            descending = descending & mask
        return borders, descending.any()

    @functools.cached_property
    def _on_host(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Which tokens are real and which start a document, ``(B, N)`` bool each. The host reads both in one transfer,
        and reads nothing else of the batch.

        Raises:
            InputError: numbers of documents descend.
        """
        if self.documents is None:
            real = self.host_mask
            if real is None:
                assert self.mask is not None
                real = on_host(self.mask)
            borders = np.zeros_like(real)
            borders[:, :1] = True
            return real, borders
        borders_on_device, descending = self._borders
        real_on_device = torch.ones_like(borders_on_device) if self.mask is None else self.mask
        transfer = torch.stack([real_on_device, borders_on_device, descending.expand_as(borders_on_device)])
        real, borders, descends = on_host(transfer)
        if descends.any():
            raise InputError(
                "documents must ascend along each row, for example [[0, 0, 0, 1, 1, 2]], but a number is smaller than "
                "one before it; number the documents in the order of their tokens."
            )
        return real, borders

    def spans(self, missing: int) -> Spans:
        """Row, start and stop of every sequence, on an axis that lacks each row's first ``missing`` tokens."""
        return [(span.row, max(0, span.start - missing), max(0, span.stop - missing)) for span in self.sequences]

    def split(self, x: Tensor, dim: int, length: int) -> list[Tensor]:
        """Split ``x`` into one part per sequence. Axis 0 is the batch row. Axis ``dim`` has the last of each row's
        ``length`` tokens.

        The parts are views. Their gradients are copied into one tensor, not added up.
        """
        spans = self.spans(length - x.shape[dim])
        if no_fused_kernels() is not None:
            return list(_views(x, dim, spans))
        return list(_Split.apply(x, dim, spans))

    def join(self, outs: Sequence[Tensor], batch: int, q_len: int, kv_len: int) -> Tensor:
        """Join the sequences' outputs ``(1, H, n, D)`` to ``(B, H, Nq, D)``, zeros elsewhere. The memory layout is
        that of the outputs."""
        spans = self.spans(kv_len - q_len)
        if no_fused_kernels() is not None:
            return _joined(outs, (batch, outs[0].shape[1], q_len, outs[0].shape[3]), 2, spans)
        return _Join.apply(batch, q_len, spans, *outs)


def for_one_pass(tensor: Any, known: dict[Hashable, Any] | None = None) -> Any:
    """A view of ``tensor`` on which :func:`cached_on` stores derived values for one forward pass. Nothing is stored on
    ``tensor`` itself, which the caller may reuse for another input. A graph, or an object of another type, gets
    ``tensor`` unchanged.

    known: values to store at once, by their keys.
    """
    if not isinstance(tensor, Tensor) or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return tensor
    alias = tensor.view_as(tensor)
    alias._long_attention = shared = PassCache()  # type: ignore[attr-defined]
    vars(shared)["_cache"] = known or {}
    return alias


def on_host(x: Tensor) -> np.ndarray[Any, Any]:
    """The bool values of ``x`` in the host's memory. The host waits for the accelerator here, on purpose."""
    x = x.detach().cpu()
    if transformed():  # a tensor that torch.func wraps has no memory of its own
        return np.array(x.tolist(), dtype=bool).reshape(x.shape)
    return x.numpy()


def cached_on(tensor: Tensor, key: Hashable, make: Callable[[], Derived]) -> Derived:
    """The result of ``make()``, cached on a tensor from :func:`for_one_pass`, for all layers that share it. Not cached
    on other tensors."""
    shared: PassCache | None = getattr(tensor, "_long_attention", None)
    if shared is None:
        return make()
    return shared.cached(key, make)


def _joined(parts: Sequence[Tensor | None], shape: Sequence[int], dim: int, spans: Spans) -> Tensor:
    """A tensor of ``shape`` with ``parts`` at ``spans`` and zeros elsewhere. Its memory layout, by head or by token,
    is that of the first part."""
    like = next(part for part in parts if part is not None)
    filled = sum(stop - start for _, start, stop in spans) == shape[0] * shape[dim] and all(
        part is not None for part in parts
    )
    allocate = like.new_empty if filled else like.new_zeros
    if like.dim() == 4 and like.stride(1) < like.stride(2):
        total = allocate([shape[0], shape[2], shape[1], shape[3]]).transpose(1, 2)
    else:
        total = allocate(shape)
    for (row, start, stop), part in zip(spans, parts, strict=True):
        if part is not None:
            total[row : row + 1].narrow(dim, start, stop - start).copy_(part)
    return total


def _views(x: Tensor, dim: int, spans: Spans) -> tuple[Tensor, ...]:
    return tuple(x[row : row + 1].narrow(dim, start, stop - start) for row, start, stop in spans)


class _Join(torch.autograd.Function):
    """Copies parts ``(1, H, n, D)`` to their spans; their gradients are views."""

    @staticmethod
    def forward(ctx: Any, batch: int, length: int, spans: Spans, *parts: Tensor) -> Tensor:
        ctx.spans = spans
        return _joined(parts, (batch, parts[0].shape[1], length, parts[0].shape[3]), 2, spans)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, None, *_views(grads[0], 2, ctx.spans)


class _Split(torch.autograd.Function):
    """Views of sequences. The backward pass writes their gradients into one tensor. With slices, autograd would sum
    padded tensors."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, spans: Spans) -> tuple[Tensor, ...]:
        ctx.dim, ctx.spans, ctx.shape = dim, spans, x.shape
        return _views(x, dim, spans)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, None, None]:
        if all(grad is None for grad in grads):
            return None, None, None
        return _joined(grads, ctx.shape, ctx.dim, ctx.spans), None, None


def in_graph() -> bool:
    """Whether tensor values cannot be read: a graph is traced, ``torch.func.vmap`` batches them, or they do not exist.

    Values do not exist in PyTorch's FakeTensorMode and on the meta device (:func:`shapes_only`).
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or _shapes_only.get() or fake_mode() is not None:
        return True
    if not transformed():
        return False
    vmap = look_up("functorch", 2)
    return any(transform.key() == vmap for transform in look_up("functorch", 1)())


def has_values(x: Tensor) -> bool:
    """Whether values of ``x`` exist. Always True while compiling: call :func:`in_graph` there."""
    return torch.compiler.is_compiling() or not (x.is_meta or fake_mode() is not None)


@contextlib.contextmanager
def shapes_only() -> Iterator[None]:
    """Context in which :func:`in_graph` is true, for a call with tensors on the meta device."""
    before = _shapes_only.set(True)
    try:
        yield
    finally:
        _shapes_only.reset(before)


def autocasts(x: Tensor) -> bool:
    """Whether autocast is on for the device of ``x``. PyTorch has none for the meta device."""
    return not x.is_meta and torch.is_autocast_enabled(x.device.type)


def without_autocast(x: Tensor) -> Any:
    """Context that turns autocast off for the device of ``x``."""
    if x.is_meta:
        return contextlib.nullcontext()
    return torch.autocast(x.device.type, enabled=False)


def no_fused_kernels() -> str | None:
    """Why only plain operations may run now, as a clause; ``None`` in a graph, or if fused kernels may run.

    A kernel of this package has no rule for ``torch.func``, such as ``grad`` and ``vmap``.
    """
    if not torch.compiler.is_compiling() and transformed():
        return TRANSFORMED
    return None


def differentiated(*tensors: Tensor) -> bool:
    """Whether autograd records operations on these tensors."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)


def of_any_length(length: int) -> bool:
    """Whether ``length`` is a free size of an exported graph. Comparing it would restrict the graph to one outcome."""
    return torch.compiler.is_exporting() and isinstance(length, torch.SymInt)


def all_moderate(tensors: Iterable[Tensor]) -> bool:
    """Whether the norm of every tensor is below :data:`MAX_NORM`. Waits for the device."""
    return all(torch.linalg.vector_norm(x.detach()).item() < MAX_NORM for x in tensors)


def first_real(mask: Tensor) -> Tensor:
    """Index ``(B,)`` of each row's first real token in ``mask (B, N)``. It is 0 if there is none."""
    return mask.int().argmax(-1)


def last_real(mask: Tensor) -> Tensor:
    """Index ``(B,)`` of each row's last real token in ``mask (B, N)``. It is N - 1 if there is none."""
    return mask.shape[-1] - 1 - mask.flip(-1).int().argmax(-1)


def nothing_seen(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The output ``(B, H, Nq, D)`` of queries that see no key: zeros. The gradients of q, k and v are zeros, too."""
    return torch.zeros_like(q) + sum(x[..., :0].sum().to(q.dtype) for x in (q, k, v))


def wrapped(positions: Tensor, length: int) -> Tensor:
    """``positions`` modulo ``length``, for positions from -length to 2·length - 1. ONNX has no remainder by a dynamic
    length."""
    positions = torch.where(positions < length, positions, positions - length)
    return torch.where(positions < 0, positions + length, positions)


def roll_left(x: Tensor, start: Tensor, dim: int = 2) -> Tensor:
    """Roll axis ``dim`` of ``x (B, …)`` to the left by ``start (B,)``. A negative ``start`` rolls to the right; tokens
    wrap around."""
    length = x.shape[dim]
    index = wrapped(torch.arange(length, device=x.device) + start[:, None], length)
    shape = [1] * x.dim()
    shape[0], shape[dim] = index.shape
    return x.gather(dim, index.view(shape).expand(x.shape))


def documents_from(documents: Tensor | None, cu_seqlens: Tensor | None, shape: tuple[int, int]) -> Tensor | None:
    """Document numbers ``(B, N)``: ``documents`` after a check, or numbers made from ``cu_seqlens``. ``None`` if both
    are ``None``.

    Args:
        cu_seqlens: ``(documents + 1,)``, offsets of the documents in a single row, from 0 to N, as in flash-attn.
        shape: ``(B, N)``.
    Raises:
        InputError: an argument does not fit the tokens, ``cu_seqlens`` does not ascend, or both are given.
    """
    if documents is not None and cu_seqlens is not None:
        raise InputError("documents and cu_seqlens say the same thing; pass one of them.")
    if documents is not None:
        if not isinstance(documents, Tensor) or tuple(documents.shape) != shape or documents.is_floating_point():
            raise InputError(
                f"documents {shape_in_words(documents)}, but must be integers "
                f"(batch, tokens) = {shape}, the number of each token's document, ascending along each row."
            )
        return documents.long()
    if cu_seqlens is None:
        return None
    batch, length = shape
    fits = (
        isinstance(cu_seqlens, Tensor)
        and batch == cu_seqlens.dim() == 1
        and len(cu_seqlens) > 1
        and not cu_seqlens.is_floating_point()
    )
    problem = None if fits else shape_in_words(cu_seqlens)
    if fits and not in_graph() and has_values(cu_seqlens):
        ends = cu_seqlens.tolist()
        if ends[0] != 0 or ends[-1] != length or sorted(ends) != ends:
            problem = f"is {ends}"
    if problem is not None:
        raise InputError(
            f"cu_seqlens must be ascending offsets from 0 to the number of tokens, {length}, in a batch of one row, "
            f"for example [0, {length // 2}, {length}], but it {problem} for a batch of {batch}; for several rows "
            "pass documents (batch, tokens)."
        )
    index = torch.arange(length, device=cu_seqlens.device)
    return torch.bucketize(index, cu_seqlens[1:-1].long(), right=True)[None]


def positions_in(documents: Tensor) -> Tensor:
    """Position of every token in its document, for ``documents (B, N)``."""
    index = torch.arange(documents.shape[1], device=documents.device).expand(documents.shape)
    begins = F.pad(documents[:, 1:] != documents[:, :-1], (1, 0), value=True)
    return index - torch.where(begins, index, 0).cummax(1).values


def shape_in_words(x: Any) -> str:
    """A clause with the shape and dtype of a tensor, or with the type of another object."""
    if isinstance(x, Tensor):
        return f"has shape {tuple(x.shape)} and dtype {x.dtype}"
    return f"is a {type(x).__name__}"
