"""LongWav2Vec2Bert: W2v-BERT 2.0 (Seamless Communication 2023). Rows of features of 20 ms, Conformer layers with embeddings of clipped
distances."""

from typing import Any

from transformers.models.wav2vec2_bert.configuration_wav2vec2_bert import Wav2Vec2BertConfig
from transformers.models.wav2vec2_bert.modeling_wav2vec2_bert import (
    Wav2Vec2BertFeedForward,
    Wav2Vec2BertRelPositionalEmbedding,
    Wav2Vec2BertSelfAttention,
)

from ..modeling.attach.conformer_attention import (
    NAMES,
    ConformerAttention,
    NearSinusoids,
)
from ..modeling.attach.custom_attention import OnTheBackend, replacing
from ..modeling.attach.stretches import FramesInStretches
from ..modeling.classes import Family, long_config
from ..modeling.family.audio_config import LongAudioConfig
from ..modeling.family.audio_rule import AudioRule, normalised_features


def adapted(config: Any, rows: int) -> int:
    """Number of rows of the last hidden state: ``rows``, or fewer after the adapter."""
    kernel, stride = config.adapter_kernel_size, config.adapter_stride
    for _ in range(config.num_adapter_layers if config.add_adapter else 0):
        rows = (rows + 2 * (kernel // 2) - kernel) // stride + 1
    return rows


FAMILY = Family(
    long_config(__name__, LongAudioConfig, Wav2Vec2BertConfig),
    mixin=replacing(
        __name__,
        {
            Wav2Vec2BertFeedForward: FramesInStretches,
            Wav2Vec2BertRelPositionalEmbedding: NearSinusoids,
            Wav2Vec2BertSelfAttention: ConformerAttention,
        },
        OnTheBackend,
    ),
    attention=NAMES,
    rule=AudioRule(
        input="input_features",
        rate=50,
        features=lambda config: int(config.feature_projection_input_dim),
        front=lambda config: (),
        outputs=adapted,
        positions="relative",
        why_chunks_differ=normalised_features,
    ),
)
