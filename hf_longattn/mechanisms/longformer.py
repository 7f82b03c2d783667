"""Longformer attention: a sliding window, and global tokens that see all tokens and are seen by all (Beltagy et al.
2020, section 3.1).

Query i sees key j if

    bidirectional:  |i - j| <= w/2, or i or j is global
    causal:         j <= i, and (i - j < w, or i or j is global)

With ``left`` and ``right``, the window is -right <= i - j <= left instead. Each key counts once. In a causal layer
that rotates queries and keys, global tokens 0 … g - 1 have the positions of sinks (:mod:`.window`), unless the call
says which tokens are global.

With ``separate_global``, global tokens have separate projections Q_g, K_g and V_g of the layer's input x ("linear
projections for global attention"). Global token i attends to every key j with

    o_i = Σ_j softmax_j(scale · Q_g x_i · K_g x_j) V_g x_j

Other tokens see the keys and values that the layer's own projections give for global tokens. Only the outputs of
global tokens therefore change.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..engines.batch import cached_on, in_graph
from ..engines.call import AttentionCall, MaskMod, Pattern
from ..engines.dense import both, dense_attention, masked_softmax, products
from ..engines.global_rows import global_index, put_rows, separate_rows
from ..errors import InputError, OptionError
from ..positions.relative import DistanceOnly, relative_class
from .common.base import LayerSizes
from .common.capabilities import About, CopiesProjections
from .common.global_tokens import GlobalTokenIds, global_tokens
from .common.layout import full_pairs
from .common.masked import SparseMechanism, has_hooks
from .common.options import option
from .common.registry import register_mechanism
from .common.shared_options import with_dense_terms
from .window import BandOptions


@dataclasses.dataclass(frozen=True)
class LongformerOptions(BandOptions):
    global_tokens: tuple[int, ...] = option(
        (0,),
        "positions, counted from the first real token, that are global if no global_attention_mask is given; none = "
        "no token",
        "positions",
        least=0,
    )
    global_token_ids: tuple[int, ...] = option(
        (), "also make tokens with these ids global if no global_attention_mask is given", "token ids", least=0
    )
    global_first_segment: bool = option(
        False, "also make all tokens before the first separator global (the question in QA)"
    )
    separator_token_id: int | None = option(
        None, "the token that ends a segment; default: the config's sep_token_id", "token id", least=0
    )
    separate_global: bool = option(
        False, "give global tokens separate projections, initialised as copies of the layer's"
    )

    def check(self) -> None:
        """Refuse ``separate_global`` with relative positions that depend on queries."""
        if (
            self.separate_global
            and self.relative is not None
            and not issubclass(relative_class(self.relative), DistanceOnly)
        ):
            raise OptionError(
                f"Relative positions {self.relative!r} depend on the layer's queries, but with separate_global the "
                "global tokens have separate queries; use 'alibi' or 't5_buckets', or separate_global=False."
            )

    def is_mask(self) -> bool:
        return not self.separate_global


@register_mechanism("longformer")
class Longformer(SparseMechanism, CopiesProjections):
    """Softmax over a sliding window and a few global tokens."""

    about = About(
        summary="sliding window plus global tokens that see and are seen by all",
        paper="Beltagy et al. 2020, Longformer, §3.1",
        when="an encoder for question answering, classification or retrieval: windows, and global tokens for the "
        "question or `[CLS]`",
        engine="block_sparse",
        cost="N·(w+g), with g global tokens",
        sample={"window": 32},
        covering=lambda length, causal: {"window": 2 * length},
    )
    capabilities = SparseMechanism.capabilities.but(takes_globals=True, exports=True)
    per_head_tensors = ()
    finds_starts = True
    forward_is_mask = True
    # also with separate_global: global tokens have other projections, but attend to the keys in their mask rows
    definition_is_mask = True
    options: LongformerOptions

    def __init__(self, sizes: LayerSizes, options: LongformerOptions) -> None:
        super().__init__(sizes, options)
        self.capabilities = self.capabilities.but(
            takes_hidden_states=options.separate_global, takes_sinks=not options.separate_global
        )
        self.copies = {}
        if options.global_token_ids or options.global_first_segment:
            self.global_token_ids = GlobalTokenIds(
                options.global_tokens,
                options.global_token_ids,
                options.global_first_segment,
                options.separator_token_id,
            )
        if options.separate_global:
            self.forward_is_mask = False
            self.separate = GlobalProjections(sizes.num_heads, sizes.head_dim, sizes.hidden_size)
            self.copies = {
                f"separate.{name}.{part}": f"{name}.{part}"
                for name in ("query", "key", "value")
                for part in ("weight", "bias")
            }
            self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Initialise the projections of the global tokens. In a model they become copies of the layer's
        (:attr:`copies`)."""
        super().reset_parameters(generator)
        if self.options.separate_global:
            self.separate.reset_parameters(generator)

    def pattern(self, causal: bool) -> Pattern:
        return self.options.pattern(causal, has_globals=True)

    def mask_mod(self, causal: bool, global_mask: Tensor | None) -> MaskMod:
        return self.pattern(causal).visible_mod(global_mask)

    def resolve_globals(self, k: Tensor, call: AttentionCall) -> Tensor | None:
        if call.global_mask is None and self.global_token_ids is not None:
            raise InputError(
                "With these options, token ids decide which tokens are global, but attention receives no ids; "
                "pass the global tokens as a mask (global_mask, or global_attention_mask to a model)."
            )
        return global_tokens(self.global_positions(), k, call)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        """Attention within the window and to global tokens.

        With ``separate_global``, ``call.hidden_states (B, Nq, hidden_size)`` must be the layer's input.
        """
        out = super().forward(q, k, v, call)
        tokens = self._separate_tokens(q, k, call)
        if tokens is None:
            return out
        return self.separate.overwrite(out, self._hidden(call), tokens, call)

    def dense_weights(self, q: Tensor, k: Tensor, call: AttentionCall) -> Tensor:
        weights = super().dense_weights(q, k, call)
        tokens = self._separate_tokens(q, k, call)
        if tokens is None:
            return weights
        query, key, _ = self.separate.exact(self._hidden(call), q.dtype)
        return torch.where(tokens[:, None, :, None], super().dense_weights(query, key, call), weights)

    def defined(self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        out = super().defined(q, k, v, call)
        tokens = self._separate_tokens(q, k, call)
        if tokens is None:
            return out
        query, key, value = self.separate.exact(self._hidden(call), q.dtype)
        weights = super().dense_weights(*with_dense_terms(self, query, key, call))
        return torch.where(tokens[:, None, :, None], weights @ value, out)

    def _hidden(self, call: AttentionCall) -> Tensor:
        """The layer's input, ``(B, N, hidden_size)``."""
        if call.hidden_states is None:
            raise OptionError(
                "separate_global projects the layer's hidden states, but this call has none; use separate_global in a "
                "model, or pass hidden_states=(B, N, hidden_size) to hf_longattn.attend with the mechanism from "
                "build_mechanism('longformer', ...)."
            )
        return call.hidden_states

    def _separate_tokens(self, q: Tensor, k: Tensor, call: AttentionCall) -> Tensor | None:
        """Mask ``(B, N)`` of the queries with separate projections. ``None`` if this call needs no such projections.

        Raises:
            InputError: a query is global, but the hidden states of the earlier tokens that it attends to are not
                available.
        """
        if not self.options.separate_global:
            return None
        tokens, q_len = self.resolve_globals(k, call), q.shape[2]
        if q_len == k.shape[2]:
            return torch.zeros_like(call.real(k)) if tokens is None else tokens
        if tokens is not None and not in_graph() and bool(tokens[:, -q_len:].any()):
            raise InputError(
                f"A global token is among the last {q_len} of {k.shape[2]} tokens, but with separate_global it needs "
                "the hidden states of all tokens, which a cache does not keep; pass the whole text in one call, or "
                "make no new token global."
            )
        return None

    def covers(self, length: int, causal: bool = False) -> bool:
        return not self.options.separate_global and self.pattern(causal).covers(length, length)

    def global_positions(self) -> tuple[int, ...]:
        return tuple(sorted({*self.options.global_tokens}))

    def pairs(self, length: int, causal: bool = False) -> int:
        # A global token adds a row and a column of pairs. When causal, half of these pairs are hidden.
        pairs_of_global = len(self.global_positions()) * length * (1 if causal else 2)
        return min(full_pairs(length, causal), super().pairs(length, causal) + pairs_of_global)


class GlobalProjections(nn.Module):
    """``query``, ``key`` and ``value`` projections of the global tokens, from ``hidden_size`` to
    ``num_heads * head_dim``, with bias."""

    def __init__(self, num_heads: int, head_dim: int, hidden_size: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.query, self.key, self.value = (nn.Linear(hidden_size, num_heads * head_dim) for _ in range(3))

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw weights from N(0, 0.02²) and set biases to 0, as transformers does."""
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
        query, key, value = (
            self.heads(F.linear(hidden, linear.weight.to(dtype), linear.bias.to(dtype))) for linear in linears
        )
        return query, key, value

    def overwrite(self, out: Tensor, hidden: Tensor, tokens: Tensor, call: AttentionCall) -> Tensor:
        """Replace the outputs of global tokens in ``out (B, H, N, D)``.

        Time and memory are linear in N. For few global tokens, keys and values are not projected
        (:meth:`_absorbed`).

        Args:
            hidden: the layer's input, ``(B, N, hidden_size)``.
            tokens: mask of the global tokens, ``(B, N)`` bool.
        """
        scale, causal, key_mask = call.scale_for(self.head_dim), call.causal, call.key_mask
        if in_graph():  # the number of global tokens is unknown: compute all rows
            q, k, v = (self.heads(project(hidden)) for project in (self.query, self.key, self.value))
            if call.score_mod is None and torch.compiler.is_compiling():
                seed = torch.randint(1 << 62, (), device=q.device) if call.dropout else None
                rows = separate_rows(q, k, v, key_mask, tokens, causal, scale, call.dropout, seed)
            else:  # the operator separate_rows cannot take score terms, and torch.func has no rule for it
                rows = dense_attention(q, k, v, call)
            return torch.where(tokens[:, None, :, None], rows.to(out.dtype), out)

        # index (B, g): positions of the global tokens; real (B, g): False in slots without a token
        index, real = cached_on(tokens, "index", lambda: global_index(tokens))
        if index.shape[1] == 0:
            if not torch.is_grad_enabled():
                return out
            # Compute one token and discard it: DistributedDataParallel needs every parameter to take part in every
            # step.
            index = tokens.new_zeros(len(tokens), 1, dtype=torch.long)
            real = tokens.new_zeros(len(tokens), 1)
        q = self.heads(self.query(hidden.gather(1, index[..., None].expand(-1, -1, hidden.shape[-1]))))
        positions = index[:, None, :, None]

        # _absorbed reads the weights of the projections, which adapters and hooks would not change.
        plain = all(type(linear) is nn.Linear and not has_hooks(linear) for linear in (self.key, self.value))
        few_tokens = self.num_heads * index.shape[1] <= hidden.shape[-1] // 2
        if call.score_mod is None and few_tokens and plain:
            seen = None if key_mask is None else key_mask[:, None, None, :]
            if causal:
                seen = both(seen, torch.arange(hidden.shape[1], device=hidden.device) <= positions)
            rows = self._absorbed(q, hidden, seen, scale, call.dropout)
        else:
            k, v = self.heads(self.key(hidden)), self.heads(self.value(hidden))
            rows = dense_attention(q, k, v, call, q_idx=positions)
        return put_rows(out, rows.to(out.dtype), index, real)

    def _absorbed(self, q: Tensor, hidden: Tensor, seen: Tensor | None, scale: float, dropout_p: float) -> Tensor:
        """Outputs ``(B, H, g, D)`` of queries ``q (B, H, g, D)`` over ``hidden (B, N, d)``, without projecting all
        tokens.

        Since q·K x = (Kᵀ q)·x, the key projection is applied to the queries, and the value projection to the weighted
        sums of ``hidden``. The mask ``seen`` broadcasts to ``(B, H, g, N)``.
        """
        heads = (self.num_heads, self.head_dim)
        key, value = (linear.weight.unflatten(0, heads) for linear in (self.key, self.value))  # (H, D, d)
        key_bias, value_bias = (linear.bias.unflatten(0, heads)[:, None] for linear in (self.key, self.value))
        projected = products(q, key.mT)  # Kᵀ q, (B, H, g, d)
        scores = products(projected.flatten(1, 2), hidden).unflatten(1, projected.shape[1:3])
        scores = scores + (q * key_bias.to(q.dtype)).sum(-1, keepdim=True)
        weights = F.dropout(masked_softmax(scores * scale, seen), dropout_p).to(hidden.dtype)
        sums = (weights.flatten(1, 2) @ hidden).unflatten(1, projected.shape[1:3])  # (B, H, g, d)
        return sums @ value.transpose(1, 2) + weights.sum(-1, keepdim=True) * value_bias
