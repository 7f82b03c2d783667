"""Shifted groups (Chen et al. 2024, LongLoRA, section 3.2, S²-Attn): short attention for training, full attention afterwards.

The text is cut into groups of g tokens. A query sees the keys of its group. In the second half of the heads, groups start half a group
later, so that information passes from group to group. In head h of H, counted from 0, query i sees key j if

    ⌊(i + s_h) / g⌋ = ⌊(j + s_h) / g⌋,      s_h = 0 for h < ⌊H/2⌋,  g/2 for the others          (and j <= i in the causal form)

As in the paper, groups apply in training. In eval mode every query sees every key, unless ``keep_groups`` is set.

The shift leaves half a group at each end of the text. Here each half is a group of its own, as in the authors' code for supervised
fine-tuning. Their other code rolls the shifted heads around, so that both halves are one group; ``wrap`` does that. In the causal form the
first g/2 tokens then see all tokens of the last group: information about the future leaks into them, as the paper notes. The authors'
code demands that g divides N; here the last group may be shorter.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..engines.block_sparse import full_attention
from ..engines.common.byte_cache import BYTE_CACHE
from ..engines.common.call import AttentionCall, GatherTile, MaskMod, mark_static, rows_of
from ..engines.common.dense import dense_attention, index_grid, repeat_heads
from ..engines.dispatch import choose
from ..engines.gathered import gathered_attention
from ..errors import OptionError
from ..options import Options, option
from ..positions.distances import Locality
from .common.layout import block_sizes, cells, full_pairs
from .common.masked import MaskedMechanism
from .common.ordered import KeysOrWeights
from .common.registry import register_mechanism
from .common.scores import pad_queries
from .common.traits import Handling


@dataclasses.dataclass(frozen=True)
class ShiftedGroupsOptions(Options):
    group_size: int = option(2048, "g, tokens in a group; a quarter of the longest text in the paper", "tokens", even=True)
    wrap: bool = option(
        False,
        "whether the first and the last half group of the shifted heads are one group, as in the authors' code for pre-training; in the "
        "causal form the first tokens then see the last ones",
    )
    keep_groups: bool = option(False, "whether the groups stay in eval mode, where the paper has full attention")

    def check(self) -> None:
        if self.wrap and self.keep_groups:
            raise OptionError(
                "Options 'wrap' and 'keep_groups' of mechanism 'shifted_groups' exclude each other: with wrap the first tokens see the "
                "last ones, which a model that generates does not have yet; leave one of them out."
            )

    def min_heads(self) -> int:
        return 2


@register_mechanism("shifted_groups")
class ShiftedGroups(MaskedMechanism):
    """Groups of neighbouring tokens, shifted by half a group in half of the heads. Full attention in eval mode."""

    summary = "while training, groups of g tokens, shifted by half a group in half of the heads; full attention in eval mode"
    paper = "Chen et al. 2024, LongLoRA, §3.2"
    when = "you fine-tune a decoder on long text cheaply and use it with full attention afterwards (LongLoRA)"
    engine = "gathered"
    cost = "N·g in training, N² in eval mode; N·g in both with keep_groups"
    per_head_tensors = ()
    sample: ClassVar[dict[str, Any]] = {"group_size": 32, "keep_groups": True}
    covering_options: ClassVar[Mapping[str, int]] = {"group_size": 2}
    options: ShiftedGroupsOptions

    @property
    def grouped(self) -> bool:
        """Whether groups apply now: while training, or always with ``keep_groups``."""
        return self.training or self.options.keep_groups

    @property
    def handling(self) -> Handling:  # type: ignore[override]
        return Handling(position_dependent=self.grouped, exports_definition=self.grouped)

    @property
    def shift(self) -> int:
        """Shift of the second half of the heads in tokens, g/2."""
        return self.options.group_size // 2

    @property
    def first_shifted(self) -> int:
        """Index of the first shifted head among this mechanism's heads; ``num_heads`` if none is shifted."""
        return self.num_heads // 2

    def mask_mod(self, causal: bool, global_mask: Tensor | None) -> MaskMod:
        """Mask of the groups, without the pairs that the option ``wrap`` adds. Those pairs depend on the length."""
        size, half, first, grouped = self.options.group_size, self.shift, self.first_shifted, self.grouped

        def mod(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
            shift = torch.where(h >= first, half, 0)
            return ((q_idx + shift) // size == (kv_idx + shift) // size) | (not grouped)

        return mod

    def visible(self, q: Tensor, k: Tensor, call: AttentionCall) -> Tensor:
        seen = super().visible(q, k, call)
        if not (self.grouped and self.options.wrap):
            return seen
        real = call.real(k)
        return seen | self._wrapped(*index_grid(1, self.num_heads, q.shape[2], k.shape[2], k.device)[1:], real, call.causal)

    def attended_keys(self, q: Tensor, k: Tensor, call: AttentionCall) -> KeysOrWeights | None:
        masked = self.kept_by_mask(k, call)
        if not (self.grouped and self.options.wrap):
            return masked
        if call.causal:
            return None  # the first tokens see the last ones, which full attention hides from them
        real, (_, h, _, kv_idx) = call.real(k), index_grid(1, self.num_heads, 1, k.shape[2], k.device)
        return lambda rows, scores: masked(rows, scores) | self._wrapped(h, rows.view(1, 1, -1, 1), kv_idx, real, call.causal)

    def _wrapped(self, h: Tensor, q_idx: Tensor, kv_idx: Tensor, real: Tensor, causal: bool) -> Tensor:
        """The pairs that the option ``wrap`` adds: the first tokens and the last group, in shifted heads."""
        start, stop = (x.view(-1, 1, 1, 1) for x in self._last_group(real))

        def at_the_start(index: Tensor) -> Tensor:
            return (index < self.shift) & (start > 0)

        def at_the_end(index: Tensor) -> Tensor:
            return (index >= start) & (index < stop)

        joined = at_the_start(q_idx) & at_the_end(kv_idx)
        if not causal:
            joined = joined | (at_the_end(q_idx) & at_the_start(kv_idx))
        return joined & (h >= self.first_shifted) & real[:, None, None, :]

    def _last_group(self, real: Tensor) -> tuple[Tensor, Tensor]:
        """Start and end (exclusive) of the shifted heads' last group, ``(B,)``. If this is the only group, the start is at most 0."""
        stop = (real * torch.arange(1, real.shape[1] + 1, device=real.device)).amax(1)
        size = self.options.group_size
        return (stop - 1 + self.shift).div(size, rounding_mode="floor") * size - self.shift, stop

    def forward(self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        if not self.grouped:
            return full_attention(q, k, v, call)
        q_len, kv_len = q.shape[2], k.shape[2]
        path = choose("pairs", q, k, call, covered=self.covers(kv_len, call.causal))
        if path == "dense":
            return dense_attention(q, k, v, call)
        if path == "dense-masked":
            seen = self.visible(q, k, call)
            return dense_attention(q, k, v, call.replace(causal=False, batch=None), mask_mod=lambda *_: seen)
        q, k, v = pad_queries(q, kv_len), repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1])
        cut, outs = self.first_shifted, []
        for heads, shift in ((range(cut), 0), (range(cut, self.num_heads), self.shift)):
            if len(heads):
                at = slice(heads.start, heads.stop)
                parts = [*self._plan(kv_len, shift, call.causal, q.device), *(self._joined(k, call) if shift else ())]
                group_call = call.of_heads(heads, q.device)
                outs.append(gathered_attention(q[:, at], k[:, at], v[:, at], parts, group_call))
        return torch.cat(outs, 1)[:, :, kv_len - q_len :]

    def _plan(self, length: int, shift: int, causal: bool, device: torch.device) -> tuple[GatherTile, ...]:
        """Tiles of heads shifted by ``shift`` tokens; cached for the next call."""
        size = self.options.group_size

        def make() -> tuple[GatherTile, ...]:
            groups = (rows_of(length + shift, size, device)[0, 0] - shift).clamp(min=-1)
            return mark_static(cells(groups, groups, causal=causal))

        return BYTE_CACHE.get((ShiftedGroups, size, length, shift, causal, device), make)

    def _joined(self, k: Tensor, call: AttentionCall) -> Iterator[GatherTile]:
        """Tiles that ``wrap`` adds to the shifted heads. The first half group sees the last group and, unless causal, vice versa."""
        if not self.options.wrap:
            return
        real = call.real(k) if call.key_mask is not None else torch.ones(1, k.shape[2], dtype=torch.bool, device=k.device)
        start, stop = (x[:, None] for x in self._last_group(real))
        first = torch.arange(self.shift, device=k.device)
        first = torch.where((start > 0) & (first < k.shape[2]), first, -1)[:, None, None]
        last = start + torch.arange(self.options.group_size, device=k.device)
        last = torch.where((start > 0) & (last < stop), last, -1)[:, None, None]
        yield GatherTile(first, last)
        if not call.causal:
            yield GatherTile(last, first)

    def locality(self, causal: bool) -> Locality | None:
        """The distances within groups. In eval mode, queries see all keys unless ``keep_groups`` is set."""
        wraps, keeps = self.options.wrap, self.options.keep_groups
        if not self.grouped or (wraps and keeps):
            return None
        reached, size = self.options.group_size - 1, self.options.group_size
        beside = "others" if wraps else ""
        return Locality(reached, 0 if causal else reached, size, beside=beside, in_eval="same" if keeps else "everything")

    def kept(self, positions: Tensor, upcoming: Tensor) -> Tensor | None:
        """Keys from where the first of the upcoming token's two groups (plain and shifted) starts. All keys without ``keep_groups``."""
        if not self.options.keep_groups:
            return None
        size = self.options.group_size
        start = torch.minimum(upcoming // size * size, (upcoming + self.shift) // size * size - self.shift)
        return positions >= start

    def covers(self, length: int, causal: bool = False) -> bool:
        return not self.grouped or length <= self.shift

    def pairs(self, length: int, causal: bool = False) -> int:
        """Mean number of pairs over the heads, rounded down. In eval mode without ``keep_groups``, all pairs."""
        if not self.grouped:
            return full_pairs(length, causal)
        first = min(self.shift, length)
        groups = [block_sizes(length, self.options.group_size), [first, *block_sizes(length - first, self.options.group_size)]]
        plain, shifted = (sum(full_pairs(size, causal) for size in sizes) for sizes in groups)
        if self.options.wrap and length > first:
            shifted += first * groups[1][-1] * (1 if causal else 2)
        cut = self.first_shifted
        return (cut * plain + (self.num_heads - cut) * shifted) // self.num_heads
