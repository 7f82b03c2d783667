"""LongWavLM: WavLM (Chen et al. 2022), wav2vec 2.0 with biases by distance bucket and a gate per query.

The base calls PyTorch's multi-head attention with a bias for all query-key pairs. Here the product of gate (a number
per query and head) and bias (a number per distance and head) is a term of the mechanism's scores.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers.models.wavlm.configuration_wavlm import WavLMConfig
from transformers.models.wavlm.modeling_wavlm import WavLMAttention, WavLMFeatureEncoder, WavLMFeedForward

from ..engines.score_terms import DistanceTerm
from ..modeling.attach.custom_attention import OnTheBackend, attend_by_mechanism, by_head, replacing
from ..modeling.attach.sound_chunks import FeatureEncoderInChunks, FramesInChunks
from ..modeling.backend import mask_of_encoder
from ..modeling.classes import Family, long_config
from ..modeling.family.audio_spec import WAV2VEC2, LongAudioConfig
from ..modeling.family.long_config import runs_mechanisms
from ..names import missing


def distance_buckets(module: Any, distances: Tensor) -> Tensor:
    """Buckets of ``distances`` (key - query), from a module with WavLM's relative positions.

    Raises:
        BackendError: the module lacks the private method for this.
    """
    buckets = getattr(module, "_relative_positions_bucket", None)
    if buckets is None:
        raise missing("distance_buckets")
    result: Tensor = buckets(distances)
    return result


class LongWavLMAttention(WavLMAttention):
    """The projections, gates and biases of WavLMAttention with the mechanism."""

    config: Any
    is_causal = False

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_bias: Any = None,
        index: int = 0,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None, Any]:
        """The output ``(B, N, C)``, the weights, and the first layer's method :meth:`biases`, for the next layer.

        Args:
            attention_mask: ``(B, N)``, 1 = real.
            position_bias: the first layer's method :meth:`biases`; ``None`` in the first layer. A tensor in its place
                would lose its gradients in gradient checkpointing.
        """
        if not runs_mechanisms(self):
            return super().forward(hidden_states, attention_mask, position_bias, index, **kwargs)
        biases = self.biases if position_bias is None else position_bias
        query, key, value = by_head(hidden_states, self.head_dim, self.q_proj, self.k_proj, self.v_proj)
        term = DistanceTerm(self.gates(hidden_states), biases()[..., None], self.max_distance, key)
        if attention_mask is not None:
            attention_mask = mask_of_encoder(attention_mask)
        output, weights = attend_by_mechanism(
            self,
            query,
            key,
            value,
            attention_mask,
            scaling=self.scaling,
            dropout=self.dropout,
            position_bias=term,
            **kwargs,
        )
        return self.out_proj(output), weights, biases

    def biases(self) -> Tensor:
        """Biases ``(H, distances)`` for the distances query - key from ``-max_distance`` to ``max_distance``. Larger
        distances have the bias of the largest."""
        distances = torch.arange(-self.max_distance, self.max_distance + 1, device=self.rel_attn_embed.weight.device)
        return self.rel_attn_embed(distance_buckets(self, -distances)).t()

    def gates(self, hidden_states: Tensor) -> Tensor:
        """The factor on the bias for every query, ``(B, H, N, 1)``, computed as in the base."""
        head_states = hidden_states.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        gate_inputs = self.gru_rel_pos_linear(head_states).unflatten(-1, (2, 4)).sum(-1)
        update, reset = torch.sigmoid(gate_inputs).chunk(2, dim=-1)
        return update * (reset * self.gru_rel_pos_const - 1.0) + 2.0


FAMILY = Family(
    long_config(__name__, LongAudioConfig, WavLMConfig),
    mixin=replacing(
        __name__,
        {
            WavLMAttention: LongWavLMAttention,
            WavLMFeatureEncoder: FeatureEncoderInChunks,
            WavLMFeedForward: FramesInChunks,
        },
        OnTheBackend,
    ),
    spec=replace(WAV2VEC2, positions="convolved and relative"),
)
