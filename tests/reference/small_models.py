"""Small random models of every base architecture, and their Long counterparts with the same weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import hf_longattn.families as families
from scripts.dev.tools.small_models import TEXT_FAMILIES, Shape, language_model, small_values

SHAPE = Shape(width=64, layers=3, heads=4, inner=96, tokens=512, vocabulary=200)
TOKENS = {
    "pad_token_id": 1,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "cls_token_id": 2,
    "sep_token_id": 3,
    "mask_token_id": 4,
}
COMMON = {
    **TOKENS,
    "initializer_range": 0.2,
    "init_std": 0.2,
    "num_key_value_heads": 2,
    "attention_type": "original_full",
}
WIDE_HEADS = {"head_dim": 24}
FULL_LAYERS = {"sliding_window": 32, "layer_types": ["full_attention"] * 3}
OWN: dict[str, dict[str, Any]] = {
    "esm": {"token_dropout": True},
    "modernbert": {"local_attention": 8},
    "opt": {"word_embed_proj_dim": 24},
    "mistral": {"sliding_window": None},
    "qwen3": WIDE_HEADS,
    "gemma": {**WIDE_HEADS, "num_key_value_heads": 1},
    "gemma2": {
        **WIDE_HEADS,
        **FULL_LAYERS,
        "query_pre_attn_scalar": 20,
        "attn_logit_softcapping": 3.0,
        "final_logit_softcapping": 5.0,
    },
    "gemma3_text": {**WIDE_HEADS, **FULL_LAYERS, "query_pre_attn_scalar": 20},
    "smollm3": {"no_rope_layer_interval": 2},
    "starcoder2": {"residual_dropout": 0.1},
    "granite": {"attention_multiplier": 0.3, "residual_multiplier": 0.7, "embedding_multiplier": 2.0},
}
"""What makes a base harder to follow than its default config does; the others need nothing here."""
APART = ("deberta-v2", "mpnet")
"""Bases with one stack that have separate tests: their attention adds relative positions, attends with two flows,
takes no global tokens, or is an approximation."""
BASES = tuple(base for base, family in TEXT_FAMILIES.items() if not family.two_stacks and base not in APART)
EAGER = ("gemma2", "markuplm")
"""Bases that run with eager attention alone: sdpa has no cap on the scores, and MarkupLM does not say that it runs
with it."""
OFF_THE_INTERFACE = ("big_bird",)
"""Bases whose own attention is not on transformers' AttentionInterface."""
OTHER_KERNEL = (*OFF_THE_INTERFACE, "markuplm")
"""Bases by default without sdpa: the Long model calls another kernel, and bits may differ."""
ENCODERS, DECODERS = ("bert", "roberta"), ("gpt2", "llama")
HEADS = [(base, head) for base in BASES for head in families.FAMILIES[base].model_classes]
ALL_HEADS_OF = ("bert", "gpt2")
LANGUAGE_MODELS = {base: language_model(base) for base in BASES}
"""The class of every base that predicts tokens."""

CAUSAL = tuple(base for base in BASES if LANGUAGE_MODELS[base].endswith(("ForCausalLM", "LMHeadModel")))


def is_quick_head(base: str, head: str) -> bool:
    """Whether the quick tests have this head: all of an encoder and of a decoder, and two of every other base."""
    return base in ALL_HEADS_OF or head in [*families.FAMILIES[base].model_classes][:2]


IMPLEMENTATIONS = {base: ("eager",) if base in EAGER else ("sdpa", "eager") for base in BASES}
"""transformers' own attention implementations that the base runs with."""


def values_of(base: str) -> dict[str, Any]:
    """The arguments of the configs below."""
    return small_values(base, SHAPE, **{**COMMON, **OWN.get(base, {})})


def plain_config(base: str, **changes: Any) -> Any:
    return CONFIG_MAPPING[base](**{**values_of(base), **changes})


def long_config(base: str, long_attention: Any, **changes: Any) -> Any:
    return families.FAMILIES[base].config_class(**{**values_of(base), **changes}, long_attention=long_attention)


def base_class(base: str, head: str | None = None) -> type[PreTrainedModel]:
    import transformers

    return getattr(transformers, head or families.FAMILIES[base].base_model_name)


def plain_model(base: str, head: str | None = None, **changes: Any) -> Any:
    torch.manual_seed(0)
    model = base_class(base, head)(plain_config(base, **changes)).eval()
    if getattr(model.config, "attn_logit_softcapping", None) is not None:
        model.set_attn_implementation("eager")  # the sdpa of transformers 5.20 leaves out the caps
    return model


def long_model(base: str, head: str | None, long_attention: Any, **changes: Any) -> Any:
    """The Long model of a base's class called ``head``; of its base model where that is None."""
    long_class = families.FAMILIES[base].long_class_of(base_class(base, head))
    assert long_class is not None
    torch.manual_seed(0)
    return long_class(long_config(base, long_attention, **changes)).eval()


def long_like(plain: Any, base: str, long_attention: Any, **changes: Any) -> Any:
    """The Long model of ``plain``'s class with the same weights; what the mechanisms add is as it was initialised."""
    model = long_model(base, type(plain).__name__, long_attention, **changes)
    left = model.load_state_dict(plain.state_dict(), strict=False)
    assert not left.unexpected_keys
    assert all(".long_attention." in name or "long_memory." in name for name in left.missing_keys)
    return model


def in_float64(model: Any) -> Any:
    """The model in float64; experts run one after the other, since PyTorch's grouped product takes no float64."""
    if hasattr(model.config, "num_experts_per_tok"):
        model.set_experts_implementation("eager")
    return model.double()


def pair(base: str, head: str | None, long_attention: Any, **changes: Any) -> tuple[Any, Any]:
    plain = plain_model(base, head, **changes)
    return plain, long_like(plain, base, long_attention, **changes)


def same(base: str, a: Tensor, b: Tensor) -> bool:
    """Whether two results are the same bits, or equal up to rounding where the base computes its attention
    otherwise."""
    atol = 2e-5 * max(1.0, float(a.abs().max()))
    return torch.allclose(a, b, atol=atol, rtol=0) if base in OTHER_KERNEL else torch.equal(a, b)


def tokens(batch: int = 3, length: int = 100, seed: int = 1) -> Tensor:
    return torch.randint(5, SHAPE.vocabulary, (batch, length), generator=torch.Generator().manual_seed(seed))


def padding(batch: int, length: int, *, left: bool = False) -> Tensor:
    """Every row shorter than the one before by a sixth; 1 = real token."""
    real = torch.tensor([length - row * length // 6 for row in range(batch)])[:, None]
    position = torch.arange(length)[None]
    return (position >= length - real).long() if left else (position < real).long()


def positions_of(mask: Tensor) -> Tensor:
    """Positions that count real tokens."""
    return (mask.cumsum(1) - 1).clamp(min=0)


def in_one_pass(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """Logits without a cache."""
    with torch.no_grad():
        return model(ids, attention_mask=mask, position_ids=positions_of(mask), use_cache=False).logits


def in_pieces(model: Any, cache: Any, ids: Tensor, mask: Tensor, cuts: Iterable[tuple[int, int]]) -> Tensor:
    """Logits of the pieces from ``begin`` to ``end``, read one after the other into the cache; ``None`` is the model's
    own."""
    places, logits = positions_of(mask), []
    with torch.no_grad():
        for begin, end in cuts:
            given = {
                "attention_mask": mask[:, :end],
                "position_ids": places[:, begin:end],
                "past_key_values": cache,
                "use_cache": True,
            }
            found = model(ids[:, begin:end], **given)
            cache = found.past_key_values
            logits.append(found.logits)
    return torch.cat(logits, 1)


def singly(begin: int, end: int) -> list[tuple[int, int]]:
    """Pieces of one token."""
    return [(i, i + 1) for i in range(begin, end)]


def head_inputs(head: str, length: int = 100, pad_token: int = 1) -> dict[str, Tensor]:
    """input_ids with padding and attention_mask, with boxes where pages are read, in the shape that the head takes."""
    mask = padding(3, length)
    base = next((base for base, family in TEXT_FAMILIES.items() if head in family.model_classes), None)
    pages = {} if base is None else TEXT_FAMILIES[base].spec.further_inputs(plain_config(base), 3, length)
    inputs = {"input_ids": torch.where(mask.bool(), tokens(3, length), pad_token), "attention_mask": mask, **pages}
    if head.endswith(("MultipleChoice", "DoubleHeadsModel")):
        return {name: value[:, None].expand(-1, 2, -1).contiguous() for name, value in inputs.items()}
    return inputs


def checkpoint_activations(model: PreTrainedModel, **options: Any) -> None:
    """Compute activations again in the backward pass; the method's first name is deprecated since transformers
    5.23."""
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)(options or None)
