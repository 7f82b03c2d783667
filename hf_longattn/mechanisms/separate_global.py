"""Global rows with projections of their own (Beltagy et al. 2020, Longformer, section 3.1, "linear projections for global attention").

A global token i attends to every key j with Q_g, K_g, V_g, three further projections of the layer's hidden states x:

    o_i = sum_j softmax_j(scale * Q_g x_i . K_g x_j) V_g x_j

Other tokens see the global ones through the layer's ordinary keys and values, so these rows are all that changes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..engines.dense import dense_attention, masked_softmax, products
from ..engines.global_rows import global_index, put_rows, separate_rows
from ..engines.pattern import ScoreMod
from ..errors import LengthError


class GlobalProjections(nn.Module):
    """``query``, ``key`` and ``value`` of the global rows, from ``hidden_size`` to ``num_heads * head_dim`` with bias."""

    def __init__(self, num_heads: int, head_dim: int, hidden_size: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, head_dim
        self.query, self.key, self.value = (nn.Linear(hidden_size, num_heads * head_dim) for _ in range(3))

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """As transformers initialises linear layers: N(0, 0.02²) and no bias."""
        for linear in (self.query, self.key, self.value):
            nn.init.normal_(linear.weight, std=0.02, generator=generator)
            nn.init.zeros_(linear.bias)

    def heads(self, x: Tensor) -> Tensor:
        """``(B, N, H·D)`` as ``(B, H, N, D)``."""
        return x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)

    def exact(self, hidden: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values ``(B, H, N, D)`` of all tokens, computed in ``dtype``: for the definition."""
        hidden = hidden.to(dtype)
        linears = (self.query, self.key, self.value)
        query, key, value = (self.heads(F.linear(hidden, one.weight.to(dtype), one.bias.to(dtype))) for one in linears)
        return query, key, value

    def overwrite(
        self,
        out: Tensor,
        hidden: Tensor,
        tokens: Tensor,
        *,
        causal: bool,
        key_mask: Tensor | None,
        scale: float,
        dropout_p: float = 0.0,
        score_mod: ScoreMod | None = None,
    ) -> Tensor:
        """Return ``out (B, H, N, D)`` with the rows of the global ``tokens (B, N)`` bool computed from ``hidden (B, N, hidden_size)``.

        Time and memory are linear in N. Few rows are computed without ever projecting all keys and values: since
        q . K x = (Kᵀ q) . x, the projections are applied to the queries and to the weighted sums instead.
        """
        plain = dropout_p == 0.0 and score_mod is None
        if torch.compiler.is_compiling() and plain:
            q, k, v = (self.heads(project(hidden)) for project in (self.query, self.key, self.value))
            rows = separate_rows(q, k, v, key_mask, tokens, causal, scale)
            return torch.where(tokens[:, None, :, None], rows.to(out.dtype), out)
        index, real = global_index(tokens)
        if index.shape[1] == 0:
            if not torch.is_grad_enabled():
                return out
            # One row that is thrown away: every parameter takes part in every step, as DistributedDataParallel asks.
            index, real = tokens.new_zeros(len(tokens), 1, dtype=torch.long), tokens.new_zeros(len(tokens), 1)
        q = self.heads(self.query(hidden.gather(1, index[..., None].expand(-1, -1, hidden.shape[-1]))))
        positions = index[:, None, :, None]
        if score_mod is None and self.num_heads * index.shape[1] <= hidden.shape[-1] // 2 and self._bare():
            rows = self._absorbed(q, hidden, _seen(positions, key_mask, hidden.shape[1], causal), scale, dropout_p)
        else:
            k, v = self.heads(self.key(hidden)), self.heads(self.value(hidden))
            rows = dense_attention(
                q, k, v, causal=causal, key_mask=key_mask, scaling=scale, dropout_p=dropout_p, score_mod=score_mod, q_idx=positions
            )
        return put_rows(out, rows.to(out.dtype), index, real)

    def _bare(self) -> bool:
        """Whether key and value projections are nothing but their weights (an adapter or a hook makes them more)."""
        return all(type(one) is nn.Linear and not one._forward_hooks and not one._forward_pre_hooks for one in (self.key, self.value))

    def _absorbed(self, q: Tensor, hidden: Tensor, seen: Tensor | None, scale: float, dropout_p: float) -> Tensor:
        """Rows ``(B, H, g, D)`` for queries ``q (B, H, g, D)`` over ``hidden (B, N, d)``; ``seen`` broadcasts to ``(B, H, g, N)``."""
        heads = (self.num_heads, self.head_dim)
        key, value = (one.weight.unflatten(0, heads) for one in (self.key, self.value))  # (H, D, d)
        folded = products(q, key.mT)  # (B, H, g, d)
        scores = products(folded.flatten(1, 2), hidden).unflatten(1, folded.shape[1:3])
        scores = scores + (q * self.key.bias.unflatten(0, heads)[:, None].to(q.dtype)).sum(-1, keepdim=True)
        weights = masked_softmax(scores * scale, seen)
        weights = F.dropout(weights, dropout_p).to(hidden.dtype)
        gathered = (weights.flatten(1, 2) @ hidden).unflatten(1, folded.shape[1:3])  # (B, H, g, d)
        return gathered @ value.transpose(1, 2) + weights.sum(-1, keepdim=True) * self.value.bias.unflatten(0, heads)[:, None]


def rows_in_reach(tokens: Tensor, q_len: int) -> bool:
    """Whether a call with ``q_len`` queries for the keys of ``tokens (B, Nk)`` has separate global rows to compute.

    Raises:
        LengthError: it has some, but the hidden states of the earlier tokens, which they attend to, are gone.
    """
    if q_len == tokens.shape[1]:
        return True
    if not torch.compiler.is_compiling() and bool(tokens[:, -q_len:].any()):
        raise LengthError(
            f"A global token is among the last {q_len} of {tokens.shape[1]} tokens, but with separate_global it needs the hidden states "
            "of all tokens, and a cache keeps keys and values only; pass the whole text in one call, or leave new tokens non-global."
        )
    return False


def _seen(positions: Tensor, key_mask: Tensor | None, length: int, causal: bool) -> Tensor | None:
    seen = None if key_mask is None else key_mask[:, None, None, :]
    if causal:
        earlier = torch.arange(length, device=positions.device) <= positions
        seen = earlier if seen is None else seen & earlier
    return seen
