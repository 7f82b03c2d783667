"""A base model in segments with memory tokens.

With memory tokens (Bulatov et al. 2022), the base's ``forward`` runs on one segment after another. The last hidden states are concatenated,
so that a head finds one per token. Rows are cut into segments from their first real token on, and positions restart in each segment. In an
encoder, every segment starts with the first token ([CLS]). Its hidden state comes from the row's last segment, whose memory has seen the
whole text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...cache_argument import CACHE
from ...engines.common.batch import in_graph, roll_left
from ...errors import MaskError, MemoryMismatchError, OptionError
from ...mechanisms.common.segment_state import left_padding
from ...memory import TokenMemory
from ..attach.attention_sites import attention_sites
from .modes import Forward, Mode
from .outputs import Join, Kind, by_rows, joined

TOKEN_MEMORY_ARGUMENT = "segment_memory"
"""Keyword by which a head passes a call's memory tokens to its inner model."""


def check_segment_counts(model: Any, count: int) -> None:
    """Raise an error if processes with sharded weights have different numbers of segments. They would wait for each other forever.

    Layers run once per segment, and all processes must gather their weights equally often.
    """
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return
    from torch.distributed.tensor import DTensor  # not in builds without distributed training

    if not any(isinstance(parameter, DTensor) or hasattr(parameter, "ds_id") for parameter in model.parameters()):
        return  # without FSDP 2 or ZeRO-3
    most = torch.tensor([count, -count], device=model.device)
    distributed.all_reduce(most, distributed.ReduceOp.MAX)
    if (least := -int(most[1])) != int(most[0]):
        raise MemoryMismatchError(
            f"Memory tokens pass through {least} segments in one process and through {int(most[0])} in another, but processes with shares "
            "of the weights (FSDP, ZeRO-3) must run equally many; pad all batches to one length, or use DistributedDataParallel."
        )


ALONG_THE_TEXT = ("token_type_ids",)
"""Per-token arguments ``(B, N)`` of all families, which are cut like the text. Arguments of pages are cut, too."""


@dataclass(frozen=True)
class Text:
    """A call's input. Embeddings ``(B, N, d)``, real tokens ``(B, N)``, other per-token tensors, and all other arguments."""

    embeddings: Tensor
    real: Tensor
    along: dict[str, Tensor]
    arguments: dict[str, Any]

    @classmethod
    def of(cls, model: Any, arguments: dict[str, Any]) -> Text:
        """Read the arguments of a base's ``forward``.

        Raises:
            OptionError: attentions are requested.
            MaskError: the mask is not a padding mask.
        """
        further = {name: value for name, value in arguments.items() if name not in (TOKEN_MEMORY_ARGUMENT, "return_dict")}
        ids, embeddings, mask = (further.pop(name, None) for name in ("input_ids", "inputs_embeds", "attention_mask"))
        further.pop("position_ids", None)  # they restart in each segment
        if further.get("output_attentions") or (further.get("output_attentions") is None and model.config.output_attentions):
            raise OptionError(
                "Attentions were asked for, but the model runs over one segment after the other and has none between them; "
                "leave output_attentions out."
            )
        if embeddings is None:
            if ids is None:
                raise OptionError("The model was given neither input_ids nor inputs_embeds; pass one of them.")
            embeddings = model.get_input_embeddings()(ids)
        batch, length = embeddings.shape[:2]
        cache = further.get(CACHE)
        if mask is not None and (mask.dim() != 2 or mask.shape[1] < length):
            raise MaskError(f"attention_mask has shape {tuple(mask.shape)}, but must be (batch, tokens) with 1 for real tokens.")
        if mask is None:
            real = torch.ones(batch, length, dtype=torch.bool, device=embeddings.device)
        else:  # it also has the columns of earlier tokens, and the empty slots of a static cache
            start = mask.shape[1] - length if cache is None else min(int(cache.get_seq_length()), mask.shape[1] - length)
            real = mask[:, start : start + length].bool()
        along = {name: further.pop(name) for name in (*ALONG_THE_TEXT, *model.family.rule.names) if further.get(name) is not None}
        return cls(embeddings, real, along, further)

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Text:
        """A copy with ``change`` applied to every per-token tensor."""
        along = {name: change(x) for name, x in self.along.items()}
        return Text(change(self.embeddings), change(self.real), along, self.arguments)

    def rolled(self, start: Tensor) -> Text:
        """A copy with row b rolled to the left by ``start[b]`` tokens."""
        return self.mapped(lambda x: roll_left(x, start, 1))

    def segments(self, size: int, causal: bool) -> list[Text]:
        """Segments of ``size`` tokens. In an encoder, each starts with the text's first token."""

        def plain(at: int) -> Text:
            return self.mapped(lambda x: x[:, at : at + size])

        def after_first(at: int) -> Text:
            return self.mapped(lambda x: torch.cat([x[:, :1], x[:, at : at + size - 1]], 1))

        length = self.real.shape[1]
        if causal:
            return [plain(at) for at in range(0, length, size)]
        return [plain(0), *(after_first(at) for at in range(size, length, size - 1))]


@dataclass(frozen=True)
class SegmentedInputs:
    """The segments of a call, and values that they share.

    segments: segments of the text after rolling row b to the left by ``-back[b]`` tokens; ``back`` is ``None`` if no row is rolled.
    memory: ``(B, M, d)``, read by the first segment.
    causal: whether memory tokens are written after each segment.
    remembered: the previous call's memory object, which stores this call's memory.
    """

    segments: list[Text]
    memory: Tensor
    back: Tensor | None
    causal: bool
    remembered: TokenMemory | None


class Segments(Mode[SegmentedInputs]):
    """Runs a base model with memory tokens over a text's segments, one after another."""

    name, key = "memory tokens", "segments"

    def prepare(self, model: Any, arguments: dict[str, Any]) -> SegmentedInputs:
        text, remembered = Text.of(model, arguments), arguments.get(TOKEN_MEMORY_ARGUMENT)
        causal, recursion = is_causal(model), model.recursion
        start = left_padding(text.real) % text.real.shape[1]
        padded = in_graph() or bool(start.any())
        segments = (text.rolled(start) if padded else text).segments(recursion.text(causal), causal)
        check_segment_counts(model, len(segments))
        memory = first_memory(model, text, remembered)
        return SegmentedInputs(segments, memory, -start if padded else None, causal, remembered)

    def run(self, model: Any, forward: Forward, inputs: SegmentedInputs) -> list[Any]:
        memory, depth = inputs.memory, model.recursion.depth
        parts: list[Any] = []
        for index, segment in enumerate(inputs.segments):
            left = len(inputs.segments) - 1 - index
            keep = left > 0 or inputs.remembered is not None
            outputs = _run_segment(model, forward, segment, memory, write=inputs.causal and keep)
            if keep:
                memory = _written_memory(outputs.last_hidden_state, segment, memory, inputs.causal, first=index == 0)
            if left and depth is not None and left % (depth + 1) == 0:
                memory = memory.detach()
            parts.append(outputs)
        if inputs.remembered is not None:
            inputs.remembered.take(memory)
        return parts

    def restore(self, model: Any, inputs: SegmentedInputs, parts: Sequence[Any]) -> Any:
        """The outputs of the whole text. In an encoder, the first token's outputs come from the row's last segment."""
        segments, causal, memory = inputs.segments, inputs.causal, inputs.memory.shape[1]

        def text(states: Sequence[Tensor]) -> Tensor:
            cut = [state[:, memory : memory + segment.real.shape[1]] for state, segment in zip(states, segments, strict=True)]
            first = cut[0][:, :1]
            for state, segment in zip(cut[1:], segments[1:], strict=True) if not causal else ():
                there = segment.real[:, 1:].any(1).view(-1, *[1] * (state.dim() - 1))
                first = torch.where(there, state[:, :1], first)
            rolled = torch.cat([first, cut[0][:, 1:], *(state if causal else state[:, 1:] for state in cut[1:])], 1)
            return rolled if inputs.back is None else roll_left(rolled, inputs.back, 1)

        return joined_text(model, parts, text, self.name)


def is_causal(model: Any) -> bool:
    """Whether this base model is a decoder, which writes memory tokens after a segment."""
    return any(site.causal for site in attention_sites(model))


def first_memory(model: Any, text: Text, remembered: TokenMemory | None) -> Tensor:
    """The memory ``(B, M, d)`` that the first segment reads. The learned one, or the previous call's."""
    learned, batch = model.long_memory.tokens, text.real.shape[0]
    memory: Tensor = learned[None].expand(batch, -1, -1) if remembered is None else remembered.filled(learned, batch)
    return memory.to(text.embeddings.dtype)


def _run_segment(model: Any, forward: Forward, segment: Text, memory: Tensor, *, write: bool) -> Any:
    """The base's outputs for a segment, which include the memory tokens read and written."""
    around = (memory.shape[1], memory.shape[1] if write else 0)
    embeddings = torch.cat([memory, segment.embeddings, memory[:, : around[1]]], 1)
    mask = nn.functional.pad(segment.real.long(), around, value=1)
    along = {
        name: nn.functional.pad(value, (*(0, 0) * (value.dim() - 2), *around), value=model.family.rule.fill(model.config, name))
        for name, value in segment.along.items()
    }
    arguments = {**segment.arguments, "return_dict": True, "use_cache": False}
    return forward(model, inputs_embeds=embeddings, attention_mask=mask, **along, **arguments)


def _written_memory(hidden: Tensor, segment: Text, memory: Tensor, causal: bool, *, first: bool) -> Tensor:
    """The memory after a segment, from its last hidden states. Rows without a real token in the segment keep their memory."""
    count, size = memory.shape[1], segment.real.shape[1]
    written = hidden[:, count + size :] if causal else hidden[:, :count]
    real = segment.real if causal or first else segment.real[:, 1:]
    return torch.where(real.any(1)[:, None, None], written, memory)


def joined_text(model: Any, parts: Sequence[Any], text: Join, mode: str) -> Any:
    """The outputs of several runs. ``text`` joins their tensors ``(B, n, …)`` to one for the whole text."""
    routes = by_rows(text, len(parts[0].last_hidden_state))
    joins: dict[Kind, Join] = {Kind.TOKENS: text, Kind.ROUTES: routes, Kind.SEQUENCES: lambda values: values[0]}
    joins[Kind.STATE] = lambda caches: caches[0]
    outputs = joined(parts, joins, mode)
    if outputs.get("pooler_output") is not None:
        outputs.pooler_output = model.pooler(outputs.last_hidden_state)
    return outputs
