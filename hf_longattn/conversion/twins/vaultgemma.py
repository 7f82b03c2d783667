"""Gemma with windows becomes VaultGemma: Gemma 2 without the norms after attention and MLP. Here without caps on scores and logits."""

from __future__ import annotations

from typing import Any

from ...mechanisms.window import Window
from ..long_models.base import TensorRename
from .base import LongModel, NativeTwin, band_refusal, one_width, register_twin
from .llama_shaped import layer_types


@register_twin("vaultgemma")
class VaultGemma(NativeTwin):
    """VaultGemma, for a Gemma with windows in any layers."""

    model_type = "vaultgemma"
    families = frozenset(("gemma",))
    computes = (Window,)

    def refusal(self, model: LongModel) -> str | None:
        if getattr(model.config, "use_bidirectional_attention", None):
            return "Layer 0 sees future tokens (use_bidirectional_attention), and VaultGemma is causal."
        reason, lookbacks = band_refusal(model)
        return reason or one_width(lookbacks)[0]

    def config_values(self, model: LongModel) -> dict[str, Any]:
        config, lookbacks = model.config, band_refusal(model)[1]
        back = one_width(lookbacks)[1]
        return {
            **model.values(),
            "sliding_window": 1 if back is None else back + 1,
            "layer_types": layer_types(lookbacks),
            "query_pre_attn_scalar": config.head_dim,
            "hidden_activation": config.hidden_act,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
        }

    def rename(self, name: str, model: LongModel) -> tuple[TensorRename, ...]:
        return (TensorRename(name.replace(".post_attention_layernorm.", ".pre_feedforward_layernorm.")),)
