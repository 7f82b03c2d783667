"""What the block-sparse engine visits: a band around the diagonal, and global tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from torch import Tensor

MaskMod = Callable[[Any, Any, Any, Any], Any]
"""``mask_mod(b, h, q_idx, kv_idx) -> bool tensor``, as in ``torch.nn.attention.flex_attention``."""

ScoreMod = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""``score_mod(score, b, h, q_idx, kv_idx) -> score``, as in ``torch.nn.attention.flex_attention``."""

UNBOUNDED = 1 << 40


@dataclasses.dataclass(frozen=True)
class Pattern:
    """Query i visits the keys ``i - left … i + right``; with ``has_globals`` also the global columns, which every query sees, and with
    ``global_rows`` the global tokens see every key in turn."""

    left: int
    right: int
    causal: bool
    has_globals: bool = False
    global_rows: bool = True

    @classmethod
    def window(cls, width: int, causal: bool) -> Pattern:
        """A window of total ``width``: half on each side, or all of it back (itself included) when causal."""
        return cls(width - 1, 0, True) if causal else cls(width // 2, width // 2, False)

    @classmethod
    def everything(cls, causal: bool) -> Pattern:
        """All keys, or all earlier ones when causal."""
        return cls(UNBOUNDED, 0 if causal else UNBOUNDED, causal)

    @property
    def width(self) -> int:
        """Keys in the band of one query."""
        return self.left + self.right + 1

    @property
    def bounded(self) -> bool:
        """Whether the band is narrower than some inputs on both sides, so that most of a long input is left out."""
        return max(self.left, self.right) < UNBOUNDED

    def covers(self, q_len: int, kv_len: int) -> bool:
        """Whether the band alone leaves no key out, for queries that are the last ``q_len`` of ``kv_len`` positions."""
        return self.left >= kv_len - 1 and (self.causal or self.right >= q_len - 1)

    def band_mod(self, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        """The band as a ``mask_mod``."""
        return (q_idx - kv_idx <= self.left) & (kv_idx - q_idx <= self.right)

    def visible_mod(self, global_mask: Tensor | None) -> MaskMod:
        """Band or global, without padding; causality bounds the global part as well."""
        if global_mask is None:
            return self.band_mod

        def mod(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
            seen = self.band_mod(b, h, q_idx, kv_idx) | global_mask[b, kv_idx]
            if self.global_rows:
                seen = seen | global_mask[b, q_idx]
            return seen & (kv_idx <= q_idx) if self.causal else seen

        return mod
