"""LongMT5: mT5 (Xue et al. 2021), T5 v1.1 over a hundred languages."""

from transformers.models.mt5.configuration_mt5 import MT5Config
from transformers.models.mt5.modeling_mt5 import MT5Attention

from ..modeling.attach.custom_attention import OnTheBackend, replacing
from ..modeling.attach.t5_attention import NAMES, BucketedAttention, BucketedConfig
from ..modeling.classes import Family, long_config

FAMILY = Family(
    long_config(__name__, BucketedConfig, MT5Config, attribute_map={**MT5Config.attribute_map, **NAMES}, trained_length=1024),
    relative=True,
    stack="MT5Stack",
    mixin=replacing(__name__, {MT5Attention: BucketedAttention}, OnTheBackend),
)
