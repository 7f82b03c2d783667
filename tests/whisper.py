"""A tiny Whisper that hears a second at a time, with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AddedToken, GenerationConfig, WhisperConfig, WhisperForConditionalGeneration

from tests.modeling.audio_models import whisper_processor

RATE = 16_000
SIZES: dict[str, Any] = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "vocab_size": 99,
    "num_mel_bins": 16,
    "max_source_positions": 50,
    "max_target_positions": 40,
    "pad_token_id": 1,
    "bos_token_id": 2,
    "eos_token_id": 2,
    "decoder_start_token_id": 3,
    "begin_suppress_tokens": None,
    "init_std": 0.3,
    "classifier_proj_size": 8,
}
"""Sizes of the model, which hears a second at a time."""


def whisper_checkpoint(folder: Path, seconds: int = 1, **config: Any) -> str:
    """A Whisper that hears so many seconds, with a token for each character and timestamps."""
    processor = whisper_processor(16, seconds)
    tokenizer = processor.tokenizer
    tokenizer.add_tokens([AddedToken(f"<|{step * 0.02:.2f}|>", special=False) for step in range(50 * seconds + 1)])
    end, begin, no_times = tokenizer.convert_tokens_to_ids(
        ["<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>"]
    )
    ends = {"pad_token_id": end, "bos_token_id": end, "eos_token_id": end, "decoder_start_token_id": begin}
    sizes = {"vocab_size": len(tokenizer), "max_source_positions": 50 * seconds, "dropout": 0.0}
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(WhisperConfig(**{**SIZES, **sizes, **ends, **config}))
    times = {"no_timestamps_token_id": no_times, "max_initial_timestamp_index": 50, "prev_sot_token_id": begin}
    limits = {"max_length": SIZES["max_target_positions"], "is_multilingual": False, "return_timestamps": False}
    model.generation_config = GenerationConfig(**ends, **times, **limits)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)
