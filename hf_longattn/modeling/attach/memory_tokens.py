"""Memory tokens that are passed from segment to segment of a text (Bulatov et al. 2022).

The base's ``forward`` runs on one segment after another, with memory tokens in front. The hidden states of all
segments are concatenated, so that a head finds one per token. Rows are cut into segments from their first real token
on, and positions restart in each segment. In an encoder, every segment starts with the text's first token ([CLS]). The
hidden state of this token comes from the row's last segment, whose memory depends on the entire text.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...engines.batch import first_real, in_graph, roll_left
from ...errors import BackendError, InputError, OptionError
from ...mechanisms.common.base import Mechanism
from ...mechanisms.common.capabilities import Recursion
from ...memory.decode_cache import CACHE
from ..family.definition import PositionTable
from .attention_sites import attention_sites, is_causal

TOKEN_MEMORY_ARGUMENT = "segment_memory"
"""Keyword by which a head passes a call's memory tokens to its inner model."""


class MemoryTokens(nn.Module):
    """The memory with which a text's first segment starts: learned embeddings ``tokens (M, hidden_size)``."""

    def __init__(self, count: int, hidden_size: int, std: float) -> None:
        super().__init__()
        self.std = std
        self.tokens = nn.Parameter(torch.empty(count, hidden_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.tokens, std=self.std)


def recursion_of(model: nn.Module) -> Recursion | None:
    """How memory tokens pass from segment to segment in ``model``. ``None`` if the model runs over the whole text at
    once.

    Raises:
        OptionError: the layers have different recursions.
    """
    different = {module.capabilities.recursion for module in model.modules() if isinstance(module, Mechanism)}
    if len(different) > 1:
        raise OptionError(
            "Memory tokens pass through all layers of a model, but the layers have different mechanisms or options; "
            'give every layer the same, for example long_attention={"mechanism": "recurrent_memory", '
            '"segment_length": 512}.'
        )
    return different.pop() if different else None


def attach_memory_tokens(stack: Any, table: PositionTable | None) -> Recursion:
    """Add memory tokens, as the module ``stack.long_memory``, to a model whose mechanisms use them. Returns how they
    pass from segment to segment.

    Raises:
        OptionError: the model is one of two stacks, cannot read its hidden states, or a segment is longer than its
            position table.
    """
    weight: Tensor = stack.get_input_embeddings().weight
    # embeddings narrower than the hidden states, as in ALBERT
    narrow = hasattr(stack.config, "embedding_size") and stack.config.embedding_size != stack.config.hidden_size
    two_stacks = stack.config.is_encoder_decoder or any(site.cross for site in attention_sites(stack))
    if two_stacks or narrow or "inputs_embeds" not in inspect.signature(type(stack).forward).parameters:
        why = "is one of two stacks" if two_stacks else "cannot read hidden states as embeddings"
        raise OptionError(
            f"Memory tokens pass through an encoder or a decoder, but {type(stack).__name__} {why}; "
            "choose another mechanism, for example window or transformer_xl."
        )
    # a segment has to fit into the position table
    recursion = recursion_of(stack)
    assert recursion is not None
    if table is not None and recursion.length > table.tokens(stack.config):
        raise OptionError(
            f"A segment has {recursion.length} tokens, but the model {table.tokens(stack.config)} positions; "
            f"give segment_length={table.tokens(stack.config)} or less."
        )
    std = getattr(stack.config, "initializer_range", 0.02)
    stack.long_memory = MemoryTokens(recursion.memory, weight.shape[1], std).to(
        device=weight.device, dtype=weight.dtype
    )
    return recursion


# ---- running in segments


def check_segment_counts(model: Any, count: int) -> None:
    """Raise :class:`InputError` if processes with sharded weights have different numbers of segments.

    Layers run once per segment, and gather their weights from all processes each time. A process that runs less often
    than the others would let them wait forever.

    count: number of segments in this process.
    """
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return
    from torch.distributed.tensor import DTensor  # missing in builds without distributed training

    if not any(isinstance(parameter, DTensor) or hasattr(parameter, "ds_id") for parameter in model.parameters()):
        return  # weights are not sharded by FSDP 2 or ZeRO-3
    # one reduction for maximum and minimum
    extremes = torch.tensor([count, -count], device=model.device)
    distributed.all_reduce(extremes, distributed.ReduceOp.MAX)
    most = int(extremes[0])
    least = -int(extremes[1])
    if least != most:
        raise InputError(
            f"Memory tokens pass through {least} segments in one process and through {most} in another, but "
            "processes with shares of the weights (FSDP, ZeRO-3) must run equally many; pad all batches to one "
            "length, or use DistributedDataParallel."
        )


EMBEDDINGS, MASK = "inputs_embeds", "attention_mask"


def _read_text(model: Any, arguments: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Divide the arguments of a base's ``forward`` into two dicts: arguments with a value for each token, and the
    others.

    The first always has the embeddings ``(B, N, d)`` and the mask of real tokens ``(B, N)`` bool.

    Raises:
        OptionError: attentions are requested, or there is no text.
        InputError: the mask is not a padding mask.
    """
    left_out = (TOKEN_MEMORY_ARGUMENT, "return_dict", "position_ids")  # positions restart in each segment
    further = {name: value for name, value in arguments.items() if name not in left_out}
    ids, embeddings, mask = (further.pop(name, None) for name in ("input_ids", EMBEDDINGS, MASK))
    attentions = further.get("output_attentions")
    if attentions or (attentions is None and model.config.output_attentions):
        raise OptionError(
            "Attentions were asked for, but the model runs over one segment after the other and has none between "
            "them; leave output_attentions out."
        )
    if embeddings is None:
        if ids is None:
            raise OptionError("The model was given neither input_ids nor inputs_embeds; pass one of them.")
        embeddings = model.get_input_embeddings()(ids)
    if mask is None:
        mask = torch.ones(embeddings.shape[:2], dtype=torch.bool, device=embeddings.device)
    elif mask.shape != embeddings.shape[:2]:
        raise InputError(
            f"attention_mask has shape {tuple(mask.shape)}, but must be (batch, tokens) with 1 for real tokens."
        )
    text = {EMBEDDINGS: embeddings, MASK: mask.bool()}
    for name in ("token_type_ids", *model.family.spec.further):  # such as the boxes of a page
        value = further.pop(name, None)
        if value is not None:
            text[name] = value
    return text, further


def _segments(text: dict[str, Tensor], size: int, causal: bool) -> list[dict[str, Tensor]]:
    """Segments of ``size`` tokens. In an encoder (``causal`` is False), each starts with the text's first token.

    text: the arguments with a value for each token, ``(B, N, …)``. A segment has the same names.
    """
    length = text[MASK].shape[1]
    if causal:
        return [
            {name: value[:, start : start + size] for name, value in text.items()} for start in range(0, length, size)
        ]
    segments = [{name: value[:, :size] for name, value in text.items()}]
    for start in range(size, length, size - 1):
        stop = start + size - 1
        segments.append({name: torch.cat([value[:, :1], value[:, start:stop]], 1) for name, value in text.items()})
    return segments


def run_in_segments(model: Any, forward: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    """Run a base model with memory tokens on one segment of a text after another, and return the outputs for the text.

    In an encoder, the first token's outputs come from the row's last segment.

    Args:
        model: the base model.
        forward: its ``forward``.
        arguments: the arguments of ``forward``, by name.

    Raises:
        InputError: a decode cache is given or requested, or processes have different numbers of segments.
    """
    if arguments.get(CACHE) is not None or arguments.get("use_cache"):
        raise InputError(
            "A model with memory tokens reads its text in segments, for which there is no cache; pass use_cache=False."
        )
    # cut the text into segments, without left padding
    text, further = _read_text(model, arguments)
    causal = any(map(is_causal, model.attention_modules))
    recursion = model.recursion
    start = first_real(text[MASK])
    padded = in_graph() or bool(start.any())
    if padded:
        text = {name: roll_left(value, start, 1) for name, value in text.items()}
    segments = _segments(text, recursion.text(causal), causal)
    check_segment_counts(model, len(segments))
    # the memory (B, M, d) before the first segment: learned, or of the previous call
    caller_memory = arguments.get(TOKEN_MEMORY_ARGUMENT)
    memory: Tensor = model.long_memory.tokens
    batch = len(text[MASK])
    memory = memory[None].expand(batch, -1, -1) if caller_memory is None else caller_memory.filled(memory, batch)
    memory = memory.to(text[EMBEDDINGS].dtype)
    size = memory.shape[1]
    # run the segments; gradients pass through at most ``recursion.depth`` of them
    parts: list[Any] = []
    for index, segment in enumerate(segments):
        left = len(segments) - 1 - index
        keep = left > 0 or caller_memory is not None
        outputs, memory = _run_segment(model, forward, segment, further, memory, causal, keep, first=index == 0)
        if left and recursion.depth is not None and left % (recursion.depth + 1) == 0:
            memory = memory.detach()
        parts.append(outputs)
    if caller_memory is not None:
        caller_memory.take(memory)

    def whole_text(states: Sequence[Tensor]) -> Tensor:
        """The values ``(B, N, …)`` of the text, from those of each segment and its memory tokens."""
        cut = [state[:, size : size + segment[MASK].shape[1]] for state, segment in zip(states, segments, strict=True)]
        if not causal:
            # the first token's value is that of the last segment in which its row has further tokens
            first = cut[0][:, :1]
            for state, segment in zip(cut[1:], segments[1:], strict=True):
                has_tokens = segment[MASK][:, 1:].any(1).view(-1, *[1] * (state.dim() - 1))
                first = torch.where(has_tokens, state[:, :1], first)
            cut = [first, *(state[:, 1:] for state in cut)]
        rolled = torch.cat(cut, 1)
        return roll_left(rolled, -start, 1) if padded else rolled

    outputs = _joined(parts, whole_text)
    if outputs.get("pooler_output") is not None:
        outputs.pooler_output = model.pooler(outputs.last_hidden_state)
    return outputs.to_tuple() if wants_tuple(model, arguments) else outputs


def _run_segment(
    model: Any,
    forward: Callable[..., Any],
    segment: dict[str, Tensor],
    further: dict[str, Any],
    memory: Tensor,
    causal: bool,
    keep: bool,
    *,
    first: bool,
) -> tuple[Any, Tensor]:
    """The base's outputs for a segment and its memory tokens, and the memory ``(B, M, d)`` after the segment.

    Args:
        segment: the arguments of ``forward`` with a value for each token of the segment.
        further: the arguments that are the same for all segments.
        memory: the memory ``(B, M, d)`` before the segment.
        causal: whether the model is a decoder.
        keep: whether the memory is used again. The new memory is then the hidden states of memory tokens: of those
            before the segment in an encoder, and of further ones after the segment in a decoder.
        first: whether this is the text's first segment. In an encoder, later segments begin with the text's first
            token.
    """
    # memory tokens before the segment, and perhaps after it
    real = segment[MASK]
    count = memory.shape[1]
    size = real.shape[1]
    after = count if causal and keep else 0
    inputs = {
        EMBEDDINGS: torch.cat([memory, segment[EMBEDDINGS], memory[:, :after]], 1),
        MASK: nn.functional.pad(real.long(), (count, after), value=1),
    }
    for name, value in segment.items():
        if name not in inputs:
            inputs[name] = nn.functional.pad(value, (*(0, 0) * (value.dim() - 2), count, after))
    outputs = forward(model, **inputs, **{**further, "return_dict": True, "use_cache": False})
    if not keep:
        return outputs, memory
    hidden = outputs.last_hidden_state
    written = hidden[:, count + size :] if causal else hidden[:, :count]
    # rows without tokens in this segment have ended, and keep their memory
    if not (causal or first):
        real = real[:, 1:]
    return outputs, torch.where(real.any(1)[:, None, None], written, memory)


def _joined(parts: Sequence[Any], whole_text: Callable[[Sequence[Tensor]], Tensor]) -> Any:
    """Join the outputs of all segments to outputs of the text. Changes and returns the first of ``parts``.

    Args:
        parts: the base's outputs for each segment.
        whole_text: joins tensors ``(B, n, …)`` of all segments to ``(B, N, …)``.

    Raises:
        BackendError: there is a field that cannot be joined.
    """
    outputs = parts[0]
    rows = len(outputs.last_hidden_state)

    def expert_scores(values: Sequence[Tensor]) -> Tensor:
        """Join the scores of experts, ``(B·n, experts)``."""
        return whole_text([value.unflatten(0, (rows, -1)) for value in values]).flatten(0, 1)

    joins = {"last_hidden_state": whole_text, "hidden_states": whole_text, "router_logits": expert_scores}
    for name in list(outputs):
        if name in ("pooler_output", CACHE):  # fields without a value for each token
            continue
        if name not in joins:
            raise BackendError(
                f"{type(outputs).__name__}.{name} cannot be returned with memory tokens; do not request it, or run "
                "the model without."
            )
        values = [part[name] for part in parts]
        if isinstance(values[0], tuple | list):  # a value per layer
            outputs[name] = tuple(map(joins[name], zip(*values, strict=True)))
        else:
            outputs[name] = joins[name](values)
    return outputs


def wants_tuple(model: Any, arguments: Mapping[str, Any]) -> bool:
    """Whether a call of ``model`` requests its outputs as a tuple."""
    by_name = arguments.get("return_dict")
    return (model.config.return_dict if by_name is None else by_name) is False
