"""Small models with an encoder and a decoder: 96 positions each, two layers each, the decoder with fewer heads and a
narrower layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

import hf_longattn.families as families
from scripts.dev.tools.small_models import IN_FULL, language_model
from tests.reference import small_models
from tests.reference.small_models import TOKENS, tokens

APART = ("bigbird_pegasus", "t5", "mt5", "whisper")
"""Their attention is their own, or what they read, and so are their tests."""
BASES = tuple(base for base in IN_FULL if families.FAMILIES[base].two_stacks and base not in APART)
GENERATING = {base: language_model(base) for base in BASES}
ROWS = 96
CHANGES: dict[str, Any] = {
    "encoder_layers": 2,
    "decoder_layers": 2,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 40,
    "max_position_embeddings": ROWS,
    "dropout": 0.0,
    "decoder_start_token_id": TOKENS["eos_token_id"],
    "forced_eos_token_id": None,
}
WHOLE = ("ForCausalLM", "EncoderModel", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
"""Heads that read the text alone."""
COVERING = {"mechanism": "window", "window": 4096}


def plain_model(base: str, head: str | None = None, **changes: Any) -> Any:
    return small_models.plain_model(base, head, **{**CHANGES, **changes})


def long_config(base: str, long_attention: Any, **changes: Any) -> Any:
    return small_models.long_config(base, long_attention, **{**CHANGES, **changes})


def long_like(plain: Any, base: str, long_attention: Any, **changes: Any) -> Any:
    """The Long model of ``plain``'s class with the same weights."""
    return small_models.long_like(plain, base, long_attention, **{**CHANGES, **changes})


def on_the_fly(folder: Path, base: str, **values: Any) -> Any:
    config = families.FAMILIES[base].config_class.from_pretrained(folder, **values)
    return transformers.AutoModelForSeq2SeqLM.from_pretrained(folder, config=config)


def inputs_of(head: str = "", length: int = 40) -> dict[str, Tensor]:
    """Two texts, the second shorter, with one end token each."""
    ids = tokens(2, length)
    mask = torch.ones(2, length, dtype=torch.long)
    mask[1, length - 11 :] = 0
    ids = torch.where(mask.bool(), ids, TOKENS["pad_token_id"])
    ids[0, -1] = ids[1, length - 12] = TOKENS["eos_token_id"]
    inputs = {"input_ids": ids, "attention_mask": mask}
    return inputs if head.endswith(WHOLE) else {**inputs, "decoder_input_ids": tokens(2, 9, seed=2)}
