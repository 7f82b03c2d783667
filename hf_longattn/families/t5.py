"""LongAttentionT5: T5, T5 v1.1 and FLAN-T5 (Raffel et al. 2020), an encoder-decoder with relative position biases on the scores, so the
mechanism must allow terms on its scores. It is unrelated to transformers' LongT5 classes.
"""

from transformers.models.t5.configuration_t5 import T5Config
from transformers.models.t5.modeling_t5 import T5Attention

from ..modeling.attach.t5_attention import NAMES, BucketedConfig, BucketedOnTheBackend, SharedBucketedAttention
from ..modeling.classes import Family


class LongAttentionT5Config(BucketedConfig, T5Config):
    """T5Config with ``long_attention``, ``decoder_long_attention`` and the two lengths of :class:`BucketedConfig`."""

    model_type = "long_t5"
    attribute_map = {**T5Config.attribute_map, **NAMES}


class T5OnTheBackend(BucketedOnTheBackend):
    """Replaces the base's attention by :class:`SharedBucketedAttention`."""

    replaced = {T5Attention: SharedBucketedAttention}


FAMILY = Family(LongAttentionT5Config, relative=True, stack="T5Stack", mixin=T5OnTheBackend)
