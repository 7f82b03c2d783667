"""Small long models, and the options with which mechanisms are those of a stock architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from hf_longattn.families import FAMILIES
from scripts.dev.tools.small_models import Shape, language_model, small_values

STOCK: dict[str, dict[str, Any]] = {
    "bigbird": {"random_pattern": "hf_eval", "blocks_over": "input", "block_size": 4, "num_random_blocks": 1},
    "longformer": {"global_tokens": [], "window": 8},
    "window": {"window": 8},
}
"""Options with which a mechanism is one of transformers'."""
ONES = ("bart", "camembert", "esm", "mbart", "roberta", "xlm-roberta")
"""Bases whose padding token is 1."""
ANSWER = {
    "bos_token_id": 3,
    "eos_token_id": 2,
    "sep_token_id": 2,
    "cls_token_id": 3,
    "decoder_start_token_id": 2,
    "mask_token_id": 4,
}
SCALE = {"init_std": 0.2, "initializer_range": 0.2, "hidden_act": "gelu"}
"""Larger weights than usual, so that attention shows in the outputs; BERT's activation in every encoder."""


def long_attention(mechanism: str) -> dict[str, Any]:
    """A mechanism as a stock architecture has it, where one does."""
    return {"mechanism": mechanism, **STOCK.get(mechanism, {})}


def long_values(base: str) -> dict[str, Any]:
    """The values of the config of a small long model."""
    padding = {"pad_token_id": 1 if base in ONES else 0}
    activation = {} if base.startswith(("gemma", "llama", "mistral", "qwen", "smol", "phi")) else SCALE
    return small_values(
        base, Shape(), **padding, **ANSWER, **{**activation, "init_std": 0.2, "initializer_range": 0.2}
    )


def save_long(folder: Path, base: str, attention: Any, head: str | None = None, **changes: Any) -> None:
    """Save a small long model with random weights."""
    family = FAMILIES[base]
    torch.manual_seed(0)
    config: Any = family.config_class(**{**long_values(base), "long_attention": attention, **changes})
    model = family.model_class(family.model_classes[head or language_model(base)])(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1 or "conv" in name:  # biases and norms, which are initialised to constants
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
