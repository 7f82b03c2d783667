"""Decoding within segments of S tokens: a state of constant size that holds each batch row's current segment.

With left padding, rows start at different times, so that their segments are filled to different positions. A state holds

    keys, values   ``(B, H_kv, S, D)``: slot p is position p of the row's segment
    real           ``(B, S)`` bool: False for padding and for slots that are still empty
    filled         ``(B,)``: number of positions filled; 0 before the row's first real token
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...engines.common.batch import in_graph
from ...engines.common.call import AttentionCall, State
from ...engines.common.dense import dense_attention
from ...engines.common.score_terms import ScoreMod
from ...positions.relative import RelativePositions


class TwoSegments(NamedTuple):
    """Result of :func:`append_tokens`: the current segment of S slots and the next one, side by side."""

    keys: Tensor
    """``(B, H_kv, 2S, D)``; ``values`` likewise."""
    values: Tensor
    real: Tensor
    """``(B, 2S)``"""
    positions: Tensor
    """Position of each new token within the two segments, ``(B, n)``; -1 for padding before the first real token."""
    filled: Tensor
    """Number of positions filled in the two segments, ``(B,)``."""

    @property
    def crossed(self) -> Tensor:
        """Which batch rows have reached the next segment, ``(B,)`` bool."""
        return self.filled > self.real.shape[1] // 2

    def attend(self, q: Tensor, call: AttentionCall, relative: RelativePositions | None = None) -> Tensor:
        """Causal softmax attention of the new tokens' queries ``q (B, H, n, D)`` within their segments."""
        size = self.real.shape[1] // 2
        used = self.real.shape[1] if in_graph() or bool(self.crossed.any()) else size
        score_mod: ScoreMod | None = None
        if relative is not None:
            places = torch.arange(used, device=q.device)[None]
            term = relative.term(q, self.keys[:, :, :used], self.positions, places, True, call.scale_for(q.shape[3]))

            score_mod = lambda score, b, h, q_idx, kv_idx: score + term  # noqa: E731
        return dense_attention(
            q, self.keys[:, :, :used], self.values[:, :, :used],
            call.replace(causal=False, score_mod=score_mod).with_mask(self.real[:, :used]), q_idx=self.positions[:, None, :, None],
            mask_mod=lambda b, h, q_idx, kv_idx: (kv_idx <= q_idx) & (kv_idx // size == q_idx // size),
        )  # fmt: skip

    def state(self) -> State:
        """The state of the segment that each batch row is in now."""
        size, crossed = self.real.shape[1] // 2, self.crossed
        over = crossed[:, None, None, None]
        return {
            "keys": torch.where(over, self.keys[:, :, size:], self.keys[:, :, :size]),
            "values": torch.where(over, self.values[:, :, size:], self.values[:, :, :size]),
            "real": (self.real[:, size:] & crossed[:, None]) | (self.real[:, :size] & ~crossed[:, None]),  # onnxruntime supports this form
            "filled": torch.where(crossed, self.filled - size, self.filled),
        }


def empty_segment(k: Tensor, v: Tensor, size: int) -> State:
    """The state before the first token."""
    batch, heads, _, head_dim = k.shape
    return {
        "keys": k.new_zeros(batch, heads, size, head_dim),
        "values": v.new_zeros(batch, heads, size, v.shape[3]),
        "real": torch.zeros(batch, size, dtype=torch.bool, device=k.device),
        "filled": torch.zeros(batch, dtype=torch.long, device=k.device),
    }


def left_padding(key_mask: Tensor) -> Tensor:
    """The number of tokens before each row's first real token, ``(B,)``, in ``key_mask (B, n)``; n if no token is real."""
    return (key_mask.cumsum(1) == 0).sum(1)


def append_tokens(state: State, k: Tensor, v: Tensor, real: Tensor) -> TwoSegments:
    """The segments after n <= S new tokens ``k, v (B, H_kv, n, D)``. ``real (B, n)`` is False for padding."""
    (batch, _, count, _), size = k.shape, state["real"].shape[1]
    filled = state["filled"]
    skipped = torch.where(filled == 0, left_padding(real), 0)
    places = torch.arange(count, device=k.device) - skipped[:, None]
    positions = torch.where(places >= 0, places + filled[:, None], -1)
    slots = torch.where(positions < 0, 2 * size, positions)  # left padding goes to an extra slot that is cut off

    def put(old: Tensor, new: Tensor) -> Tensor:
        extended = torch.cat([old, old.new_zeros(*old.shape[:-2], size + 1, old.shape[-1])], -2)
        index = slots.view(batch, *[1] * (new.dim() - 3), count, 1).expand_as(new)
        return extended.scatter(-2, index, new.to(old.dtype))[..., : 2 * size, :]

    real_slots = put(state["real"][..., None], real[..., None])[..., 0]
    return TwoSegments(put(state["keys"], k), put(state["values"], v), real_slots, positions, filled + count - skipped)


def last_segment(k: Tensor, v: Tensor, real: Tensor, size: int) -> tuple[State, Tensor]:
    """The state after a sequence ``k, v (B, H_kv, N, D)``, and the index of each row's current segment, ``(B,)``.
    ``real (B, N)`` is False for padding."""
    length = k.shape[2]
    skipped = left_padding(real)
    segment = (length - skipped - 1).clamp(min=0) // size
    first = skipped + segment * size
    places = first[:, None] + torch.arange(size, device=k.device)
    inside = places < length
    places = places.clamp(max=length - 1)
    keys, values = (x.gather(2, places[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3])) for x in (k, v))
    hidden = ~inside[:, None, :, None]
    state = {
        "keys": keys.masked_fill(hidden, 0),
        "values": values.masked_fill(hidden, 0),
        "real": real.gather(1, places) & inside,
        "filled": length - first,
    }
    return state, segment
