"""A score term of two tokens' places. LayoutLMv3 has biases by distance bucket along the text and both sides of the page.

    term(i, j) = Σ over axes a of  table_a[h, x_a(j) - x_a(i)]

Unlike a bias by distance, it depends on both tokens: boxes lie anywhere on a page, and places start anew on each page.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .call import BatchTerm


@dataclasses.dataclass(frozen=True, eq=False)
class PlaceTerm(BatchTerm):
    """A ``score_mod`` of the differences of places. The CPU's band engine adds it to its blocks, unless the tables need gradients. Any
    other engine looks it up for its visible pairs.

    places: x, ``(B, Nk, axes)`` int64, of the keys. The queries have the last of these places.
    tables: one per axis, ``(H, 2·limit + 1)``, for differences key - query from -limit to limit. Larger differences are clamped.
    """

    places: Tensor
    tables: tuple[Tensor, ...]

    def __call__(self, score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        last = self.places.shape[1] - 1
        rows, columns = (self.places[b, index.clamp(0, last)] for index in (q_idx, kv_idx))
        for axis, table in enumerate(self.tables):
            limit = table.shape[1] // 2
            difference = (columns[..., axis] - rows[..., axis]).clamp(-limit, limit)
            score = score + table[h, difference + limit].to(score.dtype)
        return score

    def over(self, rows: Tensor, columns: Tensor) -> Tensor:
        """The term ``(…, H, n, m)`` of queries at places ``rows (…, n, axes)`` and keys at ``columns (…, m, axes)``."""
        total: Tensor | None = None
        for axis, table in enumerate(self.tables):
            limit = table.shape[1] // 2
            at = (columns[..., None, :, axis] - rows[..., :, None, axis]).clamp_(-limit, limit).add_(limit)
            values = table.index_select(1, at.flatten()).unflatten(1, at.shape)
            total = values if total is None else total.add_(values)
        assert total is not None
        return total.movedim(0, -3)

    @property
    def learned(self) -> bool:
        """Whether a table needs gradients now."""
        return torch.is_grad_enabled() and any(table.requires_grad for table in self.tables)

    def stacked_tables(self) -> Tensor:
        """All tables in one, ``(axes, H, 2·largest limit + 1)``. Shorter tables repeat their first and last entries."""
        widest = max(table.shape[1] for table in self.tables)
        missing = ((widest - table.shape[1]) // 2 for table in self.tables)
        padded = (F.pad(table[None], (n, n), mode="replicate") for table, n in zip(self.tables, missing, strict=True))
        return torch.cat(list(padded))

    def of_heads(self, heads: Sequence[int]) -> PlaceTerm:
        return dataclasses.replace(self, tables=tuple(table[list(heads)] for table in self.tables))

    def of_sequence(self, row: int, start: int, stop: int) -> PlaceTerm:
        return dataclasses.replace(self, places=self.places[row : row + 1, start:stop])

    def moved(self, move: Callable[[Tensor, int], Tensor]) -> PlaceTerm:
        return dataclasses.replace(self, places=move(self.places, 1))
