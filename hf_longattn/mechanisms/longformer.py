"""Longformer attention: a sliding window, and global tokens that see and are seen by everyone (Beltagy et al. 2020, section 3.1).

Query i sees key j when  |i - j| <= w/2,  or i is global,  or j is global  (and j <= i in the causal form). Each key counts once.
With ``separate_global`` the rows of global tokens are computed with projections of their own, see :mod:`.separate_global`.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..engines.pattern import MaskMod, Pattern, ScoreMod
from ..errors import MaskError, OptionError
from ..positions.relative import DistanceOnly, relative_kind
from .base import Mechanism
from .options import Options, option, positive
from .registry import register_mechanism
from .separate_global import GlobalProjections, rows_in_reach
from .sparse import SparseMechanism
from .token_rules import TokenRule, at_positions


@dataclasses.dataclass(frozen=True)
class LongformerOptions(Options):
    window: int = option(512, "total width of the window: w/2 on each side, or the last w keys when causal", "tokens")
    global_tokens: tuple[int, ...] = option(
        (0,), "positions, counted from the first real token, that are global when no global_attention_mask is given", "positions"
    )
    global_token_ids: tuple[int, ...] = option(
        (), "tokens with these ids are global too when no global_attention_mask is given", "token ids"
    )
    global_first_segment: bool = option(False, "so are the tokens before the first separator: the question of a question and a text")
    global_second_segment: bool = option(
        False, "so are the tokens behind the separators that end the first segment: the answer of a choice"
    )
    separator_token_id: int | None = option(None, "the token that ends a segment; none takes the config's sep_token_id", "token id")
    separate_global: bool = option(False, "global rows have query, key and value projections of their own, which begin as copies")

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
                "have queries of their own; use 'alibi' or 't5_buckets', or separate_global=False."
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

    @property
    def takes_packed(self) -> bool:  # type: ignore[override]
        """Positions and segments are those of a row. Tokens that are global by their ids are so in every document."""
        return not (self.options.global_tokens or self.options.global_first_segment or self.options.global_second_segment)

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

    def resolve_globals(
        self, padding_mask: Tensor | None, global_mask: Tensor | None, shape: tuple[int, int], device: torch.device
    ) -> Tensor | None:
        """``global_mask`` of the call, or the fixed positions counted from each sequence's first real token; padding is never global."""
        if global_mask is not None:
            return global_mask if padding_mask is None else global_mask & padding_mask
        if self.token_rule is not None:
            raise MaskError(
                "Tokens are global by their ids here, and attention alone does not see ids; "
                "pass the global tokens as a mask (global_mask, or global_attention_mask to a model)."
            )
        if not self.options.global_tokens:
            return None
        return at_positions(
            self.options.global_tokens, torch.ones(shape, dtype=torch.bool, device=device) if padding_mask is None else padding_mask
        )

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        causal: bool = False,
        padding_mask: Tensor | None = None,
        global_mask: Tensor | None = None,
        scaling: float | None = None,
        dropout_p: float = 0.0,
        score_mod: ScoreMod | None = None,
        seed: int = 0,
        hidden_states: Tensor | None = None,
    ) -> Tensor:
        """``hidden_states (B, Nq, hidden_size)``, the layer's input, is needed with ``separate_global`` and ignored without."""
        shared: dict[str, Any] = {"causal": causal, "dropout_p": dropout_p, "score_mod": score_mod}
        out = super().forward(q, k, v, padding_mask=padding_mask, global_mask=global_mask, scaling=scaling, **shared)
        if not self.options.separate_global:
            return out
        hidden = self._hidden(hidden_states)
        tokens = self._tokens(q, k, padding_mask, global_mask)
        if not rows_in_reach(tokens, q.shape[2]):
            return out
        scale = self.head_dim**-0.5 if scaling is None else scaling
        return self.separate.overwrite(out, hidden, tokens, key_mask=padding_mask, scale=scale, **shared)

    def dense_weights(self, q: Tensor, k: Tensor, *, hidden_states: Tensor | None = None, **arguments: Any) -> Tensor:
        weights = super().dense_weights(q, k, **arguments)
        if not self.options.separate_global:
            return weights
        tokens = self._tokens(q, k, arguments.get("padding_mask"), arguments.get("global_mask"))
        if not rows_in_reach(tokens, q.shape[2]):
            return weights
        query, key, _ = self.separate.exact(self._hidden(hidden_states), q.dtype)
        return torch.where(tokens[:, None, :, None], super().dense_weights(query, key, **arguments), weights)

    def reference(self, q: Tensor, k: Tensor, v: Tensor, *, hidden_states: Tensor | None = None, **arguments: Any) -> Tensor:
        out = super().reference(q, k, v, hidden_states=hidden_states, **arguments)
        if not self.options.separate_global:
            return out
        tokens = self._tokens(q, k, arguments.get("padding_mask"), arguments.get("global_mask"))
        if not rows_in_reach(tokens, q.shape[2]):
            return out
        query, key, value = self.separate.exact(self._hidden(hidden_states), torch.float64)
        arguments = self._with_dense_terms(query, key, arguments)
        return torch.where(tokens[:, None, :, None], super().dense_weights(query, key, **arguments) @ value, out)

    def _hidden(self, hidden_states: Tensor | None) -> Tensor:
        if hidden_states is None:
            raise OptionError(
                "separate_global projects the layer's hidden states, which this call does not have; use it in a model, "
                "or call the module of build_mechanism('longformer', separate_global=True, ...) with hidden_states=(B, N, hidden_size)."
            )
        return hidden_states

    def _tokens(self, q: Tensor, k: Tensor, padding_mask: Tensor | None, global_mask: Tensor | None) -> Tensor:
        shape = (q.shape[0], k.shape[2])
        tokens = self.resolve_globals(padding_mask, global_mask, shape, q.device)
        return torch.zeros(shape, dtype=torch.bool, device=q.device) if tokens is None else tokens

    def covers(self, length: int, causal: bool = False) -> bool:
        return not self.options.separate_global and super().covers(length, causal)

    def most_globals(self) -> int:
        return len(self.options.global_tokens)

    def pairs(self, length: int, causal: bool = False) -> int:
        # A global token adds a row and a column, or the column below it when causal.
        crossing = len(self.options.global_tokens) * length * (1 if causal else 2)
        return min(Mechanism.pairs(self, length, causal), super().pairs(length, causal) + crossing)
