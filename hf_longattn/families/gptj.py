"""LongGPTJ: GPT-J (Wang and Komatsuzaki 2021), causal, rotary positions on a part of each head. transformers cannot scale these positions.

The layers pass no keyword arguments to attention, so mechanisms cannot have global tokens.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import Cache
from transformers.models.gptj import modeling_gptj
from transformers.models.gptj.configuration_gptj import GPTJConfig
from transformers.models.gptj.modeling_gptj import GPTJAttention, apply_rotary_pos_emb

from ..backend import BACKEND
from ..modeling.attach.custom_attention import ReplacedModules, attend_by_mechanism
from ..modeling.classes import Family, long_config
from ..modeling.family.config import LongConfig, runs_mechanisms


class LongGPTJAttention(GPTJAttention):
    """GPTJAttention that runs the mechanism on the base's projections."""

    def forward(
        self,
        hidden_states: Tensor,
        layer_past: Cache | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        use_cache: bool | None = False,
        output_attentions: bool | None = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        if not runs_mechanisms(self):
            return super().forward(hidden_states, layer_past, attention_mask, position_ids, use_cache, output_attentions, **kwargs)
        query, key, value = (
            projection(hidden_states).unflatten(-1, (self.num_attention_heads, self.head_dim))
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        sin, cos = self.embed_positions.to(key.device)[position_ids].to(key.dtype).chunk(2, dim=-1)
        query, key = (self._rotated(states, sin, cos).transpose(1, 2) for states in (query, key))
        value = value.transpose(1, 2)
        if layer_past is not None:
            key, value = layer_past.update(key, value, self.layer_idx)
        kwargs |= {"output_attentions": output_attentions, "dropout": self.attn_dropout.p}
        output, weights = attend_by_mechanism(self, query, key, value, attention_mask, scaling=self.head_dim**-0.5, **kwargs)
        return self.resid_dropout(self.out_proj(output)), weights

    def _rotated(self, states: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
        """``states (B, N, H, D)`` with the first ``rotary_dim`` components of each head rotated."""
        rotary, rest = states.split([sin.shape[-1] * 2, states.shape[-1] - sin.shape[-1] * 2], dim=-1)
        return torch.cat([apply_rotary_pos_emb(rotary, sin, cos), rest], dim=-1)


OWN_CLASSES = getattr(modeling_gptj, "GPTJ_ATTENTION_CLASSES", None)  # since transformers 5.24 the base is on the AttentionInterface
if OWN_CLASSES is not None:
    OWN_CLASSES.setdefault(BACKEND, LongGPTJAttention)  # from which the base builds its layers


class GPTJOnTheBackend(ReplacedModules):
    """Replaces the base's attention by :class:`LongGPTJAttention` for every attention implementation."""

    _supports_attention_backend = True
    hands_globals_down: ClassVar[bool] = False
    replaced = {GPTJAttention: LongGPTJAttention}


FAMILY = Family(
    long_config(__name__, LongConfig, GPTJConfig, default_mechanism="window"),
    rope=True,
    **({} if OWN_CLASSES is None else {"mixin": GPTJOnTheBackend}),
)
