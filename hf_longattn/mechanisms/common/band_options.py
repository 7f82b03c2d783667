"""Options of a window: its total width, or the number of keys before and after each token."""

from __future__ import annotations

import dataclasses

from ...engines.common.call import Pattern
from ...options import Options, option


@dataclasses.dataclass(frozen=True)
class BandOptions(Options):
    """A window around each token: total width w, or ``left`` keys before and ``right`` after it.

    Speech models often see more of the past than of the future, as with NeMo's ``att_context_size=[left, right]``.
    """

    window: int = option(512, "total width of the window: w/2 on each side, or the last w keys when causal", "tokens", least=1)
    left: int | None = option(None, "keys before each query; default: computed from window", "tokens", least=0)
    right: int | None = option(None, "keys after each query, none when causal; default: computed from window", "tokens", least=0)

    def pattern(self, causal: bool, *, has_globals: bool = False, global_rows: bool = True) -> Pattern:
        """The band of visible keys; ``has_globals`` and ``global_rows`` as in :class:`Pattern`."""
        pattern = Pattern.window(self.window, causal, has_globals, global_rows)
        left = pattern.left if self.left is None else self.left
        right = pattern.right if self.right is None or causal else self.right
        return dataclasses.replace(pattern, left=left, right=right)
