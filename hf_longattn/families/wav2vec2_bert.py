"""LongWav2Vec2Bert: W2v-BERT 2.0 (Seamless Communication 2023), Conformer layers over feature rows of 20 ms.

Relative positions are score terms that depend on query and distance: Transformer-XL's (``relative``), or Shaw's
embeddings of clipped distances (``relative_key``). Rotary positions rotate the hidden states before they are
projected, as in the base.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers.models.wav2vec2_bert.configuration_wav2vec2_bert import Wav2Vec2BertConfig
from transformers.models.wav2vec2_bert.modeling_wav2vec2_bert import (
    Wav2Vec2BertFeedForward,
    Wav2Vec2BertRelPositionalEmbedding,
    Wav2Vec2BertSelfAttention,
)

from ..engines.score_terms import DistanceTerm
from ..mechanisms.common.capabilities import largest_distances
from ..modeling.attach.custom_attention import ModuleMixin, OnTheBackend, attend_by_mechanism, by_head, replacing
from ..modeling.attach.sound_chunks import FramesInChunks
from ..modeling.classes import Family, long_config
from ..modeling.family.audio_spec import AudioSpec, LongAudioConfig
from ..modeling.family.definition import AttentionNames
from ..modeling.family.long_config import runs_mechanisms
from ..names import missing

SinusoidsNear = Callable[[int, int], Tensor]
"""``(back, ahead) -> (distances, C)``: the sinusoids of the distances -ahead, …, back."""


class NearSinusoids(ModuleMixin):
    """Mixin before the base's ``…RelPositionalEmbedding``. Its ``forward`` returns a function that computes sinusoids
    for visible distances only."""

    def forward(self, hidden_states: Tensor) -> SinusoidsNear | Tensor:
        if not runs_mechanisms(self):
            return super().forward(hidden_states)
        like = hidden_states[0, 0, 0].detach()

        def near(back: int, ahead: int) -> Tensor:
            furthest = back + ahead + 1  # at least the larger of both, and never 1, which graphs specialise on
            table: Tensor = self.extend_pe(like.expand(1, furthest + 1))
            return table[0, furthest - back : furthest + ahead + 1].flip(0)

        return near


class ConformerAttention(ModuleMixin):
    """Mixin before the base's ``…SelfAttention`` that runs the layer's mechanism."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        relative_position_embeddings: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """The output, in the shape of ``hidden_states (B, N, C)``, and the weights if they are requested."""
        if not runs_mechanisms(self):
            return super().forward(hidden_states, attention_mask, relative_position_embeddings, **kwargs)
        rotated = hidden_states
        if self.position_embeddings_type == "rotary":
            rotated = turned_states(self, hidden_states, relative_position_embeddings)
        query, key = by_head(rotated, self.head_size, self.linear_q, self.linear_k)
        (value,) = by_head(hidden_states, self.head_size, self.linear_v)
        term = None
        if self.position_embeddings_type == "relative":
            back, ahead = largest_distances(self.long_attention, query.shape[2], key.shape[2], False)
            (table,) = by_head(relative_position_embeddings(back, ahead), self.head_size, self.linear_pos)
            term = DistanceTerm((query + self.pos_bias_v[:, None]) * self.scaling, table, ahead, key)
            query = query + self.pos_bias_u[:, None]
        elif self.position_embeddings_type == "relative_key":
            table = self.distance_embedding.weight.flip(0)[None]  # the table's rows are ordered by key - query
            term = DistanceTerm(query * self.scaling, table, self.right_max_position_embeddings, key)
        output, weights = attend_by_mechanism(
            self, query, key, value, attention_mask, scaling=self.scaling, position_bias=term, **kwargs
        )
        return self.linear_out(output), weights


def turned_states(module: Any, states: Tensor, positions: Any) -> Tensor:
    """Hidden states ``(B, N, C)`` rotated by their positions. A Conformer's attention does this before its
    projections.

    Raises:
        BackendError: the base's module has no method that rotates.
    """
    turn = getattr(module, "_apply_rotary_embedding", None)
    if turn is None:
        raise missing("turned_states")
    result: Tensor = turn(states, positions)
    return result


def adapted(config: Any, rows: int) -> int:
    """Number of rows of the last hidden state: ``rows``, or fewer if the model has an adapter."""
    kernel, stride = config.adapter_kernel_size, config.adapter_stride
    for _ in range(config.num_adapter_layers if config.add_adapter else 0):
        rows = (rows + 2 * (kernel // 2) - kernel) // stride + 1
    return rows


FAMILY = Family(
    long_config(__name__, LongAudioConfig, Wav2Vec2BertConfig),
    mixin=replacing(
        __name__,
        {
            Wav2Vec2BertFeedForward: FramesInChunks,
            Wav2Vec2BertRelPositionalEmbedding: NearSinusoids,
            Wav2Vec2BertSelfAttention: ConformerAttention,
        },
        OnTheBackend,
    ),
    attention=AttentionNames(
        query="linear_q", key="linear_k", value="linear_v", output="linear_out", head_dim="head_size"
    ),
    spec=AudioSpec(
        input="input_features",
        rate=50,
        features=lambda config: int(config.feature_projection_input_dim),
        front=lambda config: (),
        outputs=adapted,
        positions="relative",
    ),
)
