"""Attention over a stream: tokens arrive in pieces, and outputs are returned once no later token can change them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..attend import run_mechanism
from ..engines.common.call import AttentionCall
from ..errors import LengthError, OptionError, StreamError
from ..mechanisms.common.base import Mechanism
from ..mechanisms.common.exact import form_problem
from ..mechanisms.common.masked import MaskedMechanism
from ..mechanisms.common.registry import mechanism_from, prototype
from ..positions.distances import Locality
from ..sharding import only_locality
from .tail import Tail

PARTS = ("q", "k", "v")
"""Names of the buffered tensors in the state of an attention stream, which also has ``position``."""


def locality_of(mechanism: Mechanism, causal: bool) -> Locality:
    """How many tokens back and ahead a token of a stream attends to.

    Raises:
        StreamError: there is no such limit; or the mechanism needs a grid or the layer's input, or does not support ``causal``.
    """
    if problem := form_problem(mechanism, causal, "this stream"):
        raise StreamError(str(problem))
    local = only_locality(mechanism, causal)
    instead = "choose a mechanism that sees neighbours only, for example window with left and right, or chunked"
    if local is None:
        raise StreamError(
            f"Mechanism {mechanism.name!r} with these options looks at the whole sequence, which a stream does not have; {instead}."
        )
    if mechanism.options.order is not None:
        raise StreamError(f"Mechanism {mechanism.name!r} orders its tokens on a grid, which a stream does not have; leave out order.")
    tokens = mechanism.resolve_globals(torch.empty(1, 1, 1, 1), AttentionCall(causal))
    if tokens is not None or mechanism.traits.token_rule is not None:
        raise StreamError(f"With these options, mechanism {mechanism.name!r} has global tokens, which see the whole stream; {instead}.")
    if mechanism.traits.takes_hidden_states:
        raise StreamError(
            f"With these options, mechanism {mechanism.name!r} needs the layer's input, which a stream does not pass to it; "
            f"leave out the option that needs it (longformer: separate_global), or {instead}."
        )
    return local


class AttentionStream:
    """Attention of one layer over a stream, with constant memory.

    A stream stores the keys and values that later queries need, and the queries that need later keys. Outputs equal those of one pass over
    the whole sequence. They are computed in blocks of ``block`` queries, counted from the start of the stream. Their bits therefore do not
    depend on the sizes of the pieces. With the block size of the CPU's band engine, and a head dimension of at least 16, they are also
    bitwise equal to a single pass of that engine.

    Args:
        mechanism: a module from :func:`hf_longattn.build_mechanism`, or a registered name with ``options``.
        causal: whether queries ignore the keys after them.
        scaling: factor on q·k; ``D ** -0.5`` by default.
        block: queries computed at a time. This delays an output by up to ``block - 1`` tokens.
        options: the mechanism's options, when it is given by name.
    Raises:
        StreamError: the mechanism attends to the whole sequence, or does not support this value of ``causal``.
        UnknownMechanismError, OptionError: as :func:`hf_longattn.attend`.
    """

    def __init__(
        self, mechanism: str | Mechanism = "window", *, causal: bool = False, scaling: float | None = None, block: int = 32, **options: Any
    ) -> None:
        if isinstance(block, bool) or not isinstance(block, int) or block < 1:
            raise OptionError(f"block is {block!r}, but must be a number of queries of at least 1; for example block=32.")
        if isinstance(mechanism, Mechanism) and options:
            raise OptionError(f"Options {sorted(options)} were given with a built mechanism; pass them to build_mechanism instead.")
        self.local = locality_of(mechanism if isinstance(mechanism, Mechanism) else prototype(mechanism, options), causal)
        self.block, self.options = block, options
        self._mechanism, self._call = mechanism, AttentionCall(causal, scale=scaling)
        self._built_mechanism: Mechanism | None = None
        self._tails = {part: Tail(2) for part in PARTS}
        self.done = 0
        """Number of outputs so far."""
        self.finished = False

    @property
    def seen(self) -> int:
        """Number of tokens so far."""
        return self._tails["k"].stop

    @torch.no_grad()
    def feed(self, q: Tensor, k: Tensor, v: Tensor, *, start: int | None = None) -> Tensor:
        """Add the next tokens, and return the outputs that have become final.

        Args:
            q: ``(B, H, n, D)``, the next n tokens, n ≥ 0.
            k, v: ``(B, H_kv, n, D)``.
            start: index of the first of these tokens in the stream, checked against :attr:`seen`.
        Returns:
            ``(B, H, m, D)``: the next m outputs; m may be 0.
        Raises:
            StreamError: the piece does not follow or match the previous one, or the stream is finished.
            LengthError: the shapes of q, k and v do not fit each other.
        """
        check_next(self.finished, start, self.seen, "token")
        self._check_shapes(q, k, v)
        for part, piece in zip(PARTS, (q, k, v), strict=True):
            self._tails[part].append(piece)
        final = self.local.final(self.seen)
        return self._outputs(self.done + (final - self.done) // self.block * self.block)

    @torch.no_grad()
    def finish(self) -> Tensor:
        """End the stream and return the remaining outputs ``(B, H, m, D)``.

        Raises:
            StreamError: the stream is finished, or empty.
        """
        check_next(self.finished, None, self.seen, "token")
        if self._tails["q"].tensor is None:
            raise StreamError("The stream ends before its first token; feed one first.")
        out = self._outputs(self.seen)
        self.finished = True
        return out

    def _outputs(self, stop: int) -> Tensor:
        """Compute the next outputs, up to token ``stop - 1``. Drop the queries, keys and values that no later output needs."""
        q = self._tails["q"].tensor
        assert q is not None
        outs = [self._of_block(first, min(first + self.block, stop)) for first in range(self.done, stop, self.block)]
        self.done = max(self.done, stop)
        self._tails["q"].drop(self.done)
        for part in ("k", "v"):
            self._tails[part].drop(self.local.first(self.done))
        return torch.cat(outs, 2) if outs else q[:, :, :0].clone()

    def _of_block(self, first: int, stop: int) -> Tensor:
        """Compute the outputs of queries ``first`` to ``stop - 1``."""
        mechanism = self._built()
        start, end = self.local.first(first), self._end(stop)
        k, v = (self._tails[part].between(start, end) for part in ("k", "v"))
        if isinstance(mechanism, MaskedMechanism) and mechanism.mask_is_reach:
            q, places = self._tails["q"].between(first, stop), torch.arange(start, end, device=k.device)
            real = torch.ones(len(k), end - start, dtype=torch.bool, device=k.device)
            q_places = torch.arange(first, stop, device=k.device).expand(len(q), -1)
            return mechanism.attend_kept(q, k, v, q_places, places.expand(len(k), -1), real, self._call)
        return run_mechanism(mechanism, self._tails["q"].between(first, end), k, v, self._call)[:, :, : stop - first]

    def _end(self, stop: int) -> int:
        """The number of leading tokens on which the outputs of the first ``stop`` queries depend."""
        size = self.local.period
        if self.local.by_block and self.local.ahead:
            return min(self.seen, -(-stop // size) * size + self.local.ahead + 1 - size)
        return min(self.seen, stop + self.local.ahead)

    def _check_shapes(self, q: Tensor, k: Tensor, v: Tensor) -> None:
        """Check that the tensors of a piece fit each other and the previous pieces."""
        fits = q.dim() == k.dim() == 4 and k.shape == v.shape and q.shape[0] == k.shape[0] and q.shape[2:] == k.shape[2:]
        if not fits or not k.shape[1] or q.shape[1] % k.shape[1]:
            raise LengthError(
                "A piece of a stream is q (B, H, n, D) and k, v (B, H_kv, n, D) with H_kv dividing H, "
                f"but got q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}."
            )
        for part, piece in zip(PARTS, (q, k, v), strict=True):
            check_like(piece, self._tails[part].tensor, 2, part)

    def _built(self) -> Mechanism:
        """The mechanism module. A mechanism given by name is built for the heads of the first piece, on the device of the state."""
        if isinstance(self._mechanism, Mechanism):
            return self._mechanism
        q = self._tails["q"].tensor
        assert q is not None
        if self._built_mechanism is None:
            self._built_mechanism = mechanism_from(
                self._mechanism, self.options, num_heads=q.shape[1], head_dim=q.shape[3], generator=torch.Generator().manual_seed(0)
            ).eval()
        return self._built_mechanism.to(q.device)

    def state_dict(self) -> dict[str, Tensor]:
        """The state as tensors, for ``safetensors.torch.save_file``. A stream with the same mechanism and block resumes from it."""
        position = torch.tensor([self.seen, self.done, self._tails["k"].start, self.finished])
        return {"position": position, **{part: tail.tensor.contiguous() for part, tail in self._tails.items() if tail.tensor is not None}}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Resume from a state of a stream with the same mechanism and block.

        Raises:
            StreamError: the state does not fit this stream.
        """
        position = state.get("position")
        values = position.tolist() if position is not None and position.shape == (4,) and not position.is_floating_point() else None
        if values is None:
            raise StreamError("This is not the state of an attention stream, which has a tensor 'position' of 4 whole numbers.")
        seen, done, start, finished = values
        lengths = {"q": seen - done, "k": seen - start, "v": seen - start}
        fits = 0 <= done <= seen and start == min(self.local.first(done), seen)
        for part, length in lengths.items():
            x = state.get(part)
            fits = fits and (not seen if x is None else x.dim() == 4 and x.shape[2] == length)
        if not fits:
            raise StreamError(
                f"The state of the stream does not fit its mechanism, after {seen} tokens with {done} outputs; load it into a stream with "
                "the mechanism, options and block that it was saved with."
            )
        for part, first in (("q", done), ("k", start), ("v", start)):
            self._tails[part].load(state.get(part), first)
        self.done, self.finished = done, bool(finished)

    def to(self, *args: Any, **kwargs: Any) -> AttentionStream:
        """Move the state to a device or dtype, as :meth:`torch.Tensor.to`. A mechanism passed as a module is not moved."""
        for tail in self._tails.values():
            tail.load(None if tail.tensor is None else tail.tensor.to(*args, **kwargs), tail.start)
        return self


def check_next(finished: bool, start: int | None, seen: int, unit: str) -> None:
    """Check that a piece continues the stream.

    Raises:
        StreamError: the stream is finished, or ``start`` is not the next index.
    """
    if finished:
        raise StreamError("The stream is finished; begin a new one for another sequence.")
    if start is not None and start != seen:
        order = "was fed before" if start < seen else "leaves a gap"
        raise StreamError(f"A piece that starts at {unit} {start} {order}: the next {unit} is {seen}; feed pieces in order, each once.")


def check_like(piece: Tensor, previous: Tensor | None, dim: int, name: str) -> None:
    """Raise :class:`StreamError` if a piece differs from previous ones in dtype, device, or shape except along ``dim``."""
    if previous is None:
        return
    shapes = [(*x.shape[:dim], *x.shape[dim + 1 :]) for x in (piece, previous)]
    if shapes[0] != shapes[1] or piece.dtype != previous.dtype or piece.device != previous.device:
        raise StreamError(
            f"A piece of {name} is {tuple(piece.shape)} {piece.dtype} on {piece.device}, but the stream's are {tuple(previous.shape)} "
            f"{previous.dtype} on {previous.device}, of any length along axis {dim}; a stream has the same rows from first to last."
        )
