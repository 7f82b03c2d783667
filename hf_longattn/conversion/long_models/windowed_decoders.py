"""Stock decoders with windows in some layers become the family with the same layers. Ministral becomes LongLlama, VaultGemma LongGemma.

A VaultGemma with caps on its scores or logits, as Google's has them, is not a Gemma and is refused.
"""

from __future__ import annotations

from typing import Any, ClassVar

from ...configuration import LongAttentionConfig
from ...errors import CheckpointError
from ...modeling.family.sliding_window import SLIDING
from .base import CheckpointConverter, TensorRename, register_checkpoint_converter


class WindowedDecoder(CheckpointConverter):
    """A decoder with the classes of the family's base, whose names have another stem."""

    takes_globals = False
    stem: ClassVar[str]
    base_stem: ClassVar[str]
    dropped: ClassVar[frozenset[str]] = frozenset({"sliding_window", "layer_types"})
    """Fields of the source's config that the result's does not have."""

    def base_class(self, source_class: str) -> str | None:
        return source_class.replace(self.stem, self.base_stem, 1) if source_class.startswith(self.stem) else None

    def attention(self, config: Any, source_class: str) -> LongAttentionConfig:
        """The mechanisms equal to ``layer_types`` and ``sliding_window``."""
        window = {"mechanism": "window", "window": config.sliding_window}
        sliding = [index for index, kind in enumerate(config.layer_types) if kind == SLIDING]
        if len(sliding) == config.num_hidden_layers:
            return LongAttentionConfig("window", window=config.sliding_window)
        return LongAttentionConfig("full", layers=dict.fromkeys(sliding, window))

    def config_values(self, config: Any) -> dict[str, Any]:
        return {name: value for name, value in config.to_dict().items() if name not in self.dropped}


@register_checkpoint_converter("ministral")
class MinistralConverter(WindowedDecoder):
    """MinistralModel and its heads."""

    model_type = "ministral"
    family = "llama"
    stem, base_stem = "Ministral", "Llama"


@register_checkpoint_converter("vaultgemma")
class VaultGemmaConverter(WindowedDecoder):
    """VaultGemmaModel and VaultGemmaForCausalLM without caps."""

    model_type = "vaultgemma"
    family = "gemma"
    stem, base_stem = "VaultGemma", "Gemma"
    dropped = WindowedDecoder.dropped | {"query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping", "hidden_activation"}

    def config_values(self, config: Any) -> dict[str, Any]:
        scale, caps = config.query_pre_attn_scalar, (config.attn_logit_softcapping, config.final_logit_softcapping)
        if caps != (None, None) or scale != config.head_dim:
            raise CheckpointError(
                f"A VaultGemma with caps on scores or logits {caps} and scores scaled by {scale} is not a Gemma; "
                "convert its plain class with --generic."
            )
        return {**super().config_values(config), "hidden_act": config.hidden_activation}

    def rename(self, name: str, config: Any) -> TensorRename:
        return TensorRename(name.replace(".pre_feedforward_layernorm.", ".post_attention_layernorm."))
