"""How a mechanism decodes with a cache: from the keys within reach, from chosen ones of them, or from a state of constant size."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from ...engines.common.call import AttentionCall, State
from ...errors import OptionError
from .traits import Traits

NO_TOKEN = 1 << 40
"""Column of a slot that holds no token: after every query, so that causality hides it."""


class Columns(NamedTuple):
    """Which tokens the queries and keys of a decoding step are, as columns of the padded batch.

    layout: a name of the arrangement, and its number of keys; equal for the layers of one forward pass whose columns are equal. In
        ``"all"``, key s is column s.
    find: the queries ``(Nq,)``, ascending, and the keys ``(S,)`` in any order; slots without a token have a column after the queries',
        such as :data:`NO_TOKEN`. Called once for all layers of a layout.
    """

    layout: tuple[str, int]
    find: Callable[[], tuple[Tensor, Tensor]]


class Decoding(Traits):
    """By default, a query may see every past key, so the cache keeps all of them."""

    stateful: bool = False
    """Whether decoding keeps a state of constant size in place of the keys; see :meth:`advance`."""

    @property
    def steps_by_mask(self) -> bool:
        """Whether decoding steps may be one call with rows of a mask in place of ``forward``, see :meth:`attend_step`."""
        return False

    @property
    def decodes_in_graph(self) -> bool:
        """Whether a step over a static cache has one compiled graph, whatever is in the cache."""
        return self.steps_by_mask or self.stateful

    def attend_step(self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall, columns: Columns | None = None) -> Tensor:
        """Causal attention of the tokens of a decoding step, where :attr:`steps_by_mask`.

        Args:
            q: ``(B, H, Nq, D)``.
            k, v: ``(B, H_kv, S, D)``, those of the queries included.
            call: its padding and its global mask ``(B, N)`` are those of all columns, its score term is one of columns.
            columns: where queries and keys lie; by default the keys are columns 0 … S - 1, and the queries the last of them.
        Returns:
            ``(B, H, Nq, D)``. Rows of padding are finite and mean nothing.
        """
        raise OptionError(f"Mechanism {self.name!r} is not a mask alone, by which a decoding step could be computed.")

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
