"""Learned memory tokens, passed from segment to segment by a model's mechanisms (Bulatov et al. 2022)."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import OptionError
from ...mechanisms.common.base import Mechanism
from ...mechanisms.common.capabilities import Recursion
from ..family.definition import PositionTable
from .attention_sites import attention_sites


class MemoryTokens(nn.Module):
    """The initial memory of a text's first segment. ``tokens (M, hidden_size)`` are learned and used as embeddings."""

    def __init__(self, recursion: Recursion, hidden_size: int, std: float) -> None:
        super().__init__()
        self.recursion, self.std = recursion, std
        self.tokens = nn.Parameter(torch.empty(recursion.memory, hidden_size))
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        nn.init.normal_(self.tokens, std=self.std, generator=generator)

    def drawn(self, generator: torch.Generator) -> MemoryTokens:
        """New memory tokens of this shape, initialised by ``generator`` on its device."""
        with torch.device("meta"):
            new = MemoryTokens(self.recursion, self.tokens.shape[1], self.std)
        new.to_empty(device=generator.device).reset_parameters(generator)
        return new


def recursions(model: nn.Module) -> set[Recursion | None]:
    """The recursions of a model's mechanisms; ``None`` for mechanisms without memory tokens."""
    return {module.capabilities.recursion for module in model.modules() if isinstance(module, Mechanism)}


def recursion_of(model: nn.Module) -> Recursion | None:
    """The recursion of ``model``: how memory tokens pass from segment to segment. ``None`` if it runs over the whole text.

    Raises:
        OptionError: the layers have different recursions.
    """
    different = recursions(model)
    if len(different) > 1:
        raise OptionError(
            "Memory tokens pass through all layers of a model, but the layers have different mechanisms or options; "
            'give every layer the same, for example long_attention={"mechanism": "recurrent_memory", "segment_length": 512}.'
        )
    return different.pop() if different else None


def attach_memory_tokens(stack: Any, table: PositionTable | None) -> None:
    """Set the memory tokens ``stack.long_memory``, if the mechanisms of a model use any.

    Raises:
        OptionError: the model is one of two stacks, cannot read its hidden states, or a segment is longer than its position table.
    """
    if not any(recursions(stack)):
        return
    weight: Tensor = stack.get_input_embeddings().weight
    narrow = hasattr(stack.config, "embedding_size") and stack.config.embedding_size != stack.config.hidden_size  # as in ALBERT
    two_stacks = stack.config.is_encoder_decoder or any(site.cross for site in attention_sites(stack))
    if two_stacks or narrow or "inputs_embeds" not in inspect.signature(type(stack).forward).parameters:
        why = "is one of two stacks" if two_stacks else "cannot read hidden states as embeddings"
        raise OptionError(
            f"Memory tokens pass through an encoder or a decoder, but {type(stack).__name__} {why}; "
            "choose another mechanism, for example window or transformer_xl."
        )
    recursion: Any = recursion_of(stack)
    if table is not None and recursion.length > table.tokens(stack.config):
        raise OptionError(
            f"A segment has {recursion.length} tokens, but the model {table.tokens(stack.config)} positions; "
            f"give segment_length={table.tokens(stack.config)} or less."
        )
    std = getattr(stack.config, "initializer_range", 0.02)
    stack.long_memory = MemoryTokens(recursion, weight.shape[1], std).to(device=weight.device, dtype=weight.dtype)
