"""``enable_long_attention``: long attention in a model of any architecture, without a Long class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from transformers import PreTrainedModel

from ..backend import BACKEND
from ..configuration import LongAttentionConfig
from ..errors import BackendError
from .attachment import attach_mechanisms
from .memory_tokens import recursion_of
from .sharing import shared_parameters

Model = TypeVar("Model", bound=PreTrainedModel)


def enable_long_attention(model: Model, long_attention: Mapping[str, Any] | LongAttentionConfig) -> Model:
    """Replace the self-attention of ``model`` in place; positions, weights and cross-attention stay as they are.

        model = ViTModel.from_pretrained(...)
        enable_long_attention(model, {"mechanism": "window", "window": 64})

    Works for every architecture on transformers' AttentionInterface (ViT, Whisper, CLIP, ModernBERT, BART …). A window of the model's
    own gives way to the mechanism. The choice is not written into the model's config: call it again after loading. The decode cache
    keeps every token; the Long classes have the bounded one. ``model.set_attn_implementation("sdpa")`` switches back.

    Args:
        model: any model of transformers.
        long_attention: which mechanism in which layer; encoder and decoder count their layers separately.

    Returns:
        The same model.

    Raises:
        BackendError: the architecture is not on the AttentionInterface, or has no attention.
        UnknownMechanismError, OptionError: from ``long_attention``.
    """
    chosen = LongAttentionConfig.from_dict(long_attention)
    check_interface(type(model))
    sites = attach_mechanisms(model, chosen)
    if recursion_of(model) is not None:
        raise BackendError(
            f"Mechanism {chosen.mechanism!r} passes memory tokens through a whole model, for which only the Long classes are made; "
            "load the checkpoint with a Long class and long_attention in its config, or choose another mechanism."
        )
    if shared := shared_parameters(model):
        model.all_tied_weights_keys = {**model.all_tied_weights_keys, **shared}  # saved once
    for submodel in [module for module in model.modules() if isinstance(module, PreTrainedModel)]:
        submodel.set_attn_implementation(BACKEND)  # an encoder and a decoder may have configs of their own
    deaf = [site.name for site in sites if getattr(getattr(site.module, "config", None), "_attn_implementation", BACKEND) != BACKEND]
    if deaf:
        raise BackendError(
            f"{type(model).__name__} keeps its own attention in {deaf[0]}, so it cannot be replaced; "
            "set attn_implementation='longattn' on the config of that part yourself, or leave this model as it is."
        )
    return model


def check_interface(model_class: type[Any]) -> None:
    """Raise :class:`BackendError` for a class whose attention modules do not call what the config names."""
    if not issubclass(model_class, PreTrainedModel) or not model_class._can_set_attn_implementation():
        raise BackendError(
            f"{model_class.__name__} does not take its attention from transformers' AttentionInterface, so it cannot be replaced; "
            "on it are BERT, RoBERTa, ELECTRA, ModernBERT, GPT-2, GPT-NeoX, OPT, Llama, BART, T5, ViT, Wav2Vec2, Whisper and others."
        )
