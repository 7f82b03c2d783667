"""A small checkpoint of any family, whatever families there are."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from hf_longattn.families import FAMILIES

Short = Callable[[str, str], Path]
LENGTH = 64
WIDTHS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 99, "head_dim": 8}
STACKS = {f"{stack}_{name}": n for stack in ("encoder", "decoder") for name, n in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 48))}
OTHERS = {"num_key_value_heads": 2, "embedding_size": 20, "attention_type": "original_full", "ffn_dim": 48, "word_embed_proj_dim": 32}
TOKENS = {"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3, "sep_token_id": 3, "decoder_start_token_id": 2}
HEADS = ("ForMaskedLM", "LMHeadModel", "ForConditionalGeneration", "ForCausalLM", "ForQuestionAnswering", "ForSequenceClassification")
NOT_AS_IT_IS = ("nystromformer",)
"""Bases whose checkpoints must be converted first, and say so."""


def small_config(base: str) -> Any:
    """A small config of any architecture, from those of the usual fields that it has."""
    family, config_class = FAMILIES[base], CONFIG_MAPPING[base]
    table = next(iter(family.position_tables), None)
    wanted = {**WIDTHS, **STACKS, **OTHERS, **TOKENS, "max_position_embeddings": LENGTH if table is None else table.config_value(LENGTH)}
    known = {*inspect.signature(config_class.__init__).parameters, *getattr(config_class, "__dataclass_fields__", ())}
    known |= set(getattr(config_class, "attribute_map", {}))
    return config_class(**{name: value for name, value in wanted.items() if name in known})


def head_of(base: str, prefer: str = "") -> str:
    heads = list(FAMILIES[base].heads)
    return next(head for ending in (prefer, *HEADS, "Model") if ending for head in heads if head.endswith(ending))
