"""Sliding window attention with a dilation per head and attention sinks. Sources: Beltagy et al. 2020, Longformer,
section 3.1 (window and dilation); Jiang et al. 2023, Mistral 7B (causal form); Xiao et al. 2023, StreamingLLM, section
3.2 (sinks).

In a window of total width w with dilation d, query i sees key j if d divides i - j and

    bidirectional:  |i - j| <= d·w/2          causal:  0 <= i - j < d·w
    with left, right:  -d·right <= i - j <= d·left          (in the causal form, 0 <= i - j)

and also if j is one of the first s = ``num_sinks`` real tokens (in the causal form, j <= i). Each key counts once.

In a causal layer that rotates queries and keys, a sink outside of the window is at distance min(i, s + w - 1) - j.
StreamingLLM has these distances, since it numbers the tokens inside its cache of s sinks and w keys
(:class:`~hf_longattn.positions.relative.SinkPositions`). The distance is i - j with ``sink_positions="text"``, with a
dilation, and with ``full_decoding``.

With ``full_decoding``, a causal call with one query attends to all keys at their positions in the text, as the
authors' kernel does (Yu et al. 2025, SWAA, arXiv 2512.10411, "full attention decode"). A call with several queries
attends by window and sinks. This means:

- ``generate`` reads a prompt of several tokens by the window, in one pass or in pieces of any size
  (``prefill_chunk_size``). In a loop of your own, a call with one token is a decoding step, so that a prompt that is
  fed token by token sees all keys.
- The last token of a prompt predicts the first new token by the window. Each further step with a cache sees all keys
  of its row or document.
- The next turn of a conversation is a prompt again, but a single new token is a decoding step.
- Training and evaluation without a cache use the window throughout. The authors train with full attention for the
  answer's tokens.
- Long classes refuse ``generate`` with ``use_cache=False`` or an assistant model, because these decoding steps look
  like prompts. Stock models do not refuse it.

Dilation costs nothing extra: tokens at the same position modulo d attend to each other in a plain window.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..engines.block_sparse import block_sparse_attention
from ..engines.call import AttentionCall, GatherTile, MaskMod, Pattern
from ..engines.dense import repeat_heads
from ..engines.score_terms import take_heads
from ..errors import OptionError
from ..positions.trained_distances import Locality
from .common.base import LayerSizes
from .common.capabilities import About
from .common.global_tokens import global_tokens
from .common.layout import band_pairs, band_tile
from .common.masked import CACHE, TEXT, GatheredMechanism, SparseMechanism
from .common.options import Options, option
from .common.registry import register_mechanism

MAX_SINKS = 1 << 16
"""Maximum number of sinks, whose positions are listed before the length of a text is known."""


@dataclasses.dataclass(frozen=True)
class BandOptions(Options):
    """A window around each token: total width w, or ``left`` keys before and ``right`` after it.

    Speech models often see more of the past than of the future, as with NeMo's ``att_context_size=[left, right]``.
    """

    window: int = option(
        512, "total width of the window: w/2 on each side, or the last w keys when causal", "tokens", least=1
    )
    left: int | None = option(None, "keys before each query; default: computed from window", "tokens", least=0)
    right: int | None = option(
        None, "keys after each query, none when causal; default: computed from window", "tokens", least=0
    )

    def pattern(self, causal: bool, *, has_globals: bool = False, global_rows: bool = True) -> Pattern:
        """The band of visible keys; ``has_globals`` and ``global_rows`` as in :class:`Pattern`."""
        pattern = Pattern.window(self.window, causal, has_globals, global_rows)
        if self.left is None and self.right is None:
            return pattern
        left = pattern.left if self.left is None else self.left
        right = pattern.right if self.right is None or causal else self.right
        return Pattern(left, right, causal, has_globals, global_rows)


@dataclasses.dataclass(frozen=True)
class WindowOptions(BandOptions):
    num_sinks: int = option(
        0, "first tokens that every query sees (attention sinks)", "tokens", least=0, most=MAX_SINKS
    )
    sink_positions: str = option(
        CACHE,
        "positions of sinks in rotary decoders: cache, at most sinks + window back as in StreamingLLM's cache; text, "
        "their distance in the text",
        choices=(CACHE, TEXT),
        detail_of="num_sinks",
    )
    dilation: tuple[int, ...] = option(
        (1,), "distance between the keys of a window: one number, or one for each head", "tokens"
    )
    full_decoding: bool | None = option(
        None, "whether decoding sees all keys, and only the prompt is read by window and sinks (SWAA)"
    )

    def check(self) -> None:
        """Refuse ``full_decoding`` with relative positions, and dilations below 1."""
        if self.full_decoding and self.relative is not None:
            raise OptionError(
                f"Option 'full_decoding' of mechanism 'window' was given with relative={self.relative!r}, but full "
                "decoding attends without relative positions; leave one of them out."
            )
        if not self.dilation or min(self.dilation) < 1:
            raise OptionError(
                f"Option 'dilation' of mechanism 'window' is {self.dilation}, but must be one number of at least 1, "
                "or one for each head; for example dilation=2."
            )

    def min_heads(self) -> int:
        return len(self.dilation)


@register_mechanism("window")
class Window(SparseMechanism, GatheredMechanism):
    """Softmax over the tokens within a fixed distance, and the sinks.

    A plain window is a band, with the sinks as global columns. Dilated heads, and sinks in a union, list their pairs
    instead.
    """

    about = About(
        summary="each token sees the w tokens around it (the last w when causal); dilation per head, attention sinks",
        paper="Beltagy et al. 2020, Longformer, §3.1; causal: Jiang et al. 2023, Mistral 7B; sinks: Xiao et al. 2023, "
        "StreamingLLM, §3.2",
        when="neighbours suffice, as in tagging (`num_sinks=1` for `[CLS]`); or a decoder needs bounded memory "
        "(`num_sinks=4`)",
        engine="block_sparse",
        cost="N·(w+sinks)",
        sample={"window": 32},
        covering=lambda length, causal: {"window": 2 * length},
    )
    capabilities = SparseMechanism.capabilities.but(exports=True)
    per_head_tensors = ()
    options: WindowOptions
    listed = False
    forward_is_mask = True

    def __init__(self, sizes: LayerSizes, options: WindowOptions) -> None:
        """Group the heads by dilation, and decide whether pairs are a band or listed as tiles."""
        super().__init__(sizes, options)
        if len(options.dilation) not in (1, self.num_heads):
            raise OptionError(
                f"Option 'dilation' of mechanism 'window' has {len(options.dilation)} entries for {self.num_heads} "
                "heads; give one number, or one for each head."
            )
        self.dilations = options.dilation
        if len(options.dilation) < self.num_heads:
            self.dilations = options.dilation * self.num_heads
        self.max_dilation = max(self.dilations)
        self._groups: list[tuple[list[int], Window]] = []
        """The heads of each dilation, and a mechanism for them, if there are several dilations. The mechanisms have no
        tensors, so they need not be submodules."""
        different_dilations = sorted(set(self.dilations))
        if len(different_dilations) > 1:
            for dilation in different_dilations:
                heads = [head for head, head_dilation in enumerate(self.dilations) if head_dilation == dilation]
                # without relative positions, which the call's score term has already
                group_options = dataclasses.replace(options, dilation=(dilation,), relative=None)
                self._groups.append((heads, Window(sizes._replace(num_heads=len(heads)), group_options)))
        self.listed = self.listed or (self.max_dilation > 1 and not self._groups)
        self.finds_starts = self.max_dilation == 1
        if options.full_decoding:
            self.causal = True
        if self.max_dilation > 1:
            self.forward_is_mask = False
            self.capabilities = self.capabilities.but(exports=False)

    def pattern(self, causal: bool) -> Pattern:
        """The band and the sinks' columns, without dilation."""
        return self.options.pattern(causal, has_globals=self.options.num_sinks > 0, global_rows=False)

    def mask_mod(self, causal: bool, global_mask: Tensor | None) -> MaskMod:
        """Whether a key is in the window of its query, with the dilation of each head, or is a sink."""
        pattern, sinks = self.pattern(causal), self.options.num_sinks

        def band(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
            """Whether a key is in the window, by the dilation of head ``h``."""
            if self.max_dilation == 1:
                return pattern.band_mod(b, h, q_idx, kv_idx)
            dilation = torch.tensor(self.dilations, device=q_idx.device)[h]
            distance = q_idx - kv_idx
            return (
                (distance % dilation == 0)
                & (distance <= pattern.left * dilation)
                & (-distance <= pattern.right * dilation)
            )

        if not sinks:
            return band
        if global_mask is not None and not self.listed and self.max_dilation == 1:
            return pattern.visible_mod(global_mask)  # global_mask has the sinks, also of sequences with left padding
        return lambda b, h, q_idx, kv_idx: band(b, h, q_idx, kv_idx) | ((kv_idx >= 0) & (kv_idx < sinks))

    def resolve_globals(self, k: Tensor, call: AttentionCall) -> Tensor | None:
        """The sinks, ``(B, N)`` bool. ``None`` without sinks, or if :meth:`parts` lists them."""
        if not self.options.num_sinks or self.listed:
            return None
        return global_tokens(self.global_positions(), k, call.replace(global_mask=None), skips_padding=False)

    def global_positions(self) -> tuple[int, ...]:
        return tuple(range(self.options.num_sinks))

    def forward(self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        """The output ``(B, H, Nq, D)``: by tiles, as a band, or by a call for each group of heads of one dilation."""
        if self.listed:
            return GatheredMechanism.forward(self, q, k, v, call)
        if not self._groups:
            if self.options.num_sinks:
                return super().forward(q, k, v, call)
            return block_sparse_attention(q, k, v, self.pattern(call.causal), call)

        # Each group of heads with equal dilation runs alone. Then the heads are put back into their order.
        k, v = repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1])
        outs: list[Tensor] = []
        order: list[int] = []
        for heads, mechanism in self._groups:
            group_call = call.of_heads(heads, q.device)
            outs.append(mechanism(*(take_heads(x, heads) for x in (q, k, v)), group_call))
            order += heads
        return take_heads(torch.cat(outs, 1), [order.index(head) for head in range(self.num_heads)])

    def parts(self, length: int, causal: bool, device: torch.device) -> tuple[GatherTile, ...]:
        """The tiles of the window and the sinks, for heads of all dilations."""
        different_dilations = sorted(set(self.dilations))
        if len(different_dilations) == 1:
            return tuple(self._parts_of(self.max_dilation, length, causal, device))
        # heads of other dilations get empty slots
        head_dilations = torch.tensor(self.dilations, device=device).view(1, -1, 1, 1)
        return tuple(
            dataclasses.replace(part, queries=torch.where(head_dilations == dilation, part.queries, -1))
            for dilation in different_dilations
            for part in self._parts_of(dilation, length, causal, device)
        )

    def _parts_of(self, dilation: int, length: int, causal: bool, device: torch.device) -> Iterator[GatherTile]:
        """The tiles of the window and the sinks for heads with ``dilation``."""
        pattern = self.pattern(causal)
        near = band_tile(length, pattern.left, pattern.right, device, dilation)
        yield near
        if not self.options.num_sinks:
            return
        # A sink with the queries' residue modulo the dilation may be in their window, whose tile lists it already.
        # Other sinks never are.
        sinks = torch.arange(min(self.options.num_sinks, length), device=device)
        own_residue = near.queries[..., :1] % dilation == sinks % dilation
        within = (-pattern.right * dilation, pattern.left * dilation)
        yield GatherTile(near.queries, torch.where(own_residue, sinks, -1), causal=causal, outside=within)
        if dilation > 1:
            yield GatherTile(near.queries, torch.where(own_residue, -1, sinks), causal=causal)

    def retained(self, positions: Tensor, upcoming: Tensor) -> Tensor | None:
        sinks = self.options.num_sinks
        if not sinks or self.options.full_decoding:
            return None
        back = self.pattern(causal=True).left * self.max_dilation
        return (positions >= upcoming - back) | (positions < sinks)

    def locality(self, causal: bool) -> Locality | None:
        """The window as a range of distances, with the largest dilation; ``None`` if decoding sees all keys."""
        if self.options.full_decoding:
            return None
        pattern, sinks, dilation = self.pattern(causal), self.options.num_sinks, self.max_dilation
        beside = ""
        if sinks:
            listed_by_position = dilation > 1 or self.listed  # otherwise sinks are global tokens
            beside = "others" if listed_by_position else "globals"
        return Locality(
            pattern.left * dilation, pattern.right * dilation, beside=beside, is_window=not sinks and dilation == 1
        )

    def covers(self, length: int, causal: bool = False) -> bool:
        """Whether the window and the sinks leave no key out, in texts of up to ``length`` tokens."""
        sinks, pattern = self.options.num_sinks, self.pattern(causal)
        if length <= max(sinks, 1):
            return True
        if self.max_dilation > 1:
            return False
        if causal:
            return length <= pattern.left + 1 + sinks
        return pattern.covers(length, length)

    def pairs(self, length: int, causal: bool = False) -> int:
        """Mean number of pairs over the heads, rounded down."""
        pattern = self.pattern(causal)
        sinks = range(min(self.options.num_sinks, length))
        total = 0
        for dilation in self.dilations:
            # the band among the tokens of each residue modulo the dilation
            token_counts = (len(range(residue, length, dilation)) for residue in range(min(dilation, length)))
            total += sum(band_pairs(count, pattern.left, pattern.right) for count in token_counts)

            # The sinks' columns, without the pairs that the band has already.
            total += sum(length - sink if causal else length for sink in sinks)
            total -= sum(
                1 + min((length - 1 - sink) // dilation, pattern.left) + min(sink // dilation, pattern.right)
                for sink in sinks
            )
        return total // self.num_heads
