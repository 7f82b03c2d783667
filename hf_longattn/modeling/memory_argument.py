"""Memory of Long models, passed from call to call: ``model(input_ids, memory=memory).memory``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, OptionError
from ..memory.decode_cache import CACHE
from ..memory.segment_memory import CacheMemory, SegmentMemory, TokenMemory
from .attach.attention_sites import attention_sites
from .attach.memory_tokens import TOKEN_MEMORY_ARGUMENT, MemoryTokens, wants_tuple
from .backend import BACKEND
from .family.long_config import attention_implementation, runs_mechanisms
from .family.position_table import input_of

MEMORY_MASK_ARGUMENT = "mask_of_memory"
"""Keyword by which a head passes the mask of memory and new tokens to its inner model. The ``attention_mask`` of the
head covers new tokens only."""
POSITION_COUNTS = ("continue", "restart")
"""How positions are counted from segment to segment."""


def new_memory(model: Any, positions: str | None) -> SegmentMemory:
    """See :meth:`hf_longattn.modeling.mixin.LongAttentionMixin.new_memory`."""
    if not runs_mechanisms(model):
        raise InputError(
            f"The model runs attn_implementation={attention_implementation(model.config)!r}, which has no memory of "
            f"segments; choose model.set_attn_implementation({BACKEND!r})."
        )
    if any(isinstance(module, MemoryTokens) for module in model.modules()):
        if positions is not None:
            raise OptionError("Positions restart in every segment of a model with memory tokens; leave positions out.")
        return TokenMemory()
    if model.config.is_encoder_decoder or not all(site.causal and not site.cross for site in attention_sites(model)):
        raise InputError(
            f"{type(model).__name__} is not a decoder without cross-attention, but a memory holds past tokens only; "
            "use a decoder such as GPT-2 or Llama, or memory tokens (recurrent_memory) in an encoder."
        )
    if positions not in (None, *POSITION_COUNTS):
        raise OptionError(f"positions is {positions!r}, but must be one of: {', '.join(POSITION_COUNTS)}.")
    return CacheMemory(model.config, continues=model.family.rope if positions is None else positions == "continue")


def run_with_memory(
    model: Any,
    forward: Callable[..., Any],
    arguments: dict[str, Any],
    memory: SegmentMemory | None,
    reset: Tensor | None,
) -> Any:
    """Run a model with the memory of the previous call. The outputs have a field ``memory`` for the next call.

    Args:
        model: the outermost model, for example a head.
        forward: its ``forward``.
        arguments: the other arguments of ``forward``, by name.
        memory: ``model.new_memory()``, or ``outputs.memory`` of the previous call.
        reset: ``(B,)``, True for rows that start a new document.

    Raises:
        InputError: ``reset`` was given without a memory, or the memory does not fit this model or call.
    """
    if memory is None:
        raise InputError("memory_reset was given without a memory; pass memory=model.new_memory() as well.")
    if not isinstance(memory, SegmentMemory):
        raise InputError(
            f"memory is a {type(memory).__name__}, but must come from model.new_memory() or from outputs.memory."
        )
    if isinstance(memory, TokenMemory) != any(isinstance(module, MemoryTokens) for module in model.modules()):
        raise InputError("The memory is from another kind of model; start with memory=model.new_memory().")
    if arguments.get(CACHE) is not None:
        raise InputError(f"Both memory and {CACHE} were given, and both hold the past; leave one of them out.")
    if arguments.get("position_ids") is not None:
        raise InputError("position_ids were given with a memory, which counts positions by itself; leave them out.")
    tokens = input_of(arguments)
    if tokens is None:
        raise OptionError("The model was given neither input_ids nor inputs_embeds; pass one of them.")
    next_memory = memory.begin(tokens.shape[0], reset)
    added: dict[str, Any] = {"return_dict": True}
    if isinstance(next_memory, TokenMemory):
        added[TOKEN_MEMORY_ARGUMENT] = next_memory
    elif isinstance(next_memory, CacheMemory):
        added |= _extend(model, next_memory, tokens, arguments.get("attention_mask"))
    outputs = forward(model, **{**arguments, **added})
    if isinstance(next_memory, CacheMemory):
        next_memory.close()
    output_class: Any = type(outputs)
    outputs = _with_memory_field(output_class)(**outputs, memory=next_memory)
    return outputs.to_tuple() if wants_tuple(model, arguments) else outputs


def _extend(model: Any, memory: CacheMemory, tokens: Tensor, mask: Tensor | None) -> dict[str, Any]:
    """Add new tokens to a memory. Returns the arguments of the model for them: cache, mask and positions.

    Args:
        tokens: ``input_ids (B, n)`` or ``inputs_embeds (B, n, d)``.
        mask: ``(B, n)``, 1 for real tokens; ``None`` if all are real.
    """
    if model.training and any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        raise InputError(
            "Gradient checkpointing recomputes layers without their memory; call "
            "model.gradient_checkpointing_disable() to train with one."
        )
    if mask is None:
        mask = torch.ones(tokens.shape[:2], device=tokens.device)
    elif mask.shape != tokens.shape[:2]:
        raise InputError(
            f"attention_mask has shape {tuple(mask.shape)}, but with a memory it must be that of the new tokens, "
            f"{tuple(tokens.shape[:2])}."
        )
    arguments = memory.extend(mask.bool())
    if model.hands_globals_down:
        arguments[MEMORY_MASK_ARGUMENT] = arguments.pop("attention_mask")
    for table in model.family.position_tables:
        if not table.decoder:  # check that the table has enough rows, and skip its first ones
            table.refuse_beyond(int(arguments["position_ids"].max()) + 1, table.tokens(model.config))
            arguments["position_ids"] = arguments["position_ids"] + table.first_id(model.config)
            break
    return arguments


@cache
def _with_memory_field(output_class: type[Any]) -> type[Any]:
    """A subclass of ``output_class`` with a further field ``memory``. An attribute that is not a field would be lost
    where outputs are rebuilt from their fields (DDP)."""
    namespace = {
        "__annotations__": {"memory": SegmentMemory | None},
        "__module__": __name__,
        "__doc__": output_class.__doc__,
        "memory": None,
    }
    return dataclass(type(f"{output_class.__name__}WithMemory", (output_class,), namespace))
