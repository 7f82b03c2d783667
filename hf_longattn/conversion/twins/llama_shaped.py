"""Llama and Mistral with windows become Mistral, Ministral or SmolLM3; Gemma with windows becomes VaultGemma.

Mistral has a window in all layers, the others in some. The first three have the layers and tensors of a Llama. Ministral, like Mistral, has
no biases; SmolLM3 may have biases. ``no_rope_layers`` of SmolLM3 is 1 for every layer, which means that every layer has rotary positions.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from ...mechanisms.window import Window
from ...modeling.family.sliding_window import FULL, SLIDING
from ..long_models.base import TensorRename
from .base import LongModel, NativeTwin, band_refusal, one_width, register_twin

BIASES = ("attention_bias", "mlp_bias")


class LlamaShaped(NativeTwin):
    """A decoder with windows of one width; by default, for models with the layers of a Llama."""

    families = frozenset(("llama", "mistral"))
    computes = (Window,)

    def refusal(self, model: LongModel) -> str | None:
        reason, lookbacks = band_refusal(model)
        return reason or one_width(lookbacks)[0] or self.shape_refusal(model, lookbacks)

    @abstractmethod
    def shape_refusal(self, model: LongModel, lookbacks: list[int | None]) -> str | None:
        """Reason why the twin cannot hold this model, whose windows have one width. ``None`` if it can."""

    def lookbacks(self, model: LongModel) -> list[int | None]:
        """How many tokens back each layer sees; ``None`` for all."""
        return band_refusal(model)[1]

    def config_values(self, model: LongModel) -> dict[str, Any]:
        back = one_width(self.lookbacks(model))[1]
        return {**model.values(), "sliding_window": None if back is None else back + 1}


def biased(model: LongModel) -> str | None:
    """Reason why an architecture without biases cannot hold this model. ``None`` if the model has no biases."""
    name_of_bias = next((name for name in BIASES if getattr(model.config, name, False)), None)
    return None if name_of_bias is None else f"Layer 0 has biases ({name_of_bias}=True)"


@register_twin("mistral")
class Mistral(LlamaShaped):
    """Mistral, with one window for all layers."""

    model_type = "mistral"
    rank = 20

    def shape_refusal(self, model: LongModel, lookbacks: list[int | None]) -> str | None:
        if None in lookbacks:
            return f"Layer {lookbacks.index(None)} has full attention and others a window, and Mistral has one setting for all layers."
        reason = biased(model)
        return None if reason is None else f"{reason}, and Mistral has none."


def layer_types(lookbacks: list[int | None]) -> list[str]:
    """transformers' names for layers with and without a window."""
    return [FULL if back is None else SLIDING for back in lookbacks]


@register_twin("ministral")
class Ministral(LlamaShaped):
    """Ministral, with a window in some layers."""

    model_type = "ministral"
    rank = 30

    def shape_refusal(self, model: LongModel, lookbacks: list[int | None]) -> str | None:
        reason = biased(model)
        return None if reason is None else f"{reason}, and Ministral has none."

    def config_values(self, model: LongModel) -> dict[str, Any]:
        return {**super().config_values(model), "layer_types": layer_types(self.lookbacks(model))}


@register_twin("smollm3")
class SmolLM3(LlamaShaped):
    """SmolLM3, with a window in any layers, and biases."""

    model_type = "smollm3"
    rank = 40

    def shape_refusal(self, model: LongModel, lookbacks: list[int | None]) -> str | None:
        return None

    def config_values(self, model: LongModel) -> dict[str, Any]:
        fields = {"use_sliding_window": True, "layer_types": layer_types(self.lookbacks(model)), "no_rope_layers": [1] * len(model.layers)}
        return {**super().config_values(model), **fields}


@register_twin("vaultgemma")
class VaultGemma(LlamaShaped):
    """VaultGemma without caps, for a Gemma with windows: Gemma 2 without norms after attention and MLP."""

    model_type = "vaultgemma"
    families = frozenset(("gemma",))

    def shape_refusal(self, model: LongModel, lookbacks: list[int | None]) -> str | None:
        if getattr(model.config, "use_bidirectional_attention", None):
            return "Layer 0 sees future tokens (use_bidirectional_attention), and VaultGemma is causal."
        return None

    def config_values(self, model: LongModel) -> dict[str, Any]:
        values, config = super().config_values(model), model.config
        return {
            **values,
            "sliding_window": values["sliding_window"] or 1,
            "layer_types": layer_types(self.lookbacks(model)),
            "query_pre_attn_scalar": config.head_dim,
            "hidden_activation": config.hidden_act,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
        }

    def rename(self, name: str, model: LongModel) -> tuple[TensorRename, ...]:
        return (TensorRename(name.replace(".post_attention_layernorm.", ".pre_feedforward_layernorm.")),)
