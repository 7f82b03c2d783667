"""LongData2VecVision: data2vec for images (Baevski et al. 2022), BEiT whose attention does not use transformers' AttentionInterface."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.models.data2vec.configuration_data2vec_vision import Data2VecVisionConfig
from transformers.models.data2vec.modeling_data2vec_vision import (
    Data2VecVisionRelativePositionBias,
    Data2VecVisionSdpaSelfAttention,
    Data2VecVisionSelfAttention,
)

from ..backend import BACKEND, GRID
from ..modeling.attach.custom_attention import OnTheBackend, OnTheInterface, attend_by_mechanism, split_heads
from ..modeling.attach.relative_bias import BIASES, bias_by_distance
from ..modeling.classes import Family, long_config
from ..modeling.family.config import BASE_ATTENTION, attention_implementation, runs_mechanisms
from ..modeling.family.grid_config import LongGridConfig
from ..modeling.family.grid_rule import GridRule


class LongData2VecVisionRelativePositionBias(Data2VecVisionRelativePositionBias):
    """Data2VecVisionRelativePositionBias that gives a mechanism one bias per head and distance."""

    config: Any

    def forward(self, window_size: tuple[int, int], interpolate_pos_encoding: bool = False, dim_size: int | None = None) -> Any:
        """:class:`GridBias`; for other attention implementations ``(1, H, N, N)``."""
        if not runs_mechanisms(self):
            return super().forward(window_size, interpolate_pos_encoding, dim_size)
        return bias_by_distance(self, window_size, self.config)


class LongData2VecVisionSelfAttention(Data2VecVisionSdpaSelfAttention):
    """The projections of Data2VecVisionSelfAttention with the mechanism."""

    config: Any
    is_causal = False

    def forward(
        self,
        hidden_states: Tensor,
        output_attentions: bool = False,
        relative_position_bias: Any = None,
        interpolate_pos_encoding: bool = False,
        resolution: tuple[int, int] | None = None,
    ) -> Any:
        implementation = attention_implementation(self.config)
        if implementation != BACKEND:
            kind = Data2VecVisionSelfAttention if implementation == "eager" else Data2VecVisionSdpaSelfAttention
            return kind.forward(self, hidden_states, output_attentions, relative_position_bias, interpolate_pos_encoding, resolution)
        assert resolution is not None
        grid = RULE.of_size(self.config, tuple(resolution))
        bias = relative_position_bias
        if self.has_relative_position_bias:
            own_bias = self.relative_position_bias(grid.sizes)
            bias = own_bias if bias is None else own_bias + bias
        query, key, value = (split_heads(self, projection(hidden_states)) for projection in (self.query, self.key, self.value))
        terms = {GRID: grid, "output_attentions": output_attentions} | ({} if bias is None else {"position_bias": bias})
        return attend_by_mechanism(self, query, key, value, None, **terms)


class Data2VecVisionOnTheBackend(OnTheInterface, OnTheBackend):
    """As :class:`OnTheInterface`, but built under "sdpa": the base has no class for other attention."""

    replaced = {
        Data2VecVisionRelativePositionBias: LongData2VecVisionRelativePositionBias,
        Data2VecVisionSelfAttention: LongData2VecVisionSelfAttention,
        Data2VecVisionSdpaSelfAttention: LongData2VecVisionSelfAttention,
    }
    _supports_flash_attn = _supports_flex_attn = False
    adding = BIASES

    def get_correct_attn_implementation(self, requested_attention: str | None, is_init_check: bool = False) -> str:
        implementation = super().get_correct_attn_implementation(requested_attention, is_init_check)
        if not is_init_check:
            return implementation
        setattr(self.config, BASE_ATTENTION, True)
        return "sdpa"


RULE = GridRule(prefix=1, interpolates=False, adds_positions=False, trained_size=("Data2VecVisionForSemanticSegmentation",))
FAMILY = Family(
    long_config(__name__, LongGridConfig, Data2VecVisionConfig),
    classes=("Data2VecVisionForImageClassification", "Data2VecVisionForSemanticSegmentation", "Data2VecVisionModel"),
    mixin=Data2VecVisionOnTheBackend,
    rule=RULE,
)
