"""A tokenizer of bytes, whose lengths are easy to check, and small models for it."""

from __future__ import annotations

from typing import Any

import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

import hf_longattn

SPECIAL = ("[PAD]", "[CLS]", "[SEP]", "[MASK]")


def byte_tokenizer() -> Any:
    """One token a byte, between [CLS] and [SEP]."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({one: number for number, one in enumerate([*SPECIAL, *alphabet])}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]"
    )


def small_decoder(**attention: Any) -> Any:
    """A Llama with random weights, long if a mechanism is given."""
    shape: dict[str, Any] = {
        "vocab_size": 260,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 48,
        "max_position_embeddings": 4096,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "initializer_range": 0.3,
    }
    if not attention:
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape)).eval()
    return hf_longattn.LongLlamaForCausalLM(hf_longattn.LongLlamaConfig(**shape, long_attention=attention)).eval()


def small_encoder(head: str, positions: int = 600) -> Any:
    config = transformers.BertConfig(
        vocab_size=260,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=positions,
        pad_token_id=0,
    )
    return getattr(transformers, f"BertFor{head}")(config).eval()
