"""LongWav2Vec2Conformer: wav2vec 2.0 with Conformer layers (Gulati et al. 2020), relative or rotary positions."""

from transformers.models.wav2vec2_conformer.configuration_wav2vec2_conformer import Wav2Vec2ConformerConfig
from transformers.models.wav2vec2_conformer.modeling_wav2vec2_conformer import (
    Wav2Vec2ConformerFeatureEncoder,
    Wav2Vec2ConformerFeedForward,
    Wav2Vec2ConformerRelPositionalEmbedding,
    Wav2Vec2ConformerSelfAttention,
)

from ..modeling.attach.conformer_attention import (
    NAMES,
    ConformerAttention,
    NearSinusoids,
)
from ..modeling.attach.custom_attention import OnTheBackend, replacing
from ..modeling.attach.stretches import FeatureEncoderInStretches, FramesInStretches
from ..modeling.classes import Family, long_config
from ..modeling.family.audio_config import LongAudioConfig
from ..modeling.family.audio_rule import AudioRule, adapted
from ..modeling.family.convolutions import normalised_over_time

FAMILY = Family(
    long_config(__name__, LongAudioConfig, Wav2Vec2ConformerConfig),
    mixin=replacing(
        __name__,
        {
            Wav2Vec2ConformerFeatureEncoder: FeatureEncoderInStretches,
            Wav2Vec2ConformerFeedForward: FramesInStretches,
            Wav2Vec2ConformerRelPositionalEmbedding: NearSinusoids,
            Wav2Vec2ConformerSelfAttention: ConformerAttention,
        },
        OnTheBackend,
    ),
    attention=NAMES,
    rule=AudioRule(
        outputs=adapted,
        positions="relative or rotary",
        why_chunks_differ=normalised_over_time,
        why_padding_changes=lambda config: "the convolutions of its layers carry padding into sound",
    ),
)
