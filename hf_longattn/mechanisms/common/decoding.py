"""Decoding with a cache: from keys within reach, selected keys, or a state of constant size."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from ...engines.common.call import AttentionCall, State
from ...errors import OptionError
from .traits import Traits

NO_TOKEN = 1 << 40
"""Column of a slot without a token. It lies after every query, so that causality hides the slot."""


class Columns(NamedTuple):
    """Columns of the padded batch that hold the queries and keys of a decoding step.

    layout: a name of the arrangement, and its number of keys. Layers of one forward pass with the same layout have the same columns. In
        ``"all"``, key s is column s.
    find: returns the columns of the queries ``(Nq,)``, ascending, and of the keys ``(S,)``, in any order. Slots without a token have a
        column after those of the queries, such as :data:`NO_TOKEN`. Called at most twice for all layers of a layout.
    """

    layout: tuple[str, int]
    find: Callable[[], tuple[Tensor, Tensor]]


class Decoding(Traits):
    """By default, a query may see every past key, so the cache keeps all of them."""

    stateful: bool = False
    """Whether decoding keeps a state of constant size in place of the keys; see :meth:`advance`."""

    @property
    def steps_by_mask(self) -> bool:
        """Whether :meth:`attend_step`, one call with rows of a mask, may replace ``forward`` in decoding steps."""
        return False

    def attend_step(self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall, columns: Columns | None = None) -> Tensor:
        """Causal attention of the tokens of a decoding step. Requires :attr:`steps_by_mask`.

        Args:
            q: ``(B, H, Nq, D)``.
            k, v: ``(B, H_kv, S, D)``, including the tokens of the queries.
            call: its padding and its global mask ``(B, N)`` cover all columns; its score term takes columns as indices.
            columns: the columns of queries and keys; by default the keys are columns 0 … S - 1, and the queries the last Nq of them.
        Returns:
            ``(B, H, Nq, D)``. Rows of padding are finite and mean nothing.
        """
        raise OptionError(f"Mechanism {self.name!r} is not a mask alone, by which a decoding step could be computed.")

    def reach(self, causal: bool = True) -> int | None:
        """The number of past keys that a causal query sees, its own included; ``None`` when unbounded. Sizes the decode cache."""
        return None

    def kept(self, positions: Tensor, upcoming: Tensor) -> Tensor | None:
        """The keys at ``positions (B, S)`` that some causal query at or after ``upcoming (B, 1)`` can see: ``(B, S)`` bool.

        ``None`` keeps keys by :meth:`reach` alone. Positions count from each sequence's first real token. If :meth:`reach` is unbounded,
        the decode cache keeps only the keys selected here, and :meth:`attend_kept` runs on them.
        """
        return None

    def advance(self, q: Tensor, k: Tensor, v: Tensor, state: State | None, call: AttentionCall) -> tuple[Tensor, State]:
        """Causal attention of new tokens, given the state after the past ones; for ``stateful`` mechanisms.

        Args:
            q, k, v: of the new tokens only, ``(B, H, n, D)`` and ``(B, H_kv, n, D)``.
            state: the state that the previous call returned, or ``None`` at the beginning.
            call: its ``key_mask (B, n)`` is that of the new tokens.
        Returns:
            The output ``(B, H, n, D)`` and the new state: tensors with the batch first, of a size that does not depend on the text. A row
            of zeros is the state before its first real token, so that single rows of a batch can be reset.
        """
        raise OptionError(f"Mechanism {self.name!r} decodes from the keys and values of earlier tokens, not from a state.")
