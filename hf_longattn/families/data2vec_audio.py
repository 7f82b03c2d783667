"""LongData2VecAudio: data2vec for speech (Baevski et al. 2022), frames of 20 ms, positions from a stack of convolutions."""

from transformers.models.data2vec.configuration_data2vec_audio import Data2VecAudioConfig
from transformers.models.data2vec.modeling_data2vec_audio import Data2VecAudioFeatureEncoder, Data2VecAudioFeedForward

from ..modeling.attach.stretches import in_stretches
from ..modeling.classes import Family, long_config
from ..modeling.family.audio_config import LongAudioConfig
from ..modeling.family.audio_rule import AudioRule, adapted

FAMILY = Family(
    long_config(__name__, LongAudioConfig, Data2VecAudioConfig),
    mixin=in_stretches(__name__, Data2VecAudioFeatureEncoder, Data2VecAudioFeedForward),
    classes=(
        "Data2VecAudioForAudioFrameClassification",
        "Data2VecAudioForCTC",
        "Data2VecAudioForSequenceClassification",
        "Data2VecAudioForXVector",
        "Data2VecAudioModel",
    ),
    rule=AudioRule(
        outputs=adapted,
        why_padding_changes=lambda config: "its positions are several convolutions, which carry padding into sound",
    ),
)
