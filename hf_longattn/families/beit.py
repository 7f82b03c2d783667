"""LongBeit: BEiT (Bao et al. 2021), a ViT with relative position biases in place of positions. Here the bias is not built as
``(H, N, N)``: it is a term of a mechanism's scores."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.models.beit.configuration_beit import BeitConfig
from transformers.models.beit.modeling_beit import BeitAttention, BeitRelativePositionBias

from ..modeling.attach.custom_attention import OnTheBackend
from ..modeling.attach.relative_bias import BIASES, MaskWithBias, bias_by_distance
from ..modeling.classes import Family, long_config
from ..modeling.family.config import runs_mechanisms
from ..modeling.family.grid_config import LongGridConfig
from ..modeling.family.grid_rule import GridRule


class LongBeitRelativePositionBias(BeitRelativePositionBias):
    """BeitRelativePositionBias that gives a mechanism one bias per head and distance."""

    config: Any

    def forward(self, window_size: tuple[int, int], interpolate_pos_encoding: bool = False, dim_size: int | None = None) -> Any:
        """:class:`MaskWithBias`; for other attention implementations ``(1, H, N, N)``."""
        if not runs_mechanisms(self):
            return super().forward(window_size, interpolate_pos_encoding, dim_size)
        return MaskWithBias(bias_by_distance(self, window_size, self.config))


class LongBeitAttention(BeitAttention):
    """BeitAttention that takes a :class:`MaskWithBias` as its mask."""

    def forward(self, hidden_states: Tensor, attention_mask: Any = None, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if isinstance(attention_mask, MaskWithBias):
            kwargs["position_bias"], attention_mask = attention_mask.bias, attention_mask.mask
        return super().forward(hidden_states, attention_mask, **kwargs)


class BeitWithBias(OnTheBackend):
    """Replaces modules of the base."""

    replaced = {BeitRelativePositionBias: LongBeitRelativePositionBias, BeitAttention: LongBeitAttention}
    adding = BIASES


FAMILY = Family(
    long_config(__name__, LongGridConfig, BeitConfig), mixin=BeitWithBias, rule=GridRule(prefix=1, interpolates=False, adds_positions=False)
)
