"""A small checkpoint of any family, whatever families there are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hf_longattn.families import FAMILIES
from scripts.dev.tools.small_models import (
    Shape,
    language_model,
    small_audio_config,
    small_config,
    small_image_config,
    small_towers_config,
)

Short = Callable[[str, str], Path]
TOKENS = {"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3, "sep_token_id": 3, "decoder_start_token_id": 2}


def config_of(base: str) -> Any:
    """A small config with fewer keys than queries, where the architecture has that, and with full attention."""
    return small_config(base, num_key_value_heads=2, attention_type="original_full", **TOKENS)


def source_config(base: str) -> Any:
    """A small config of any base, of texts, of images, of sound or of several towers."""
    if FAMILIES[base].towers:
        return small_towers_config(base, Shape(layers=2))
    if FAMILIES[base].spec.reads == "sound":
        return small_audio_config(base, Shape(layers=2))
    return small_image_config(base, Shape(layers=4)) if FAMILIES[base].spec.reads == "grid" else config_of(base)


def head_of(base: str, ending: str = "") -> str:
    """The class with this ending, or else the one that predicts tokens."""
    return next((head for head in FAMILIES[base].model_classes if ending and head.endswith(ending)), language_model(base))
