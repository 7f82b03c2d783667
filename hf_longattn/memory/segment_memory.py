"""Memory of a model between segments of a document: ``model.new_memory()``, and ``outputs.memory`` after each call.

A call does not change its ``memory`` argument. Its outputs contain the next memory, without gradients. Each batch row
is a document. A row with ``memory_reset`` = True restarts with an empty memory.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig

from ..errors import InputError
from .decode_cache import CACHE


class SegmentMemory(ABC):
    """Memory of every row, passed from call to call.

    batch_size: number of rows; ``None`` before the first call.
    contents: names of the attributes that hold the memory's tensors, with the batch as first axis. The attributes are
        ``None`` before the first call.
    """

    batch_size: int | None = None
    contents: ClassVar[tuple[str, ...]]

    def begin(self, batch_size: int, reset: Tensor | None) -> SegmentMemory:
        """A copy for one call on ``batch_size`` rows. Rows that are True in ``reset (B,)`` start with an empty memory.

        Raises:
            InputError: the batch size differs from the previous call, or ``reset`` has another shape.
        """
        if self.batch_size not in (None, batch_size):
            raise InputError(
                f"The memory belongs to a batch of {self.batch_size}, but the input has {batch_size} rows; "
                "pass as many rows as before, or start again with memory=model.new_memory()."
            )
        if reset is not None and reset.shape != (batch_size,):
            raise InputError(
                f"memory_reset has shape {tuple(reset.shape)}, but must be ({batch_size},): one flag for each row."
            )
        memory = self._copy()
        memory.batch_size = batch_size
        if reset is not None and self.batch_size is not None:
            memory._restart(reset.bool())
        return memory

    def _copy(self) -> SegmentMemory:
        return copy.copy(self)

    @abstractmethod
    def _restart(self, rows: Tensor) -> None:
        """Empty the memory of the rows that are True in ``rows (B,)``."""

    def state_dict(self) -> dict[str, Tensor]:
        """The contents as tensors, for a checkpoint."""
        tensors = {name: getattr(self, name) for name in self.contents}
        return {} if tensors[self.contents[0]] is None else tensors  # {} before the first call

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Fill a new memory of the same model with the tensors of :meth:`state_dict`."""
        for name in self.contents:
            setattr(self, name, tensors.get(name))
        first = tensors.get(self.contents[0])
        self.batch_size = None if first is None else len(first)


class TokenMemory(SegmentMemory):
    """The memory tokens after the last segment, ``tokens (B, M, hidden_size)``. Rows that are True in ``fresh (B,)``
    start with the learned tokens instead."""

    contents = ("tokens",)
    tokens: Tensor | None = None
    fresh: Tensor | None = None

    def _restart(self, rows: Tensor) -> None:
        self.fresh = rows

    def filled(self, learned: Tensor, batch_size: int) -> Tensor:
        """The memory tokens ``(B, M, hidden_size)`` for the next segment. Rows without memory get
        ``learned (M, hidden_size)``."""
        learned = learned[None].expand(batch_size, -1, -1)
        if self.tokens is None:
            return learned
        tokens = self.tokens.to(learned)
        fresh = torch.zeros(batch_size, dtype=torch.bool) if self.fresh is None else self.fresh
        # torch.where also in steps without fresh rows, so that the learned tokens always have gradients
        return torch.where(fresh.to(tokens.device)[:, None, None], learned, tokens)

    def take(self, tokens: Tensor) -> None:
        """Store ``tokens (B, M, hidden_size)`` as the memory."""
        self.tokens = tokens.detach()
        self.fresh = None


class CacheMemory(SegmentMemory):
    """A decode cache with the keys, values and states that mechanisms still need.

    continues: whether position ids count over all segments of a document. Otherwise each segment starts at 0.
    mask: ``(B, columns)`` bool, True = real token of the row's document. It has only the columns that some layer
        stores.
    positions: ``(B,)``, the position of the next token of each row's document.
    """

    contents = ("mask", "positions")
    mask: Any = None
    positions: Any = None

    def __init__(self, config: PreTrainedConfig, continues: bool) -> None:
        self.cache = DynamicCache(config=config)
        self.cache.positions_restart = not continues
        self.continues = continues

    def _copy(self) -> CacheMemory:
        memory = copy.copy(self)
        memory.cache = copy.copy(self.cache)
        # Layers replace their tensors instead of writing to them, so that a layer and its copy may share the tensors.
        memory.cache.layers = [copy.copy(layer) for layer in self.cache.layers]
        return memory

    def _restart(self, rows: Tensor) -> None:
        rows = rows.to(self.mask.device)
        self.mask = self.mask & ~rows[:, None]
        self.positions = self.positions.masked_fill(rows, 0)
        for layer in self.cache.layers:
            if hasattr(layer, "restart"):
                layer.restart(rows)

    def extend(self, real: Tensor) -> dict[str, Any]:
        """Add new tokens to mask and positions, and return the model's arguments for them.

        real: ``(B, n)`` bool, False for padding among the new tokens.
        """
        if self.mask is None:
            self.mask = real[:, :0]
            self.positions = torch.zeros_like(real[:, 0], dtype=torch.long)
        self.mask = torch.cat([self.mask.to(real.device), real], 1)
        first = self.positions.to(real.device)
        counted = real.cumsum(1)
        self.positions = first + counted[:, -1]
        position_ids = (counted - 1).clamp(min=0)
        if self.continues:
            position_ids = position_ids + first[:, None]
        return {CACHE: self.cache, "attention_mask": self.mask.long(), "position_ids": position_ids}

    def close(self) -> None:
        """Drop gradients, and columns that no layer stores.

        Raises:
            InputError: the model wrote nothing into the cache.
        """
        if not any(layer.is_initialized for layer in self.cache.layers):
            raise InputError(
                "This model gives no cache to its layers, so it remembers nothing; use a decoder without its head."
            )
        for layer in self.cache.layers:
            for name, value in vars(layer).items():
                if isinstance(value, Tensor):
                    setattr(layer, name, value.detach())
        unused = min(layer.unused() if hasattr(layer, "unused") else 0 for layer in self.cache.layers)
        if unused:
            for layer in self.cache.layers:
                layer.renumber(unused)
        self.mask = self.mask[:, unused:]

    def state_dict(self) -> dict[str, Tensor]:
        """The contents as tensors.

        An attribute of the cache layer with number ``index`` has the name ``index.attribute``. The tensors of an
        attribute that is a dict have the names ``index.attribute/key``.
        """
        tensors = super().state_dict()
        if not tensors:
            return {}
        for index, layer in enumerate(self.cache.layers):
            for name, value in vars(layer).items():
                if isinstance(value, dict):
                    tensors |= {f"{index}.{name}/{key}": tensor for key, tensor in value.items()}
                elif isinstance(value, Tensor | bool | int):
                    tensors[f"{index}.{name}"] = torch.as_tensor(value)
        return tensors

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Fill a new memory of the same model with the tensors of :meth:`state_dict`."""
        super().load_state_dict(tensors)
        for name, tensor in tensors.items():
            index, dot, attribute = name.partition(".")
            if not dot:
                continue
            layer = self.cache.layers[int(index)]
            attribute, _, key = attribute.partition("/")
            current = getattr(layer, attribute, None)
            if key:
                setattr(layer, attribute, {**(current or {}), key: tensor})
            elif isinstance(current, bool | int):
                setattr(layer, attribute, type(current)(tensor.item()))
            else:
                setattr(layer, attribute, tensor)
            if attribute == "keys":  # otherwise set when a layer gets its first keys
                layer.dtype, layer.device = tensor.dtype, tensor.device
