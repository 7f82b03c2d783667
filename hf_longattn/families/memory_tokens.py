"""The learned memory tokens of a model that runs over a text segment by segment, and whether a model is one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import OptionError
from ..mechanisms.base import Mechanism, Recursion
from .registry import PositionTable


class MemoryTokens(nn.Module):
    """What a text's first segment remembers: ``tokens (M, hidden_size)``, in place of embeddings of ids."""

    def __init__(self, recursion: Recursion, hidden_size: int, std: float) -> None:
        super().__init__()
        self.recursion, self.std = recursion, std
        self.tokens = nn.Parameter(torch.empty(recursion.memory, hidden_size))
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        nn.init.normal_(self.tokens, std=self.std, generator=generator)

    def begun(self, generator: torch.Generator) -> MemoryTokens:
        """Others of this shape, drawn from ``generator``, on its device."""
        with torch.device("meta"):
            drawn = MemoryTokens(self.recursion, self.tokens.shape[1], self.std)
        drawn.to_empty(device=generator.device).reset_parameters(generator)
        return drawn


def recursion_of(model: nn.Module) -> Recursion | None:
    """How the layers below ``model`` ask for the model to run; ``None`` when it runs once over the whole text.

    Raises:
        OptionError: layers that ask for different things.
    """
    found = {module.recursion for module in model.modules() if isinstance(module, Mechanism)}
    if len(found) > 1:
        raise OptionError(
            "Memory tokens pass through all layers of a model, but the layers have different mechanisms or options; "
            'give every layer the same, for example long_attention={"mechanism": "recurrent_memory", "segment_length": 512}.'
        )
    return found.pop() if found else None


def attach_memory_tokens(stack: Any, table: PositionTable | None) -> None:
    """Give a model its memory tokens, as ``stack.long_memory``, where its mechanisms pass any from segment to segment.

    Raises:
        OptionError: an encoder-decoder, or segments that are longer than the position table.
    """
    recursion = recursion_of(stack)
    if recursion is None:
        return
    if stack.config.is_encoder_decoder:
        raise OptionError(
            f"Memory tokens pass through an encoder or a decoder, but {type(stack).__name__} is one of two stacks; "
            "choose another mechanism, for example window or transformer_xl."
        )
    if table is not None and recursion.length > table.tokens(stack.config):
        raise OptionError(
            f"A segment has {recursion.length} tokens, but the model {table.tokens(stack.config)} positions; "
            f"give segment_length={table.tokens(stack.config)} or less."
        )
    weight: Tensor = stack.get_input_embeddings().weight
    std = getattr(stack.config, "initializer_range", 0.02)
    stack.long_memory = MemoryTokens(recursion, weight.shape[1], std).to(device=weight.device, dtype=weight.dtype)
