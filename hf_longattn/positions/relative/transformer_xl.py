"""Transformer-XL's relative positions (Dai et al. 2019, section 3.3).

    score(i, j) = (q_i·k_j + q_i·(W_R R_{i-j}) + u·k_j + v·(W_R R_{i-j})) · scale

R is the sinusoid of the distance, as wide as the model; W_R maps it to the heads, u and v are a content and a position bias of each head.
All are learned per layer. In the bidirectional form distances are negative too (Yang et al. 2019, XLNet).

Costs ``(B, H, N, W)`` memory for the W distances that the mechanism sees: its window, or all 2N - 1 of them where it sees everything.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..tables import sinusoids_at
from .base import QueryDependent, Span, exact


class TransformerXL(QueryDependent):
    """Adds the query's product with a projected sinusoid of the distance, and the two biases of section 3.3."""

    name = "transformer_xl"
    summary = "the query's product with a projected sinusoid of the distance, and learned content and position biases"
    paper = "Dai et al. 2019, Transformer-XL, §3.3"
    reads_keys = True

    def __init__(self, num_heads: int, head_dim: int, hidden_size: int, settings: Mapping[str, int]) -> None:
        super().__init__(num_heads, head_dim, hidden_size, settings)
        self.projection = nn.Parameter(torch.zeros(num_heads, head_dim, hidden_size))
        self.content = nn.Parameter(torch.zeros(num_heads, head_dim))
        self.position = nn.Parameter(torch.zeros(num_heads, head_dim))

    def by_distance(self, q: Tensor, causal: bool, span: Span) -> tuple[Tensor, int]:
        back, ahead = span
        distances = sinusoids_at(torch.arange(-ahead, back + 1, device=q.device), self.hidden_size).to(exact(q))
        projected = torch.einsum("wm,hdm->hdw", distances, self.projection.to(exact(q)))
        return (q.to(exact(q)) + self.position.to(exact(q))[:, None]) @ projected, ahead

    def by_key(self, k: Tensor) -> Tensor:
        grouped = self.content.to(exact(k)).unflatten(0, (k.shape[1], -1))  # the heads that share each key head
        return torch.einsum("bgnd,ghd->bghn", k.to(exact(k)), grouped).flatten(1, 2)
