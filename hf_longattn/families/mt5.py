"""LongMT5: mT5 (Xue et al. 2021), T5 v1.1 over a hundred languages."""

from transformers.models.mt5.configuration_mt5 import MT5Config
from transformers.models.mt5.modeling_mt5 import MT5Attention

from ..modeling.attach.t5_attention import NAMES, BucketedConfig, BucketedOnTheBackend, SharedBucketedAttention
from ..modeling.classes import Family


class LongMT5Config(BucketedConfig, MT5Config):
    """MT5Config with ``long_attention``, ``decoder_long_attention`` and the two lengths of :class:`BucketedConfig`."""

    model_type = "long_mt5"
    attribute_map = {**MT5Config.attribute_map, **NAMES}
    trained_length = 1024


class MT5OnTheBackend(BucketedOnTheBackend):
    """Replaces the base's attention by :class:`SharedBucketedAttention`."""

    replaced = {MT5Attention: SharedBucketedAttention}


FAMILY = Family(LongMT5Config, relative=True, stack="MT5Stack", mixin=MT5OnTheBackend)
