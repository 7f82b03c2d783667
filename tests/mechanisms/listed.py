"""What the parts of a mechanism list, as a matrix: how often each query meets each key."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from hf_longattn.engines.pattern import GatherTile
from hf_longattn.engines.plain import allowed


def listed(parts: Iterable[GatherTile], queries: int, keys: int) -> Tensor:
    """Counts ``(Nq, Nk)`` of parts that serve all items and heads alike."""
    counts = torch.zeros(queries, keys, dtype=torch.long)
    for part in parts:
        seen = allowed(part, None, torch.zeros(1, 1, 1, 1, dtype=torch.long))
        rows, columns = torch.broadcast_tensors(part.queries[..., :, None], part.keys[..., None, :])
        counts.index_put_((rows[seen], columns[seen]), torch.ones((), dtype=torch.long), accumulate=True)
    return counts


def picture(seen: Tensor) -> list[str]:
    """A mask ``(N, N)`` as lines of ``#`` and ``.``."""
    return ["".join("#" if cell else "." for cell in row) for row in seen.tolist()]
