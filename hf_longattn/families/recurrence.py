"""How a Long model takes and returns a memory, ``model(input_ids, memory=memory).memory``, and runs in segments with memory tokens."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..backend import BACKEND
from ..errors import MaskError, MemoryMismatchError, OptionError
from ..memory import CacheMemory, SegmentMemory, TokenMemory
from .attachment import attention_sites
from .limits import check_positions
from .memory_tokens import MemoryTokens
from .segment_decoding import SegmentDecoder
from .segments import Text, run_segments

INNER = "segment_memory"
"""Keyword under which a head hands the memory tokens of this call to the model inside it."""
POSITIONS = ("continue", "restart")


def new_memory(model: Any, positions: str | None) -> SegmentMemory:
    """See :meth:`hf_longattn.families.mixin.LongAttentionMixin.new_memory`."""
    if model.config._attn_implementation != BACKEND:
        raise MemoryMismatchError(
            f"The model runs attn_implementation={model.config._attn_implementation!r}, which has no memory of segments; "
            f"choose model.set_attn_implementation({BACKEND!r})."
        )
    if any(isinstance(module, MemoryTokens) for module in model.modules()):
        if positions is not None:
            raise OptionError("Positions begin anew in every segment where memory tokens pass between them; leave positions out.")
        return TokenMemory()
    if model.config.is_encoder_decoder or not all(site.module.is_causal and not site.cross for site in attention_sites(model)):
        raise MemoryMismatchError(
            f"{type(model).__name__} is no decoder, and only what comes before a token can be remembered for it; "
            "use a decoder, or memory tokens (recurrent_memory) in an encoder."
        )
    if positions not in (None, *POSITIONS):
        raise OptionError(f"positions is {positions!r}, but must be one of: {', '.join(POSITIONS)}.")
    return CacheMemory(model.config, continues=model.family.rope if positions is None else positions == "continue")


def run_with_memory(model: Any, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], memory: Any, reset: Any) -> Any:
    """``forward`` on one call's input with the memory of the call before; the outputs hold the next one as ``outputs.memory``."""
    if not isinstance(memory, SegmentMemory):
        raise MemoryMismatchError(f"memory is a {type(memory).__name__}, but must come from model.new_memory() or from outputs.memory.")
    if isinstance(memory, TokenMemory) != any(isinstance(module, MemoryTokens) for module in model.modules()):
        raise MemoryMismatchError("The memory is that of another kind of model; begin anew with memory=model.new_memory().")
    given = _named(forward, model, args, kwargs)
    if given.get("past_key_values") is not None:
        raise MemoryMismatchError("Both memory and past_key_values were given, and each holds what came before; leave one of them out.")
    ids, embeddings = given.get("input_ids"), given.get("inputs_embeds")
    tokens: Tensor = ids if ids is not None else embeddings  # type: ignore[assignment]
    following = memory.begin(tokens.shape[0], reset)
    if isinstance(following, TokenMemory):
        given[INNER] = following
    elif isinstance(following, CacheMemory):
        _refuse_checkpointing(model)
        given |= following.extend(_real(given.get("attention_mask"), tokens))
        table = next((table for table in model.family.position_tables if not table.decoder), None)
        if table is not None:
            given["position_ids"] = given["position_ids"] + table.offset
            check_positions(table, model.config, given["position_ids"])
    returns_tuple = given.get("return_dict") is False
    outputs = forward(model, **{**given, "return_dict": True})
    if isinstance(following, CacheMemory):
        following.close()
    kind: Any = type(outputs)
    outputs = _remembering(kind)(**outputs, memory=following)
    return outputs.to_tuple() if returns_tuple else outputs


def run_in_segments(model: Any, *args: Any, forward: Callable[..., Any], **kwargs: Any) -> Any:
    """``forward`` of a base model with memory tokens on its whole input, segment after segment."""
    given = _named(forward, model, args, kwargs)
    remembered: TokenMemory | None = given.pop(INNER, None)
    wants_dict = given.pop("return_dict", None)
    wants_dict = model.config.return_dict if wants_dict is None else wants_dict
    text = Text.of(model, given)
    causal = any(site.module.is_causal for site in attention_sites(model))
    recursion, learned = model.long_memory.recursion, model.long_memory.tokens
    batch = text.real.shape[0]
    memory = learned[None].expand(batch, -1, -1) if remembered is None else remembered.filled(learned, batch)
    memory = memory.to(text.embeddings.dtype)

    def run(**arguments: Any) -> Any:
        return forward(model, **arguments)

    if causal and (text.others.get("past_key_values") is not None or text.others.get("use_cache")):
        if remembered is not None:
            raise MemoryMismatchError("A memory was given together with a cache, which holds its own; leave use_cache out.")
        outputs = SegmentDecoder(model, run, recursion, text).run(memory)
    else:
        remember = remembered is not None
        outputs, memory = run_segments(model, run, text, recursion, memory, causal=causal, remember=remember)
        if remembered is not None:
            remembered.take(memory)
    return outputs if wants_dict else outputs.to_tuple()


@cache
def _remembering(kind: type[Any]) -> type[Any]:
    """The outputs' class with a field ``memory``: a field, so that what takes outputs apart (DDP) can put them together again."""
    fields: dict[str, Any] = {"__annotations__": {"memory": SegmentMemory | None}, "memory": None}
    fields |= {"__module__": __name__, "__doc__": kind.__doc__}
    fields["__reduce__"] = lambda self: (_remembered, (kind, dict(self)))  # the class is in no module, where a pickle would look for it
    return dataclass(type(f"{kind.__name__}WithMemory", (kind,), fields))


def _remembered(kind: Any, fields: dict[str, Any]) -> Any:
    """The pickled outputs of a call with a memory."""
    return _remembering(kind)(**fields)


def _named(forward: Callable[..., Any], model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """All arguments of a call by name."""
    names = [name for name in inspect.signature(forward).parameters if name != "self"]
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _real(mask: Any, tokens: Tensor) -> Tensor:
    if mask is None:
        return torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    if mask.shape != tokens.shape[:2]:
        raise MaskError(
            f"attention_mask has shape {tuple(mask.shape)}, but with a memory it must be that of the new tokens, {tuple(tokens.shape[:2])}."
        )
    return mask.bool()


def _refuse_checkpointing(model: Any) -> None:
    if model.training and any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        raise MemoryMismatchError(
            "Gradient checkpointing runs every layer without what it remembers; call model.gradient_checkpointing_disable() to train "
            "with a memory."
        )
