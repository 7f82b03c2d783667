"""LongAttentionT5: T5, T5 v1.1 and FLAN-T5 (Raffel et al. 2020), an encoder-decoder with relative position biases on the scores, so the
mechanism must allow terms on its scores. It is unrelated to transformers' LongT5 classes.
"""

from transformers.models.t5.configuration_t5 import T5Config
from transformers.models.t5.modeling_t5 import T5Attention

from ..modeling.attach.custom_attention import OnTheBackend, replacing
from ..modeling.attach.t5_attention import NAMES, BucketedAttention, BucketedConfig
from ..modeling.classes import Family, long_config

FAMILY = Family(
    long_config(__name__, BucketedConfig, T5Config, attribute_map={**T5Config.attribute_map, **NAMES}),
    relative=True,
    stack="T5Stack",
    mixin=replacing(__name__, {T5Attention: BucketedAttention}, OnTheBackend),
)
