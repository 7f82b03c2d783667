"""Segment recurrence of Transformer-XL (Dai et al. 2019, section 3.2): a segment's queries see their segment and a memory before it.

Segments have S tokens, counted from the first real token. With s(i) = S·⌊i/S⌋ the first position of i's segment, query i sees key j when

    causal:         s(i) - M <= j <= i
    bidirectional:  s(i) - M <= j < s(i) + S

The paper keeps the memory's hidden states and lets no gradient into them, ``h̃ = [SG(h_τ) ∘ h_τ+1]``, but computes the memory's keys and
values from them anew, so that W_k and W_v learn from the memory as well. So does a model here, within one call: while gradients are
computed it projects the layer's input a second time as a constant (``stop_gradient=hidden_states``; the input is what the layer's norm
returns, where the norm comes first). ``stop_gradient=keys_values`` saves that projection: nothing flows into the memory's keys and values.
So it is for whoever calls the mechanism with q, k and v alone, without the layer that made them, and for what a cache or ``memory=`` brings
from an earlier call, which keeps keys and values. With ``bptt`` the gradient crosses the border. Positions are relative in the paper:
rotary positions are, and any ``score_mod`` over distances meets the memory's keys at their true positions.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..engines.block_sparse import suits_dense
from ..engines.dense import dense_attention, index_grid, repeat_heads
from ..engines.gathered import gathered_attention
from ..engines.pattern import GatherTile, MaskMod, ScoreMod, rows_of
from ..positions.relative import Span
from .base import both, softmax_over
from .gathered import GatheredMechanism, shifted, turn, turn_mask, turning
from .layout import block_sizes, cells, triangle
from .masked import first_real
from .options import Options, not_negative, one_of, option, positive
from .registry import register_mechanism

HIDDEN, PROJECTED = "hidden_states", "keys_values"


@dataclasses.dataclass(frozen=True)
class TransformerXLOptions(Options):
    segment_length: int = option(512, "tokens in a segment", "tokens")
    memory_length: int = option(512, "how many tokens before its segment a query sees", "tokens")
    bptt: bool = option(False, "whether gradients cross the border of a segment into its memory; the paper stops them")
    stop_gradient: str = option(
        HIDDEN,
        "where gradients into the memory stop without bptt: hidden_states, as in the paper, so that the layer's key and value projections "
        "learn from the memory too, or keys_values, which saves projecting twice",
    )

    def check(self) -> None:
        positive("transformer_xl", "segment_length", self)
        not_negative("transformer_xl", "memory_length", self.memory_length)
        one_of("transformer_xl", "stop_gradient", self.stop_gradient, (HIDDEN, PROJECTED))

    def is_mask(self) -> bool:
        return self.bptt


@register_mechanism("transformer_xl")
class TransformerXL(GatheredMechanism):
    """The own segment, and the ``memory_length`` tokens before it."""

    summary = "its own segment and a memory of the tokens before it, into which gradients may be stopped"
    paper = "Dai et al. 2019, Transformer-XL, §3.2"
    cost = "N·(s+m)"
    exact_when = "segment_length ≥ N; causal: also memory_length ≥ the tokens before the last segment"
    options_type = TransformerXLOptions
    sample: ClassVar[dict[str, Any]] = {"segment_length": 24, "memory_length": 40, "bptt": True}

    @classmethod
    def covering(cls, length: int, causal: bool) -> dict[str, Any]:
        return {"segment_length": 64, "memory_length": length} if causal else {"segment_length": length}

    options: TransformerXLOptions

    def mask_mod(self, causal: bool, global_mask: Tensor | None) -> MaskMod:
        size, memory = self.options.segment_length, self.options.memory_length

        def mod(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
            first = q_idx // size * size
            return (kv_idx >= first - memory) & (kv_idx < first + size)

        return mod

    def parts(self, length: int, causal: bool, device: torch.device) -> tuple[GatherTile, ...]:
        blocks, memory = self._rows(length, device)
        return tuple(cells(blocks, torch.cat([memory, blocks], 1), causal=causal))

    def _rows(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Positions of the segments ``(R, S)`` and of what they remember ``(R, M)``; -1 is none."""
        blocks = rows_of(length, self.options.segment_length, device)[0, 0]
        most = min(self.options.memory_length, (len(blocks) - 1) * self.options.segment_length)
        memory = blocks[:, :1] + torch.arange(-most, 0, device=device)
        return blocks, memory.clamp(min=-1)

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        causal: bool = False,
        padding_mask: Tensor | None = None,
        global_mask: Tensor | None = None,
        scaling: float | None = None,
        dropout_p: float = 0.0,
        score_mod: ScoreMod | None = None,
        seed: int = 0,
        stopped: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """``stopped``, keys and values ``(B, H_kv, n, D)`` of the last n tokens, are what the memory is of; ``None`` detaches k and v."""
        arguments: dict[str, Any] = {"scaling": scaling, "dropout_p": dropout_p}
        if not self._stops(k, v):
            return super().forward(q, k, v, causal=causal, padding_mask=padding_mask, score_mod=score_mod, **arguments)
        # The memory's keys stand after the segments' own: each query meets a key in one of the two places.
        (_, heads, q_len, _), length = q.shape, k.shape[2]
        remembered = _remembered(k, v, stopped)
        mods = self._score_mods(q, (k, remembered[0]), causal, scaling, score_mod)
        q = F.pad(q, (0, 0, length - q_len, 0))
        start = turning(padding_mask)
        if start is not None:
            assert padding_mask is not None
            q, k, v = (turn(x, start) for x in (q, k, v))
            remembered = [turn(x, start) for x in remembered]
            padding_mask = turn_mask(padding_mask, start)
            mods = [shifted(mod, start, length) for mod in mods]
        k, v = (repeat_heads(torch.cat(both, 2), heads) for both in zip((k, v), remembered, strict=True))
        arguments["key_mask"] = None if padding_mask is None else torch.cat([padding_mask, padding_mask], 1)
        arguments["score_mod"] = _folded(mods, length)
        if suits_dense(length, length):
            places = torch.arange(length, device=q.device).view(1, 1, -1, 1)
            out = dense_attention(q, k, v, mask_mod=self._folded_mod(length, causal), q_idx=places, **arguments)
        else:
            out = gathered_attention(q, k, v, self._stopping_parts(length, causal, q.device), **arguments)
        out = out if start is None else turn(out, -start)
        return out[:, :, length - q_len :]

    def _stops(self, k: Tensor, v: Tensor) -> bool:
        """Whether a pass over these keys and values has a memory into which no gradient may go."""
        stops = not self.options.bptt and torch.is_grad_enabled() and (k.requires_grad or v.requires_grad)
        return stops and k.shape[2] > self.options.segment_length

    def with_relative_term(self, q: Tensor, k: Tensor, v: Tensor, arguments: dict[str, Any]) -> dict[str, Any]:
        """A term may read the key (u·k of Transformer-XL's own positions), and the memory's keys are not the segment's."""
        return arguments if self._stops(k, v) else super().with_relative_term(q, k, v, arguments)

    def _score_mods(
        self, q: Tensor, keys: tuple[Tensor, Tensor], causal: bool, scaling: float | None, score_mod: ScoreMod | None
    ) -> list[ScoreMod | None]:
        """What changes the scores, the relative positions in it: of all keys, or of the segment's own and of the memory's."""
        if self.relative is None:
            return [score_mod]
        terms = [self.relative_mod(q, k, causal, scaling) for k in (keys if self.relative.reads_keys else keys[:1])]
        return [both(term, score_mod) for term in terms if term is not None]

    def _stopping_parts(self, length: int, causal: bool, device: torch.device) -> tuple[GatherTile, ...]:
        """The pairs within segments, and those with the memory, whose keys stand ``length`` further on."""
        blocks, memory = self._rows(length, device)
        return (*cells(blocks, blocks, causal=causal), *cells(blocks, torch.where(memory < 0, -1, memory + length), causal=False))

    def _folded_mod(self, length: int, causal: bool) -> MaskMod:
        """:meth:`mask_mod` where the keys from ``length`` on are the memory's."""
        mod, size = self.mask_mod(causal, None), self.options.segment_length

        def folded(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
            place = kv_idx % length
            own = place // size == q_idx // size
            seen = mod(b, h, q_idx, place) & (own == (kv_idx < length))
            return seen & (place <= q_idx) if causal else seen

        return folded

    def stops_gradients(self, length: int) -> bool:
        return not self.options.bptt and self.options.stop_gradient == HIDDEN and length > self.options.segment_length

    def reference(self, q: Tensor, k: Tensor, v: Tensor, *, stopped: tuple[Tensor, Tensor] | None = None, **arguments: Any) -> Tensor:
        """The definition in float64; without ``bptt`` the memory's keys and values are ``stopped``, or constants to the gradient."""
        if self.options.bptt:
            return super().reference(q, k, v, **arguments)
        remembered = _remembered(k, v, stopped)
        memory_k, memory_v = (repeat_heads(x.double(), q.shape[1]) for x in remembered)
        terms = [self._with_dense_terms(q.double(), x.double(), arguments).get("score_mod") for x in (k, remembered[0])]
        (batch, heads, q_len, _), kv_len = q.shape, k.shape[2]
        q, k, v = q.double(), repeat_heads(k.double(), heads), repeat_heads(v.double(), heads)
        b, h, q_idx, kv_idx = index_grid(batch, heads, q_len, kv_len, q.device)
        padding_mask, causal = arguments.get("padding_mask"), arguments.get("causal", False)
        start = torch.zeros(batch, dtype=torch.long, device=q.device) if padding_mask is None else first_real(padding_mask)
        size, start = self.options.segment_length, start.view(-1, 1, 1, 1)
        own = (q_idx - start) // size == (kv_idx - start) // size
        scale = self.scale(arguments.get("scaling"))
        in_segment, in_memory = (
            scores if mod is None else mod(scores, b, h, q_idx, kv_idx)
            for scores, mod in zip((q @ k.mT * scale, q @ memory_k.mT * scale), terms, strict=True)
        )
        scores = torch.where(own, in_segment, in_memory)
        seen = self.visible(q_len, kv_len, batch, q.device, causal=causal, padding_mask=padding_mask, global_mask=None)
        weights = softmax_over(scores, seen.expand(scores.shape))
        return (weights * own) @ v + (weights * ~own) @ memory_v

    def span(self, q_len: int, kv_len: int, causal: bool) -> Span:
        size = self.options.segment_length
        return min(size + self.options.memory_length, kv_len) - 1, 0 if causal else min(size, q_len) - 1

    def kept(self, positions: Tensor, upcoming: Tensor) -> Tensor | None:
        size = self.options.segment_length
        return positions >= upcoming // size * size - self.options.memory_length

    def covers(self, length: int, causal: bool = False) -> bool:
        size = self.options.segment_length
        return length <= size or (causal and (length - 1) // size * size <= self.options.memory_length)

    def pairs(self, length: int, causal: bool = False) -> int:
        total = 0
        for block, size in enumerate(block_sizes(length, self.options.segment_length)):
            remembered = min(self.options.memory_length, block * self.options.segment_length)
            total += (triangle(size) if causal else size * size) + size * remembered
        return total


def _remembered(k: Tensor, v: Tensor, stopped: tuple[Tensor, Tensor] | None) -> list[Tensor]:
    """Keys and values ``(B, H_kv, N, D)`` as the memory has them: those of ``stopped`` for the last tokens, constants before them."""
    if stopped is None:
        return [k.detach(), v.detach()]
    return [torch.cat([x[:, :, : x.shape[2] - y.shape[2]].detach(), y], 2) for x, y in zip((k, v), stopped, strict=True)]


def _folded(mods: list[ScoreMod | None], length: int) -> ScoreMod | None:
    """The first of ``mods`` for the keys before ``length``, the last for those from there on, which are the same tokens again."""
    own, memory = mods[0], mods[-1]
    if own is None or memory is None:
        return None
    if own is memory:
        return lambda score, b, h, q_idx, kv_idx: own(score, b, h, q_idx, kv_idx % length)

    def folded(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        place = kv_idx % length
        return torch.where(kv_idx < length, own(score, b, h, q_idx, place), memory(score, b, h, q_idx, place))

    return folded
