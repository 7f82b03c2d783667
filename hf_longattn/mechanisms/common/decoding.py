"""How a mechanism decodes with a cache: from the keys within reach, from chosen ones of them, or from a state of constant size."""

from __future__ import annotations

from torch import Tensor

from ...engines.common.call import AttentionCall, State
from ...errors import OptionError
from .traits import Traits


class Decoding(Traits):
    """By default, a query may see every past key, so the cache keeps all of them."""

    stateful: bool = False
    """Whether decoding keeps a state of constant size in place of the keys; see :meth:`advance`."""

    def reach(self, causal: bool = True) -> int | None:
        """The number of past keys that a causal query sees, its own included; ``None`` when unbounded. Sizes the decode cache."""
        return None

    def kept(self, positions: Tensor, upcoming: Tensor) -> Tensor | None:
        """The keys at ``positions (B, S)`` that some causal query at or after ``upcoming (B, 1)`` can see: ``(B, S)`` bool.

        ``None`` when every key stays within reach. Positions count from each sequence's first real token. Where this keeps fewer keys
        than :meth:`reach`, the decode cache keeps just these, and :meth:`attend_kept` runs on them.
        """
        return None

    def advance(self, q: Tensor, k: Tensor, v: Tensor, state: State | None, call: AttentionCall) -> tuple[Tensor, State]:
        """Causal attention of new tokens, given the state after the past ones; for ``stateful`` mechanisms.

        Args:
            q, k, v: of the new tokens only, ``(B, H, n, D)`` and ``(B, H_kv, n, D)``.
            state: what :meth:`advance` returned before, or ``None`` at the beginning.
            call: its ``key_mask (B, n)`` is that of the new tokens.
        Returns:
            The output ``(B, H, n, D)`` and the new state: tensors with the batch first, of a size that does not depend on the text. A row
            of zeros is the state before its first real token, so that single rows of a batch can be reset.
        """
        raise OptionError(f"Mechanism {self.name!r} decodes from the keys and values of earlier tokens, not from a state.")
