"""A model split into stages. Each stage holds its last inputs, and passes on the outputs that have become final."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from ..backend import STREAMED_KEYS
from ..modeling.family.stream_rule import Attention, Chain, Positions, Section
from ..positions.distances import Locality
from .tail import Tail

HIDDEN, KEYS, VALUES = "hidden", "keys", "values"
"""Names of a stage's buffers in the state of a stream."""


class NothingFinal(Exception):
    """A stage has nothing to pass on yet. The layers after it need not run."""


class Stage:
    """A part of a model, from one module's input to the input of the next stage.

    It runs on its buffered inputs and the new ones, as if they were a whole sequence. Outputs are cut off if they need earlier inputs that
    are no longer buffered, or if later inputs may change them.

    module: the module at the start of the stage; ``None`` if the stage starts at the model's input.
    sections: the receptive fields along time after the stage's attention. Attention buffers keys and values instead of its inputs.
    local: how many tokens back and ahead its attention sees; ``None`` without attention.
    positions: how the module takes the positions of its frames, and the module that computes them.
    """

    def __init__(
        self,
        module: nn.Module | None,
        sections: Sequence[Section],
        local: Locality | None = None,
        positions: tuple[Positions, Callable[..., Any]] | None = None,
    ) -> None:
        self.module, self.local, self.positions = module, local, positions
        self.after = Chain(tuple(sections))
        self.section = Chain((Attention(local), *sections)) if local is not None else self.after
        self.tails = {HIDDEN: Tail(1), **({KEYS: Tail(2), VALUES: Tail(2)} if local is not None else {})}
        self.done = 0
        """Number of outputs passed on."""
        self._until, self._idle = 0, False

    @property
    def seen(self) -> int:
        """Number of inputs so far."""
        return self.tails[HIDDEN].stop

    def take(self, new: Tensor, ends: bool) -> Tensor | None:
        """The input to run on; ``None`` if no output becomes final.

        Args:
            new: ``(B, n, …)``, the next inputs.
            ends: whether the sequence ends with them.
        """
        hidden = self.tails[HIDDEN]
        hidden.append(new)
        self._until = self.section.total(self.seen) if ends else self.section.final(self.seen)
        self._idle = self._until == self.done
        return None if self._idle else hidden.tensor

    def with_earlier(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """New keys and values ``(B, H, n, D)``, preceded by those of earlier frames. Unchanged if they include these already."""
        start, hidden = self.tails[HIDDEN].start, self.tails[HIDDEN].tensor
        if self._idle or self.local is None or hidden is None or keys.shape[2] > hidden.shape[1]:
            return keys, values
        joined = []
        for name, new in ((KEYS, keys), (VALUES, values)):
            tail = self.tails[name]
            tail.append(new[:, :, tail.stop - start :])
            joined.append(tail.between(self.local.first(start), tail.stop))
        return joined[0], joined[1]

    def add_positions(self, hidden: Tensor, keywords: dict[str, Any]) -> None:
        """Add the positions of the frames ``hidden (B, n, C)`` to the module's ``keywords``, if it takes positions."""
        if self.positions is None:
            return
        rule, module = self.positions
        start = self.tails[HIDDEN].start
        if rule.counted:
            keywords[rule.keyword] = module(hidden, start)
            return
        earlier = 0 if self._idle or self.local is None else start - self.local.first(start)
        keywords[rule.keyword] = module(hidden[:, :1].expand(-1, earlier + hidden.shape[1], -1))

    def give(self, out: Tensor) -> Tensor:
        """The new final ones among the outputs ``out (B, m, …)``. Frees inputs, keys and values that no later output needs."""
        if self._idle:
            return out[:, :0]
        first = self.tails[HIDDEN].start // self.section.stride
        piece = out[:, self.done - first : self._until - first]
        self.done = self._until
        self.tails[HIDDEN].drop(min(self.after.first(self.done), self.seen))
        if self.local is not None:
            for name in (KEYS, VALUES):
                self.tails[name].drop(self.local.first(self.tails[HIDDEN].start))
        return piece


class Run:
    """One forward pass of a model over a piece of a stream.

    stages: the stages from the model's input to its last layer.
    ends: whether the stream ends with this piece.
    """

    def __init__(self, stages: Sequence[Stage], ends: bool) -> None:
        self.stages, self.ends = stages, ends
        self.entered = 0
        """Number of stages entered so far."""
        self._by_module = {id(stage.module): (before, stage) for before, stage in itertools.pairwise(stages)}

    def enter(self, module: nn.Module, hidden: Tensor, keywords: dict[str, Any]) -> Tensor:
        """The frames on which the stage of ``module`` runs. Adds their positions to ``keywords``.

        Args:
            hidden: the output of the previous stage.
        Raises:
            NothingFinal: no output of the stage has become final.
        """
        before, stage = self._by_module[id(module)]
        self.entered += 1
        joined = stage.take(before.give(hidden), self.ends)
        STREAMED_KEYS.set(stage.with_earlier)
        if joined is None:
            if not self.ends:
                raise NothingFinal
            joined = hidden[:, :1]  # one frame for the layer to run on; its output is cut off
        stage.add_positions(joined, keywords)
        return joined


RUNNING: ContextVar[Run | None] = ContextVar("running stream", default=None)
"""The forward pass of a stream in this thread, if any."""
HOOKED = "_reads_streams"
"""Attribute of modules that have the hook."""


def hook(module: nn.Module) -> None:
    """Register a hook that replaces the input of ``module`` by its stage's frames. Without a running stream, it does nothing."""
    if HOOKED not in module.__dict__:
        module.__dict__[HOOKED] = True
        module.register_forward_pre_hook(_enter, with_kwargs=True)


def _enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    run = None if torch.compiler.is_compiling() else RUNNING.get()
    if run is None:
        return None
    kwargs = {**kwargs}
    if args:
        return (run.enter(module, args[0], kwargs), *args[1:]), kwargs
    kwargs["hidden_states"] = run.enter(module, kwargs["hidden_states"], kwargs)
    return args, kwargs
