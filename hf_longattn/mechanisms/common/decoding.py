"""Types for decoding steps over a cache of keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

NO_TOKEN = 1 << 40
"""Column of a slot without a token. It lies after every query, so that causality hides the slot."""


class Columns(NamedTuple):
    """Columns of the padded batch that hold the queries and keys of a decoding step.

    layout: the layout's name and its number of keys. Layers with the same layout have the same columns in a forward pass. In the layout
        named ``"all"``, key s is in column s.
    find: a function that returns the columns of the queries ``(Nq,)``, ascending, and of the keys ``(S,)``, in any order. Slots without
        a token have a column after all queries, such as :data:`NO_TOKEN`. Called at most twice for all layers of a layout.
    """

    layout: tuple[str, int]
    find: Callable[[], tuple[Tensor, Tensor]]


AttendStep = Callable[..., Tensor]
"""``step(q, k, v, call, columns=None)``: causal attention of the tokens of a decoding step.

``q (B, H, Nq, D)``; ``k, v (B, H_kv, S, D)``, including the tokens of the queries. The call's padding and global mask ``(B, N)`` cover all
columns; its score term takes columns as indices. ``columns``: the columns of queries and keys; by default the keys are columns 0 … S - 1,
and the queries the last Nq of them. Returns ``(B, H, Nq, D)``; rows of padding are finite and arbitrary.
"""
