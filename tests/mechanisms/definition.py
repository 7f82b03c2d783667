"""Mechanisms against their float64 definition, and what they let each query see, by their mask and by their parts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from hf_longattn import Mechanism, attend
from hf_longattn.engines.blockwise import allowed
from hf_longattn.engines.call import AttentionCall, GatherTile
from hf_longattn.engines.sequences import weights_per_sequence
from hf_longattn.mechanisms.common.masked import MaskedMechanism


class Attention(nn.Module):
    """``attend`` with one mechanism as a module, to be compiled or exported."""

    def __init__(self, mechanism: Mechanism, **arguments: Any) -> None:
        super().__init__()
        self.mechanism, self.arguments = mechanism, arguments

    def forward(self, q: Tensor, k: Tensor, v: Tensor, **arguments: Any) -> Tensor:
        return attend(q, k, v, self.mechanism, **self.arguments, **arguments)


def listed(parts: Iterable[GatherTile], queries: int, keys: int) -> Tensor:
    """Counts ``(Nq, Nk)`` of parts that serve all items and heads alike."""
    counts = torch.zeros(queries, keys, dtype=torch.long)
    for part in parts:
        seen = allowed(part, None, torch.zeros(1, 1, 1, 1, dtype=torch.long))
        rows, columns = torch.broadcast_tensors(part.queries[..., :, None], part.keys[..., None, :])
        counts.index_put_((rows[seen], columns[seen]), torch.ones((), dtype=torch.long), accumulate=True)
    return counts


def image(seen: Tensor) -> list[str]:
    """A mask ``(N, N)`` as lines of ``#`` and ``.``."""
    return ["".join("#" if cell else "." for cell in row) for row in seen.tolist()]


def visible(
    mechanism: MaskedMechanism, length: int, causal: bool, padding: Tensor | None = None, batch: int = 1
) -> Tensor:
    """Which keys each query sees, ``(B, H, N, N)`` bool; none in rows and columns of padding."""
    x = torch.zeros(batch if padding is None else len(padding), mechanism.num_heads, length, mechanism.head_dim)

    def run(q: Tensor, k: Tensor, call: AttentionCall) -> Tensor:
        return mechanism.visible(q, k, call).expand(*q.shape[:3], k.shape[2]).float()

    call = AttentionCall.of(causal=causal, padding_mask=padding)
    return (weights_per_sequence(run, x, x, call) if mechanism.capabilities.ignores_padding else run(x, x, call)) > 0
