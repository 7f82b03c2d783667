"""LongData2VecAudio: data2vec for speech (Baevski et al. 2022), sound as frames, positions by several convolutions."""

from transformers.models.data2vec.configuration_data2vec_audio import Data2VecAudioConfig

from ..modeling.classes import lazy_classes
from ..modeling.family.audio_config import LongAudioConfig
from ..modeling.family.audio_rule import AudioRule, adapted
from ..modeling.family.definition import Family
from ..modeling.family.stream_rule import Convolution, StreamRule, unpadded_convolutions


class LongData2VecAudioConfig(LongAudioConfig, Data2VecAudioConfig):
    """Data2VecAudioConfig with ``long_attention``."""

    model_type = "long_data2vec-audio"


FAMILY = Family(
    LongData2VecAudioConfig,
    package="data2vec",
    classes=(
        "Data2VecAudioForAudioFrameClassification",
        "Data2VecAudioForCTC",
        "Data2VecAudioForSequenceClassification",
        "Data2VecAudioForXVector",
        "Data2VecAudioModel",
    ),
    audio=AudioRule(
        outputs=adapted,
        why_padding_changes=lambda config: "its positions are several convolutions, which carry padding into sound",
        stream=StreamRule(
            unpadded_convolutions,
            ("encoder", lambda config: [Convolution.centred(config.conv_pos_kernel_size)] * config.num_conv_pos_embeddings),
        ),
    ),
)

__getattr__ = lazy_classes(FAMILY, globals())
