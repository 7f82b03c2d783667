"""A base model in segments with memory tokens.

With memory tokens (Bulatov et al. 2022), the base's ``forward`` runs on one segment after another, and the last hidden states are
concatenated, so that a head finds as many as there are tokens. Rows are cut from their first real token on, and positions restart in each
segment. In an encoder, the first token ([CLS]) is repeated in every segment; its hidden state is that of the row's last segment, whose
memory has seen the whole text.

While decoding, the cache holds the memory of each row and the keys of its current segment, whatever the text's length. A row fills the
slots of its segment in order: the memory tokens that it reads, then its text. When the segment is full and another token comes, the memory
tokens are written after it, and the row starts a new segment. Rows with different padding are at different places of their segments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from ...engines.common.batch import in_graph, roll_left
from ...errors import MaskError, MemoryMismatchError, OptionError
from ...mechanisms.common.segment_state import leading
from ...mechanisms.common.traits import Recursion
from ...memory import StateLayer, TokenMemory
from ..attach.attention_sites import attention_sites
from .outputs import Kind, by_rows, joined, wants_tuple

INNER = "segment_memory"
"""Keyword by which a head passes the memory tokens of a call to the model inside it."""
Forward = Callable[..., Any]


def check_segment_counts(model: Any, count: int) -> None:
    """Refuse different numbers of segments where the weights are in shares, whose owners would wait for each other for ever.

    Layers run once per segment, and every process must gather their weights as often.
    """
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return
    from torch.distributed.tensor import DTensor  # not in builds without distributed training

    if not any(isinstance(parameter, DTensor) or hasattr(parameter, "ds_id") for parameter in model.parameters()):
        return  # neither FSDP 2 nor ZeRO-3
    most = torch.tensor([count, -count], device=model.device)
    distributed.all_reduce(most, distributed.ReduceOp.MAX)
    if (least := -int(most[1])) != int(most[0]):
        raise MemoryMismatchError(
            f"Memory tokens pass through {least} segments in one process and through {int(most[0])} in another, but processes with shares "
            "of the weights (FSDP, ZeRO-3) must run equally many; pad all batches to one length, or use DistributedDataParallel."
        )


def run_in_segments(model: Any, forward: Forward, arguments: dict[str, Any]) -> Any:
    """``forward`` of a base model with memory tokens, segment after segment."""
    remembered: TokenMemory | None = arguments.get(INNER)
    text = Text.of(model, {name: value for name, value in arguments.items() if name not in (INNER, "return_dict")})
    causal = any(site.module.is_causal for site in attention_sites(model))
    recursion, learned = model.long_memory.recursion, model.long_memory.tokens
    batch = text.real.shape[0]
    memory = learned[None].expand(batch, -1, -1) if remembered is None else remembered.filled(learned, batch)
    memory = memory.to(text.embeddings.dtype)

    def run(**segment: Any) -> Any:
        return forward(model, **segment)

    if causal and (text.others.get("past_key_values") is not None or text.others.get("use_cache")):
        if remembered is not None:
            raise MemoryMismatchError("A memory was given together with a cache, which has one already; leave use_cache out.")
        outputs = SegmentDecoder(model, run, recursion, text).run(memory)
    else:
        outputs, memory = run_segments(model, run, text, recursion, memory, causal=causal, remember=remembered is not None)
        if remembered is not None:
            remembered.take(memory)
    return outputs.to_tuple() if wants_tuple(model, arguments) else outputs


ALONG_THE_TEXT = ("token_type_ids",)
"""Arguments ``(B, N)`` that are cut with the text."""


@dataclass(frozen=True)
class Text:
    """The input of a call: embeddings ``(B, N, d)``, real tokens ``(B, N)``, other tensors along the text, and all other arguments."""

    embeddings: Tensor
    real: Tensor
    along: dict[str, Tensor]
    others: dict[str, Any]

    @classmethod
    def of(cls, model: Any, arguments: dict[str, Any]) -> Text:
        """Read the arguments of a base's ``forward``.

        Raises:
            OptionError: attentions are asked for.
            MaskError: the mask is not one of padding.
        """
        others = dict(arguments)
        ids, embeddings, mask = (others.pop(name, None) for name in ("input_ids", "inputs_embeds", "attention_mask"))
        others.pop("position_ids", None)  # they restart in each segment
        if others.get("output_attentions") or (others.get("output_attentions") is None and model.config.output_attentions):
            raise OptionError(
                "Attentions were asked for, but the model runs over one segment after the other and has none between them; "
                "leave output_attentions out."
            )
        if embeddings is None:
            if ids is None:
                raise OptionError("The model was given neither input_ids nor inputs_embeds; pass one of them.")
            embeddings = model.get_input_embeddings()(ids)
        batch, length = embeddings.shape[:2]
        if mask is not None and (mask.dim() != 2 or mask.shape[1] < length):
            raise MaskError(f"attention_mask has shape {tuple(mask.shape)}, but must be (batch, tokens) with 1 for real tokens.")
        real = torch.ones(batch, length, dtype=torch.bool, device=embeddings.device) if mask is None else mask[:, -length:].bool()
        along = {name: others.pop(name) for name in ALONG_THE_TEXT if others.get(name) is not None}
        return cls(embeddings, real, along, others)

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Text:
        """With ``change`` applied to everything along the text."""
        along = {name: change(x) for name, x in self.along.items()}
        return Text(change(self.embeddings), change(self.real), along, self.others)

    def rolled(self, start: Tensor) -> Text:
        """With row b rolled to the left by ``start[b]``."""
        return self.mapped(lambda x: roll_left(x, start, 1))

    def segments(self, size: int, causal: bool) -> list[Text]:
        """Its segments of ``size`` tokens; in an encoder, every one starts with the text's first token."""

        def plain(at: int) -> Text:
            return self.mapped(lambda x: x[:, at : at + size])

        def after_first(at: int) -> Text:
            return self.mapped(lambda x: torch.cat([x[:, :1], x[:, at : at + size - 1]], 1))

        length = self.real.shape[1]
        if causal:
            return [plain(at) for at in range(0, length, size)]
        return [plain(0), *(after_first(at) for at in range(size, length, size - 1))]


def run_segments(
    model: Any, forward: Forward, text: Text, recursion: Recursion, memory: Tensor, *, causal: bool, remember: bool
) -> tuple[Any, Tensor]:
    """Run ``forward``, the base's, over all segments of ``text``.

    Args:
        memory: ``(B, M, d)``, which the first segment reads.
        causal: whether memory tokens are written after each segment.
        remember: whether the memory after the last segment is needed.

    Returns:
        The outputs, as for the whole text, and the memory ``(B, M, d)`` after each row's last segment with a real token.
    """
    start = leading(text.real) % text.real.shape[1]
    padded = in_graph() or bool(start.any())
    segments = (text.rolled(start) if padded else text).segments(recursion.text(causal), causal)
    check_segment_counts(model, len(segments))
    parts: list[Any] = []
    for index, segment in enumerate(segments):
        left = len(segments) - 1 - index
        out = _run_segment(forward, segment, memory, write=causal and (left > 0 or remember))
        count, size = memory.shape[1], segment.real.shape[1]
        hidden = out.last_hidden_state
        written = hidden[:, count + size :] if causal else hidden[:, :count]
        if left or remember:
            own = segment.real if causal or index == 0 else segment.real[:, 1:]
            memory = torch.where(own.any(1)[:, None, None], written, memory)
        if left and recursion.depth is not None and left % (recursion.depth + 1) == 0:
            memory = memory.detach()
        parts.append(out)
    return _joined(model, parts, segments, memory.shape[1], causal, -start if padded else None), memory


def _run_segment(forward: Forward, segment: Text, memory: Tensor, *, write: bool) -> Any:
    """The base's outputs for one segment with its memory tokens."""
    around = (memory.shape[1], memory.shape[1] if write else 0)
    embeddings = torch.cat([memory, segment.embeddings, memory[:, : around[1]]], 1)
    mask = nn.functional.pad(segment.real.long(), around, value=1)
    along = {name: nn.functional.pad(value, around) for name, value in segment.along.items()}
    others = {**segment.others, "return_dict": True, "use_cache": False}
    return forward(inputs_embeds=embeddings, attention_mask=mask, **along, **others)


def _joined(model: Any, parts: list[Any], segments: list[Text], memory: int, causal: bool, back: Tensor | None) -> Any:
    """The outputs of all segments as those of one text, whose rows are rolled to the left by ``back (B,)``."""

    def text(states: Sequence[Tensor]) -> Tensor:
        cut = [state[:, memory : memory + segment.real.shape[1]] for state, segment in zip(states, segments, strict=True)]
        first = cut[0][:, :1]
        for state, segment in zip(cut[1:], segments[1:], strict=True) if not causal else ():
            there = segment.real[:, 1:].any(1).view(-1, *[1] * (state.dim() - 1))
            first = torch.where(there, state[:, :1], first)
        whole = torch.cat([first, cut[0][:, 1:], *(state if causal else state[:, 1:] for state in cut[1:])], 1)
        return whole if back is None else roll_left(whole, back, 1)

    return _of_whole_text(model, parts, text)


def _of_whole_text(model: Any, parts: list[Any], text: Callable[[Sequence[Tensor]], Tensor]) -> Any:
    """The outputs of several runs, whose tensors ``(B, n, …)`` along the text ``text`` joins."""
    routes = by_rows(text, len(parts[0].last_hidden_state))
    joins = {Kind.TOKENS: text, Kind.ROUTES: routes, Kind.SEQUENCES: lambda pooled: pooled[0], Kind.STATE: lambda caches: caches[0]}
    outputs = joined(parts, joins, "memory tokens")
    if outputs.get("pooler_output") is not None:
        outputs.pooler_output = model.pooler(outputs.last_hidden_state)
    return outputs


@dataclass
class _Rows:
    """Keys and values of every layer ``(B, H_kv, C, D)``, slots with a real token ``(B, C)``, number of filled slots ``(B,)``, and memory
    ``(B, M, d)``."""

    keys: list[Tensor]
    values: list[Tensor]
    real: Tensor
    filled: Tensor
    memory: Tensor

    def select(self, rows: Tensor) -> _Rows:
        keys, values = ([x[rows] for x in layers] for layers in (self.keys, self.values))
        return _Rows(keys, values, self.real[rows], self.filled[rows], self.memory[rows])

    def put(self, rows: Tensor, other: _Rows) -> None:
        """Replace ``rows`` by those of ``other``."""
        for name in ("keys", "values"):
            pairs = zip(getattr(self, name), getattr(other, name), strict=True)
            setattr(self, name, [_shaped(x, y).index_copy(0, rows, y) for x, y in pairs])
        for name in ("real", "filled", "memory"):
            setattr(self, name, getattr(self, name).index_copy(0, rows, getattr(other, name)))


class SegmentDecoder:
    """One call of a causal model with a cache."""

    def __init__(self, model: Any, forward: Forward, recursion: Recursion, text: Text) -> None:
        self.model, self.forward, self.text = model, forward, text
        self.slots, self.count = recursion.length - recursion.memory, recursion.memory
        self.first_id = 0 if model.position_table is None else model.position_table.first_id(model.config)
        past = text.others.pop("past_key_values", None)
        self.cache = DynamicCache(config=model.config) if past is None else past
        for name in ("return_dict", "use_cache"):
            text.others.pop(name, None)

    def run(self, memory: Tensor) -> Any:
        """The base's outputs for all tokens of the text; ``memory (B, M, d)`` is that of a new text."""
        rows = self._load(memory)
        embeddings, real = self.text.embeddings, self.text.real
        length = real.shape[1]
        at = torch.where(rows.filled == 0, leading(real), 0)
        steps: list[tuple[Any, Tensor]] = []
        while bool((at < length).any()):
            waiting = at < length
            self._write_memory((waiting & (rows.filled == self.slots)).nonzero()[:, 0], rows)
            self._read_memory((waiting & (rows.filled == 0)).nonzero()[:, 0], rows)
            step = min(int((self.slots - rows.filled)[waiting].min()), int((length - at).max()))
            places = at[:, None] + torch.arange(step, device=at.device)
            there = places < length
            read = places.clamp(max=length - 1)
            along = {name: x.gather(1, read) for name, x in self.text.along.items()}
            picked = embeddings.gather(1, read[..., None].expand(-1, -1, embeddings.shape[2]))
            out = self._forward(rows, picked, real.gather(1, read) & there, there, along)
            steps.append((out, torch.where(there, places, length)))
            at = at + there.sum(1)
        if not steps:  # nothing but padding before the first token
            everywhere = torch.full_like(real, length, dtype=torch.long)
            steps = [(self._forward(rows, embeddings, real, torch.zeros_like(real), self.text.along), everywhere)]
        self._store(rows)
        return self._joined(steps)

    def _joined(self, steps: list[tuple[Any, Tensor]]) -> Any:
        """The outputs of all steps ``(outputs, columns (B, n) of its tokens in the text)``; the column after the last one is dropped."""
        batch, length = self.text.real.shape

        def text(states: Sequence[Tensor]) -> Tensor:
            whole = states[0].new_zeros(batch, length + 1, *states[0].shape[2:])
            for state, (_, columns) in zip(states, steps, strict=True):
                whole = whole.scatter(1, columns.view(*columns.shape, *[1] * (state.dim() - 2)).expand_as(state), state)
            return whole[:, :length]

        outputs = _of_whole_text(self.model, [out for out, _ in steps], text)
        outputs.past_key_values = self.cache
        return outputs

    def _forward(self, rows: _Rows, embeddings: Tensor, real: Tensor, there: Tensor, along: dict[str, Tensor]) -> Any:
        """Run tokens ``(B, n)`` after those in the slots; those in ``there (B, n)`` fill a slot. Rows without a real token are ignored."""
        used, count = int((rows.filled * real.any(1)).max()), embeddings.shape[1]
        inner = DynamicCache()
        # The filled slots of a row come right before its new tokens, so that distances between columns are those between tokens.
        columns = torch.arange(used, device=real.device) - (used - rows.filled)[:, None]
        for layer, (keys, values) in enumerate(zip(rows.keys, rows.values, strict=True)) if used else ():
            inner.update(_take(keys, columns), _take(values, columns), layer)
        positions = rows.filled[:, None] + torch.arange(count, device=real.device)
        before = rows.real.gather(1, columns.clamp(0, self.slots - 1)) & (columns >= 0)
        mask = torch.cat([before, real], 1).long()
        out = self.forward(
            inputs_embeds=embeddings, attention_mask=mask, position_ids=positions.clamp(max=self.slots + self.count - 1) + self.first_id,
            past_key_values=inner, use_cache=True, return_dict=True, **along, **self.text.others,
        )  # fmt: skip
        slots = torch.where(there, positions, self.slots)
        rows.keys = [_put(old, layer.keys[:, :, used:], slots) for old, layer in zip(rows.keys, inner.layers, strict=True)]
        rows.values = [_put(old, layer.values[:, :, used:], slots) for old, layer in zip(rows.values, inner.layers, strict=True)]
        rows.real = _put(rows.real[:, None, :, None], real[:, None, :, None], slots)[:, 0, :, 0]
        rows.filled = rows.filled + there.sum(1)
        return out

    def _write_memory(self, which: Tensor, rows: _Rows) -> None:
        """Write the memory of rows whose segment is full, and empty their slots."""
        if not len(which):
            return
        full = rows.select(which)
        if self.count:
            full.memory = self._run_memory(full, keep=False).last_hidden_state
        full.real, full.filled = torch.zeros_like(full.real), torch.zeros_like(full.filled)
        rows.put(which, full)

    def _read_memory(self, which: Tensor, rows: _Rows) -> None:
        """Read the memory of rows whose slots are empty."""
        if not len(which) or not self.count:
            return
        empty = rows.select(which)
        self._run_memory(empty, keep=True)
        rows.put(which, empty)

    def _run_memory(self, rows: _Rows, *, keep: bool) -> Any:
        """Run the memory tokens of ``rows``, with zeros for what runs along the text; ``keep``: in the slots."""
        real = torch.ones(rows.memory.shape[:2], dtype=torch.bool, device=rows.memory.device)
        along = {name: x.new_zeros(real.shape) for name, x in self.text.along.items()}
        return self._forward(rows, rows.memory, real, real if keep else ~real, along)

    def _layers(self) -> list[StateLayer]:
        layers = getattr(self.cache, "layers", [])
        if len(layers) != self.model.config.num_hidden_layers or not all(isinstance(layer, StateLayer) for layer in layers):
            raise MemoryMismatchError(
                "The cache is not one for memory tokens; leave past_key_values out, or make it with DynamicCache(config=model.config)."
            )
        return layers

    def _load(self, memory: Tensor) -> _Rows:
        layers, batch = self._layers(), len(memory)
        states = [layer.state for layer in layers]
        if states[0] is not None:
            if len(states[0]["memory"]) != batch:
                raise MemoryMismatchError(f"The cache is of a batch of {len(states[0]['memory'])}, but the input has {batch} rows.")
            keys, values = ([state[name] for state in states if state is not None] for name in ("keys", "values"))
            return _Rows(keys, values, **{name: states[0][name] for name in ("real", "filled", "memory")})
        real = torch.zeros(batch, self.slots, dtype=torch.bool, device=memory.device)
        # Shapes and dtypes of keys are known when the first token has run.
        empty = memory.new_zeros(batch, 0, self.slots, 0)
        filled = torch.zeros(batch, dtype=torch.long, device=memory.device)
        return _Rows([empty] * len(layers), [empty] * len(layers), real, filled, memory)

    def _store(self, rows: _Rows) -> None:
        count = self.text.real.shape[1]
        for layer, keys, values in zip(self._layers(), rows.keys, rows.values, strict=True):
            layer.update(keys[:, :, :1].expand(-1, -1, count, -1), values[:, :, :1].expand(-1, -1, count, -1))
            layer.state = {"keys": keys.detach(), "values": values.detach()}
        own = {"real": rows.real, "filled": rows.filled, "memory": rows.memory.detach()}
        first = self._layers()[0]
        assert first.state is not None
        first.state |= own


def _put(old: Tensor, new: Tensor, slots: Tensor) -> Tensor:
    """Write ``new (B, H, n, D)`` into the slots ``(B, n)`` of ``old (B, H, C, D)``; what goes to slot C is dropped."""
    with_spare = nn.functional.pad(_shaped(old, new), (0, 0, 0, 1))
    return with_spare.scatter(2, slots[:, None, :, None].expand_as(new), new)[:, :, :-1]


def _take(x: Tensor, slots: Tensor) -> Tensor:
    """Slots ``(B, n)`` of ``x (B, H, C, D)``; any where they are negative."""
    return x.gather(2, slots.clamp(0, x.shape[2] - 1)[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))


def _shaped(old: Tensor, new: Tensor) -> Tensor:
    """``old``, or empty slots with the heads and width of ``new`` if there are no keys yet."""
    return old if old.shape[1] else new.new_zeros(old.shape[0], new.shape[1], old.shape[2], new.shape[3])
