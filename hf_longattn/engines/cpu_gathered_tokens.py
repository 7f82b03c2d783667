"""Tokens of all heads as one table of rows: read as strided views or gathered, and added to."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .cpu_gathered_layout import Chunk, Run
from .cpu_gathered_masks import Call


class Scratch:
    """Buffers that every call of the kernel uses again, by name."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        size = math.prod(shape)
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < size:
            buffer = self._buffers[name] = like.new_empty(size)
        return buffer[:size].view(shape)


class Tokens:
    """``x (B, H, N)`` or ``(B, H, N, D)``; what a call reads is ``(rows, heads, T, …)``."""

    def __init__(self, x: Tensor) -> None:
        self.width = math.prod(x.shape[3:])
        uneven = any(n > 1 and step % self.width for n, step in zip(x.shape[:3], x.stride(), strict=False))
        if uneven or (x.dim() == 4 and x.stride(3) != 1):
            x = x.contiguous()
        self.x = x
        self.steps = tuple(step // self.width for step in x.stride()[:3])
        rows = 1 + sum((n - 1) * step for n, step in zip(x.shape[:3], self.steps, strict=True))
        self.table = x.as_strided((rows, *x.shape[3:]), (self.width, 1)[: x.dim() - 2], x.storage_offset())

    def index(self, call: Call, side: str) -> Tensor:
        """Places in the table of a call's listed tokens, ``(rows · T · heads,)``, as the kernel stores its results."""
        key = side, self.steps
        if key not in call.places:
            _, listed = call.side(side)
            assert listed is not None
            by_item, by_head, by_token = self.steps
            offset = torch.arange(call.chunk.heads.start, call.chunk.heads.stop) * by_head + call.item * by_item
            call.places[key] = (listed.clamp(min=0) * by_token + offset).flatten()
        return call.places[key]

    def view(self, item: int, chunk: Chunk, run: Run) -> Tensor:
        """The tokens of ``run`` for every row and head of a chunk."""
        x = self.x[item, chunk.heads]
        by_head, by_token, *inner = x.stride()
        shape = (chunk.rows.stop - chunk.rows.start, x.shape[0], run.size, *x.shape[2:])
        return x.as_strided(shape, (run.step * by_token, by_head, run.stride * by_token, *inner), x.storage_offset() + run.start * by_token)

    def read(self, call: Call, side: str, scratch: Scratch, name: str) -> Tensor:
        """The tokens of a call; empty slots hold some token."""
        run, listed = call.side(side)
        if run is not None:
            return self.view(call.item, call.chunk, run)
        assert listed is not None
        index = self.index(call, side)
        flat = scratch.take(name, (len(index), *self.x.shape[3:]), self.x)
        torch.index_select(self.table, 0, index, out=flat)
        return flat.view(*listed.shape[:2], call.heads, *self.x.shape[3:]).transpose(1, 2)

    def add(self, call: Call, side: str, more: Tensor) -> None:
        """Add ``more (rows, heads, T, D)`` to the tokens of a call; a token may be met several times."""
        more = more.to(self.x.dtype)
        run, _ = call.side(side)
        if run is None:
            self.table.index_add_(0, self.index(call, side), more.transpose(1, 2).reshape(-1, self.width))
            return
        rows = more.shape[0]
        if rows > 1 and run.step == 0:
            more, rows = more.sum(0, keepdim=True), 1
        if rows == 1 or (rows - 1) * run.step < run.stride or run.step % run.stride == 0:
            self._add_stripes(call.item, call.chunk, run, more)
        else:
            for row in range(rows):
                self._add_stripes(call.item, call.chunk, run.row(row), more[row : row + 1])

    def _add_stripes(self, item: int, chunk: Chunk, run: Run, more: Tensor) -> None:
        """Rows overlap only where they are longer than a step: stripes of one step never do."""
        chunk = chunk._replace(rows=slice(0, more.shape[0]))
        step = run.step // run.stride if more.shape[0] > 1 and run.step % run.stride == 0 else run.size
        for at in range(0, run.size, step):
            size = min(step, run.size - at)
            self.view(item, chunk, run.part(at, size)).add_(more[:, :, at : at + size])
