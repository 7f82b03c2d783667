"""Masks that the gathered engine visits: blocks, columns, residues, as parts laid out for one length and kept."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..engines.block_sparse import suits_dense
from ..engines.byte_cache import KEPT
from ..engines.dense import dense_attention, repeat_heads
from ..engines.gathered import gathered_attention
from ..engines.pattern import GatherTile, ScoreMod
from .layout import global_parts
from .masked import MaskedMechanism, first_real


class GatheredMechanism(MaskedMechanism):
    """A mechanism whose pairs are :class:`~hf_longattn.engines.parts.Part`, a function of the length alone.

    The engine always meets a whole sequence from its first real token on: padding on the left is turned to the right, and queries
    that are the last of a longer sequence are put in their place, before :meth:`parts` is asked.
    """

    engine: ClassVar[str] = "gathered"
    position_dependent: bool = True
    exports = "definition"

    @abstractmethod
    def parts(self, length: int, causal: bool, device: torch.device) -> tuple[GatherTile, ...]:
        """How the engine visits the pairs of a sequence of ``length`` tokens; together exactly those of ``mask_mod`` (and, when
        causal, ``key <= query``), without the global tokens of a call. Kept per length and device, so it must not depend on anything
        but ``self.options`` and heads."""

    def plan(self, length: int, causal: bool, device: torch.device) -> tuple[GatherTile, ...]:
        """:meth:`parts`, kept for the next call."""
        key = (type(self), self.options, self.num_heads, length, causal, device)
        return KEPT.get(key, lambda: self.parts(length, causal, device))

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
        tokens = self.resolve_globals(padding_mask, global_mask, (k.shape[0], kv_len), k.device)
        arguments: dict[str, Any] = {"scaling": scaling, "dropout_p": dropout_p, "score_mod": score_mod}
        if self.covers(kv_len, causal):
            return dense_attention(q, k, v, causal=causal, key_mask=padding_mask, **arguments)
        # How many tokens a global_mask holds is not known while the call is compiled: then it is applied densely.
        compiling = torch.compiler.is_compiling()
        unknown = compiling and tokens is not None and global_mask is not None
        if suits_dense(q_len, kv_len) or unknown:
            mod = self.positioned_mod(causal, padding_mask, tokens)
            return dense_attention(q, k, v, causal=causal, key_mask=padding_mask, mask_mod=mod, **arguments)
        k, v = repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1])
        q = placed(q, kv_len)
        start = turning(padding_mask)
        if start is not None:
            assert padding_mask is not None
            q, k, v = (turn(x, start) for x in (q, k, v))
            padding_mask, tokens = turn_mask(padding_mask, start), None if tokens is None else turn_mask(tokens, start)
            arguments["score_mod"] = shifted(score_mod, start, kv_len)
        parts = self.plan(kv_len, causal, q.device)
        if tokens is not None:
            most = self.most_globals() if compiling else int(tokens.sum(-1).max())
            parts += global_parts(tokens, most, self.mask_mod(causal, None), self.num_heads, causal)
        out = gathered_attention(q, k, v, parts, key_mask=padding_mask, **arguments)
        out = out if start is None else turn(out, -start)
        return out[:, :, kv_len - q_len :]


def placed(q: Tensor, length: int) -> Tensor:
    """``q (B, H, Nq, D)``, the last queries of a sequence, behind as many rows of zeros as ``length`` tokens need."""
    missing = length - q.shape[2]
    return F.pad(q, (0, 0, missing, 0)) if missing else q


def turning(padding_mask: Tensor | None) -> Tensor | None:
    """How far each sequence must be turned to begin with its first real token, ``(B,)``; None when none needs it."""
    if padding_mask is None or (not torch.compiler.is_compiling() and bool(padding_mask[:, 0].all())):
        return None
    return first_real(padding_mask)


def turn(x: Tensor, start: Tensor) -> Tensor:
    """Turn the token axis of ``x (B, H, N, D)`` to the left by ``start (B,)``; what falls off comes back at the end."""
    places = (torch.arange(x.shape[2], device=x.device) + start[:, None]) % x.shape[2]
    return x.gather(2, places[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))


def turn_mask(mask: Tensor, start: Tensor) -> Tensor:
    """:func:`turn` for ``mask (B, N)``."""
    return turn(mask[:, None, :, None], start)[:, 0, :, 0]


def shifted(score_mod: ScoreMod | None, start: Tensor, length: int) -> ScoreMod | None:
    """``score_mod`` for indices of ``length`` tokens that were turned by ``start (B,)``: it meets every token at its own index, the
    padding that came round to the end too, and none beyond the sequence."""
    if score_mod is None:
        return None
    return lambda score, b, h, q_idx, kv_idx: score_mod(score, b, h, (q_idx + start[b]) % length, (kv_idx + start[b]) % length)
