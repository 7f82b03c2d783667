"""Small random models of every base architecture, and their Long counterparts with the same weights."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

import hf_longattn.families as families

SHAPE = {"vocab_size": 200, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "initializer_range": 0.2}
SPECIAL = {"bos_token_id": 3, "eos_token_id": 3, "pad_token_id": 3}
ROTARY = {"intermediate_size": 96, "max_position_embeddings": 512, **SPECIAL}
FULL_LAYERS = ["full_attention"] * 3
GEMMA = {**ROTARY, "num_key_value_heads": 2, "head_dim": 24, "query_pre_attn_scalar": 20, "sliding_window": 32, "layer_types": FULL_LAYERS}
OWN: dict[str, dict[str, Any]] = {
    "bert": {"intermediate_size": 96, "max_position_embeddings": 512, "pad_token_id": 0},
    "roberta": {"intermediate_size": 96, "max_position_embeddings": 514, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2},
    "xlm-roberta": {"intermediate_size": 96, "max_position_embeddings": 514},
    "camembert": {"intermediate_size": 96, "max_position_embeddings": 514},
    "electra": {"intermediate_size": 96, "max_position_embeddings": 512, "embedding_size": 24},
    "distilbert": {"hidden_dim": 96, "max_position_embeddings": 512},
    "albert": {"intermediate_size": 96, "max_position_embeddings": 512, "embedding_size": 24},
    "esm": {"intermediate_size": 96, "max_position_embeddings": 514, "pad_token_id": 1, "mask_token_id": 4, "token_dropout": True},
    "modernbert": {
        "intermediate_size": 96,
        "max_position_embeddings": 512,
        "local_attention": 8,
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "cls_token_id": 2,
        "sep_token_id": 3,
    },
    "big_bird": {"intermediate_size": 96, "max_position_embeddings": 512, "attention_type": "original_full", "sep_token_id": 3},
    "gpt2": {"n_inner": 96, "max_position_embeddings": 512, "bos_token_id": 3, "eos_token_id": 3, "pad_token_id": 3},
    "llama": {**ROTARY, "num_key_value_heads": 2},
    "gpt_neox": ROTARY,
    "opt": {"ffn_dim": 96, "max_position_embeddings": 512, "word_embed_proj_dim": 24, "init_std": 0.2, **SPECIAL},
    "mistral": {**ROTARY, "num_key_value_heads": 2, "sliding_window": None},
    "qwen2": {**ROTARY, "num_key_value_heads": 2},
    "qwen3": {**ROTARY, "num_key_value_heads": 2, "head_dim": 24},
    "gemma": {**ROTARY, "num_key_value_heads": 1, "head_dim": 24},
    "gemma2": {**GEMMA, "attn_logit_softcapping": 3.0, "final_logit_softcapping": 5.0},
    "gemma3_text": GEMMA,
    "phi": ROTARY,
    "phi3": {**ROTARY, "num_key_value_heads": 2},
    "smollm3": {**ROTARY, "num_key_value_heads": 2, "no_rope_layer_interval": 2},
}
BASES = tuple(OWN)
OFF_THE_INTERFACE = ("big_bird",)
"""Bases whose own attention is not on transformers' AttentionInterface: the Long model calls another kernel, and bits may differ."""
ENCODERS, DECODERS = ("bert", "roberta"), ("gpt2", "llama")
HEADS = [(base, head) for base in BASES for head in families.FAMILIES[base].heads]
LANGUAGE_MODELS = {base: next(head for suffix in ("ForMaskedLM", "LMHeadModel", "ForCausalLM") for head in families.FAMILIES[base].heads
                              if head.endswith(suffix)) for base in BASES}  # fmt: skip
"""The class of every base that predicts tokens."""
CAUSAL = tuple(base for base in BASES if LANGUAGE_MODELS[base].endswith(("ForCausalLM", "LMHeadModel")))


IMPLEMENTATIONS = {base: ("eager",) if base == "gemma2" else ("sdpa", "eager") for base in BASES}
"""transformers' own attention implementations that the base runs with; sdpa has no cap on the scores."""


def plain_config(base: str, **changes: Any) -> Any:
    return CONFIG_MAPPING[base](**{**SHAPE, **OWN[base], **changes})


def long_config(base: str, long_attention: Any, **changes: Any) -> Any:
    return families.FAMILIES[base].config_class(**{**SHAPE, **OWN[base], **changes}, long_attention=long_attention)


def base_class(base: str, head: str | None = None) -> type[PreTrainedModel]:
    import transformers

    return getattr(transformers, head or MODEL_MAPPING_NAMES[base])


def plain_model(base: str, head: str | None = None, **changes: Any) -> Any:
    torch.manual_seed(0)
    return base_class(base, head)(plain_config(base, **changes)).eval()


def long_like(plain: Any, base: str, long_attention: Any, **changes: Any) -> Any:
    """The Long model of ``plain``'s class with the same weights; what the mechanisms add is as it was initialised."""
    long_class = families.FAMILIES[base].long_class_of(type(plain))
    assert long_class is not None
    torch.manual_seed(0)
    model = long_class(long_config(base, long_attention, **changes)).eval()
    left = model.load_state_dict(copy.deepcopy(plain.state_dict()), strict=False)
    assert not left.unexpected_keys
    assert all(".long_attention." in name or "long_memory." in name for name in left.missing_keys)
    return model


def pair(base: str, head: str | None, long_attention: Any, **changes: Any) -> tuple[Any, Any]:
    plain = plain_model(base, head, **changes)
    return plain, long_like(plain, base, long_attention, **changes)


def same(base: str, a: Tensor, b: Tensor) -> bool:
    """Whether two results are the same bits, or equal up to rounding where the base computes its attention otherwise."""
    return torch.allclose(a, b, atol=2e-5, rtol=0) if base in OFF_THE_INTERFACE else torch.equal(a, b)


def tokens(batch: int = 3, length: int = 100) -> Tensor:
    return torch.randint(5, SHAPE["vocab_size"], (batch, length), generator=torch.Generator().manual_seed(1))


def padding(batch: int, length: int, *, left: bool = False) -> Tensor:
    """Every row shorter than the one before by a sixth; 1 = real token."""
    real = torch.tensor([length - row * length // 6 for row in range(batch)])[:, None]
    position = torch.arange(length)[None]
    return (position >= length - real).long() if left else (position < real).long()


def head_inputs(head: str, batch: int = 3, length: int = 100, pad_token: int = 1) -> dict[str, Tensor]:
    """input_ids with padding and attention_mask, in the shape that the head takes."""
    mask = padding(batch, length)
    inputs = {"input_ids": torch.where(mask.bool(), tokens(batch, length), pad_token), "attention_mask": mask}
    if head.endswith(("MultipleChoice", "DoubleHeadsModel")):
        return {name: value[:, None].expand(-1, 2, -1).contiguous() for name, value in inputs.items()}
    return inputs
