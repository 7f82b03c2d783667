"""Longformer attention: a sliding window, and global tokens that see and are seen by everyone (Beltagy et al. 2020, section 3.1).

Query i sees key j when  |i - j| <= w/2,  or i is global,  or j is global  (and j <= i in the causal form). Each key counts once.
With ``separate_global`` the rows of global tokens are computed with projections of their own ("linear projections for global attention"):
a global token i attends to every key j with Q_g, K_g, V_g, three further projections of the layer's hidden states x,

    o_i = sum_j softmax_j(scale * Q_g x_i . K_g x_j) V_g x_j

Other tokens see the global ones through the layer's ordinary keys and values, so these rows are all that changes.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..engines.call import AttentionCall, MaskMod, Pattern
from ..engines.dense import dense_attention, masked_softmax, products
from ..engines.global_rows import global_index, put_rows, separate_rows
from ..errors import LengthError, MaskError, OptionError
from ..positions.relative import DistanceOnly, relative_kind
from ..private_apis import has_hooks
from .base import Mechanism
from .masked import SparseMechanism
from .options import Options, option, positive
from .registry import register_mechanism
from .token_rules import TokenRule, at_positions


@dataclasses.dataclass(frozen=True)
class LongformerOptions(Options):
    window: int = option(512, "total width of the window: w/2 on each side, or the last w keys when causal", "tokens")
    global_tokens: tuple[int, ...] = option(
        (0,), "positions, counted from the first real token, that are global when no global_attention_mask is given", "positions"
    )
    global_token_ids: tuple[int, ...] = option(
        (), "also make tokens with these ids global when no global_attention_mask is given", "token ids"
    )
    global_first_segment: bool = option(False, "also make all tokens before the first separator global (the question in QA)")
    global_second_segment: bool = option(False, "also make all tokens after the first segment's separators global (the candidate answer)")
    separator_token_id: int | None = option(None, "the token that ends a segment; none takes the config's sep_token_id", "token id")
    separate_global: bool = option(False, "give global rows separate query, key and value projections, initialised as copies")

    def check(self) -> None:
        positive("longformer", "window", self)
        for name in ("global_tokens", "global_token_ids"):
            if any(value < 0 for value in getattr(self, name)):
                what = "positions count" if name == "global_tokens" else "token ids count"
                raise OptionError(
                    f"Option {name!r} of mechanism 'longformer' is {getattr(self, name)}, but {what} from 0; for example {name}=0."
                )
        if self.separator_token_id is not None and self.separator_token_id < 0:
            raise OptionError(
                f"Option 'separator_token_id' of mechanism 'longformer' is {self.separator_token_id}, but token ids count from 0; "
                "for example separator_token_id=102."
            )

        if self.separate_global and self.relative is not None and not issubclass(relative_kind(self.relative), DistanceOnly):
            raise OptionError(
                f"Relative positions {self.relative!r} depend on the layer's queries, but with separate_global the global tokens' rows "
                "have separate queries; use 'alibi' or 't5_buckets', or separate_global=False."
            )

    def is_mask(self) -> bool:
        return not self.separate_global


@register_mechanism("longformer")
class Longformer(SparseMechanism):
    """A window plus a few tokens that see, and are seen by, the whole sequence."""

    summary = "sliding window plus global tokens that see and are seen by all"
    paper = "Beltagy et al. 2020, Longformer, §3.1"
    cost = "N·(w+g)"
    exact_when = "window ≥ 2(N−1), or ≥ N when causal, or every token is global; without separate_global"
    takes_globals = True
    options_type = LongformerOptions
    sample: ClassVar[dict[str, Any]] = {"window": 32}

    @classmethod
    def covering(cls, length: int, causal: bool) -> dict[str, Any]:
        return {"window": 2 * length}

    options: LongformerOptions

    def __init__(self, num_heads: int, head_dim: int, hidden_size: int, max_length: int | None, options: LongformerOptions) -> None:
        super().__init__(num_heads, head_dim, hidden_size, max_length, options)
        self.takes_hidden_states = options.separate_global
        if options.separate_global:
            self.separate = GlobalProjections(num_heads, head_dim, hidden_size)
            parameters = [f"{name}.{kind}" for name in ("query", "key", "value") for kind in ("weight", "bias")]
            self.copies = {f"separate.{name}": name for name in parameters}
            self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the projections of the global rows; inside a model they then become copies of their layer's own."""
        super().reset_parameters(generator)
        if self.options.separate_global:
            self.separate.reset_parameters(generator)

    @property
    def is_mask(self) -> bool:
        return self.options.is_mask()

    def pattern(self, causal: bool) -> Pattern:
        return dataclasses.replace(Pattern.window(self.options.window, causal), has_globals=True)

    def mask_mod(self, causal: bool, global_mask: Tensor | None) -> MaskMod:
        return self.pattern(causal).visible_mod(global_mask)

    @property
    def token_rule(self) -> TokenRule | None:
        chosen = self.options
        if not (chosen.global_token_ids or chosen.global_first_segment or chosen.global_second_segment):
            return None
        return TokenRule(
            chosen.global_tokens,
            chosen.global_token_ids,
            chosen.global_first_segment,
            chosen.global_second_segment,
            chosen.separator_token_id,
        )

    def resolve_globals(self, k: Tensor, call: AttentionCall) -> Tensor | None:
        """The call's ``global_mask``, or the fixed positions, counted over real tokens; padding is never global."""
        if call.global_mask is not None:
            return call.global_mask if call.key_mask is None else call.global_mask & call.key_mask
        if self.token_rule is not None:
            raise MaskError(
                "Tokens are global by their ids here, and attention alone does not see ids; "
                "pass the global tokens as a mask (global_mask, or global_attention_mask to a model)."
            )
        if not self.options.global_tokens:
            return None
        real = torch.ones(k.shape[0], k.shape[2], dtype=torch.bool, device=k.device) if call.key_mask is None else call.key_mask
        return at_positions(self.options.global_tokens, real)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        """``call.hidden_states (B, Nq, hidden_size)``, the layer's input, is needed with ``separate_global`` and ignored without."""
        out = super().forward(q, k, v, call)
        if not self.options.separate_global:
            return out
        hidden, tokens = self._hidden(call), self._tokens(k, call)
        return self.separate.overwrite(out, hidden, tokens, call) if rows_in_reach(tokens, q.shape[2]) else out

    def dense_weights(self, q: Tensor, k: Tensor, call: AttentionCall) -> Tensor:
        weights = super().dense_weights(q, k, call)
        if not self.options.separate_global or not rows_in_reach(tokens := self._tokens(k, call), q.shape[2]):
            return weights
        query, key, _ = self.separate.exact(self._hidden(call), q.dtype)
        return torch.where(tokens[:, None, :, None], super().dense_weights(query, key, call), weights)

    def reference(self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        out = super().reference(q, k, v, call)
        if not self.options.separate_global or not rows_in_reach(tokens := self._tokens(k, call), q.shape[2]):
            return out
        query, key, value = self.separate.exact(self._hidden(call), torch.float64)
        weights = super().dense_weights(query, key, self._with_dense_terms(query, key, call))
        return torch.where(tokens[:, None, :, None], weights @ value, out)

    def _hidden(self, call: AttentionCall) -> Tensor:
        if call.hidden_states is None:
            raise OptionError(
                "separate_global projects the layer's hidden states, which this call does not have; use it in a model, or pass "
                "hidden_states=(B, N, hidden_size) to hf_longattn.attend with the mechanism from build_mechanism('longformer', ...)."
            )
        return call.hidden_states

    def _tokens(self, k: Tensor, call: AttentionCall) -> Tensor:
        tokens = self.resolve_globals(k, call)
        return torch.zeros(k.shape[0], k.shape[2], dtype=torch.bool, device=k.device) if tokens is None else tokens

    def covers(self, length: int, causal: bool = False) -> bool:
        return not self.options.separate_global and super().covers(length, causal)

    def most_globals(self) -> int:
        return len(self.options.global_tokens)

    def pairs(self, length: int, causal: bool = False) -> int:
        # A global token adds a row and a column, or the column below it when causal.
        crossing = len(self.options.global_tokens) * length * (1 if causal else 2)
        return min(Mechanism.pairs(self, length, causal), super().pairs(length, causal) + crossing)


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
        call: AttentionCall,
    ) -> Tensor:
        """Return ``out (B, H, N, D)`` with the rows of the global ``tokens (B, N)`` bool computed from ``hidden (B, N, hidden_size)``.

        Time and memory are linear in N. Few rows are computed without ever projecting all keys and values: since
        q . K x = (Kᵀ q) . x, the projections are applied to the queries and to the weighted sums instead.
        """
        scale, causal, key_mask = call.scale_for(self.head_dim), call.causal, call.key_mask
        plain = call.dropout == 0.0 and call.score_mod is None
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
        if call.score_mod is None and self.num_heads * index.shape[1] <= hidden.shape[-1] // 2 and self._bare():
            rows = self._absorbed(q, hidden, _seen(positions, key_mask, hidden.shape[1], causal), scale, call.dropout)
        else:
            k, v = self.heads(self.key(hidden)), self.heads(self.value(hidden))
            rows = dense_attention(q, k, v, call, q_idx=positions)
        return put_rows(out, rows.to(out.dtype), index, real)

    def _bare(self) -> bool:
        """Whether key and value projections are nothing but their weights (an adapter or a hook makes them more)."""
        return all(type(one) is nn.Linear and not has_hooks(one) for one in (self.key, self.value))

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
