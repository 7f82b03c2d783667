"""Mechanisms that look at queries and keys before they choose the pairs: the engine meets whole sequences from their first real token."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NamedTuple

from torch import Tensor

from ..engines.block_sparse import suits_dense
from ..engines.dense import dense_attention, repeat_heads
from ..engines.global_rows import global_index
from ..engines.pattern import ScoreMod
from .base import Mechanism
from .gathered import placed, shifted, turn, turn_mask, turning


class Globals(NamedTuple):
    """The global tokens of a call."""

    mask: Tensor
    """``(B, N)`` bool."""
    most: int | None
    """How many a sequence has at most, where that is known without looking."""

    def places(self) -> tuple[Tensor, Tensor]:
        """Positions of the global tokens, ``(B, g)``, and which entries are real."""
        if self.most is None:
            return global_index(self.mask)
        index = self.mask.int().argsort(dim=-1, descending=True, stable=True)[:, : self.most]
        return index, self.mask.gather(1, index)

    def turned(self, start: Tensor) -> Globals:
        return Globals(turn_mask(self.mask, start), self.most)


class TurnedMechanism(Mechanism):
    """A mechanism whose blocks are counted from each sequence's first real token and whose pairs depend on q and k.

    Padding on the left is turned to the right and queries that are the last of a longer sequence are put in their place, before
    :meth:`sparse_path` is asked.
    """

    exports = "definition"

    @abstractmethod
    def sparse_path(
        self, q: Tensor, k: Tensor, v: Tensor, first: Tensor | int, *, causal: bool, real: Tensor | None, tokens: Globals | None, seed: int,
        **arguments: Any,
    ) -> Tensor:  # fmt: skip
        """Attention of whole sequences that begin at position 0, ``(B, H, N, D)``.

        q, k, v: ``(B, H, N, D)``; rows of q before ``first`` (a number, or ``(B, 1)``) and from ``first + q_len`` on are not asked for.
        real: ``(B, N)`` bool, or None where all tokens are real; tokens: the global tokens, or None.
        arguments: ``scaling``, ``dropout_p`` and ``score_mod`` for the engine.
        """

    @abstractmethod
    def dense_path(
        self, q: Tensor, k: Tensor, v: Tensor, *, causal: bool, padding_mask: Tensor | None, tokens: Globals | None, seed: int,
        **arguments: Any,
    ) -> Tensor:  # fmt: skip
        """The same for one query or for few tokens, by comparing all pairs; with padding anywhere, the queries last."""

    def accept(self, q_len: int, kv_len: int) -> None:
        """Raise LengthError where the mechanism cannot serve so many queries of so many keys."""

    def resolve_globals(self, padding_mask: Tensor | None, global_mask: Tensor | None, k: Tensor) -> Globals | None:
        """The global tokens of this call; mechanisms without global tokens have none."""
        return None

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
    ) -> Tensor:
        q_len, kv_len = q.shape[2], k.shape[2]
        self.accept(q_len, kv_len)
        arguments: dict[str, Any] = {"scaling": scaling, "dropout_p": dropout_p, "score_mod": score_mod}
        if self.covers(kv_len, causal):
            return dense_attention(q, k, v, causal=causal, key_mask=padding_mask, **arguments)
        tokens = self.resolve_globals(padding_mask, global_mask, k)
        k, v = repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1])
        if suits_dense(q_len, kv_len):
            return self.dense_path(q, k, v, causal=causal, padding_mask=padding_mask, tokens=tokens, seed=seed, **arguments)
        q = placed(q, kv_len)
        first: Tensor | int = kv_len - q_len
        start = turning(padding_mask)
        if start is not None:
            assert padding_mask is not None
            q, k, v = (turn(x, start) for x in (q, k, v))
            padding_mask, tokens = turn_mask(padding_mask, start), None if tokens is None else tokens.turned(start)
            arguments["score_mod"] = shifted(score_mod, start, kv_len)
            first = first - start[:, None]
        out = self.sparse_path(q, k, v, first, causal=causal, real=padding_mask, tokens=tokens, seed=seed, **arguments)
        out = out if start is None else turn(out, -start)
        return out[:, :, kv_len - q_len :]
