"""LongGPTNeo: GPT-Neo (Black et al. 2021), causal, one learned position table, unscaled scores.

Every other layer is local: it keeps its window of the last ``window_size`` tokens (:mod:`hf_longattn.modeling.family.sliding_window`).
Without ``long_attention`` the remaining layers have full attention, as in GPT-Neo. The layers pass no keyword arguments to attention, so
mechanisms cannot have global tokens.
"""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import Cache, initialization
from transformers.models.gpt_neo.configuration_gpt_neo import GPTNeoConfig
from transformers.models.gpt_neo.modeling_gpt_neo import GPT_NEO_ATTENTION_CLASSES, GPTNeoSelfAttention

from ..backend import BACKEND
from ..modeling.attach.custom_attention import ReplacedModules, attend_by_mechanism, by_head
from ..modeling.classes import Family, long_config
from ..modeling.family.config import LongConfig, runs_mechanisms
from ..modeling.family.definition import PositionTable


class LongGPTNeoSelfAttention(GPTNeoSelfAttention):
    """The projections of GPTNeoSelfAttention with the mechanism. The base's N×N mask ``bias`` is built when its attention runs."""

    bias: Tensor

    def __init__(self, config: Any, attention_type: str, layer_id: int | None = None) -> None:
        short = copy.copy(config)  # the base builds an N×N mask (N = max_position_embeddings); post_init puts the model's own config back
        short.max_position_embeddings = 1
        super().__init__(short, attention_type, layer_id)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        layer_past: Cache | None = None,
        use_cache: bool = False,
        output_attentions: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        if not runs_mechanisms(self):
            return super().forward(hidden_states, attention_mask, layer_past, use_cache, output_attentions, **kwargs)
        query, key, value = by_head(hidden_states, self.head_dim, self.q_proj, self.k_proj, self.v_proj)
        if layer_past is not None:
            key, value = layer_past.update(key, value, self.layer_id)
        kwargs |= {"output_attentions": output_attentions, "dropout": self.attn_dropout.p}
        output, weights = attend_by_mechanism(self, query, key, value, attention_mask, scaling=1.0, **kwargs)
        return self.resid_dropout(self.out_proj(output)), weights

    def _attn(self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if self.bias.shape[-1] < key.shape[2]:
            seen = torch.ones(1, 1, key.shape[2], key.shape[2], dtype=torch.bool, device=key.device).tril()
            self.bias = seen.triu(1 - self.config.window_size) if self.attention_type == "local" else seen
        return super()._attn(query, key, value, attention_mask)


GPT_NEO_ATTENTION_CLASSES.setdefault(BACKEND, LongGPTNeoSelfAttention)  # from which the base builds its layers


class GPTNeoOnTheBackend(ReplacedModules):
    """Replaces the base's attention by :class:`LongGPTNeoSelfAttention` for every attention implementation."""

    _supports_attention_backend = True
    hands_globals_down: ClassVar[bool] = False
    replaced = {GPTNeoSelfAttention: LongGPTNeoSelfAttention}

    def post_init(self) -> None:
        for module in self.modules():
            if isinstance(module, GPTNeoSelfAttention):
                module.layer_idx, module.config = module.layer_id, self.config
        super().post_init()

    def adapt_module(self, name: str, module: Any) -> None:
        module.bias = module.bias[..., :1, :1].clone()

    def _init_weights(self, module: Any) -> None:
        if isinstance(module, LongGPTNeoSelfAttention):
            initialization.ones_(module.bias)
        else:
            super()._init_weights(module)


FAMILY = Family(
    long_config(__name__, LongConfig, GPTNeoConfig, default_mechanism="full"),
    position_tables=(PositionTable(r"wpe\.weight$"),),
    mixin=GPTNeoOnTheBackend,
)
